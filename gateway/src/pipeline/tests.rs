mod failures;
mod graph;
mod limits;
mod pairs;
mod reformat;

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
async fn an_out_of_scope_query_is_the_generalists_and_counted_as_such() {
    let bench = Bench::new(GOOD, GOOD).await;
    let decision = whole(&bench, "nonsense: colourless green ideas")
        .await
        .decision
        .unwrap();
    assert_eq!(
        (decision.expert.as_str(), decision.abstained, decision.in_scope),
        ("generalist", true, Some(0.05))
    );
    assert_eq!(decision.reasons, [Reason::OutOfScope]);
    let metrics = bench.pipeline.metrics().render().unwrap();
    assert!(
        metrics.contains("referral_decisions_total{expert=\"generalist\",reason=\"out_of_scope\"} 1"),
        "{metrics}"
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
