//! What is kept of outcomes: a few sums for each arm, instead of the outcomes themselves.
//!
//! They take one observation at a time, merge (two replicas, two hours), and serialise. Means and squares
//! are kept as Welford (1962) and merged as Chan, Golub & LeVeque (1979), so that latencies in
//! nanoseconds lose no digits to cancellation. A failed `push` or `merge` leaves the sums as they were.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::{at_least, finite};

/// Count, mean and spread of one quantity, in its unit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Sums")]
pub struct Moments {
    count: u64,
    mean: f64,
    /// Σ (x − mean)².
    squares: f64,
}

/// [`Moments`] as they stand in a file, not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sums {
    count: u64,
    mean: f64,
    squares: f64,
}

impl TryFrom<Sums> for Moments {
    type Error = Error;

    fn try_from(sums: Sums) -> Result<Self, Error> {
        finite("moments.mean", sums.mean)?;
        if finite("moments.squares", sums.squares)? < 0.0 {
            return Err(Error::OutOfRange {
                field: "moments.squares",
                value: sums.squares,
                range: "0 or above",
            });
        }
        Ok(Self {
            count: sums.count,
            mean: sums.mean,
            squares: sums.squares,
        })
    }
}

impl Moments {
    /// Adds one observation.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a NaN or an infinity, [`Error::Overflow`] when the squares overflow.
    pub fn push(&mut self, value: f64) -> Result<(), Error> {
        finite("outcome", value)?;
        let count = self.count + 1;
        let delta = value - self.mean;
        let mean = self.mean + delta / count as f64;
        let squares = self.squares + delta * (value - mean);
        if !(mean.is_finite() && squares.is_finite()) {
            return Err(Error::Overflow {
                field: "outcome",
                value,
            });
        }
        *self = Self { count, mean, squares };
        Ok(())
    }

    /// Adds what another has seen; the order of merging changes only rounding.
    ///
    /// # Errors
    /// [`Error::Overflow`] when the squares overflow.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        if other.count == 0 {
            return Ok(());
        }
        let count = self.count.saturating_add(other.count);
        let share = other.count as f64 / count as f64;
        let delta = other.mean - self.mean;
        let mean = self.mean + delta * share;
        let squares = self.squares + other.squares + delta * delta * share * self.count as f64;
        if !(mean.is_finite() && squares.is_finite()) {
            return Err(Error::Overflow {
                field: "outcome",
                value: other.mean,
            });
        }
        *self = Self { count, mean, squares };
        Ok(())
    }

    /// How many observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; 0 when there are none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Σ (x − x̄)².
    pub(crate) fn squares(&self) -> f64 {
        self.squares
    }

    /// Their sample variance, Σ(x − x̄)² / (n − 1), in the square of the outcome's unit.
    ///
    /// # Errors
    /// [`Error::TooFew`] below two observations.
    pub fn variance(&self) -> Result<f64, Error> {
        at_least("arm", self.count, 2)?;
        Ok(self.squares / (self.count - 1) as f64)
    }
}

/// Successes among trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Counts")]
pub struct Proportion {
    successes: u64,
    trials: u64,
}

/// [`Proportion`] as it stands in a file, not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    successes: u64,
    trials: u64,
}

impl TryFrom<Counts> for Proportion {
    type Error = Error;

    fn try_from(counts: Counts) -> Result<Self, Error> {
        Self::try_new(counts.successes, counts.trials)
    }
}

impl Proportion {
    /// From counts.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for more successes than trials.
    pub fn try_new(successes: u64, trials: u64) -> Result<Self, Error> {
        if successes > trials {
            return Err(Error::OutOfRange {
                field: "successes",
                value: successes as f64,
                range: "at most the number of trials",
            });
        }
        Ok(Self { successes, trials })
    }

    /// Adds one trial.
    pub fn push(&mut self, is_success: bool) {
        // Saturating: 2⁶⁴ trials are not reached, and a wrapped count would lie.
        self.trials = self.trials.saturating_add(1);
        self.successes = self
            .successes
            .saturating_add(u64::from(is_success))
            .min(self.trials);
    }

    /// Adds what another has seen.
    pub fn merge(&mut self, other: &Self) {
        self.trials = self.trials.saturating_add(other.trials);
        self.successes = self.successes.saturating_add(other.successes);
    }

    /// How many trials.
    #[must_use]
    pub fn trials(&self) -> u64 {
        self.trials
    }

    /// How many successes.
    #[must_use]
    pub fn successes(&self) -> u64 {
        self.successes
    }

    /// The share of successes, in [0, 1].
    ///
    /// # Errors
    /// [`Error::TooFew`] without trials.
    pub fn rate(&self) -> Result<f64, Error> {
        at_least("arm", self.trials, 1)?;
        Ok(self.successes as f64 / self.trials as f64)
    }
}

/// An outcome and its covariate (the same unit's value before the experiment), together.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "PairSums")]
pub struct PairedMoments {
    outcome: Moments,
    covariate: Moments,
    /// Σ (y − ȳ)(x − x̄).
    products: f64,
}

/// [`PairedMoments`] as they stand in a file, not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PairSums {
    outcome: Moments,
    covariate: Moments,
    products: f64,
}

impl TryFrom<PairSums> for PairedMoments {
    type Error = Error;

