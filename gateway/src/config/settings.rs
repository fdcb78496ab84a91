//! The validated configuration: immutable, typed, and all that the rest of the gateway sees of it.

use super::raw::ReformatMode;
use super::secret::Secret;
use crate::pipeline::ReformatSettings;
use referral_experts::{Card, ExpertId, ExpertKind};
use referral_lm::engine::EngineOptions;
use referral_lm::fetch::ModelSpec;
use referral_lm::load::{DeviceSpec, LoadOptions};
use referral_router::policy::PolicySettings;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything the gateway was told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses, limits and deadlines.
    pub server: ServerSettings,
    /// Local language models by name.
    pub models: BTreeMap<String, ModelSettings>,
    /// Who decides who answers.
    pub router: RouterSettings,
    /// What may be chosen; `min_confidence` is `router.min_confidence`.
    pub policy: PolicySettings,
    /// Other experts asked when one fails before its first token.
    pub max_fallbacks: usize,
    /// Routers that one query may pass, the top one among them.
    pub max_depth: usize,
    /// Pairs of a strong and a weak expert; no expert is in two.
    pub pairs: Vec<PairSettings>,
    /// Who can answer, by id.
    pub experts: Vec<ExpertSettings>,
    /// The decision log.
    pub log: LogSettings,
    /// What the gateway says about itself.
    pub telemetry: TelemetrySettings,
    /// Identifies these settings (16 hex digits, secrets left out): logged with each decision and part of the
    /// decision cache's key.
    pub version: String,
    /// What is allowed but probably not meant; for the operator.
    pub warnings: Vec<String>,
}

/// Addresses, limits and deadlines.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Where gRPC is served.
    pub grpc_address: SocketAddr,
    /// Where metrics and health are served over HTTP.
    pub http_address: SocketAddr,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// Longest query in bytes.
    pub max_query_bytes: usize,
    /// Queries being answered at a time.
    pub max_concurrent_requests: usize,
    /// Deadline where the caller names none.
    pub default_deadline: Duration,
    /// Longest deadline a caller may ask for.
    pub max_deadline: Duration,
    /// How long accepted queries may take after SIGTERM.
    pub drain_grace: Duration,
}

/// A local language model.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// What to fetch.
    pub spec: ModelSpec,
    /// How to load it.
    pub load: LoadOptions,
    /// Limits of its engine.
    pub engine: EngineOptions,
}

/// Who decides who answers.
#[derive(Debug, Clone)]
pub struct RouterSettings {
    /// What kind of router it is.
    pub backend: Backend,
    /// Key in [`Settings::models`].
    pub model: String,
    /// A trained router; `None` is the shipped one.
    pub directory: Option<PathBuf>,
    /// Whether experts without a token, and tokens without an expert, are no error.
    pub allow_unmatched: bool,
    /// Queries that may wait for the router.
    pub queue_capacity: usize,
    /// Decisions kept; 0 is no cache.
    pub cache_capacity: u64,
    /// How long a decision is kept.
    pub cache_ttl: Duration,
    /// Better words for the expert.
    pub reformat: ReformatSettings,
    /// The adapter that writes them; `None` is the shipped one.
    pub reformat_adapter: Option<PathBuf>,
}

/// A strong and a weak expert of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct PairSettings {
    /// The dear one.
    pub strong: String,
    /// The cheap one.
    pub weak: String,
    /// A trained gain model; `None` is the shipped one.
    pub gain_model: Option<PathBuf>,
    /// When the strong one answers.
    pub threshold: PairThreshold,
    /// The mean log-probability below which the strong one is asked after the weak one; `None`: no cascade.
    pub cascade: Option<f32>,
}

/// When the strong expert of a pair answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PairThreshold {
    /// For about this share of queries, 0 to 1.
    Share(f64),
    /// From this predicted gain on.
    Gain(f32),
}

/// What kind of router decides.
#[derive(Debug, Clone, PartialEq)]
pub enum Backend {
    /// A functional-token router of our own.
    Functional,
    /// The published Octopus v4.
    OctopusV4(OctopusSettings),
}

