//! `/v1/route` and `/v1/generate`.

use super::body::{Failure, GenerateBody, RouteBody};
use super::json;
use crate::grpc::{decision_to_wire, end_to_wire};
use crate::metrics::Method;
use crate::pipeline::{Envelope, GatewayError, Pipeline, Whole};
use crate::serve::Stage;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::sync::Arc;
use tokio::time::Instant;

/// Decides only.
pub(super) async fn route(
    State(stage): State<Stage>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let (pipeline, envelope, body) = open::<RouteBody>(&stage, Method::HttpRoute, &headers, body)?;
    let decision = pipeline.route(envelope, body.into())?.decision().await?;
    Ok(axum::Json(json!({"decision": json::decision(&decision_to_wire(decision))})).into_response())
}

/// Decides and answers.
pub(super) async fn generate(
    State(stage): State<Stage>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let (pipeline, envelope, body) = open::<GenerateBody>(&stage, Method::HttpGenerate, &headers, body)?;
    let Whole { decision, result } = pipeline.answer(envelope, body.into())?.whole().await;
    let (text, end) = result?;
    let end = end_to_wire(&end);
    Ok(axum::Json(json!({
        "decision": decision.map(|decision| json::decision(&decision_to_wire(decision))),
        "text": text,
        "finish_reason": json::finish(end.finish_reason()),
        "usage": end.usage.as_ref().map(json::usage),
    }))
    .into_response())
}

fn open<'a, T: DeserializeOwned>(
    stage: &'a Stage,
    method: Method,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(&'a Arc<Pipeline>, Envelope, T), Failure> {
    let accepted = Instant::now();
    let refuse = |error: GatewayError| {
        stage.count(method, &error);
        Failure::from(error)
    };
    let pipeline = stage.pipeline().map_err(refuse)?;
    let bytes = body.map_err(|rejection| {
        let invalid = super::body::unread(&rejection, pipeline.max_query_bytes());
        stage.count(method, &invalid.error);
        invalid
    })?;
    let body = super::body::parse(&bytes).map_err(refuse)?;
    let traceparent = headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    Ok((
        pipeline,
        Envelope {
            method,
            accepted,
            traceparent,
            timeout: None,
        },
        body,
    ))
}
