//! Adaptive assignment: an arm is tried as often as it is likely to be the best (Thompson 1933;
//! Russo et al. 2018, "A Tutorial on Thompson Sampling").
//!
//! The propensities come first and the draw second. The probability of being best is estimated once, from
//! seeded draws out of the posteriors; then the arm is drawn *with the estimated probabilities*. What is
//! logged is therefore exactly the probability of the draw, free of Monte Carlo error, which is what
//! makes [`super::Weighted`] unbiased. A floor keeps every propensity away from zero, and with it the
//! weights' variance finite.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::{at_least, finite, positive, sums_to_one};
use crate::moments::{Moments, Proportion};
use crate::random;

/// What is believed of one arm's mean. Larger is better; negate an outcome of which less is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Posterior {
    /// Of a success rate: Beta(a, b).
    Beta {
        /// Successes and prior, > 0.
        a: f64,
        /// Failures and prior, > 0.
        b: f64,
    },
    /// Of a Gaussian's mean, its variance unknown: mean + scale · Student(freedom).
    Student {
        /// In the outcome's unit.
        mean: f64,
        /// In the outcome's unit, > 0.
        scale: f64,
        /// Degrees of freedom, > 0.
        freedom: f64,
    },
}

/// The conjugate prior of a Gaussian outcome: normal-inverse-gamma.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianPrior {
    /// The mean guessed beforehand, in the outcome's unit.
    pub mean: f64,
    /// How many observations that guess is worth, > 0.
    pub strength: f64,
    /// The standard deviation guessed beforehand, in the outcome's unit, > 0; it counts as one
    /// observation, so that data soon outweigh it.
    pub deviation: f64,
}

impl Posterior {
    /// Of a success rate under the uniform prior: Beta(1 + successes, 1 + failures).
    #[must_use]
    pub fn bernoulli(seen: &Proportion) -> Self {
        let failures = seen.trials().saturating_sub(seen.successes());
        Self::Beta {
            a: 1.0 + seen.successes() as f64,
            b: 1.0 + failures as f64,
        }
    }

    /// Of a Gaussian mean. With prior mean m₀, strength κ₀ and shape ½, rate ½·deviation²:
    /// κ = κ₀ + n, m = (κ₀m₀ + n x̄) / κ, a = ½ + n/2, b = ½·deviation² + ½Σ(x − x̄)² + κ₀n(x̄ − m₀)² / 2κ;
    /// the mean is m + √(b / aκ) · Student(2a) (Murphy 2007, §3).
    ///
    /// # Errors
    /// [`Error::NotFinite`] or [`Error::OutOfRange`] for a bad prior.
    pub fn gaussian(seen: &Moments, prior: &GaussianPrior) -> Result<Self, Error> {
        finite("prior.mean", prior.mean)?;
        positive("prior.strength", prior.strength)?;
        positive("prior.deviation", prior.deviation)?;
        let n = seen.count() as f64;
        let strength = prior.strength + n;
        let shift = seen.mean() - prior.mean;
        let mean = prior.mean + n / strength * shift;
        let shape = 0.5 + 0.5 * n;
        let rate = 0.5 * (prior.deviation * prior.deviation + seen.squares())
            + 0.5 * prior.strength * n * shift * shift / strength;
        let scale = (rate / (shape * strength)).sqrt();
        Ok(Self::Student {
            mean,
            scale: positive("posterior.scale", scale)?,
            freedom: 2.0 * shape,
        })
    }

    fn check(&self) -> Result<(), Error> {
        match *self {
            Self::Beta { a, b } => positive("posterior.a", a).and(positive("posterior.b", b)),
            Self::Student { mean, scale, freedom } => finite("posterior.mean", mean)
                .and(positive("posterior.scale", scale))
                .and(positive("posterior.freedom", freedom)),
        }?;
        Ok(())
    }

    fn draw(&self, random: &mut ChaCha8Rng) -> f64 {
        match *self {
            Self::Beta { a, b } => random::beta(random, a, b),
            Self::Student { mean, scale, freedom } => mean + scale * random::student(random, freedom),
        }
    }
}

/// How propensities are computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thompson {
    /// Draws from each posterior, 1 or more; 1,000 know a propensity to ±0.03.
    pub draws: u32,
    /// The least propensity of any arm, above 0 and at most 1 / arms.
    pub floor: f64,
}

/// One adaptive decision, to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The arm's position.
    pub arm: usize,
    /// The probability with which it was drawn.
    pub propensity: f64,
    /// The seed it was drawn with: the same seed and propensities give the same arm.
    pub seed: u64,
}

impl Thompson {
    /// For each arm, floor + (1 − arms · floor) · (share of draws in which it is best). Adds up to 1.
    /// Recompute when outcomes have come in, by the hour or the hundred, not at every query.
    ///
    /// # Errors
    /// [`Error::TooFew`] below two arms or without draws; [`Error::NotFinite`] or [`Error::OutOfRange`]
    /// for a bad floor or posterior.
    pub fn propensities(&self, arms: &[Posterior], seed: u64) -> Result<Vec<f64>, Error> {
        at_least("thompson.arms", arms.len() as u64, 2)?;
        at_least("thompson.draws", u64::from(self.draws), 1)?;
        positive("thompson.floor", self.floor)?;
        let count = arms.len() as f64;
        if self.floor * count > 1.0 {
            return Err(Error::OutOfRange {
                field: "thompson.floor",
                value: self.floor,
                range: "at most 1 / arms",
            });
        }
        for arm in arms {
            arm.check()?;
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut wins = vec![0u32; arms.len()];
        for _ in 0..self.draws {
            let mut best = (0, f64::NEG_INFINITY);
            for (at, arm) in arms.iter().enumerate() {
                let value = arm.draw(&mut random);
                if value > best.1 {
                    best = (at, value);
                }
            }
            wins[best.0] += 1;
        }
        let spread = (1.0 - count * self.floor) / f64::from(self.draws);
        Ok(wins
            .into_iter()
            .map(|wins| self.floor + spread * f64::from(wins))
            .collect())
    }
}

/// Draws one arm with the given propensities. Give every decision a seed of its own that does not depend
/// on outcomes, such as a counter or a hash of its id; a seed used again would correlate decisions.
///
/// # Errors
/// [`Error::TooFew`], [`Error::NotFinite`], [`Error::OutOfRange`] or [`Error::WeightSum`] for bad
/// propensities.
pub fn choose(propensities: &[f64], seed: u64) -> Result<Choice, Error> {
    sums_to_one("propensities", propensities)?;
    let mut left: f64 = ChaCha8Rng::seed_from_u64(seed).random();
    let mut chosen = 0;
    for (arm, &propensity) in propensities
        .iter()
        .enumerate()
        .filter(|(_, propensity)| **propensity > 0.0)
    {
        // Kept so that a sum short of 1 by rounding still ends on an arm that can be drawn.
        chosen = arm;
        if left < propensity {
            break;
        }
        left -= propensity;
    }
    Ok(Choice {
        arm: chosen,
        propensity: propensities[chosen],
        seed,
    })
}
