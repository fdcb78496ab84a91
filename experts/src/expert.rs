//! The contract between the gateway and whoever answers.

use async_trait::async_trait;
use futures::stream::BoxStream;
use std::fmt;
use std::time::Instant;

/// Name of an expert: 1 to 64 of `a-z 0-9 _ -`, starting with a letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct ExpertId(String);

/// Why a text is no [`ExpertId`].
#[derive(Debug, Clone, thiserror::Error)]
#[error("expert id {0:?} is not allowed: use 1 to 64 of a-z 0-9 _ - and start with a letter")]
pub struct InvalidExpertId(pub String);

impl ExpertId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExpertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<&str> for ExpertId {
    type Error = InvalidExpertId;
    fn try_from(text: &str) -> Result<Self, Self::Error> {
        let ok = (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidExpertId(text.to_owned()))
        }
    }
}

/// What part an expert plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertKind {
    /// Answers queries of its field.
    Specialist,
    /// Answers anything, and whatever the router abstains on.
    Generalist,
    /// A small domain model that briefs others.
    Domain,
}

/// What an expert can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// Text.
    Text,
    /// Images beside text.
    Image,
}

/// Where the query's text goes when this expert answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// Stays within the organisation.
    OnPremises,
    /// Leaves it.
    External,
}

/// What a platform team wants to know of an expert.
#[derive(Debug, Clone)]
pub struct Card {
    /// The model behind it.
    pub model: String,
    /// Its licence (SPDX where there is one).
    pub licence: String,
    /// One or two sentences: what it is for.
    pub description: String,
    /// Languages, BCP 47.
    pub languages: Vec<String>,
    /// What it reads.
    pub modality: Modality,
    /// US dollars for a million prompt tokens.
    pub price_per_million_input: f64,
    /// US dollars for a million generated tokens.
    pub price_per_million_output: f64,
    /// Where the text goes.
    pub residency: Residency,
}

/// Whether an expert can be asked now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Ready,
    /// It could not be reached or refused; the text says why (no secrets).
    Unavailable(String),
}

/// A validated query.
#[derive(Debug, Clone)]
pub struct Query {
    /// The text; never empty.
    pub text: String,
    /// System prompt instead of the expert's own.
    pub system: Option<String>,
    /// Most tokens to generate; `None`: the expert's default.
    pub max_tokens: Option<u32>,
    /// Sampling temperature; `None`: the expert's default.
    pub temperature: Option<f32>,
    /// Nucleus mass; `None`: the expert's default.
    pub top_p: Option<f32>,
    /// Seed; `None`: 0.
    pub seed: Option<u64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// For the upstream's logs (W3C trace id, 32 hex digits).
    pub trace_id: String,
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Prompt tokens.
    pub prompt: u32,
    /// Generated tokens.
    pub completion: u32,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finish {
    /// Complete.
    Stop,
    /// Cut at `max_tokens`.
    Length,
    /// Withheld by the upstream's filter.
    ContentFilter,
}

/// A piece of an answer. A good stream is any number of `Text` and then exactly one `End`; a stream
/// that ends without `End` was cut off and counts as [`ExpertErrorKind::Interrupted`].
#[derive(Debug, Clone, PartialEq)]
pub enum Chunk {
    /// More text.
    Text(String),
    /// The end.
    End {
        /// Why.
        finish: Finish,
        /// What it cost (zeros where the upstream does not say).
        usage: TokenUsage,
        /// Mean natural-log probability of the generated tokens, where the model gives it.
        mean_log_probability: Option<f32>,
    },
}

/// An answer on its way; dropping it cancels the work.
pub type AnswerStream = BoxStream<'static, Result<Chunk, ExpertError>>;

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// What it cost.
    pub usage: TokenUsage,
    /// Mean natural-log probability of the generated tokens.
    pub mean_log_probability: Option<f32>,
}

/// Kinds of failure: a closed set, used as a metric label and for the choice of gRPC status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpertErrorKind {
    /// Could not connect, or refused to serve.
    Unavailable,
    /// Too many requests (engine queue full, HTTP 429).
    Overloaded,
    /// The deadline passed.
    Timeout,
    /// The expert says the query is wrong (too long, HTTP 400).
    InvalidQuery,
    /// Credentials refused.
    Unauthorized,
    /// The stream broke or made no sense.
    Interrupted,
    /// Anything else.
    Internal,
}

impl ExpertErrorKind {
    /// Whether another expert may succeed where this one failed.
    pub fn is_retryable_elsewhere(self) -> bool {
        !matches!(self, Self::InvalidQuery)
    }
}

/// A failure of an expert.
#[derive(Debug, thiserror::Error)]
#[error("expert {expert}: {detail}")]
pub struct ExpertError {
    /// Which expert.
    pub expert: ExpertId,
    /// What kind.
    pub kind: ExpertErrorKind,
    /// For operators; holds neither the query's text nor a secret.
    pub detail: String,
}

/// Whoever can answer.
#[async_trait]
pub trait Expert: Send + Sync {
    /// Its name.
    fn id(&self) -> &ExpertId;
    /// Its part.
    fn kind(&self) -> ExpertKind;
    /// What it is.
    fn card(&self) -> &Card;
    /// Whether it can be asked now; quick, may answer from the last observation.
    async fn health(&self) -> Health;
    /// Starts an answer. Errors before the first chunk come from here or as the stream's first item.
    async fn answer(&self, query: Query, deadline: Instant) -> Result<AnswerStream, ExpertError>;
}
