//! The functional-token router.

use crate::RouterError;
use referral_lm::LanguageModel;
use std::path::Path;
use std::time::Duration;

/// What the router thinks of one query. Abstention is part of it; policy comes after.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Calibrated probability of each expert, likeliest first; they add up to 1.
    pub probabilities: Vec<(String, f32)>,
    /// The likeliest expert's calibrated probability, in [0, 1].
    pub confidence: f32,
    /// Whether the confidence is below the router's threshold: the generalist should answer.
    pub abstained: bool,
    /// Time in the router.
    pub latency: Duration,
}

impl Routing {
    /// The likeliest expert.
    pub fn expert(&self) -> &str {
        self.probabilities.first().map_or("", |(name, _)| name)
    }
}

/// A trained router over a language model; clones share it.
#[derive(Clone)]
pub struct Router {
    _model: LanguageModel,
}

impl Router {
    /// Loads a router directory (functional tokens, calibration, card) for `model`.
    pub fn load(_directory: &Path, model: LanguageModel) -> Result<Self, RouterError> {
        Ok(Self { _model: model })
    }
    /// The router that ships in the binary (trained on SmolLM2-135M-Instruct).
    pub fn shipped(model: LanguageModel) -> Result<Self, RouterError> {
        Ok(Self { _model: model })
    }
    /// Names of the experts it knows, in token order.
    pub fn experts(&self) -> &[String] {
        &[]
    }
    /// Identifies the trained files (hex digest): part of the decision cache's key.
    pub fn version(&self) -> &str {
        ""
    }
    /// Routes a batch of queries (one forward pass). Blocking compute: call it from a compute thread.
    pub fn route(&self, _queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        Ok(Vec::new())
    }
}
