//! Who decides beside and below the top router: another backend, routers of their own, pairs.

use super::auto;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What kind of router decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawBackend {
    /// A router of `referral train router`, over the model under `model`.
    Functional,
    /// The published Octopus v4 checkpoint, under `octopus`.
    OctopusV4,
}

/// The published Octopus v4 checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawOctopus {
    /// Where the weights come from: `hf:OWNER/REPO/FILE[@REVISION]` or `file:PATH` of a GGUF file, `hf:OWNER/REPO[@REVISION]`
    /// or `file:DIRECTORY` of safetensors.
    pub source: String,
    /// SHA-256, 64 hex digits. May be left out for `file:` only.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Where it runs: `auto`, `cpu`, `cuda:N` or `metal`.
    #[serde(default = "auto")]
    pub device: String,
    /// Who answers queries of each of its 17 functions (physics, chemistry, biology, computer_science, math,
    /// electrical_engineering, history, philosophy, law, politics, culture, economics, geography, psychology, business,
    /// health, general): ids under `experts`; one may have several.
    pub experts: BTreeMap<String, String>,
    /// Who answers queries of the functions that are left out: an id under `experts`.
    #[serde(default)]
    pub otherwise: Option<String>,
}

/// A router below the top one. It reads with the model under `router.model`, and its tokens are ids under `experts`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNode {
    /// A directory written by `referral train router`.
    pub directory: String,
    /// Who answers where it abstains: an id under `experts` that is no router.
    pub otherwise: String,
    /// Below this confidence it abstains; `null` is its own threshold.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    pub min_confidence: Option<f32>,
}

/// A strong (dear) and a weak (cheap) expert of one field. Where the choice falls on one of them, the strong one's
/// predicted gain says which of them answers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPair {
    /// The dear one: an id under `experts`. The router needs no token for it.
    pub strong: String,
    /// The cheap one: an id under `experts`.
    pub weak: String,
    /// A directory written by `referral train cost`; `null` is the head shipped in the binary (GPT-4 against Mixtral).
    #[serde(default)]
    pub gain_model: Option<String>,
    /// From which predicted gain on the strong one answers.
    pub threshold: RawThreshold,
    /// Let the weak one answer first where the gain speaks for it, and ask the strong one if it was not sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<RawCascade>,
}

/// From which predicted gain on the strong expert answers: exactly one of `share`, `price` and `gain`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawThreshold {
    /// So that about this share of queries like those of the gain model's dev file goes to the strong expert; 0 is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub share: Option<f64>,
    /// So that the strong expert answers where its gain is worth its price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<RawPrice>,
    /// This predicted P(strong right) - P(weak right).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 1))]
    pub gain: Option<f32>,
}

/// What a right answer is worth, and what the strong expert's costs more.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPrice {
    /// What one more right answer is worth, in US dollars.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub worth: f64,
    /// What the strong expert's answer costs more, in US dollars; `null` takes it from the two cards' prices.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub extra: Option<f64>,
    /// Tokens of a usual prompt, for the cards' prices.
    #[serde(default = "usual_prompt")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub prompt_tokens: u32,
    /// Tokens of a usual answer, for the cards' prices.
    #[serde(default = "usual_answer")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub answer_tokens: u32,
}

/// When the strong expert is asked after the weak one.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCascade {
    /// The weak expert's answer is given if the mean natural-log probability of its tokens is at least this.
    #[schemars(range(min = -100, max = 0))]
    pub min_mean_log_probability: f32,
}

fn usual_prompt() -> u32 {
    200
}
fn usual_answer() -> u32 {
    256
}
