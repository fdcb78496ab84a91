//! A router below the top one: who answers, along which path, and what is told of it.

use super::*;
use crate::scripted::ScriptedExpert;

struct Ward {
    bench: Bench,
    lung: Arc<ScriptedExpert>,
}

async fn ward(lung: &[Step]) -> Ward {
    let lung = ScriptedExpert::new("lung", lung);
    let breast = ScriptedExpert::new("breast", GOOD);
    Ward {
        bench: Bench::with_node(&[breast, lung.clone()]).await,
        lung,
    }
}

#[tokio::test]
async fn a_query_is_referred_on_and_the_decision_tells_the_path() {
    let ward = ward(GOOD).await;
    let decision = whole(&ward.bench, "oncology lung").await.decision.unwrap();
    assert_eq!(decision.expert, "lung");
    assert_eq!(decision.path, ["oncology", "lung"]);
    assert!((decision.confidence - 0.9 * 0.8).abs() < 1e-6);
    assert_eq!(
        decision.probabilities[0],
        ("oncology".to_owned(), 0.9),
        "the top router's stay"
    );
    assert_eq!(decision.reasons, [Reason::Routed]);
    assert_eq!(ward.lung.asked.load(Ordering::SeqCst), 1);
    let plain = whole(&ward.bench, "pharmacy").await.decision.unwrap();
    assert_eq!(
        (plain.path.as_slice(), plain.confidence),
        (&["pharmacy".to_owned()][..], 0.9)
    );
    for (depth, count) in [(1, 1.0), (2, 1.0), (3, 0.0)] {
        let series = format!(r#"referral_descents_total{{depth="{depth}",outcome="referred"}}"#);
        assert_eq!(ward.bench.metric(&series), count, "{series}");
    }

    assert!(ward.bench.pipeline.drain(Duration::from_secs(5)).await);
    let store = DecisionStore::open(&ward.bench.settings.log.path).unwrap();
    let stored = store.get(&decision.id.to_string()).unwrap().unwrap().0;
    assert_eq!(stored.path, serde_json::json!(["oncology", "lung"]));
    assert_eq!(stored.likeliest.as_deref(), Some("oncology"));
}

#[tokio::test]
async fn where_the_router_below_abstains_its_stand_in_answers() {
    let ward = ward(GOOD).await;
    let decision = whole(&ward.bench, "oncology unclear").await.decision.unwrap();
    assert_eq!(decision.expert, "pharmacy");
    assert_eq!(decision.path, ["oncology", "pharmacy"]);
    assert_eq!(decision.reasons, [Reason::Routed, Reason::Abstained]);
    assert!(decision.abstained);
    assert_eq!(
        ward.bench
            .metric(r#"referral_descents_total{depth="2",outcome="abstained"}"#),
        1.0
    );
}

#[tokio::test]
async fn the_cache_keeps_the_whole_path_and_a_fallback_changes_it() {
    let ward = ward(&[Step::Fail(ExpertErrorKind::Unavailable)]).await;
    for cached in [false, true] {
        let decision = whole(&ward.bench, "oncology lung").await.decision.unwrap();
        assert_eq!(decision.expert, "pharmacy");
        assert_eq!(decision.path, ["oncology", "pharmacy"]);
        assert_eq!(decision.reasons.contains(&Reason::Cached), cached);
        assert!(decision.reasons.contains(&Reason::Fallback));
    }
    assert_eq!(ward.bench.decider.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_router_is_never_asked_for_text() {
    let ward = ward(GOOD).await;
    let request = v1::GenerateRequest {
        expert: Some("oncology".to_owned()),
        ..ask("lung")
    };
    let error = ward.bench.pipeline.answer(envelope(), request).unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.to_string().contains("name one of breast, lung"), "{error}");
    let named = v1::GenerateRequest {
        expert: Some("lung".to_owned()),
        ..ask("lung")
    };
    let named = ward.bench.pipeline.answer(envelope(), named).unwrap();
    assert_eq!(named.whole().await.decision.unwrap().path, Vec::<String>::new());
    let routers: Vec<_> = ward.bench.pipeline.routers().collect();
    assert_eq!(routers.len(), 1);
    assert_eq!(
        (routers[0].0.id.as_str(), &routers[0].1),
        ("oncology", &Health::Ready)
    );
    assert!(ward.bench.pipeline.is_routable("lung") && ward.bench.pipeline.is_routable("oncology"));
    assert!(!ward.bench.pipeline.is_routable("generalist"));
}
