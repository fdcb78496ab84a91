//! How large an effect is, at a sample size fixed beforehand, with its interval.
//!
//! These intervals hold once, at the planned end; whoever looks earlier uses [`crate::sequential`]. Every
//! function takes `treatment` and `control` in this order and `error`, the two-sided chance that the
//! interval misses the truth (0.05 for 95%).

use serde::{Deserialize, Serialize};

use crate::error::{at_least, finite, open_unit};
use crate::moments::{Moments, Proportion};
use crate::special::{ln_gamma, normal_quantile, student_upper};
use crate::{Error, Interval};

/// An estimated quantity and how well it is known; what [`crate::sequential`] follows over time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate, in the quantity's unit.
    pub value: f64,
    /// Its variance (the standard error's square), ≥ 0.
    pub variance: f64,
    /// The observations behind it: of one sample, its size; of two, their [`balanced_size`].
    pub size: f64,
}

impl Estimate {
    /// # Errors
    /// [`Error::NotFinite`]; [`Error::OutOfRange`] for a negative variance or a size below 1.
    pub fn try_new(value: f64, variance: f64, size: f64) -> Result<Self, Error> {
        finite("estimate.value", value)?;
        if finite("estimate.variance", variance)? < 0.0 {
            return Err(Error::OutOfRange {
                field: "estimate.variance",
                value: variance,
                range: "0 or above",
            });
        }
        if finite("estimate.size", size)? < 1.0 {
            return Err(Error::OutOfRange {
                field: "estimate.size",
                value: size,
                range: "1 or above",
            });
        }
        Ok(Self {
            value,
            variance,
            size,
        })
    }
}

/// The harmonic mean 2 / (1/n₁ + 1/n₂): how large each of two equal arms would be that know a difference
/// equally well.
#[must_use]
pub fn balanced_size(one: u64, other: u64) -> f64 {
    2.0 / (1.0 / one.max(1) as f64 + 1.0 / other.max(1) as f64)
}

/// What an [`Effect`] measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Difference of means, in the outcome's unit.
    MeanDifference,
    /// Difference of success rates, in [−1, 1].
    RiskDifference,
    /// Ratio of success rates, > 0.
    RiskRatio,
    /// Ratio of means, > 0.
    MeanRatio,
    /// Cohen's h: difference of arcsine-transformed rates; 0.2 small, 0.5 medium, 0.8 large.
    CohenH,
    /// Hedges' g: mean difference in standard deviations, small-sample bias removed.
    HedgesG,
}

/// An effect size with its interval; never a bare p-value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Effect {
    /// What it measures.
    pub kind: Kind,
    /// Its estimate.
    pub value: f64,
    /// Where the truth lies but for the chance `error`.
    pub interval: Interval,
}

/// x̄₁ − x̄₂ with Welch's (1947) interval: t quantile at the Welch–Satterthwaite degrees of freedom.
/// Assumes means near to normal: independent units, no single one that dominates.
///
/// # Errors
/// [`Error::TooFew`] below two observations in an arm; [`Error::OutOfRange`] for `error` outside (0, 1).
pub fn mean_difference(treatment: &Moments, control: &Moments, error: f64) -> Result<Effect, Error> {
    open_unit("error", error)?;
    let (one, other) = (
        treatment.variance()? / treatment.count() as f64,
        control.variance()? / control.count() as f64,
    );
    let value = treatment.mean() - control.mean();
    let sum = one + other;
    let squares = one * one / (treatment.count() - 1) as f64 + other * other / (control.count() - 1) as f64;
    // Without any spread the interval is the point.
    let radius = if squares > 0.0 {
        student_upper(0.5 * error, sum * sum / squares) * sum.sqrt()
    } else {
        0.0
    };
    Ok(Effect {
        kind: Kind::MeanDifference,
        value,
        interval: Interval::around(value, radius),
    })
}

/// p₁ − p₂ with Newcombe's (1998, method 10) interval, from the two Wilson intervals; it holds for rates
/// near 0 and 1 and for small arms, where the textbook's fails.
///
/// # Errors
/// [`Error::TooFew`] for an empty arm; [`Error::OutOfRange`] for `error` outside (0, 1).
pub fn risk_difference(treatment: &Proportion, control: &Proportion, error: f64) -> Result<Effect, Error> {
    let (p, q) = (treatment.rate()?, control.rate()?);
    let (one, other) = (wilson(treatment, error)?, wilson(control, error)?);
    let value = p - q;
    let interval = Interval {
        low: value - (p - one.low).hypot(other.high - q),
        high: value + (one.high - p).hypot(q - other.low),
    };
    Ok(Effect {
        kind: Kind::RiskDifference,
        value,
        interval,
    })
}

/// Wilson's (1927) interval of one rate.
///
/// # Errors
/// As [`risk_difference`].
pub fn wilson(seen: &Proportion, error: f64) -> Result<Interval, Error> {
    open_unit("error", error)?;
    let (n, p) = (seen.trials() as f64, seen.rate()?);
    let z = -normal_quantile(0.5 * error);
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let radius = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    Ok(Interval::around(centre, radius).within(0.0, 1.0))
}

