//! Always-valid inference: intervals and p-values that hold however often one looks.
//!
//! A 95% interval of the usual kind holds at one sample size fixed beforehand; whoever looks daily and
//! stops when zero is out is wrong far more often than one time in twenty. Here the chance that the
//! interval *ever* misses the truth is at most `error`, so that looking is free and stopping needs no plan.
//!
//! **Method.** The mixture sequential probability ratio test (Robbins 1970; Johari, Pekelis & Walsh 2015;
//! Johari et al. 2022, "Always Valid Inference", §5) with a normal mixture of variance τ² over the effect:
//! for an estimate θ̂ of variance V and x = τ²/V the evidence against θ₀ is
//!
//! Λ = (1 + x)^(−½) · exp(½ z² · x / (1 + x)),  z² = (θ̂ − θ₀)² / V,
//!
//! which under θ₀ exceeds 1/α with probability at most α, over all time (Ville's inequality). Inverting
//! Λ < 1/α gives the confidence sequence θ̂ ± √(V (1 + 1/x) ln((1 + x) / α²)) (Howard et al. 2021, §3.2). With V
//! estimated it is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas
//! (2024, Theorem 2.2).
//!
//! **Tuning.** τ² follows the data's own scale: x = x* · n/n*, with n* the planned size at which the interval
//! shall be tightest, and x* the solution of x = ln(1 + x) + 2 ln(1/α), which minimises the radius there. Any n* is
//! valid; one far off costs width. Nothing depends on the outcome's unit.
//!
//! **Assumptions.** Independent units; a stable effect (else the interval follows the average so far);
//! allocation that does not depend on outcomes (under adaptive allocation use the estimates of
//! [`crate::assign::Weighted`]). As the variance is estimated, the guarantee for means is asymptotic: no
//! interval is given before `burn_in`, and heavy tails need a longer one. The README states what simulations
//! measured.

use serde::{Deserialize, Serialize};

use crate::effect::{Estimate, balanced_size};
use crate::error::{at_least, finite, open_unit};
use crate::moments::{Moments, Proportion};
use crate::{Error, Interval};

mod power;

pub use power::{PowerPoint, power_curve};

/// How to look.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The chance of ever being wrong, in (0, 1); 0.05 for 95%.
    pub error: f64,
    /// The size (per arm) at which the interval shall be tightest, ≥ 1.
    pub planned: u64,
    /// The size (per arm) below which means have no interval yet, ≥ 2; 50 suits outcomes without heavy
    /// tails, several hundred suit latencies.
    pub burn_in: u64,
}

/// Checked [`Settings`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sequential {
    settings: Settings,
    /// x*: mixture variance over sampling variance at the planned size.
    spread: f64,
}

impl TryFrom<Settings> for Sequential {
    type Error = Error;

    /// # Errors
    /// [`Error::NotFinite`] or [`Error::OutOfRange`] for a bad error rate, [`Error::TooFew`] for a plan of
    /// nothing or a burn-in below 2.
    fn try_from(settings: Settings) -> Result<Self, Error> {
        let error = open_unit("sequential.error", settings.error)?;
        at_least("sequential.planned", settings.planned, 1)?;
        at_least("sequential.burn_in", settings.burn_in, 2)?;
        let logarithm = -2.0 * error.ln();
        // The map contracts by 1 / (1 + x), so few rounds reach the fixed point.
        let spread = (0..200).fold(logarithm.max(1.0), |x, _| x.ln_1p() + logarithm);
        Ok(Self { settings, spread })
    }
}

impl Sequential {
    /// The settings it was made from.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// x at a size.
    fn spread_at(&self, size: f64) -> f64 {
        self.spread * size / self.settings.planned as f64
    }

    /// How many standard errors the interval reaches at a size: √((1 + 1/x) ln((1 + x) / α²)).
    fn reach(&self, size: f64) -> f64 {
        let x = self.spread_at(size);
        ((1.0 + 1.0 / x) * (x.ln_1p() - 2.0 * self.settings.error.ln())).sqrt()
    }

