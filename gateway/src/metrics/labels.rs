//! The closed sets that label metrics.

use referral_experts::ExpertErrorKind;
use referral_router::policy::Reason;
use tonic::Code;

/// What was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// gRPC `Generate`.
    Generate,
    /// gRPC `GenerateStream`.
    GenerateStream,
    /// gRPC `Route`.
    Route,
    /// gRPC `Compare`.
    Compare,
    /// gRPC `SendFeedback`.
    SendFeedback,
    /// gRPC `ListExperts`.
    ListExperts,
    /// `POST /v1/generate`.
    HttpGenerate,
    /// `POST /v1/route`.
    HttpRoute,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Generate,
        Self::GenerateStream,
        Self::Route,
        Self::Compare,
        Self::SendFeedback,
        Self::ListExperts,
        Self::HttpGenerate,
        Self::HttpRoute,
    ];
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::GenerateStream => "generate_stream",
            Self::Route => "route",
            Self::Compare => "compare",
            Self::SendFeedback => "send_feedback",
            Self::ListExperts => "list_experts",
            Self::HttpGenerate => "http_generate",
            Self::HttpRoute => "http_route",
        }
    }
}

/// How a request, or a part of it, went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The client's request broke a rule.
    Invalid,
    /// It named an expert or a decision that is not known.
    NotFound,
    /// Every place was taken.
    Overloaded,
    /// The router's queue was full.
    RouterOverloaded,
    /// The router failed; the generalist answered.
    RouterFailed,
    /// The deadline passed.
    DeadlineExceeded,
    /// The client went away.
    Cancelled,
    /// Models were loading, or the gateway was going away.
    NotServing,
    /// No expert was ready.
    NobodyAvailable,
    /// The expert that was asked failed.
    Expert,
    /// A defect of the gateway.
    Crashed,
    /// The decision log could not store or find what it was asked for.
    Log,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::NotFound,
        Self::Overloaded,
        Self::RouterOverloaded,
        Self::RouterFailed,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::NotServing,
        Self::NobodyAvailable,
        Self::Expert,
        Self::Crashed,
        Self::Log,
    ];
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Overloaded => "overloaded",
            Self::RouterOverloaded => "router_overloaded",
            Self::RouterFailed => "router_failed",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::NotServing => "not_serving",
            Self::NobodyAvailable => "nobody_available",
            Self::Expert => "expert",
            Self::Crashed => "crashed",
            Self::Log => "log",
        }
    }
}

/// Which way tokens went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenType {
    /// Read by the expert.
    Prompt,
    /// Written by it.
    Completion,
}

impl TokenType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Prompt, Self::Completion];
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Completion => "completion",
        }
    }
}

pub(super) const EXPERT_ERROR_KINDS: [ExpertErrorKind; 7] = [
    ExpertErrorKind::Unavailable,
    ExpertErrorKind::Overloaded,
    ExpertErrorKind::Timeout,
    ExpertErrorKind::InvalidQuery,
    ExpertErrorKind::Unauthorized,
    ExpertErrorKind::Interrupted,
    ExpertErrorKind::Internal,
];

/// The name of an expert's failure in metrics, the API and the decision log.
pub fn expert_error_label(kind: ExpertErrorKind) -> &'static str {
    match kind {
        ExpertErrorKind::Unavailable => "unavailable",
        ExpertErrorKind::Overloaded => "overloaded",
        ExpertErrorKind::Timeout => "timeout",
        ExpertErrorKind::InvalidQuery => "invalid_query",
        ExpertErrorKind::Unauthorized => "unauthorized",
        ExpertErrorKind::Interrupted => "interrupted",
        ExpertErrorKind::Internal => "internal",
    }
}

/// Why an expert that was asked gave no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Setback {
    /// It failed before its first token.
    Failed(ExpertErrorKind),
    /// It was the weak one of a pair and not sure of its answer, which was held back.
    Unsure,
}

impl Setback {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        EXPERT_ERROR_KINDS
            .into_iter()
            .map(Self::Failed)
            .chain([Self::Unsure])
    }
    /// Its name in metrics, the API and the decision log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed(kind) => expert_error_label(kind),
            Self::Unsure => "unsure",
        }
    }
}

/// Who of a pair answered, in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairOutcome {
    /// The strong one, by its predicted gain.
    Strong,
    /// The weak one, by the predicted gain, or because it was sure of its answer.
    Weak,
    /// The strong one, because the weak one was not sure.
    Escalated,
    /// The weak one, though not sure: the strong one failed.
    Kept,
}

impl PairOutcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Strong, Self::Weak, Self::Escalated, Self::Kept];
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strong => "strong",
            Self::Weak => "weak",
            Self::Escalated => "escalated",
            Self::Kept => "kept",
        }
    }
}

/// The codes this gateway answers with.
pub(super) const CODES: [Code; 9] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    Code::FailedPrecondition,
    Code::ResourceExhausted,
    Code::DeadlineExceeded,
    Code::Cancelled,
    Code::Unavailable,
    Code::Internal,
];

pub(super) fn code_label(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Cancelled => "CANCELLED",
        Code::Unavailable => "UNAVAILABLE",
        _ => "INTERNAL",
    }
}

pub(super) const REASONS: [Reason; 14] = [
    Reason::Routed,
    Reason::Abstained,
    Reason::OutOfScope,
    Reason::Requested,
    Reason::NotConfigured,
    Reason::Unhealthy,
    Reason::Residency,
    Reason::Cached,
    Reason::Fallback,
    Reason::RouterFailed,
    Reason::Windowed,
    Reason::Strong,
    Reason::Weak,
    Reason::Escalated,
];

/// The name of a reason in metrics and JSON.
pub fn reason_label(reason: Reason) -> &'static str {
    match reason {
        Reason::Routed => "routed",
        Reason::Abstained => "abstained",
        Reason::OutOfScope => "out_of_scope",
        Reason::Requested => "requested",
        Reason::NotConfigured => "not_configured",
        Reason::Unhealthy => "unhealthy",
        Reason::Residency => "residency",
        Reason::Cached => "cached",
        Reason::Fallback => "fallback",
        Reason::RouterFailed => "router_failed",
        Reason::Windowed => "windowed",
        Reason::Strong => "strong",
        Reason::Weak => "weak",
        Reason::Escalated => "escalated",
    }
}
