//! Pairs of a strong and a weak expert.

use super::*;

/// A pair of two experts with prices, whose threshold is `threshold`.
fn pair(threshold: &str) -> String {
    format!(
        "version: 1
experts:
  big: {{ local: {{ model: smollm2-135m-instruct }}, card: {{ price_per_million_input: 10, price_per_million_output: 30 }} }}
policy:
  pairs:
    - {{ strong: big, weak: pharmacy, threshold: {threshold} }}
"
    )
}

#[test]
fn each_form_of_a_threshold_is_understood() {
    let threshold = |text| good(&pair(text), &[]).pairs[0].threshold;
    assert_eq!(threshold("{ share: 0.25 }"), PairThreshold::Share(0.25));
    assert_eq!(threshold("{ gain: -0.5 }"), PairThreshold::Gain(-0.5));
    assert_eq!(
        threshold("{ price: { worth: 0.5, extra: 0.1 } }"),
        PairThreshold::Gain(0.2)
    );
    // 100 tokens at 10 and 50 at 30 dollars a million are 0.0025 dollars.
    let by_cards = threshold("{ price: { worth: 0.01, prompt_tokens: 100, answer_tokens: 50 } }");
    assert!(
        matches!(by_cards, PairThreshold::Gain(gain) if (gain - 0.25).abs() < 1e-6),
        "{by_cards:?}"
    );
    let text = pair("{ share: 0.5 }, gain_model: heads, cascade: { min_mean_log_probability: -0.7 }");
    let settings = good(&text, &[]);
    assert_eq!(
        settings.pairs,
        [PairSettings {
            strong: "big".to_owned(),
            weak: "pharmacy".to_owned(),
            gain_model: Some("heads".into()),
            threshold: PairThreshold::Share(0.5),
            cascade: Some(-0.7),
        }]
    );
}

#[test]
fn mistakes_of_a_pair_are_named_with_their_place() {
    for (threshold, path, words) in [
        ("{}", "policy.pairs.0.threshold", "exactly one"),
        (
            "{ share: 0.5, gain: 0.1 }",
            "policy.pairs.0.threshold",
            "exactly one",
        ),
        ("{ share: 1.5 }", "policy.pairs.0.threshold.share", "0 to 1"),
        ("{ gain: 2 }", "policy.pairs.0.threshold.gain", "-1 to 1"),
        (
            "{ price: { worth: -1 } }",
            "policy.pairs.0.threshold.price.worth",
            "use 0 to",
        ),
        (
            "{ share: 0.5 }, cascade: { min_mean_log_probability: 1 }",
            "min_mean_log_probability",
            "-100 to 0",
        ),
        ("{ share: 0.5 }, cascad: {}", "policy.pairs.0.cascad", "cascade"),
    ] {
        let found = problems(&pair(threshold), &[]);
        assert!(
            found.len() == 1 && found[0].contains(path) && found[0].contains(words),
            "{threshold}: {found:?}"
        );
    }
    let cheap = pair("{ price: { worth: 0.01 } }")
        .replace("10,", "0,")
        .replace("30 }", "0 }");
    let found = problems(&cheap, &[]);
    assert!(found.len() == 1 && found[0].contains("give `extra`"), "{found:?}");
}

#[test]
fn a_pair_is_of_two_experts_that_are_there_and_in_no_other() {
    let pairs = |pairs: &str| problems(&format!("version: 1\npolicy: {{ pairs: [{pairs}] }}"), &[]);
    let pair = |strong: &str, weak: &str| {
        format!("{{ strong: {strong}, weak: {weak}, threshold: {{ share: 0.5 }} }}")
    };
    for (text, path, words) in [
        (pair("pharmcy", "oncology"), "policy.pairs.0.strong", "pharmacy"),
        (
            pair("oncology", "oncology"),
            "policy.pairs.0.weak",
            "name two experts",
        ),
        (
            format!(
                "{}, {}",
                pair("oncology", "general"),
                pair("pharmacy", "oncology")
            ),
            "policy.pairs.1.weak",
            "keep it in one",
        ),
    ] {
        let found = pairs(&text);
        assert!(
            found.len() == 1 && found[0].contains(path) && found[0].contains(words),
            "{text}: {found:?}"
        );
    }
}