    /// The interval that, with probability 1 − `error`, holds the truth at every look from the first to the
    /// last; in the estimate's unit. Everything while the variance is zero: without a spread seen, nothing
    /// is known of the precision.
    #[must_use]
    pub fn interval(&self, estimate: &Estimate) -> Interval {
        if estimate.variance > 0.0 {
            Interval::around(
                estimate.value,
                self.reach(estimate.size) * estimate.variance.sqrt(),
            )
        } else {
            Interval::EVERYTHING
        }
    }

    /// ln Λ, the evidence against the effect being `null`: above ln(1/α) it is rejected, exactly when
    /// [`Sequential::interval`] excludes it. 0 while the variance is zero.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a bad `null`.
    pub fn log_evidence(&self, estimate: &Estimate, null: f64) -> Result<f64, Error> {
        let distance = estimate.value - finite("null", null)?;
        if estimate.variance <= 0.0 {
            return Ok(0.0);
        }
        let x = self.spread_at(estimate.size);
        // Capped so that a huge distance stays a number.
        let squared = (distance * distance / estimate.variance).min(f64::MAX);
        Ok(0.5 * (squared * (x / (1.0 + x)) - x.ln_1p()))
    }

    /// One mean.
    ///
    /// # Errors
    /// [`Error::TooFew`] before the burn-in.
    pub fn mean(&self, seen: &Moments) -> Result<Estimate, Error> {
        at_least("arm", seen.count(), self.settings.burn_in)?;
        Estimate::try_new(
            seen.mean(),
            seen.variance()? / seen.count() as f64,
            seen.count() as f64,
        )
    }

    /// Mean of `treatment` less mean of `control`, V = s₁²/n₁ + s₂²/n₂.
    ///
    /// # Errors
    /// [`Error::TooFew`] before the burn-in of either arm.
    pub fn difference_of_means(&self, treatment: &Moments, control: &Moments) -> Result<Estimate, Error> {
        at_least("treatment", treatment.count(), self.settings.burn_in)?;
        at_least("control", control.count(), self.settings.burn_in)?;
        let variance =
            treatment.variance()? / treatment.count() as f64 + control.variance()? / control.count() as f64;
        let size = balanced_size(treatment.count(), control.count());
        Estimate::try_new(treatment.mean() - control.mean(), variance, size)
    }

    /// Success rate of `treatment` less that of `control`, from the first observation on: in the variance
    /// p̃(1 − p̃)/n the rate is p̃ = (s + ½)/(n + 1), so that arms with no success yet are not taken to be
    /// certain. The estimate itself is the plain difference.
    ///
    /// # Errors
    /// [`Error::TooFew`] for an empty arm.
    pub fn difference_of_proportions(
        &self,
        treatment: &Proportion,
        control: &Proportion,
    ) -> Result<Estimate, Error> {
        let value = treatment.rate()? - control.rate()?;
        let size = balanced_size(treatment.trials(), control.trials());
        Estimate::try_new(value, rate_variance(treatment) + rate_variance(control), size)
    }

    /// One success rate, with the variance of [`Sequential::difference_of_proportions`].
    ///
    /// # Errors
    /// [`Error::TooFew`] for an empty arm.
    pub fn proportion(&self, seen: &Proportion) -> Result<Estimate, Error> {
        Estimate::try_new(seen.rate()?, rate_variance(seen), seen.trials() as f64)
    }
}

fn rate_variance(seen: &Proportion) -> f64 {
    let n = seen.trials() as f64;
    let rate = (seen.successes() as f64 + 0.5) / (n + 1.0);
    rate * (1.0 - rate) / n
}

/// The strongest evidence so far, and from it the always-valid p-value. Serialisable: it is the one thing
/// to be kept between looks; evidence once seen does not fade when the estimate wanders back.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Monitor {
    strongest: f64,
}

impl Monitor {
    /// Takes note of a look's log evidence, of [`Sequential::log_evidence`] or [`crate::ratio::Ratio::log_evidence`].
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn observe(&mut self, log_evidence: f64) -> Result<(), Error> {
        self.strongest = self.strongest.max(finite("log_evidence", log_evidence)?);
        Ok(())
    }

    /// p = min(1, 1 / max Λ) over the looks so far (Johari et al. 2022, eq. 8): under the null it is ever at
    /// or below α with probability at most α. To be shown with an interval, never alone.
    #[must_use]
    pub fn p_value(&self) -> f64 {
        (-self.strongest).exp().min(1.0)
    }
}

#[cfg(test)]
mod tests;
