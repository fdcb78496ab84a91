//! Variance reduction by what was known before (CUPED: Deng, Xu, Kohavi & Walker 2013).
//!
//! If a unit's outcome goes along with a covariate from before the experiment (its own rate of the months
//! before, the query's length), the part of the outcome that the covariate explains is noise in the
//! comparison and is taken off. The estimate stays unbiased, because assignment cannot change the past; a
//! covariate measured *after* assignment would bias it.

use serde::Serialize;

use crate::Error;
use crate::effect::{Estimate, balanced_size};
use crate::error::at_least;
use crate::moments::PairedMoments;

/// A difference of means with the covariate's part taken off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Adjusted {
    /// The adjusted difference, treatment less control, in the outcome's unit; for
    /// [`crate::sequential::Sequential::interval`].
    pub estimate: Estimate,
    /// θ, in outcome per covariate unit.
    pub slope: f64,
    /// Adjusted over unadjusted variance, near 1 − ρ².
    pub variance_ratio: f64,
}

/// (ȳ₁ − ȳ₂) − θ (x̄₁ − x̄₂), with θ = cov(x, y) / var(x) pooled within the arms, and variance
/// Σ (s_y² + θ² s_x² − 2 θ s_xy) / n over both arms (Deng et al. 2013, §3.2); θ's own error is of lower order.
///
/// # Errors
/// [`Error::TooFew`] below `burn_in` (at least 3) units in an arm; [`Error::Constant`] for a covariate or
/// an outcome that does not vary.
pub fn difference_of_means(
    treatment: &PairedMoments,
    control: &PairedMoments,
    burn_in: u64,
) -> Result<Adjusted, Error> {
    for (field, arm) in [("treatment", treatment), ("control", control)] {
        at_least(field, arm.outcome().count(), burn_in.max(3))?;
    }
    let spread = treatment.covariate().squares() + control.covariate().squares();
    if spread <= 0.0 {
        return Err(Error::Constant { field: "covariate" });
    }
    let freedom = |arm: &PairedMoments| (arm.outcome().count() - 1) as f64;
    let products = treatment.covariance()? * freedom(treatment) + control.covariance()? * freedom(control);
    let slope = products / spread;
    let (mut plain, mut adjusted) = (0.0, 0.0);
    for arm in [treatment, control] {
        let (n, variance) = (arm.outcome().count() as f64, arm.outcome().variance()?);
        let taken_off = slope * slope * arm.covariate().variance()? - 2.0 * slope * arm.covariance()?;
        plain += variance / n;
        adjusted += (variance + taken_off).max(0.0) / n;
    }
    if plain <= 0.0 {
        return Err(Error::Constant { field: "outcome" });
    }
    let value = (treatment.outcome().mean() - control.outcome().mean())
        - slope * (treatment.covariate().mean() - control.covariate().mean());
    let size = balanced_size(treatment.outcome().count(), control.outcome().count());
    Ok(Adjusted {
        estimate: Estimate::try_new(value, adjusted, size)?,
        slope,
        variance_ratio: adjusted / plain,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(values: &[(f64, f64)]) -> PairedMoments {
        let mut moments = PairedMoments::default();
        for &(y, x) in values {
            moments.push(y, x).unwrap();
        }
        moments
    }

    #[test]
    fn an_outcome_that_follows_the_covariate_leaves_the_effect_alone() {
        // y = 2x + 5 for treatment, 2x for control: the means differ by 5 + 2·Δx̄, the effect is 5.
        let treatment = arm(&[(7.0, 1.0), (9.0, 2.0), (15.0, 5.0)]);
        let control = arm(&[(0.0, 0.0), (6.0, 3.0), (8.0, 4.0), (2.0, 1.0)]);
        let adjusted = difference_of_means(&treatment, &control, 3).unwrap();
        assert!((adjusted.estimate.value - 5.0).abs() < 1e-12);
        assert!((adjusted.slope - 2.0).abs() < 1e-12);
        assert!(adjusted.variance_ratio < 1e-12);
    }

    #[test]
    fn bad_input_is_named() {
        let good = arm(&[(1.0, 1.0), (2.0, 3.0), (3.0, 2.0)]);
        let flat = arm(&[(1.0, 7.0), (2.0, 7.0), (3.0, 7.0)]);
        assert!(matches!(
            difference_of_means(&flat, &flat, 3),
            Err(Error::Constant { field: "covariate" })
        ));
        let few = arm(&[(1.0, 1.0)]);
        assert!(matches!(
            difference_of_means(&good, &few, 3),
            Err(Error::TooFew { field: "control", .. })
        ));
        let still = arm(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]);
        assert!(matches!(
            difference_of_means(&still, &still, 3),
            Err(Error::Constant { field: "outcome" })
        ));
    }
}
