//! Making probabilities mean what they say: temperature, and the threshold below which the router abstains.
//!
//! A head trained on few natural queries is surer than it is right. A temperature mends that without changing who is
//! likeliest: `p = softmax(logits / T)` with the `T` that makes the dev labels likeliest (Guo et al. 2017, arXiv
//! 1706.04599), here one that follows how far a query lies from the training set ([`Temperature`]). Pure functions;
//! data comes from [`crate::train`].

use serde::{Deserialize, Serialize};

/// Softmax of `logits / temperature`, computed so that it cannot overflow.
pub fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|z| ((z - top) / temperature).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// A temperature that follows the query: `T = base · exp(slope · distance)`, the distance being how far the features lie
/// from the training set's. Template questions lie near and deserve their sharp distributions; queries in people's own
/// words lie farther and are less sure than they look. No source need be known at inference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Temperature {
    /// At distance 0.
    pub base: f32,
    /// Growth of the logarithm with the distance.
    pub slope: f32,
}

/// Most that the distance may change a temperature, as a logarithm: a threefold.
const MOST_BY_DISTANCE: f32 = 1.1;

impl Temperature {
    /// Leaves logits as they are.
    pub const ONE: Self = Self {
        base: 1.0,
        slope: 0.0,
    };

    /// The temperature of a query at this distance.
    pub fn at(self, distance: f32) -> f32 {
        self.base
            * (self.slope * distance)
                .clamp(-MOST_BY_DISTANCE, MOST_BY_DISTANCE)
                .exp()
    }
}

/// One dev query for the temperature's fit.
#[derive(Debug, Clone, Copy)]
pub struct Example<'a> {
    /// One logit per expert.
    pub logits: &'a [f32],
    /// Distance of the features.
    pub distance: f32,
    /// Probability of being in scope; the rest is shared out evenly.
    pub in_scope: f32,
    /// The right expert.
    pub label: usize,
    /// How much it counts.
    pub weight: f32,
}

/// Probabilities of the experts: their softmax where the query is in scope, even shares where it is not.
pub fn probabilities(logits: &[f32], temperature: f32, in_scope: f32) -> Vec<f32> {
    let share = (1.0 - in_scope) / logits.len().max(1) as f32;
    let mut p = softmax(logits, temperature);
    p.iter_mut().for_each(|p| *p = in_scope * *p + share);
    p
}