/// p₁ / p₂ with Katz's (1978) interval on the logarithm, variance 1/s₁ − 1/n₁ + 1/s₂ − 1/n₂. If an arm has no
/// success, ½ is added to both arms' successes and trials (Walter 1975).
///
/// # Errors
/// As [`risk_difference`].
pub fn risk_ratio(treatment: &Proportion, control: &Proportion, error: f64) -> Result<Effect, Error> {
    open_unit("error", error)?;
    at_least("treatment", treatment.trials(), 1)?;
    at_least("control", control.trials(), 1)?;
    let is_bare = treatment.successes() == 0 || control.successes() == 0;
    let add = if is_bare { 0.5 } else { 0.0 };
    let parts = |seen: &Proportion| (seen.successes() as f64 + add, seen.trials() as f64 + add);
    let ((s, n), (t, m)) = (parts(treatment), parts(control));
    let variance = 1.0 / s - 1.0 / n + 1.0 / t - 1.0 / m;
    Ok(from_logarithm(
        Kind::RiskRatio,
        (s / n / (t / m)).ln(),
        variance,
        error,
    ))
}

/// x̄₁ / x̄₂ by the delta method on the logarithm, variance s₁²/(n₁x̄₁²) + s₂²/(n₂x̄₂²). For outcomes that
/// are positive by nature, such as latency or tokens.
///
/// # Errors
/// [`Error::OutOfRange`] for a mean not above 0 or `error` outside (0, 1); [`Error::TooFew`] below two
/// observations in an arm.
pub fn mean_ratio(treatment: &Moments, control: &Moments, error: f64) -> Result<Effect, Error> {
    open_unit("error", error)?;
    let relative = |field, seen: &Moments| -> Result<f64, Error> {
        let mean = crate::error::positive(field, seen.mean())?;
        Ok(seen.variance()? / seen.count() as f64 / (mean * mean))
    };
    let variance = relative("treatment.mean", treatment)? + relative("control.mean", control)?;
    Ok(from_logarithm(
        Kind::MeanRatio,
        (treatment.mean() / control.mean()).ln(),
        variance,
        error,
    ))
}

fn from_logarithm(kind: Kind, logarithm: f64, variance: f64, error: f64) -> Effect {
    let radius = -normal_quantile(0.5 * error) * variance.max(0.0).sqrt();
    let interval = Interval {
        low: (logarithm - radius).exp(),
        high: (logarithm + radius).exp(),
    };
    Effect {
        kind,
        value: logarithm.exp(),
        interval,
    }
}

/// Cohen's h = 2 asin √p₁ − 2 asin √p₂ (Cohen 1988, ch. 6), variance 1/n₁ + 1/n₂.
///
/// # Errors
/// As [`risk_difference`].
pub fn cohen_h(treatment: &Proportion, control: &Proportion, error: f64) -> Result<Effect, Error> {
    open_unit("error", error)?;
    let angle = |rate: f64| 2.0 * rate.sqrt().asin();
    let value = angle(treatment.rate()?) - angle(control.rate()?);
    let deviation = (1.0 / treatment.trials() as f64 + 1.0 / control.trials() as f64).sqrt();
    let interval = Interval::around(value, -normal_quantile(0.5 * error) * deviation);
    Ok(Effect {
        kind: Kind::CohenH,
        value,
        interval,
    })
}

/// Hedges' g = J (x̄₁ − x̄₂) / s_pooled with J = Γ(f/2) / (√(f/2) Γ((f − 1)/2)), f = n₁ + n₂ − 2 (Hedges 1981),
/// and the large-sample variance (n₁ + n₂)/(n₁n₂) + g²/2(n₁ + n₂) (Hedges & Olkin 1985, ch. 5).
///
/// # Errors
/// [`Error::TooFew`] below two observations in an arm; [`Error::Constant`] if nothing varies;
/// [`Error::OutOfRange`] for `error` outside (0, 1).
pub fn hedges_g(treatment: &Moments, control: &Moments, error: f64) -> Result<Effect, Error> {
    open_unit("error", error)?;
    at_least("treatment", treatment.count(), 2)?;
    at_least("control", control.count(), 2)?;
    let (n, m) = (treatment.count() as f64, control.count() as f64);
    let freedom = n + m - 2.0;
    let pooled = (treatment.squares() + control.squares()) / freedom;
    if pooled <= 0.0 {
        return Err(Error::Constant { field: "outcome" });
    }
    let correction =
        (ln_gamma(0.5 * freedom) - ln_gamma(0.5 * (freedom - 1.0))).exp() / (0.5 * freedom).sqrt();
    let value = correction * (treatment.mean() - control.mean()) / pooled.sqrt();
    let variance = (n + m) / (n * m) + value * value / (2.0 * (n + m));
    let interval = Interval::around(value, -normal_quantile(0.5 * error) * variance.sqrt());
    Ok(Effect {
        kind: Kind::HedgesG,
        value,
        interval,
    })
}

#[cfg(test)]
mod tests;
