use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn routing(probabilities: &[(&str, f32)], abstained: bool) -> Routing {
    Routing {
        probabilities: probabilities
            .iter()
            .map(|(name, p)| ((*name).to_owned(), *p))
            .collect(),
        confidence: probabilities.first().map_or(0.0, |(_, p)| *p),
        in_scope: 1.0,
        out_of_scope: false,
        abstained,
        windowed: false,
        latency: Duration::from_millis(1),
    }
}

fn candidate(id: &str) -> Candidate {
    Candidate {
        id: id.to_owned(),
        is_ready: true,
        is_external: false,
    }
}

fn down(id: &str) -> Candidate {
    Candidate {
        is_ready: false,
        ..candidate(id)
    }
}

fn external(id: &str) -> Candidate {
    Candidate {
        is_external: true,
        ..candidate(id)
    }
}

fn settings() -> PolicySettings {
    PolicySettings {
        generalist: "generalist".into(),
        min_confidence: None,
        allow_external: false,
    }
}

fn chosen(routing: &Routing, candidates: &[Candidate]) -> (Vec<String>, Vec<Reason>) {
    let choice = decide(Some(routing), None, candidates, &settings()).unwrap();
    (choice.order, choice.reasons)
}

#[test]
fn a_windowed_query_is_decided_alike_and_says_so() {
    let routing = Routing {
        windowed: true,
        ..routing(&[("heart", 0.8), ("lungs", 0.2)], false)
    };
    let candidates = [candidate("generalist"), candidate("heart")];
    let (order, reasons) = chosen(&routing, &candidates);
    assert_eq!(order, ["heart", "generalist"]);
    assert_eq!(reasons, [Reason::Routed, Reason::Windowed]);
    let requested = decide(Some(&routing), Some("heart"), &candidates, &settings()).unwrap();
    assert_eq!(
        requested.reasons,
        [Reason::Requested],
        "the caller decided, not the window"
    );
}

#[test]
fn the_likeliest_expert_answers_and_the_generalist_stands_behind() {
    let routing = routing(&[("heart", 0.8), ("lungs", 0.1), ("generalist", 0.1)], false);
    let (order, reasons) = chosen(
        &routing,
        &[candidate("generalist"), candidate("lungs"), candidate("heart")],
    );
    assert_eq!(
        (order, reasons),
        (vec!["heart".into(), "generalist".into()], vec![Reason::Routed])
    );
}

#[test]
fn a_close_runner_up_is_a_fallback_and_replaces_the_first() {
    let routing = routing(&[("heart", 0.5), ("lungs", 0.4), ("skin", 0.1)], false);
    let all = [
        candidate("heart"),
        candidate("lungs"),
        candidate("skin"),
        candidate("generalist"),
    ];
    assert_eq!(chosen(&routing, &all).0, ["heart", "lungs", "generalist"]);
    for (heart, reason) in [
        (Some(down("heart")), Reason::Unhealthy),
        (Some(external("heart")), Reason::Residency),
        (None, Reason::NotConfigured),
    ] {
        let candidates: Vec<_> = heart.into_iter().chain(all[1..].iter().cloned()).collect();
        assert_eq!(
            chosen(&routing, &candidates),
            (
                vec!["lungs".into(), "generalist".into()],
                vec![reason, Reason::Routed]
            )
        );
    }
}

#[test]
fn an_unlikely_expert_never_replaces_a_likely_one() {
    let routing = routing(&[("heart", 0.8), ("lungs", 0.2)], false);
    let (order, reasons) = chosen(
        &routing,
        &[down("heart"), candidate("lungs"), candidate("generalist")],
    );
    assert_eq!(
        (order, reasons),
        (vec!["generalist".into()], vec![Reason::Unhealthy, Reason::Routed])
    );
}

#[test]
fn abstention_goes_to_the_generalist() {
    let unsure = routing(&[("heart", 0.3), ("lungs", 0.2)], true);
    let all = [candidate("heart"), candidate("generalist")];
    let choice = decide(Some(&unsure), None, &all, &settings()).unwrap();
    assert_eq!(
        (choice.order, choice.abstained),
        (vec!["generalist".into(), "heart".into()], true)
    );
    assert_eq!(choice.reasons, [Reason::Abstained]);
    // The setting overrides the router's own threshold, both ways.
    let lax = PolicySettings {
        min_confidence: Some(0.2),
        ..settings()
    };
    assert_eq!(
        decide(Some(&unsure), None, &all, &lax).unwrap().order,
        ["heart", "generalist"]
    );
    let strict = PolicySettings {
        min_confidence: Some(0.9),
        ..settings()
    };
    let sure = routing(&[("heart", 0.8), ("lungs", 0.2)], false);
    assert!(decide(Some(&sure), None, &all, &strict).unwrap().abstained);
    // No routing at all: nothing is known, so the generalist.
    assert_eq!(
        decide(None, None, &all, &settings()).unwrap().order,
        ["generalist"]
    );
    // Abstained and no generalist: the likeliest that is there.
    let choice = decide(
        Some(&unsure),
        None,
        &[candidate("heart"), down("generalist")],
        &settings(),
    )
    .unwrap();
    assert_eq!(
        (choice.order, choice.reasons),
        (vec!["heart".into()], vec![Reason::Unhealthy, Reason::Abstained])
    );
}

