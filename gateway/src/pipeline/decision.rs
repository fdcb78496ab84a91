//! Who answers a query, and why, as the API, the log and the metrics tell it.

use super::Reformatted;
use crate::metrics::Setback;
use referral_experts::{Finish, TokenUsage};
use referral_router::policy::Reason;
use std::time::Duration;
use uuid::Uuid;

/// An expert that was asked and gave no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Which.
    pub expert: String,
    /// Why.
    pub setback: Setback,
}

/// A decision about one query.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// UUIDv7.
    pub id: Uuid,
    /// Who answers.
    pub expert: String,
    /// The names along which routers referred to it, itself the last; empty if the caller named the expert.
    pub path: Vec<String>,
    /// The likeliest expert's calibrated probability, of several routers in a row the product; 0 if the router was not
    /// asked or failed.
    pub confidence: f32,
    /// Probability that the query is anything for the experts; `None` if the router was not asked or failed.
    pub in_scope: Option<f32>,
    /// Predicted gain of the strong expert over the weak one, if the choice fell on such a pair.
    pub gain: Option<f32>,
    /// Likeliest first; empty if the router was not asked or failed.
    pub probabilities: Vec<(String, f32)>,
    /// Whether the router was not sure enough to refer.
    pub abstained: bool,
    /// Most important first.
    pub reasons: Vec<Reason>,
    /// Who was asked before the expert that answers.
    pub fallbacks: Vec<FailedAttempt>,
    /// Identifies the router's trained files.
    pub router_version: String,
    /// Time for the routing, cache look-up included.
    pub router_latency: Duration,
    /// W3C trace id.
    pub trace_id: String,
    /// Whether the expert got the query in better words; `None` if that was not tried.
    pub reformatted: Option<Reformatted>,
}

/// How a complete answer ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerEnd {
    /// Why.
    pub finish: Finish,
    /// What it cost.
    pub usage: TokenUsage,
    /// Mean natural-log probability of the generated tokens, where the model gives it.
    pub mean_log_probability: Option<f32>,
    /// From acceptance to the first text; zero if there was none.
    pub time_to_first_token: Duration,
    /// From acceptance to the end.
    pub total: Duration,
}
