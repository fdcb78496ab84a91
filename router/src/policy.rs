//! From routing to decision: pure functions of (routing, snapshot, settings).

use crate::Routing;

/// Why a decision is as it is: a closed set, used as a metric label and in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The router's likeliest expert.
    Routed,
    /// Confidence was below the threshold: the generalist answers.
    Abstained,
    /// The caller named the expert.
    Requested,
    /// The likeliest expert is not configured here.
    NotConfigured,
    /// The likeliest expert was unavailable.
    Unhealthy,
    /// The likeliest expert may not see this query (residency).
    Residency,
    /// Taken from the decision cache.
    Cached,
    /// An expert failed before its first token and another was asked.
    Fallback,
    /// The router failed: the generalist answers.
    RouterFailed,
}

/// What policy may choose from: the state of the experts at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub id: String,
    /// Whether it can be asked.
    pub is_ready: bool,
    /// Whether text sent to it leaves the organisation.
    pub is_external: bool,
}

/// Settings of the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySettings {
    /// Who answers when the router abstains.
    pub generalist: String,
    /// Overrides the router's own threshold (0 to 1).
    pub min_confidence: Option<f32>,
    /// Whether external experts may be chosen.
    pub allow_external: bool,
}

/// Who answers, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The experts to ask, in order: the first answers, the others are fallbacks.
    pub order: Vec<String>,
    /// Why, most important first.
    pub reasons: Vec<Reason>,
    /// Whether the router abstained.
    pub abstained: bool,
}

/// No expert may be asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// The caller named an expert that is not configured.
    #[error("expert {0:?} is not configured: ListExperts names those that are")]
    UnknownExpert(String),
    /// Nobody is ready.
    #[error("no expert is available")]
    NobodyAvailable,
}

/// Decides. `requested` is the expert the caller named, if any.
pub fn decide(
    _routing: Option<&Routing>,
    _requested: Option<&str>,
    _candidates: &[Candidate],
    _settings: &PolicySettings,
) -> Result<Choice, PolicyError> {
    Err(PolicyError::NobodyAvailable)
}
