use super::*;
use crate::log::DecisionStore;
use crate::scripted::{Bench, Step, eventually};
use referral_experts::{ExpertErrorKind, Finish};
use referral_router::policy::Reason;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

const GOOD: &[Step] = &[Step::Say("Take"), Step::Say(" one."), Step::End(Finish::Stop)];

fn envelope() -> Envelope {
    Envelope {
        method: Method::Generate,
        accepted: Instant::now(),
        traceparent: None,
        timeout: None,
    }
}

fn ask(query: &str) -> v1::GenerateRequest {
    v1::GenerateRequest {
        query: query.to_owned(),
        ..Default::default()
    }
}

async fn whole(bench: &Bench, query: &str) -> Whole {
    bench
        .pipeline
        .answer(envelope(), ask(query))
        .unwrap()
        .whole()
        .await
}

#[tokio::test]
async fn a_query_is_referred_answered_measured_and_logged() {
    let bench = Bench::new(GOOD, GOOD).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let envelope = Envelope {
        traceparent: Some(format!("00-{trace}-00f067aa0ba902b7-01")),
        ..envelope()
    };
    let answering = bench
        .pipeline
        .answer(envelope, ask("pharmacy: two pills?"))
        .unwrap();
    let id = answering.id;
    let Whole { decision, result } = answering.whole().await;
    let (text, end) = result.unwrap();
    let decision = decision.unwrap();
    assert_eq!(text, "Take one.");
    assert_eq!((end.finish, end.usage.completion), (Finish::Stop, 2));
    assert!(end.time_to_first_token <= end.total);
    assert_eq!(
        (decision.id, decision.expert.as_str(), decision.confidence),
        (id, "pharmacy", 0.9)
    );
    assert_eq!(
        (decision.reasons, decision.trace_id.as_str()),
        (vec![Reason::Routed], trace)
    );
    assert_eq!(bench.pharmacy.queries.lock().unwrap()[0].trace_id, trace);
    assert_eq!(
        bench.metric(r#"referral_decisions_total{expert="pharmacy",reason="routed"}"#),
        1.0
    );
    assert_eq!(
        bench.metric(r#"referral_tokens_total{expert="pharmacy",type="completion"}"#),
        2.0
    );
    assert_eq!(
        bench.metric(r#"referral_requests_total{code="OK",method="generate"}"#),
        1.0
    );
    assert_eq!(bench.metric("referral_in_flight"), 0.0);
    assert_eq!(bench.metric("referral_gateway_overhead_seconds_count"), 1.0);
    assert!(bench.pipeline.drain(Duration::from_secs(5)).await);
    let stored = DecisionStore::open(&bench.settings.log.path)
        .unwrap()
        .get(&id.to_string())
        .unwrap()
        .unwrap()
        .0;
    let stored = serde_json::to_value(stored).unwrap();
    assert_eq!(
        (&stored["outcome"], &stored["expert"]),
        (&"answered".into(), &"pharmacy".into())
    );
}

#[tokio::test]
async fn an_unsure_router_leaves_it_to_the_generalist() {
    let bench = Bench::new(GOOD, GOOD).await;
    let decision = whole(&bench, "vague: it hurts").await.decision.unwrap();
    assert_eq!(
        (decision.expert.as_str(), decision.abstained),
        ("generalist", true)
    );
    assert_eq!(decision.reasons, [Reason::Abstained]);
}

#[tokio::test]
async fn a_failed_router_leaves_it_to_the_generalist_and_is_counted() {
    let bench = Bench::new(GOOD, GOOD).await;
    let Whole { decision, result } = whole(&bench, "broken").await;
    let decision = decision.unwrap();
    assert!(result.is_ok());
    assert_eq!(
        (decision.expert.as_str(), decision.abstained),
        ("generalist", false)
    );
    assert_eq!(decision.reasons, [Reason::RouterFailed]);
    assert_eq!(
        bench.metric(r#"referral_errors_total{kind="router_failed"}"#),
        1.0
    );
}

#[tokio::test]
async fn a_cached_routing_keeps_its_probabilities_and_says_so() {
    let bench = Bench::new(GOOD, GOOD).await;
    let first = whole(&bench, "pharmacy: two pills?").await.decision.unwrap();
    let again = whole(&bench, "  pharmacy:  two pills?\n").await.decision.unwrap();
    assert_eq!(again.reasons, [Reason::Routed, Reason::Cached]);
    assert_eq!(
        (&again.probabilities, again.confidence),
        (&first.probabilities, first.confidence)
    );
    assert_ne!(again.id, first.id);
    assert_eq!(bench.decider.asked.load(Ordering::SeqCst), 1);
    assert_eq!(
        (
            bench.metric("referral_cache_hits_total"),
            bench.metric("referral_cache_misses_total")
        ),
        (1.0, 1.0)
    );
}

#[tokio::test]
async fn a_failure_before_the_first_text_is_answered_by_another_and_told() {
    let late: &[Step] = &[Step::Say(" "), Step::Fail(ExpertErrorKind::Interrupted)];
    let empty: &[Step] = &[Step::Say("\n"), Step::End(Finish::Stop)];
    let endless: &[Step] = &[];
    let at_once: &[Step] = &[Step::Fail(ExpertErrorKind::Unavailable)];
    for (script, kind, decisions) in [
        (at_once, ExpertErrorKind::Unavailable, 1),
        (late, ExpertErrorKind::Interrupted, 2),
        (empty, ExpertErrorKind::Interrupted, 2),
        (endless, ExpertErrorKind::Interrupted, 2),
    ] {
        let bench = Bench::new(script, GOOD).await;
        let mut answering = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
        let mut seen = Vec::new();
        while let Some(event) = answering.next().await {
            seen.push(event.unwrap());
        }
        let told: Vec<&Decision> = seen
            .iter()
            .filter_map(|event| {
                if let Event::Decision(d) = event {
                    Some(&**d)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(told.len(), decisions);
        let last = told.last().unwrap();
        assert_eq!(last.expert, "generalist");
        assert_eq!(
            last.fallbacks,
            [FailedAttempt {
                expert: "pharmacy".to_owned(),
                kind
            }]
        );
        assert_eq!(last.reasons, [Reason::Routed, Reason::Fallback]);
        let texts = seen.iter().filter_map(|event| {
            if let Event::Text(text) = event {
                Some(text.as_str())
            } else {
                None
            }
        });
        assert_eq!(texts.collect::<String>(), "Take one.");
        assert!(matches!(seen.last(), Some(Event::End(_))));
        let label = crate::metrics::expert_error_label(kind);
        assert_eq!(
            bench.metric(&format!(
                r#"referral_fallbacks_total{{error_kind="{label}",from="pharmacy"}}"#
            )),
            1.0
        );
    }
}

#[tokio::test]
async fn a_failure_after_the_first_text_ends_in_its_status_and_nobody_else_is_asked() {
    let bench = Bench::new(
        &[Step::Say("Take"), Step::Fail(ExpertErrorKind::Unavailable)],
        GOOD,
    )
    .await;
    let mut answering = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
    assert!(matches!(answering.next().await, Some(Ok(Event::Decision(_)))));
    assert_eq!(
        answering.next().await.unwrap().unwrap(),
        Event::Text("Take".to_owned())
    );
    let error = answering.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(answering.next().await.is_none());
    assert_eq!(bench.generalist.asked.load(Ordering::SeqCst), 0);
    assert_eq!(bench.metric(r#"referral_errors_total{kind="expert"}"#), 1.0);
}

#[tokio::test]
async fn a_query_that_is_wrong_for_one_expert_is_not_tried_on_another() {
    let bench = Bench::new(&[Step::Fail(ExpertErrorKind::InvalidQuery)], GOOD).await;
    let error = whole(&bench, "pharmacy").await.result.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (tonic::Code::InvalidArgument, "expert pharmacy: as scripted")
    );
    assert_eq!(bench.generalist.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn fallbacks_have_a_limit() {
    let bench = Bench::with(&[Step::Fail(ExpertErrorKind::Overloaded)], GOOD, |s| {
        s.max_fallbacks = 0
    })
    .await;
    let error = whole(&bench, "pharmacy").await.result.unwrap_err();
    assert_eq!(error.code(), tonic::Code::ResourceExhausted);
}

#[tokio::test]
async fn the_deadline_ends_a_query_before_and_within_its_stream() {
    for script in [&[Step::Hang][..], &[Step::Say("Take"), Step::Hang]] {
        let bench = Bench::new(script, GOOD).await;
        let envelope = Envelope {
            timeout: Some(Duration::from_millis(60)),
            ..envelope()
        };
        let error = bench
            .pipeline
            .answer(envelope, ask("pharmacy"))
            .unwrap()
            .whole()
            .await
            .result
            .unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        eventually("the expert is let go", || {
            bench.pharmacy.running.load(Ordering::SeqCst) == 0
        })
        .await;
        assert_eq!(bench.metric("referral_in_flight"), 0.0);
        assert_eq!(
            bench.metric(r#"referral_errors_total{kind="deadline_exceeded"}"#),
            1.0
        );
    }
}

#[tokio::test]
async fn a_client_that_goes_away_frees_expert_and_place_and_is_recorded() {
    let bench = Bench::new(&[Step::Say("Take"), Step::Hang], GOOD).await;
    let mut answering = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
    let id = answering.id;
    answering.next().await.unwrap().unwrap();
    answering.next().await.unwrap().unwrap();
    assert_eq!(bench.metric("referral_in_flight"), 1.0);
    drop(answering);
    eventually("the place is free", || bench.metric("referral_in_flight") == 0.0).await;
    assert_eq!(bench.pharmacy.running.load(Ordering::SeqCst), 0);
    assert_eq!(
        bench.metric(r#"referral_requests_total{code="CANCELLED",method="generate"}"#),
        1.0
    );
    bench.pipeline.drain(Duration::from_secs(5)).await;
    let stored = DecisionStore::open(&bench.settings.log.path)
        .unwrap()
        .get(&id.to_string())
        .unwrap()
        .unwrap()
        .0;
    assert_eq!(serde_json::to_value(stored).unwrap()["outcome"], "cancelled");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_query_at_the_deadline() {
    let chatter = vec![Step::Say("words "); 4 * UNREAD];
    let bench = Bench::new(&chatter, GOOD).await;
    let envelope = Envelope {
        timeout: Some(Duration::from_millis(60)),
        ..envelope()
    };
    let mut answering = bench.pipeline.answer(envelope, ask("pharmacy")).unwrap();
    eventually("the place is free", || bench.metric("referral_in_flight") == 0.0).await;
    let mut last = None;
    while let Some(event) = answering.next().await {
        last = Some(event);
    }
    assert_eq!(last.unwrap().unwrap_err().code(), tonic::Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_defect_in_an_expert_is_a_named_error_and_frees_the_place() {
    let bench = Bench::new(&[Step::Say("Take"), Step::Panic], GOOD).await;
    let error = whole(&bench, "pharmacy").await.result.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Internal);
    eventually("the place is free", || bench.metric("referral_in_flight") == 0.0).await;
}

#[tokio::test]
async fn of_64_at_once_each_is_answered_or_refused() {
    let gated: &[Step] = &[Step::Gate, Step::Say("Take one."), Step::End(Finish::Stop)];
    let bench = Bench::with(gated, GOOD, |s| s.server.max_concurrent_requests = 16).await;
    let calls: Vec<_> = (0..64)
        .map(|n| bench.pipeline.answer(envelope(), ask(&format!("pharmacy {n}"))))
        .collect();
    assert_eq!(bench.metric("referral_in_flight"), 16.0);
    bench.pharmacy.gate.add_permits(64);
    let (mut answered, mut refused) = (0, 0);
    for call in calls {
        match call {
            Ok(answering) => {
                assert_eq!(answering.whole().await.result.unwrap().0, "Take one.");
                answered += 1;
            }
            Err(error) => {
                assert_eq!(error.code(), tonic::Code::ResourceExhausted);
                assert!(error.retry_after().is_some());
                refused += 1;
            }
        }
    }
    assert_eq!((answered, refused), (16, 48));
    assert_eq!(bench.metric("referral_in_flight"), 0.0);
    assert_eq!(bench.metric(r#"referral_errors_total{kind="overloaded"}"#), 48.0);
}

#[tokio::test]
async fn draining_finishes_what_was_accepted_and_refuses_the_rest() {
    let gated: &[Step] = &[Step::Gate, Step::Say("Take one."), Step::End(Finish::Stop)];
    let bench = Bench::new(gated, GOOD).await;
    let accepted = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
    bench.pipeline.close();
    let refused = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap_err();
    assert!(matches!(refused, GatewayError::Draining));
    bench.pharmacy.gate.add_permits(1);
    let (in_time, whole) = tokio::join!(bench.pipeline.drain(Duration::from_secs(10)), accepted.whole());
    assert!(in_time && whole.result.is_ok());
}

#[tokio::test]
async fn a_drain_that_takes_too_long_cuts_off_by_name() {
    let bench = Bench::new(&[Step::Say("Take"), Step::Hang], GOOD).await;
    let accepted = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
    assert!(!bench.pipeline.drain(Duration::from_millis(20)).await);
    let error = accepted.whole().await.result.unwrap_err();
    assert!(matches!(error, GatewayError::Draining), "{error}");
}

#[tokio::test]
async fn route_decides_and_asks_nobody() {
    let bench = Bench::new(GOOD, GOOD).await;
    let request = v1::RouteRequest {
        query: "pharmacy".to_owned(),
    };
    let decision = bench
        .pipeline
        .route(envelope(), request)
        .unwrap()
        .decision()
        .await
        .unwrap();
    assert_eq!(decision.expert, "pharmacy");
    assert_eq!(bench.pharmacy.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_named_expert_is_asked_without_the_router() {
    let bench = Bench::new(GOOD, GOOD).await;
    let request = v1::GenerateRequest {
        expert: Some("generalist".to_owned()),
        ..ask("pharmacy")
    };
    let decision = bench
        .pipeline
        .answer(envelope(), request)
        .unwrap()
        .whole()
        .await
        .decision
        .unwrap();
    assert_eq!(
        (decision.expert.as_str(), decision.confidence),
        ("generalist", 0.0)
    );
    assert_eq!(
        (decision.reasons.as_slice(), decision.probabilities.len()),
        (&[Reason::Requested][..], 0)
    );
    assert_eq!(bench.decider.asked.load(Ordering::SeqCst), 0);
    let unknown = v1::GenerateRequest {
        expert: Some("cardiologist".to_owned()),
        ..ask("pharmacy")
    };
    assert_eq!(
        bench.pipeline.answer(envelope(), unknown).unwrap_err().code(),
        tonic::Code::NotFound
    );
}

#[tokio::test]
async fn a_comparison_has_two_sides_that_fail_alone() {
    let bench = Bench::new(&[Step::Fail(ExpertErrorKind::Unavailable)], GOOD).await;
    let request = |a: &str, b: &str| v1::CompareRequest {
        query: "pharmacy".to_owned(),
        expert_a: a.to_owned(),
        expert_b: b.to_owned(),
        options: None,
    };
    let [a, b] = bench
        .pipeline
        .compare(envelope(), request("pharmacy", "generalist"))
        .unwrap();
    assert_ne!(a.id, b.id);
    let (a, b) = tokio::join!(a.whole(), b.whole());
    assert_eq!(a.result.unwrap_err().expert_kind_label(), "unavailable");
    assert_eq!(b.result.unwrap().0, "Take one.");
    assert_eq!(
        bench.generalist.asked.load(Ordering::SeqCst),
        1,
        "the generalist stood in for the other side"
    );
    assert_eq!(bench.metric("referral_in_flight"), 0.0);
    let unknown = bench
        .pipeline
        .compare(envelope(), request("pharmacy", "nobody"))
        .unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn feedback_counts_once_and_only_for_known_decisions() {
    let bench = Bench::new(GOOD, GOOD).await;
    let decision = whole(&bench, "pharmacy").await.decision.unwrap();
    let feedback = |id: Uuid| v1::SendFeedbackRequest {
        decision_id: id.to_string(),
        score: Some(1.0),
        idempotency_key: "key".to_owned(),
        ..Default::default()
    };
    assert!(
        bench
            .pipeline
            .feedback(&envelope(), feedback(decision.id))
            .await
            .unwrap()
    );
    assert!(
        !bench
            .pipeline
            .feedback(&envelope(), feedback(decision.id))
            .await
            .unwrap()
    );
    let unknown = bench
        .pipeline
        .feedback(&envelope(), feedback(Uuid::now_v7()))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}