/// The published Octopus v4.
#[derive(Debug, Clone, PartialEq)]
pub struct OctopusSettings {
    /// What to fetch.
    pub spec: ModelSpec,
    /// Where it runs.
    pub device: DeviceSpec,
    /// Whom its functions are mapped to, in their order.
    pub experts: [String; 17],
}

/// Somebody who can answer.
#[derive(Debug, Clone)]
pub struct ExpertSettings {
    /// Its id.
    pub id: ExpertId,
    /// Its part.
    pub kind: ExpertKind,
    /// What it is.
    pub card: Card,
    /// How it is reached.
    pub provider: Provider,
}

impl Settings {
    /// Whether anything reads with the router's model.
    pub fn needs_router_model(&self) -> bool {
        self.router.backend == Backend::Functional
            || self.router.reformat.mode != ReformatMode::Never
            || !self.pairs.is_empty()
            || self.experts.iter().any(|expert| !expert.is_worker())
    }
}

impl ExpertSettings {
    /// Whether it answers, rather than refers on.
    pub fn is_worker(&self) -> bool {
        !matches!(self.provider, Provider::Router(_))
    }
}

/// How an expert is reached.
#[derive(Debug, Clone)]
pub enum Provider {
    /// A model in this process.
    Local(LocalSettings),
    /// An OpenAI-compatible server.
    OpenAi(OpenAiSettings),
    /// Not at all: it is a router, which refers on.
    Router(NodeSettings),
}

/// A router below the top one.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSettings {
    /// Its trained files.
    pub directory: PathBuf,
    /// Who answers where it abstains; no router.
    pub otherwise: String,
    /// Overrides its own threshold of the confidence.
    pub min_confidence: Option<f32>,
}

/// A model in this process as an expert.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// Key in [`Settings::models`].
    pub model: String,
    /// Low-rank adapter, if any.
    pub adapter: Option<AdapterSource>,
    /// Strength of the adapter, 0 to 4.
    pub adapter_scale: f32,
    /// System prompt.
    pub system_prompt: Option<String>,
    /// Default of the query's `max_tokens`.
    pub max_tokens: u32,
    /// Default of the query's temperature.
    pub temperature: f32,
    /// Default of the query's nucleus mass.
    pub top_p: f32,
}

/// Where an adapter comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AdapterSource {
    /// One that ships in the binary, by name.
    Shipped(String),
    /// A file.
    File(PathBuf),
}

/// An OpenAI-compatible server as an expert.
#[derive(Debug, Clone)]
pub struct OpenAiSettings {
    /// Base URL without a trailing slash, e.g. `http://gpu1:8000/v1`.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// Bearer token.
    pub api_key: Option<Secret>,
    /// More headers: valid names and values.
    pub headers: Vec<(http::HeaderName, Secret)>,
    /// Longest wait for the connection and between two pieces.
    pub timeout: Duration,
    /// Whether answers are asked for as streams.
    pub stream: bool,
    /// System prompt.
    pub system_prompt: Option<String>,
    /// Default of the query's `max_tokens`.
    pub max_tokens: u32,
    /// Default of the query's temperature.
    pub temperature: Option<f32>,
    /// Default of the query's nucleus mass.
    pub top_p: Option<f32>,
}

/// The decision log.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// The SQLite file.
    pub path: PathBuf,
    /// Whether texts are stored.
    pub store_text: bool,
    /// Key of the query hash; `None` is a random key kept beside the file.
    pub hash_key: Option<Secret>,
    /// Decisions that may wait to be written.
    pub queue_capacity: usize,
    /// How long decisions are kept.
    pub retention: Option<Duration>,
}

/// What the gateway says about itself.
#[derive(Debug, Clone)]
pub struct TelemetrySettings {
    /// Whether log lines are JSON.
    pub json: bool,
    /// Which log lines are written.
    pub filter: String,
}
