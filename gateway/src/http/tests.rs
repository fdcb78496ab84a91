use super::*;
use crate::scripted::{Bench, Step};
use axum::body::{Body, to_bytes};
use axum::http::Request;
use referral_experts::Finish;
use serde_json::Value;
use tower::ServiceExt as _;

const GOOD: &[Step] = &[Step::Say("Take"), Step::Say(" one."), Step::End(Finish::Stop)];

async fn pages() -> (Router, Bench) {
    let bench = Bench::new(GOOD, GOOD).await;
    let stage = Stage::new(bench.pipeline.metrics().clone());
    stage.open(bench.pipeline.clone());
    (router(stage, &bench.settings.server), bench)
}

async fn post_body(pages: &Router, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
    let request = Request::post(path).body(body.into()).unwrap();
    let response = pages.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

async fn text(pages: &Router, path: &str) -> (StatusCode, String) {
    let response = pages
        .clone()
        .oneshot(Request::get(path).body(Body::empty()).unwrap())
        .await
        .unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn answers_and_decisions_are_json() {
    let (pages, bench) = pages().await;
    let (status, answer) = post_body(
        &pages,
        "/v1/generate",
        r#"{"query": "pharmacy", "options": {"max_tokens": 7}}"#,
    )
    .await;
    assert_eq!(
        (status, answer["text"].as_str()),
        (StatusCode::OK, Some("Take one."))
    );
    assert_eq!(answer["decision"]["reasons"], serde_json::json!(["routed"]));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    assert_eq!(bench.pharmacy.queries.lock().unwrap()[0].max_tokens, Some(7));
    let (status, routed) = post_body(&pages, "/v1/route", r#"{"query": "vague"}"#).await;
    assert_eq!(
        (status, routed["decision"]["expert"].as_str()),
        (StatusCode::OK, Some("generalist"))
    );
    assert_eq!(routed["decision"]["abstained"], true);
    assert!((routed["decision"]["in_scope"].as_f64().unwrap() - 0.95).abs() < 1e-6);
    assert_eq!(routed["decision"]["reasons"], serde_json::json!(["abstained"]));
}

#[tokio::test]
async fn bad_bodies_get_openais_error_shape() {
    let (pages, bench) = pages().await;
    let long = format!("{{\"query\": \"{}\"}}", "x".repeat(40_000));
    let huge = format!("{{\"query\": \"{}\"}}", "x".repeat(1_000_000));
    let cases: [(&[u8], u16, &str, &str); 8] = [
        (
            b"{\"query\": \"\xff\xfe\"}",
            400,
            "body",
            "invalid UTF-8 at byte 11",
        ),
        (b"query=asthma", 400, "body", "no JSON"),
        (b"{\"query\": 7}", 400, "body", "query"),
        (b"{\"query\": \"q\", \"modle\": 1}", 400, "body", "modle"),
        (b"{}", 400, "body", "query"),
        (b"{\"query\": \" \"}", 400, "query", "empty"),
        (long.as_bytes(), 400, "query", "40000 bytes"),
        (huge.as_bytes(), 413, "body", "max_query_bytes"),
    ];
    for (body, status, param, word) in cases {
        let (got, answer) = post_body(&pages, "/v1/route", body.to_vec()).await;
        assert_eq!(got.as_u16(), status, "{answer}");
        let error = &answer["error"];
        assert_eq!(
            (error["type"].as_str(), error["param"].as_str()),
            (Some("invalid_request_error"), Some(param))
        );
        assert!(error["message"].as_str().unwrap().contains(word), "{answer}");
    }
    let (status, answer) = post_body(
        &pages,
        "/v1/generate",
        r#"{"query": "q", "expert": "cardiologist"}"#,
    )
    .await;
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (StatusCode::NOT_FOUND, Some("unknown_expert"))
    );
    assert_eq!(
        bench.metric(r#"referral_requests_total{code="INVALID_ARGUMENT",method="http_route"}"#),
        8.0
    );
}

#[tokio::test]
async fn readiness_follows_the_stage_and_metrics_are_text() {
    let (pages, bench) = pages().await;
    assert_eq!(text(&pages, "/healthz").await.0, StatusCode::OK);
    assert_eq!(text(&pages, "/readyz").await.0, StatusCode::OK);
    assert!(text(&pages, "/").await.1.contains("/metrics"));
    let (status, metrics) = text(&pages, "/metrics").await;
    assert!(
        status == StatusCode::OK && metrics.contains("referral_in_flight 0"),
        "{metrics}"
    );

    let loading = Stage::new(bench.pipeline.metrics().clone());
    let pages = router(loading, &bench.settings.server);
    assert_eq!(text(&pages, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, answer) = post_body(&pages, "/v1/route", r#"{"query": "pharmacy"}"#).await;
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("loading"))
    );
}
