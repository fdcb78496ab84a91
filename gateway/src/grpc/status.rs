//! Errors as a gRPC status with `google.rpc` details.

use super::DECISION_ID;
use crate::pipeline::GatewayError;
use std::collections::HashMap;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

/// `domain` of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "referral.v1";

/// The status of an error: ErrorInfo always, BadRequest for a bad field, RetryInfo where a retry may help.
pub fn to_status(error: &GatewayError, decision: Option<Uuid>) -> Status {
    let mut metadata = HashMap::new();
    if let Some(id) = decision {
        metadata.insert("decision_id".to_owned(), id.to_string());
    }
    if let GatewayError::Expert(failed) = error {
        metadata.insert("expert".to_owned(), failed.expert.to_string());
        metadata.insert("error_kind".to_owned(), error.expert_kind_label().to_owned());
    }
    let mut details = ErrorDetails::with_error_info(error.reason(), DOMAIN, metadata);
    if let GatewayError::Invalid { field, .. } = error {
        details.add_bad_request_violation(*field, error.to_string());
    }
    if let GatewayError::UnknownExpert(_) = error {
        details.add_bad_request_violation("expert", error.to_string());
    }
    if let Some(delay) = error.retry_after() {
        details.set_retry_info(Some(delay));
    }
    let mut status = Status::with_error_details(error.code(), error.to_string(), details);
    if let Some(id) = decision.and_then(|id| id.to_string().parse().ok()) {
        status.metadata_mut().insert(DECISION_ID, id);
    }
    status
}
