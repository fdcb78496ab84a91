//! What is logged of one decision, and of somebody's opinion of it.

use referral_experts::{Finish, TokenUsage};
use referral_router::policy::Reason;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// One decision and what became of it.
#[derive(Debug, Clone)]
pub struct DecisionRecord {
    /// UUIDv7.
    pub id: Uuid,
    /// When the query was accepted.
    pub received: SystemTime,
    /// W3C trace id.
    pub trace_id: String,
    /// Which call it was.
    pub endpoint: Endpoint,
    /// The query's text: hashed in its normal form; stored only where `log.store_text` is on.
    pub query: String,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// Who answered, or was to; `None` if nobody was chosen.
    pub expert: Option<String>,
    /// Calibrated probability of each expert, likeliest first; empty if the caller named the expert.
    pub probabilities: Vec<(String, f32)>,
    /// The router's confidence, if it was asked.
    pub confidence: Option<f32>,
    /// Probability that the query is anything for the experts, if the router was asked.
    pub in_scope: Option<f32>,
    /// Predicted gain of the strong expert over the weak one, if the choice fell on such a pair.
    pub gain: Option<f32>,
    /// The names along which routers referred to the expert, itself the last; empty if the caller named it.
    pub path: Vec<String>,
    /// Whether the router abstained.
    pub abstained: bool,
    /// Why, most important first.
    pub reasons: Vec<Reason>,
    /// Experts that were asked and gave no text.
    pub fallbacks: Vec<FallbackRecord>,
    /// Digest of the router's files.
    pub router_version: String,
    /// [`crate::config::Settings::version`].
    pub config_version: String,
    /// Time in the router, cache look-up included.
    pub router_latency: Duration,
    /// From acceptance to the first text.
    pub time_to_first_token: Option<Duration>,
    /// From acceptance to the end.
    pub total: Duration,
    /// Tokens.
    pub usage: TokenUsage,
    /// Mean natural-log probability of the generated tokens.
    pub mean_log_probability: Option<f32>,
    /// What became of it.
    pub outcome: Outcome,
    /// Kind of failure, of a closed set as in `Fallback.error_kind` of the API.
    pub error_kind: Option<&'static str>,
    /// Why the answer ended.
    pub finish: Option<Finish>,
    /// What became of putting the query in better words, of a closed set; `None` if that was not tried.
    pub reformat: Option<&'static str>,
    /// The better words, if they were used; stored only where `log.store_text` is on.
    pub reformatted: Option<String>,
}

/// An expert that was asked and gave no text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FallbackRecord {
    /// Who.
    pub expert: String,
    /// Why, of a closed set.
    pub error_kind: &'static str,
}

/// Which call a decision belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `Generate`.
    Generate,
    /// `GenerateStream`.
    GenerateStream,
    /// `Route`.
    Route,
    /// `Compare`, one side of it.
    Compare,
}

impl Endpoint {
    /// Its name in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::GenerateStream => "generate_stream",
            Self::Route => "route",
            Self::Compare => "compare",
        }
    }
}

/// What became of a decision: a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The answer was complete.
    Answered,
    /// Only the decision was asked for.
    Routed,
    /// An expert, or all of them, failed.
    Failed,
    /// The caller went away.
    Cancelled,
    /// The deadline passed.
    Deadline,
    /// Nobody could be asked, or a limit was reached.
    Refused,
}

impl Outcome {
    /// Its name in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Routed => "routed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
            Self::Refused => "refused",
        }
    }
}

/// What somebody thought of an answer; already validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    /// The decision.
    pub decision_id: Uuid,
    /// The same key twice counts once.
    pub idempotency_key: String,
    /// -1 (harmful or wrong) to 1 (right and helpful).
    pub score: Option<f32>,
    /// Who should have answered.
    pub correct_expert: Option<String>,
    /// Free text; stored only where `log.store_text` is on.
    pub comment: Option<String>,
}
