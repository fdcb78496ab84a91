//! JSON bodies: requests to the contract's messages, errors to OpenAI's shape.

use crate::pipeline::GatewayError;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use referral_proto::v1;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::HashMap;
use tonic::Code;

/// Body of `/v1/route`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteBody {
    query: String,
}

impl From<RouteBody> for v1::RouteRequest {
    fn from(body: RouteBody) -> Self {
        Self { query: body.query }
    }
}

/// Body of `/v1/generate`: as `GenerateRequest`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerateBody {
    query: String,
    expert: Option<String>,
    #[serde(default)]
    options: OptionsBody,
    #[serde(default)]
    labels: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptionsBody {
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<u64>,
    #[serde(default)]
    stop: Vec<String>,
    system: Option<String>,
}

impl From<GenerateBody> for v1::GenerateRequest {
    fn from(body: GenerateBody) -> Self {
        let GenerateBody {
            query,
            expert,
            options,
            labels,
        } = body;
        let OptionsBody {
            max_tokens,
            temperature,
            top_p,
            seed,
            stop,
            system,
        } = options;
        let options = v1::GenerationOptions {
            max_tokens,
            temperature,
            top_p,
            seed,
            stop,
            system,
        };
        Self {
            query,
            expert,
            options: Some(options),
            labels,
        }
    }
}

/// Reads a body; the error names the field, or the place in the text.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, GatewayError> {
    let invalid = |field, value: String, fix: &str| GatewayError::Invalid {
        field,
        value,
        fix: fix.to_owned(),
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        invalid(
            "body",
            format!("invalid UTF-8 at byte {}", error.valid_up_to()),
            "send JSON in UTF-8",
        )
    })?;
    let reader = &mut serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(reader).map_err(|error| {
        let place = error.path().to_string();
        let place = if place == "." {
            String::new()
        } else {
            format!("{place}: ")
        };
        // serde_json's text names the field or the type it wants, and quotes at most a single value.
        let what = if error.inner().is_syntax() || error.inner().is_eof() {
            "text that is no JSON"
        } else {
            "its shape"
        };
        invalid(
            "body",
            format!("{what} ({place}{})", error.inner()),
            "send an object such as {\"query\": \"…\"}",
        )
    })
}

/// A body that could not be read.
pub(super) fn unread(rejection: &BytesRejection, max_query_bytes: usize) -> Failure {
    let is_too_long = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
    let (value, fix) = if is_too_long {
        (
            "too long",
            format!("send a query of at most {max_query_bytes} bytes, or raise server.max_query_bytes"),
        )
    } else {
        ("cut off", "send it whole".to_owned())
    };
    let error = GatewayError::Invalid {
        field: "body",
        value: value.to_owned(),
        fix,
    };
    Failure {
        status: Some(rejection.status()),
        error,
    }
}

/// An error as OpenAI's servers shape it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: GatewayError,
    /// Where HTTP knows better than gRPC's code.
    status: Option<StatusCode>,
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        Self { error, status: None }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = &self.error;
        let (status, kind) = match error.code() {
            Code::InvalidArgument => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            Code::NotFound => (StatusCode::NOT_FOUND, "invalid_request_error"),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "timeout_error"),
            Code::Unavailable | Code::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, "server_error"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        };
        let field = match error {
            GatewayError::Invalid { field, .. } => Some(*field),
            GatewayError::UnknownExpert(_) => Some("expert"),
            _ => None,
        };
        let body = json!({"error": {
            "message": error.to_string(),
            "type": kind,
            "param": field,
            "code": error.reason().to_ascii_lowercase(),
        }});
        let mut response = (self.status.unwrap_or(status), axum::Json(body)).into_response();
        if let Some(delay) = error.retry_after() {
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
