//! Means under adaptive assignment, with its bias taken out.
//!
//! An arm that starts unluckily is tried less, so its bad start is never averaged away: the plain mean of
//! an adaptively assigned arm is biased downwards (Nie et al. 2018). Weighting each outcome by the inverse of
//! its logged propensity restores the mean (Horvitz & Thompson 1952).

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::effect::Estimate;
use crate::error::{at_least, finite, positive};
use crate::moments::Moments;

/// How outcomes are weighted; to be fixed before the first outcome.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedSettings {
    /// Propensities below this count as this, in (0, 1]. Clipping trades variance for a bias towards the
    /// baseline; at or below [`super::Thompson::floor`] it never acts.
    pub clip: f64,
    /// A guess at the outcome's mean, in its unit: what is weighted is the distance from it, which
    /// changes nothing in expectation and much in variance.
    pub baseline: f64,
}

/// Inverse-propensity weighted sums of every arm; mergeable, serialisable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weighted {
    settings: WeightedSettings,
    /// For each arm over *all* decisions: (y − baseline) / max(p, clip) if it was drawn, else 0.
    terms: Vec<Moments>,
    clipped: u64,
}

impl Weighted {
    /// Empty sums for `arms` arms.
    ///
    /// # Errors
    /// [`Error::TooFew`] below two arms; [`Error::NotFinite`] or [`Error::OutOfRange`] for bad settings.
    pub fn try_new(arms: usize, settings: WeightedSettings) -> Result<Self, Error> {
        at_least("weighted.arms", arms as u64, 2)?;
        check_propensity("weighted.clip", settings.clip)?;
        finite("weighted.baseline", settings.baseline)?;
        Ok(Self {
            settings,
            terms: vec![Moments::default(); arms],
            clipped: 0,
        })
    }

    /// Adds one decision: the arm drawn, the propensity logged with it, its outcome.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an unknown arm or a propensity outside (0, 1]; [`Error::NotFinite`] or
    /// [`Error::Overflow`] for the outcome.
    pub fn push(&mut self, arm: usize, propensity: f64, outcome: f64) -> Result<(), Error> {
        check_propensity("propensity", propensity)?;
        finite("outcome", outcome)?;
        if arm >= self.terms.len() {
            return Err(Error::OutOfRange {
                field: "arm",
                value: arm as f64,
                range: "one of the arms' positions",
            });
        }
        let mut next = self.terms.clone();
        for (at, terms) in next.iter_mut().enumerate() {
            let distance = (outcome - self.settings.baseline) / propensity.max(self.settings.clip);
            terms.push(if at == arm { distance } else { 0.0 })?;
        }
        self.terms = next;
        self.clipped += u64::from(propensity < self.settings.clip);
        Ok(())
    }

    /// Adds what another has seen.
    ///
    /// # Errors
    /// [`Error::Length`] for another number of arms, [`Error::OutOfRange`] for another baseline or clip,
    /// [`Error::Overflow`].
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        if other.terms.len() != self.terms.len() {
            let (got, expected) = (other.terms.len(), self.terms.len());
            return Err(Error::Length {
                field: "weighted.arms",
                got,
                expected,
            });
        }
        if other.settings != self.settings {
            let (field, range) = ("weighted.baseline", "the same, with the same clip, in both sums");
            return Err(Error::OutOfRange {
                field,
                value: other.settings.baseline,
                range,
            });
        }
        let mut next = self.terms.clone();
        for (terms, others) in next.iter_mut().zip(&other.terms) {
            terms.merge(others)?;
        }
        self.terms = next;
        self.clipped = self.clipped.saturating_add(other.clipped);
        Ok(())
    }

    /// How many decisions were clipped, of all.
    #[must_use]
    pub fn clipped(&self) -> u64 {
        self.clipped
    }

    /// One arm's mean: baseline + mean(terms), with variance s²(terms) / n over all n decisions.
    /// Unbiased where nothing was clipped. The variance is a martingale's; with a floor on the
    /// propensities and many decisions the estimate is near to normal (Hadad et al. 2021 discuss when not).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an unknown arm, [`Error::TooFew`] below two decisions.
    pub fn mean(&self, arm: usize) -> Result<Estimate, Error> {
        let terms = self.of(arm)?;
        let n = terms.count();
        Estimate::try_new(
            self.settings.baseline + terms.mean(),
            terms.variance()? / n as f64,
            n as f64,
        )
    }

    /// Mean of `treatment` less mean of `control`. A decision has a term in one arm only, so the terms'
    /// covariance is −t̄₁t̄₂ and the variance (s₁² + s₂² + 2 t̄₁t̄₂ · n/(n − 1)) / n.
    ///
    /// # Errors
    /// As [`Weighted::mean`].
    pub fn difference(&self, treatment: usize, control: usize) -> Result<Estimate, Error> {
        let (one, other) = (self.of(treatment)?, self.of(control)?);
        let n = one.count() as f64;
        let crossed = 2.0 * one.mean() * other.mean() * n / (n - 1.0).max(1.0);
        let variance = (one.variance()? + other.variance()? + crossed) / n;
        Estimate::try_new(one.mean() - other.mean(), variance.max(0.0), n)
    }

    fn of(&self, arm: usize) -> Result<&Moments, Error> {
        let range = "one of the arms' positions";
        self.terms.get(arm).ok_or(Error::OutOfRange {
            field: "arm",
            value: arm as f64,
            range,
        })
    }
}

fn check_propensity(field: &'static str, value: f64) -> Result<f64, Error> {
    if positive(field, value)? <= 1.0 {
        Ok(value)
    } else {
        Err(Error::OutOfRange {
            field,
            value,
            range: "above 0 and at most 1",
        })
    }
}
