//! Experts that are routers of their own.

use super::*;

/// A router over two experts of the default configuration.
fn heart(router: &str) -> String {
    format!("version: 1\nexperts:\n  cardiopulmonary: {{ router: {router} }}\n")
}

#[test]
fn an_expert_can_be_a_router() {
    let settings = good(
        &heart("{ directory: heart, otherwise: general_medicine, min_confidence: 0.4 }"),
        &[],
    );
    let found = expert(&settings, "cardiopulmonary");
    assert!(!found.is_worker());
    let Provider::Router(node) = &found.provider else {
        panic!("{found:?}")
    };
    assert_eq!(
        *node,
        NodeSettings {
            directory: "heart".into(),
            otherwise: "general_medicine".to_owned(),
            min_confidence: Some(0.4),
        }
    );
    assert_eq!(settings.max_depth, 3);
    assert_eq!(settings.warnings, Vec::<String>::new());
}

#[test]
fn mistakes_of_a_router_are_named() {
    let local = "experts:\n  heart: { local: { model: smollm2-135m-instruct }, router: { directory: d, otherwise: general } }";
    for (text, path, words) in [
        (heart("{ directory: d }"), "router.otherwise", "missing"),
        (heart("{ otherwise: general }"), "router.directory", "missing"),
        (
            heart("{ directory: d, otherwise: pharmcy }"),
            "experts.cardiopulmonary.router.otherwise",
            "pharmacy",
        ),
        (
            heart("{ directory: d, otherwise: cardiopulmonary }"),
            "router.otherwise",
            "no expert that answers",
        ),
        (
            heart("{ directory: d, otherwise: general, min_confidence: 2 }"),
            "router.min_confidence",
            "0 to 1",
        ),
        (
            format!("version: 1\n{local}"),
            "experts.heart",
            "keep one of local, openai and router",
        ),
        (
            "version: 1\npolicy: { max_depth: 0 }".to_owned(),
            "policy.max_depth",
            "1 to 8",
        ),
        (
            "version: 1\nexperts: { generalist: { kind: generalist, router: { directory: d, otherwise: general } } }".to_owned(),
            "policy.generalist",
            "is a router",
        ),
        (
            format!(
                "{}policy: {{ pairs: [{{ strong: cardiopulmonary, weak: general, threshold: {{ share: 1 }} }}] }}",
                heart("{ directory: d, otherwise: general }")
            ),
            "policy.pairs.0.strong",
            "no expert that answers",
        ),
    ] {
        let found = problems(&text, &[]);
        assert!(
            found.len() == 1 && found[0].contains(path) && found[0].contains(words),
            "{text}: {found:?}"
        );
    }
}
