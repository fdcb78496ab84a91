//! Why a query has no answer: one closed vocabulary, with one gRPC column.

use crate::metrics::{ErrorKind, expert_error_label};
use referral_experts::{ExpertError, ExpertErrorKind};
use referral_router::policy::PolicyError;
use std::time::Duration;
use tonic::Code;

/// Why a query has no answer. Messages are for the client: they name the field, the value and the
/// fix, and never hold a query's text.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A field of the request is out of range.
    #[error("{field}: {value} is not allowed: {fix}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What was given (of a query, its size only).
        value: String,
        /// What is allowed.
        fix: String,
    },
    /// The named expert is not configured.
    #[error("expert: {0:?} is not configured: ListExperts names those that are")]
    UnknownExpert(String),
    /// Nothing is known of this decision.
    #[error("decision_id: {0} is not in the decision log: use the id of a decision made here and still kept")]
    UnknownDecision(String),
    /// Every place is taken.
    #[error("all {limit} places are taken: retry shortly, or raise server.max_concurrent_requests")]
    Overloaded {
        /// Places.
        limit: usize,
    },
    /// The router cannot keep up.
    #[error("the router's queue is full ({capacity} waiting): retry shortly")]
    RouterOverloaded {
        /// Its bound.
        capacity: usize,
    },
    /// The deadline passed.
    #[error("deadline of {} exceeded: allow more time, or ask for fewer tokens", humantime::format_duration(*.allowed))]
    DeadlineExceeded {
        /// How long the query had.
        allowed: Duration,
    },
    /// Models are not loaded yet.
    #[error("models are still loading: retry when grpc.health.v1 says SERVING")]
    Loading,
    /// The gateway is going away.
    #[error("the gateway is shutting down: retry elsewhere")]
    Draining,
    /// No expert is ready.
    #[error("no expert is available: ListExperts says why")]
    NobodyAvailable,
    /// The expert that was asked failed, and no other took over.
    #[error("expert {}: {}", .0.expert, expert_sentence(.0))]
    Expert(#[source] ExpertError),
    /// The client went away.
    #[error("the client cancelled the query")]
    Cancelled,
    /// The query's task ended without a word: a defect of the gateway.
    #[error("the gateway failed on this query: its operator finds more in the log")]
    Crashed,
    /// The decision log failed.
    #[error("the decision log cannot store this now: retry shortly")]
    Log(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn expert_sentence(error: &ExpertError) -> String {
    match error.kind {
        ExpertErrorKind::Unavailable => "could not be reached".to_owned(),
        ExpertErrorKind::Timeout => "did not answer in time".to_owned(),
        ExpertErrorKind::Unauthorized => {
            "refused the gateway's credentials: check its api_key setting".to_owned()
        }
        ExpertErrorKind::Interrupted => "its answer broke off".to_owned(),
        ExpertErrorKind::Internal => "failed".to_owned(),
        // These two tell the client what to change.
        ExpertErrorKind::InvalidQuery | ExpertErrorKind::Overloaded => error.detail.clone(),
    }
}

impl GatewayError {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::UnknownExpert(_) | Self::UnknownDecision(_) => Code::NotFound,
            Self::Overloaded { .. } | Self::RouterOverloaded { .. } => Code::ResourceExhausted,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::Loading | Self::Draining | Self::NobodyAvailable | Self::Log(_) => Code::Unavailable,
            Self::Cancelled => Code::Cancelled,
            Self::Crashed => Code::Internal,
            Self::Expert(error) => match error.kind {
                ExpertErrorKind::Unavailable | ExpertErrorKind::Interrupted => Code::Unavailable,
                ExpertErrorKind::Overloaded => Code::ResourceExhausted,
                ExpertErrorKind::Timeout => Code::DeadlineExceeded,
                ExpertErrorKind::InvalidQuery => Code::InvalidArgument,
                ExpertErrorKind::Unauthorized => Code::FailedPrecondition,
                ExpertErrorKind::Internal => Code::Internal,
            },
        }
    }

    /// The metric label.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::UnknownExpert(_) | Self::UnknownDecision(_) => ErrorKind::NotFound,
            Self::Overloaded { .. } => ErrorKind::Overloaded,
            Self::RouterOverloaded { .. } => ErrorKind::RouterOverloaded,
            Self::DeadlineExceeded { .. } => ErrorKind::DeadlineExceeded,
            Self::Loading | Self::Draining => ErrorKind::NotServing,
            Self::NobodyAvailable => ErrorKind::NobodyAvailable,
            Self::Expert(_) => ErrorKind::Expert,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Crashed => ErrorKind::Crashed,
            Self::Log(_) => ErrorKind::Log,
        }
    }

    /// The machine-readable reason in `google.rpc.ErrorInfo` and in HTTP error bodies.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "INVALID_FIELD",
            Self::UnknownExpert(_) => "UNKNOWN_EXPERT",
            Self::UnknownDecision(_) => "UNKNOWN_DECISION",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::RouterOverloaded { .. } => "ROUTER_OVERLOADED",
            Self::DeadlineExceeded { .. } => "DEADLINE_EXCEEDED",
            Self::Loading => "LOADING",
            Self::Draining => "DRAINING",
            Self::NobodyAvailable => "NOBODY_AVAILABLE",
            Self::Expert(_) => "EXPERT_FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Crashed => "CRASHED",
            Self::Log(_) => "LOG_UNAVAILABLE",
        }
    }

    /// The same in the vocabulary of an expert's failures, for `Compare`, where a side fails on its own.
    pub fn expert_kind(&self) -> ExpertErrorKind {
        match self {
            Self::Expert(error) => error.kind,
            Self::Invalid { .. } | Self::UnknownExpert(_) | Self::UnknownDecision(_) => {
                ExpertErrorKind::InvalidQuery
            }
            Self::Overloaded { .. } | Self::RouterOverloaded { .. } => ExpertErrorKind::Overloaded,
            Self::DeadlineExceeded { .. } => ExpertErrorKind::Timeout,
            Self::Cancelled => ExpertErrorKind::Interrupted,
            Self::Loading | Self::Draining | Self::NobodyAvailable => ExpertErrorKind::Unavailable,
            Self::Log(_) | Self::Crashed => ExpertErrorKind::Internal,
        }
    }

    /// The name of [`Self::expert_kind`].
    pub fn expert_kind_label(&self) -> &'static str {
        expert_error_label(self.expert_kind())
    }

    /// When to try again, if trying again may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { .. } | Self::RouterOverloaded { .. } => Some(Duration::from_millis(500)),
            Self::Expert(error) if error.kind == ExpertErrorKind::Overloaded => {
                Some(Duration::from_millis(500))
            }
            Self::Loading | Self::Log(_) | Self::NobodyAvailable => Some(Duration::from_secs(2)),
            Self::Draining => Some(Duration::ZERO),
            _ => None,
        }
    }
}

impl From<PolicyError> for GatewayError {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::UnknownExpert(name) => Self::UnknownExpert(name),
            PolicyError::NobodyAvailable => Self::NobodyAvailable,
        }
    }
}
