use super::*;
use proptest::prelude::*;

fn params(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature,
        top_k,
        top_p,
        seed,
    }
}

fn field(params: SamplingParams) -> &'static str {
    match Sampler::new(params) {
        Err(LmError::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn out_of_range_is_named() {
    for temperature in [-0.1, 2.5, f32::NAN, f32::INFINITY] {
        assert_eq!(field(params(temperature, 0, 1.0, 0)), "temperature");
    }
    for top_p in [0.0, -1.0, 1.01, f32::NAN] {
        assert_eq!(field(params(1.0, 0, top_p, 0)), "top_p");
    }
}

#[test]
fn broken_logits_are_refused() {
    let mut sampler = Sampler::new(params(1.0, 0, 1.0, 0)).unwrap();
    for logits in [
        &[0.0, f32::NAN][..],
        &[f32::INFINITY, 0.0],
        &[f32::NEG_INFINITY; 3],
        &[],
    ] {
        assert!(sampler.choose(logits).is_err(), "{logits:?}");
    }
    assert_eq!(
        sampler.choose(&[f32::NEG_INFINITY, 1.0]).unwrap(),
        Choice {
            token: 1,
            log_probability: 0.0
        }
    );
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    let mut sampler = Sampler::new(SamplingParams::default()).unwrap();
    let choice = sampler.choose(&[0.0, 2.0, 2.0, -1.0]).unwrap();
    assert_eq!(choice.token, 1);
    let total = 1.0 + 2.0 * 2f32.exp() + (-1f32).exp();
    assert!((choice.log_probability - (2f32.exp() / total).ln()).abs() < 1e-6);
}

#[test]
fn frequencies_follow_the_distribution() {
    // Probabilities 0.1, 0.2, 0.3, 0.4 at temperature 1.
    let logits = [0.1f32.ln(), 0.2f32.ln(), 0.3f32.ln(), 0.4f32.ln()];
    let mut sampler = Sampler::new(params(1.0, 0, 1.0, 7)).unwrap();
    let mut counts = [0u32; 4];
    for _ in 0..20_000 {
        counts[sampler.choose(&logits).unwrap().token as usize] += 1;
    }
    for (count, expected) in counts.iter().zip([0.1, 0.2, 0.3, 0.4]) {
        assert!(
            (f64::from(*count) / 20_000.0 - expected).abs() < 0.015,
            "{counts:?}"
        );
    }
}

fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(
        prop_oneof![9 => -30.0f32..30.0, 1 => Just(f32::NEG_INFINITY)],
        1..600,
    )
    .prop_filter("one finite", |logits| {
        logits.iter().any(|logit| logit.is_finite())
    })
}

/// The tokens in order of probability, ties by id.
fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    order
}

proptest! {
    #[test]
    fn top_k_stays_within_the_k_likeliest(logits in any_logits(), k in 1usize..20, seed: u64, temperature in 0.05f32..2.0) {
        let mut sampler = Sampler::new(params(temperature, k, 1.0, seed)).unwrap();
        let order = ranked(&logits);
        for _ in 0..10 {
            let token = sampler.choose(&logits).unwrap().token as usize;
            prop_assert!(order.iter().take(k).any(|kept| *kept == token));
        }
    }

    #[test]
    fn top_p_stays_within_the_nucleus(logits in any_logits(), top_p in 0.01f32..1.0, seed: u64) {
        let mut sampler = Sampler::new(params(1.0, 0, top_p, seed)).unwrap();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
        for _ in 0..10 {
            let token = sampler.choose(&logits).unwrap().token as usize;
            // Everything likelier than a token of the nucleus weighs less than top_p.
            let before: f64 = ranked(&logits).iter().take_while(|t| **t != token)
                .map(|t| f64::from(logits[*t] - max).exp() / total).sum();
            prop_assert!(before < f64::from(top_p) + 1e-9, "{before} {top_p}");
        }
    }

    #[test]
    fn a_seed_is_a_sequence_and_probabilities_are_the_models(logits in any_logits(), seed: u64, k in 0usize..9, top_p in 0.1f32..=1.0) {
        let params = params(0.8, k, top_p, seed);
        let (mut one, mut two) = (Sampler::new(params).unwrap(), Sampler::new(params).unwrap());
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
        for _ in 0..5 {
            let choice = one.choose(&logits).unwrap();
            prop_assert_eq!(choice, two.choose(&logits).unwrap());
            let expected = f64::from(logits[choice.token as usize] - max) - total.ln();
            prop_assert!((f64::from(choice.log_probability) - expected).abs() < 1e-4);
        }
    }
}
