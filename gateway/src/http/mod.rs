//! The HTTP port: metrics, health, and routing and answers as JSON.
//!
//! `/v1/route` and `/v1/generate` take the same fields as the gRPC messages and share the pipeline;
//! errors are shaped as OpenAI's (`{"error": {"message", "type", "param", "code"}}`).

mod answers;
mod body;
pub(crate) mod json;
#[cfg(test)]
mod tests;

use crate::config::ServerSettings;
use crate::serve::Stage;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

/// Above `server.max_query_bytes`, for the rest of a body.
const BODY_ALLOWANCE: usize = 256 << 10;

const INDEX: &str = "<!doctype html>
<html lang=\"en\"><meta charset=\"utf-8\"><title>Referral</title>
<h1>Referral</h1>
<p>A gateway that refers hospital queries to the model that should answer them.</p>
<ul>
<li><a href=\"/metrics\">/metrics</a>: Prometheus metrics
<li><a href=\"/healthz\">/healthz</a>: 200 while the process lives
<li><a href=\"/readyz\">/readyz</a>: 200 while queries are admitted
<li>POST /v1/route: <code>{\"query\": \"…\"}</code>, decides who should answer
<li>POST /v1/generate: <code>{\"query\": \"…\"}</code>, decides and answers
</ul>
<p>gRPC (<code>referral.v1</code>, health, reflection) is on the gRPC port.</p>
";

/// The pages.
pub fn router(stage: Stage, settings: &ServerSettings) -> Router {
    Router::new()
        .route(
            "/",
            get(async || ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], INDEX)),
        )
        .route("/healthz", get(async || "live\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/route", post(answers::route))
        .route("/v1/generate", post(answers::generate))
        .layer(DefaultBodyLimit::max(
            settings.max_query_bytes.saturating_add(BODY_ALLOWANCE),
        ))
        .with_state(stage)
}

async fn ready(State(stage): State<Stage>) -> Response {
    if stage.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "loading or draining\n").into_response()
    }
}

async fn metrics(State(stage): State<Stage>) -> Response {
    if let Some(pipeline) = stage.pipeline_if_open() {
        stage
            .metrics()
            .log_queue
            .set(i64::try_from(pipeline.log_queue()).unwrap_or(i64::MAX));
    }
    match stage.metrics().render() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