    fn try_from(sums: PairSums) -> Result<Self, Error> {
        let PairSums {
            outcome,
            covariate,
            products,
        } = sums;
        if outcome.count != covariate.count {
            return Err(Error::Length {
                field: "covariate.count",
                got: usize::try_from(covariate.count).unwrap_or(usize::MAX),
                expected: usize::try_from(outcome.count).unwrap_or(usize::MAX),
            });
        }
        // Cauchy–Schwarz, with room for rounding.
        let most = (outcome.squares.sqrt() * covariate.squares.sqrt()) * (1.0 + 1e-9);
        if finite("products", products)?.abs() > most {
            return Err(Error::OutOfRange {
                field: "products",
                value: products,
                range: "at most the root of both squares' product",
            });
        }
        Ok(Self {
            outcome,
            covariate,
            products,
        })
    }
}

impl PairedMoments {
    /// Adds one unit: its outcome and its covariate.
    ///
    /// # Errors
    /// [`Error::NotFinite`] or [`Error::Overflow`], as [`Moments::push`].
    pub fn push(&mut self, outcome: f64, covariate: f64) -> Result<(), Error> {
        let mut next = *self;
        next.outcome.push(outcome)?;
        next.covariate.push(covariate)?;
        next.products += (outcome - self.outcome.mean) * (covariate - next.covariate.mean);
        finite("outcome × covariate", next.products)?;
        *self = next;
        Ok(())
    }

    /// Adds what another has seen.
    ///
    /// # Errors
    /// [`Error::Overflow`] or [`Error::NotFinite`] when the sums overflow.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        let mut next = *self;
        next.outcome.merge(&other.outcome)?;
        next.covariate.merge(&other.covariate)?;
        if next.outcome.count > 0 {
            let weight = self.outcome.count as f64 * (other.outcome.count as f64 / next.outcome.count as f64);
            next.products += other.products
                + (other.outcome.mean - self.outcome.mean)
                    * (other.covariate.mean - self.covariate.mean)
                    * weight;
        }
        finite("outcome × covariate", next.products)?;
        *self = next;
        Ok(())
    }

    /// The outcome alone.
    #[must_use]
    pub fn outcome(&self) -> &Moments {
        &self.outcome
    }

    /// The covariate alone.
    #[must_use]
    pub fn covariate(&self) -> &Moments {
        &self.covariate
    }

    /// Their sample covariance, in outcome × covariate units.
    ///
    /// # Errors
    /// [`Error::TooFew`] below two units.
    pub fn covariance(&self) -> Result<f64, Error> {
        at_least("arm", self.outcome.count, 2)?;
        Ok(self.products / (self.outcome.count - 1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[(f64, f64)]) -> PairedMoments {
        let mut moments = PairedMoments::default();
        for &(y, x) in values {
            moments.push(y, x).unwrap();
        }
        moments
    }

    proptest! {
        #[test]
        fn merging_is_the_same_as_seeing_all(
            values in prop::collection::vec((-1e6f64..1e6, -1e3f64..1e3), 2..60), cut in 0usize..60,
        ) {
            let cut = cut.min(values.len());
            let mut merged = of(&values[..cut]);
            merged.merge(&of(&values[cut..])).unwrap();
            let whole = of(&values);
            prop_assert_eq!(merged.outcome().count(), whole.outcome().count());
            prop_assert!((merged.outcome().mean() - whole.outcome().mean()).abs() < 1e-6);
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + a.abs() + b.abs()) * 1e3;
            prop_assert!(close(merged.outcome().variance().unwrap(), whole.outcome().variance().unwrap()));
            prop_assert!(close(merged.covariance().unwrap(), whole.covariance().unwrap()));
        }

        #[test]
        fn serialising_keeps_them(values in prop::collection::vec((-1e6f64..1e6, -1e3f64..1e3), 0..40)) {
            let moments = of(&values);
            let text = serde_json::to_string(&moments).unwrap();
            let back: PairedMoments = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(back.outcome().count(), moments.outcome().count());
            prop_assert!((back.outcome().mean() - moments.outcome().mean()).abs() < 1e-9);
        }
    }

    #[test]
    fn a_large_offset_costs_no_digits() {
        let mut moments = Moments::default();
        for value in [4.0, 7.0, 13.0, 16.0] {
            moments.push(1e9 + value).unwrap();
        }
        assert!((moments.variance().unwrap() - 30.0).abs() < 1e-6);
    }

    #[test]
    fn bad_values_are_refused_and_leave_the_sums_alone() {
        let mut moments = of(&[(1.0, 2.0), (3.0, 5.0)]);
        let before = moments;
        assert!(matches!(
            moments.push(f64::NAN, 1.0),
            Err(Error::NotFinite { field: "outcome", .. })
        ));
        assert!(matches!(
            moments.push(1.0, f64::INFINITY),
            Err(Error::NotFinite { .. })
        ));
        assert!(matches!(moments.push(1e200, 1.0), Err(Error::Overflow { .. })));
        assert_eq!(moments, before);
        assert!(matches!(
            Moments::default().variance(),
            Err(Error::TooFew { got: 0, need: 2, .. })
        ));
        assert!(matches!(Proportion::default().rate(), Err(Error::TooFew { .. })));
        assert!(matches!(Proportion::try_new(3, 2), Err(Error::OutOfRange { .. })));
    }

    #[test]
    fn a_tampered_file_is_refused() {
        for text in [
            r#"{"count":2,"mean":1.0,"squares":-1.0}"#,
            r#"{"count":2,"mean":1.0,"squares":1.0,"x":1}"#,
        ] {
            assert!(serde_json::from_str::<Moments>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Proportion>(r#"{"successes":3,"trials":2}"#).is_err());
    }
}