#[test]
fn a_named_expert_wins_unless_it_cannot() {
    let routing = routing(&[("heart", 0.9), ("lungs", 0.1)], false);
    let ask = |candidates: &[Candidate]| decide(Some(&routing), Some("lungs"), candidates, &settings());
    let choice = ask(&[candidate("heart"), candidate("lungs"), candidate("generalist")]).unwrap();
    assert_eq!(
        (choice.order, choice.reasons),
        (vec!["lungs".into(), "generalist".into()], vec![Reason::Requested])
    );
    let choice = ask(&[external("lungs"), candidate("generalist")]).unwrap();
    assert_eq!(
        (choice.order, choice.reasons),
        (
            vec!["generalist".into()],
            vec![Reason::Residency, Reason::Requested]
        )
    );
    assert_eq!(
        ask(&[candidate("heart")]),
        Err(PolicyError::UnknownExpert("lungs".into()))
    );
    assert_eq!(
        ask(&[down("lungs"), down("heart")]),
        Err(PolicyError::NobodyAvailable)
    );
}

#[test]
fn a_router_with_a_token_for_the_generalist_routes_to_it() {
    let routing = routing(&[("generalist", 0.9), ("heart", 0.1)], false);
    let (order, reasons) = chosen(&routing, &[candidate("heart"), candidate("generalist")]);
    assert_eq!(
        (order, reasons),
        (vec!["generalist".into()], vec![Reason::Routed])
    );
}

fn any_routing() -> impl Strategy<Value = Option<Routing>> {
    let weights = proptest::collection::vec(0.0f32..1.0, 0..6);
    proptest::option::of((weights, any::<bool>()).prop_map(|(weights, abstained)| {
        let sum: f32 = weights.iter().sum::<f32>().max(f32::MIN_POSITIVE);
        let mut pairs: Vec<_> = weights
            .iter()
            .enumerate()
            .map(|(i, w)| (format!("e{i}"), w / sum))
            .collect();
        pairs.sort_by(|a, b| b.1.total_cmp(&a.1));
        let confidence = pairs.first().map_or(0.0, |(_, p)| *p);
        Routing {
            probabilities: pairs,
            confidence,
            abstained,
            in_scope: 1.0,
            out_of_scope: false,
            windowed: false,
            latency: Duration::ZERO,
        }
    }))
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let state = (any::<bool>(), any::<bool>(), any::<bool>());
    proptest::collection::vec(state, 7).prop_map(|states| {
        let named = states
            .into_iter()
            .enumerate()
            .filter(|(_, (is_there, ..))| *is_there);
        named
            .map(|(i, (_, is_ready, is_external))| Candidate {
                id: if i == 6 {
                    "generalist".to_owned()
                } else {
                    format!("e{i}")
                },
                is_ready,
                is_external,
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn whoever_is_chosen_is_a_ready_candidate_that_may_see_the_query(
        routing in any_routing(),
        candidates in any_candidates(),
        requested in proptest::option::of(0usize..7),
        allow_external in any::<bool>(),
        min_confidence in proptest::option::of(0.0f32..1.0),
    ) {
        let requested = requested.map(|i| format!("e{i}"));
        let settings = PolicySettings { generalist: "generalist".into(), min_confidence, allow_external };
        let choose = || decide(routing.as_ref(), requested.as_deref(), &candidates, &settings);
        let usable = |c: &&Candidate| c.is_ready && (allow_external || !c.is_external);
        let result = choose();
        prop_assert_eq!(&result, &choose());
        match result {
            Ok(choice) => {
                prop_assert!(!choice.order.is_empty() && !choice.reasons.is_empty());
                for (i, name) in choice.order.iter().enumerate() {
                    prop_assert!(candidates.iter().filter(usable).any(|c| &c.id == name));
                    prop_assert!(!choice.order[..i].contains(name));
                }
                let is_there = candidates.iter().filter(usable).any(|c| c.id == "generalist");
                let expected = if choice.abstained { choice.order.first() } else { choice.order.last() };
                prop_assert!(!is_there || expected.is_some_and(|name| name == "generalist"));
            }
            Err(PolicyError::NobodyAvailable) => prop_assert!(!candidates.iter().any(|c| usable(&c))),
            Err(PolicyError::UnknownExpert(name)) => {
                prop_assert!(!candidates.iter().any(|c| c.id == name));
                prop_assert_eq!(Some(name), requested);
            }
        }
    }
}

#[test]
fn an_out_of_scope_query_is_the_generalists_whatever_the_least_confidence() {
    let routing = Routing {
        in_scope: 0.02,
        out_of_scope: true,
        ..routing(&[("heart", 0.8), ("lungs", 0.2)], true)
    };
    let all = [candidate("heart"), candidate("generalist")];
    for min_confidence in [None, Some(0.0), Some(0.9)] {
        let settings = PolicySettings {
            min_confidence,
            ..settings()
        };
        let choice = decide(Some(&routing), None, &all, &settings).unwrap();
        assert_eq!(
            (choice.order, choice.abstained),
            (vec!["generalist".to_owned(), "heart".to_owned()], true)
        );
        assert_eq!(choice.reasons, [Reason::OutOfScope]);
    }
}
