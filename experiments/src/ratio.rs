//! Sample-ratio mismatch: whether arms get the units they should.
//!
//! If an arm of weight ½ holds 48% of the units, units were lost or moved on the way (time-outs of the
//! slower arm, an outcome logged for one arm only), and no comparison means anything (Fabijan et al. 2019).
//! Hence [`crate::report`] puts this before everything else.

use crate::Error;
use crate::error::{at_least, positive, sums_to_one};
use crate::special::{chi_square_tail, ln_gamma};

/// The sequential test: counts against the weights they should follow.
///
/// The evidence is the Bayes factor of a Dirichlet mixture over the arms' probabilities, with parameters
/// concentration × weight, against the weights themselves (Lindon & Malek 2022, "Anytime-Valid Inference
/// For Multinomial Count Data"). Exact at every sample size and every number of looks.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    weights: Vec<f64>,
    concentration: f64,
}

impl Ratio {
    /// `weights` are those of the arms in use; `concentration` > 0 says how near to them a mismatch is
    /// expected: its deviation is about √(w(1 − w)/concentration). 500 looks for ±2 points at ½.
    ///
    /// # Errors
    /// [`Error::TooFew`] below two arms; [`Error::WeightSum`]; [`Error::OutOfRange`] for a weight of 0 (leave
    /// the arm out) or a bad concentration; [`Error::NotFinite`].
    pub fn try_new(weights: Vec<f64>, concentration: f64) -> Result<Self, Error> {
        check(&weights)?;
        positive("ratio.concentration", concentration)?;
        Ok(Self {
            weights,
            concentration,
        })
    }

    /// ln of the Bayes factor: ln Γ(c) − ln Γ(c + n) + Σ [ln Γ(cwᵢ + nᵢ) − ln Γ(cwᵢ) − nᵢ ln wᵢ]. Above ln(1/α)
    /// the ratio is refuted at level α. To be given to a [`crate::sequential::Monitor`]. If the weights are
    /// changed, count anew from then on and add the log evidence of both periods.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one count for each weight.
    pub fn log_evidence(&self, counts: &[u64]) -> Result<f64, Error> {
        same_length(counts, &self.weights)?;
        let total: f64 = counts.iter().map(|&count| count as f64).sum();
        let mut evidence = ln_gamma(self.concentration) - ln_gamma(self.concentration + total);
        for (&count, &weight) in counts.iter().zip(&self.weights) {
            let (count, prior) = (count as f64, self.concentration * weight);
            evidence += ln_gamma(prior + count) - ln_gamma(prior) - count * weight.ln();
        }
        Ok(evidence)
    }
}

/// Pearson's chi-square test at a sample size fixed beforehand: the p-value of Σ (nᵢ − n wᵢ)² / n wᵢ with one
/// degree of freedom less than arms. Not for repeated looks.
///
/// # Errors
/// As [`Ratio::try_new`] for the weights; [`Error::Length`]; [`Error::TooFew`] where an arm is expected to
/// have fewer than 5 units, below which the approximation fails.
pub fn chi_square(counts: &[u64], weights: &[f64]) -> Result<f64, Error> {
    check(weights)?;
    same_length(counts, weights)?;
    let total: f64 = counts.iter().map(|&count| count as f64).sum();
    let least = weights
        .iter()
        .fold(f64::INFINITY, |least, weight| least.min(total * weight));
    at_least("ratio.expected count", least as u64, 5)?;
    let statistic = counts
        .iter()
        .zip(weights)
        .map(|(&count, w)| (count as f64 - total * w).powi(2) / (total * w))
        .sum();
    Ok(chi_square_tail(statistic, weights.len() as f64 - 1.0))
}

fn check(weights: &[f64]) -> Result<(), Error> {
    at_least("ratio.weights", weights.len() as u64, 2)?;
    sums_to_one("ratio.weights", weights)?;
    weights
        .iter()
        .try_for_each(|&weight| positive("ratio.weights", weight).map(drop))
}

fn same_length(counts: &[u64], weights: &[f64]) -> Result<(), Error> {
    match counts.len() == weights.len() {
        true => Ok(()),
        false => Err(Error::Length {
            field: "ratio.counts",
            got: counts.len(),
            expected: weights.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Reference: scipy.stats.chisquare([480, 520]) and ([30, 50, 20], [25, 50, 25]).
    #[test]
    fn chi_square_agrees_with_scipy() {
        assert!((chi_square(&[480, 520], &[0.5, 0.5]).unwrap() - 0.20590321073206466).abs() < 1e-12);
        assert!((chi_square(&[30, 50, 20], &[0.25, 0.5, 0.25]).unwrap() - 0.36787944117144245).abs() < 1e-12);
    }

    #[test]
    fn the_evidence_is_the_product_of_predictions() {
        // One unit at a time: (cwᵢ + nᵢ) / (c + n) / wᵢ.
        let (weights, concentration) = ([0.2, 0.8], 10.0);
        let ratio = Ratio::try_new(weights.to_vec(), concentration).unwrap();
        let mut counts = [0u64, 0];
        let mut evidence = 0.0;
        for arm in [0, 0, 1, 0, 1, 1, 0] {
            let total = (counts[0] + counts[1]) as f64;
            let predicted = (concentration * weights[arm] + counts[arm] as f64) / (concentration + total);
            evidence += (predicted / weights[arm]).ln();
            counts[arm] += 1;
        }
        assert!((ratio.log_evidence(&counts).unwrap() - evidence).abs() < 1e-10);
        assert_eq!(ratio.log_evidence(&[0, 0]).unwrap(), 0.0);
    }

    #[test]
    fn bad_input_is_named() {
        assert!(matches!(
            Ratio::try_new(vec![0.5, 0.6], 1.0),
            Err(Error::WeightSum { .. })
        ));
        assert!(matches!(
            Ratio::try_new(vec![0.0, 1.0], 1.0),
            Err(Error::OutOfRange { .. })
        ));
        assert!(matches!(
            Ratio::try_new(vec![1.0], 1.0),
            Err(Error::TooFew { .. })
        ));
        assert!(matches!(
            Ratio::try_new(vec![0.5, 0.5], f64::NAN),
            Err(Error::NotFinite { .. })
        ));
        let ratio = Ratio::try_new(vec![0.5, 0.5], 100.0).unwrap();
        assert!(matches!(
            ratio.log_evidence(&[1]),
            Err(Error::Length {
                got: 1,
                expected: 2,
                ..
            })
        ));
        assert!(matches!(
            chi_square(&[4, 4], &[0.5, 0.5]),
            Err(Error::TooFew { .. })
        ));
    }
}
