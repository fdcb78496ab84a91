//! Making probabilities mean what they say: temperature, and the threshold below which the router abstains.
//!
//! A head trained on few natural queries is surer than it is right. One number, the temperature,
//! mends that without changing who is likeliest: `p = softmax(logits / T)` with the `T` that makes the
//! dev labels likeliest (Guo et al. 2017, arXiv 1706.04599). Pure functions; data comes from [`crate::train`].

/// Softmax of `logits / temperature`, computed so that it cannot overflow.
pub fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|z| ((z - top) / temperature).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// One dev query: its logits, the index of its label and its weight.
#[derive(Debug, Clone, Copy)]
pub struct Example<'a> {
    /// One logit per expert.
    pub logits: &'a [f32],
    /// The right expert.
    pub label: usize,
    /// How much it counts.
    pub weight: f32,
}

/// Weighted mean negative log-likelihood in nats.
pub fn negative_log_likelihood(examples: &[Example<'_>], temperature: f32) -> f64 {
    let mut sum = 0.0;
    let mut weights = 0.0;
    for example in examples {
        let top = example.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let partition: f32 = example
            .logits
            .iter()
            .map(|z| ((z - top) / temperature).exp())
            .sum();
        let own = example
            .logits
            .get(example.label)
            .copied()
            .unwrap_or(f32::NEG_INFINITY);
        sum += f64::from(example.weight) * f64::from(partition.ln() - (own - top) / temperature);
        weights += f64::from(example.weight);
    }
    if weights > 0.0 { sum / weights } else { 0.0 }
}

/// The temperature in [0.05, 20] with the least negative log-likelihood, by golden-section search over
/// its logarithm (the likelihood has one minimum in `1 / T`). 1 if there are no examples.
pub fn fit_temperature(examples: &[Example<'_>]) -> f32 {
    const GOLDEN: f32 = 0.618_034;
    if examples.is_empty() {
        return 1.0;
    }
    let (mut low, mut high) = (0.05f32.ln(), 20f32.ln());
    for _ in 0..40 {
        let (a, b) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
        if negative_log_likelihood(examples, a.exp()) < negative_log_likelihood(examples, b.exp()) {
            high = b;
        } else {
            low = a;
        }
    }
    (0.5 * (low + high)).exp()
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
        // Labels drawn in the exact proportions of softmax([1, 0, -1]); logits blown up fourfold.
        let logits = [4.0, 0.0, -4.0];
        let truth = softmax(&[1.0, 0.0, -1.0], 1.0);
        let examples: Vec<_> = (0..3)
            .map(|label| Example {
                logits: &logits,
                label,
                weight: truth[label],
            })
            .collect();
        let temperature = fit_temperature(&examples);
        assert!((temperature - 4.0).abs() < 0.01, "{temperature}");
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