/// Weighted mean negative log-likelihood in nats.
pub fn negative_log_likelihood(examples: &[Example<'_>], temperature: Temperature) -> f64 {
    let mut sum = 0.0;
    let mut weights = 0.0;
    for example in examples {
        let p = probabilities(example.logits, temperature.at(example.distance), example.in_scope);
        let own = p
            .get(example.label)
            .copied()
            .unwrap_or(0.0)
            .max(f32::MIN_POSITIVE);
        sum -= f64::from(example.weight) * f64::from(own).ln();
        weights += f64::from(example.weight);
    }
    if weights > 0.0 { sum / weights } else { 0.0 }
}

/// The temperature with the least negative log-likelihood: base in [0.05, 20] and slope in [-10, 10], one after the other by
/// golden-section search until neither moves. A slope that gains next to nothing is kept small by a ridge.
/// [`Temperature::ONE`] if there are no examples.
pub fn fit_temperature(examples: &[Example<'_>]) -> Temperature {
    const ROUNDS: usize = 6;
    const RIDGE: f64 = 1e-4;
    if examples.is_empty() {
        return Temperature::ONE;
    }
    let mut at = Temperature::ONE;
    for _ in 0..ROUNDS {
        let base = golden(0.05f32.ln(), 20f32.ln(), |log| {
            negative_log_likelihood(
                examples,
                Temperature {
                    base: log.exp(),
                    ..at
                },
            )
        });
        at.base = base.exp();
        let before = at.slope;
        at.slope = golden(-10.0, 10.0, |slope| {
            negative_log_likelihood(examples, Temperature { slope, ..at }) + RIDGE * f64::from(slope * slope)
        });
        if (at.slope - before).abs() < 1e-3 {
            break;
        }
    }
    at
}

/// Where a function with one minimum has it.
fn golden(mut low: f32, mut high: f32, f: impl Fn(f32) -> f64) -> f32 {
    const GOLDEN: f32 = 0.618_034;
    for _ in 0..32 {
        let (a, b) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
        if f(a) < f(b) {
            high = b;
        } else {
            low = a;
        }
    }
    0.5 * (low + high)
}

/// One dev query's outcome: its confidence, whether the likeliest expert was right, and its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Calibrated probability of the likeliest expert.
    pub confidence: f32,
    /// Whether that expert was right.
    pub is_right: bool,
    /// How much it counts.
    pub weight: f32,
}

/// The least confidence `t` in `[0, 1]` such that queries at least that sure are wrong in at most `max_error` of
/// the (weighted) cases; so coverage is as large as the target allows. If no threshold meets the target, the
/// highest confidence seen. Rejecting at the confidence with the wanted risk is Chow's rule.
pub fn threshold_for_error(outcomes: &[Outcome], max_error: f64) -> f32 {
    let mut sorted: Vec<&Outcome> = outcomes.iter().collect();
    sorted.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let mut threshold = sorted.first().map_or(0.0, |outcome| outcome.confidence);
    let (mut wrong, mut all) = (0.0, 0.0);
    for (i, outcome) in sorted.iter().enumerate() {
        all += f64::from(outcome.weight);
        wrong += if outcome.is_right {
            0.0
        } else {
            f64::from(outcome.weight)
        };
        let is_last_of_ties = sorted
            .get(i + 1)
            .is_none_or(|next| next.confidence < outcome.confidence);
        if is_last_of_ties && wrong <= max_error * all {
            threshold = outcome.confidence;
        }
    }
    threshold
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn softmax_of_known_values() {
        let p = softmax(&[0.0, 2f32.ln(), 1000.0 - 1000.0], 1.0);
        for (got, want) in p.iter().zip([0.25, 0.5, 0.25]) {
            assert!((got - want).abs() < 1e-6, "{p:?}");
        }
        assert_eq!(softmax(&[1e30, 0.0], 1.0), [1.0, 0.0]);
    }

    #[test]
    fn the_temperature_undoes_an_overconfident_scale() {
        // Labels drawn in the exact proportions of softmax([1, 0, -1]); logits blown up fourfold, or less where nearer.
        let truth = softmax(&[1.0, 0.0, -1.0], 1.0);
        let at = |distance: f32, blown: f32| {
            let logits = [blown, 0.0, -blown];
            (0..3).map(move |label| (logits, distance, label))
        };
        let fit = |rows: Vec<([f32; 3], f32, usize)>| {
            let examples: Vec<_> = rows
                .iter()
                .map(|(logits, distance, label)| Example {
                    logits,
                    distance: *distance,
                    in_scope: 1.0,
                    label: *label,
                    weight: truth[*label],
                })
                .collect();
            fit_temperature(&examples)
        };
        let even = fit(at(0.0, 4.0).collect());
        assert!((even.at(0.0) - 4.0).abs() < 0.02, "{even:?}");
        let sloping = fit(at(-0.2, 2.0).chain(at(0.2, 4.0)).collect());
        assert!(
            (sloping.at(-0.2) - 2.0).abs() < 0.1 && (sloping.at(0.2) - 4.0).abs() < 0.1,
            "{sloping:?}"
        );
        assert_eq!(fit_temperature(&[]), Temperature::ONE);
    }

    #[test]
    fn a_far_query_changes_its_temperature_threefold_at_most() {
        let temperature = Temperature {
            base: 1.0,
            slope: 10.0,
        };
        assert!(temperature.at(50.0) < 3.01 && temperature.at(-50.0) > 0.33);
    }

    #[test]
    fn out_of_scope_is_shared_out_evenly() {
        for (got, want) in probabilities(&[2f32.ln(), 0.0], 1.0, 0.5)
            .iter()
            .zip([1.0 / 3.0 + 0.25, 1.0 / 6.0 + 0.25])
        {
            assert!((got - want).abs() < 1e-6);
        }
    }

    #[test]
    fn the_threshold_is_the_lowest_that_meets_the_target() {
        let outcome = |confidence, is_right| Outcome {
            confidence,
            is_right,
            weight: 1.0,
        };
        let outcomes = [
            outcome(0.9, true),
            outcome(0.8, true),
            outcome(0.7, false),
            outcome(0.6, true),
            outcome(0.5, false),
        ];
        assert_eq!(threshold_for_error(&outcomes, 0.25), 0.6);
        assert_eq!(threshold_for_error(&outcomes, 0.0), 0.8);
        assert_eq!(threshold_for_error(&outcomes, 0.4), 0.5);
        assert_eq!(
            threshold_for_error(&[outcome(0.7, false), outcome(0.6, false)], 0.1),
            0.7
        );
        assert_eq!(threshold_for_error(&[], 0.1), 0.0);
    }

    proptest! {
        #[test]
        fn softmax_is_a_distribution_in_the_logits_order(logits in proptest::collection::vec(-50f32..50.0, 1..12), t in 0.1f32..10.0) {
            let p = softmax(&logits, t);
            prop_assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            for i in 1..p.len() {
                prop_assert!(logits[i] < logits[i - 1] || p[i] >= p[i - 1]);
            }
        }

        #[test]
        fn what_the_threshold_accepts_is_within_the_target(
            rows in proptest::collection::vec((0f32..1.0, any::<bool>()), 1..60), target in 0.0f64..1.0
        ) {
            let outcomes: Vec<_> = rows.iter().map(|(confidence, is_right)| Outcome { confidence: *confidence, is_right: *is_right, weight: 1.0 }).collect();
            let threshold = threshold_for_error(&outcomes, target);
            let taken: Vec<_> = outcomes.iter().filter(|o| o.confidence >= threshold).collect();
            let wrong = taken.iter().filter(|o| !o.is_right).count() as f64;
            let sorted_top = outcomes.iter().map(|o| o.confidence).fold(0.0, f32::max);
            prop_assert!(wrong <= target * taken.len() as f64 || threshold == sorted_top);
        }
    }
}
