//! The functional-token router: one forward pass through the first layers, one small product, a decision.
//!
//! Each expert has a *functional token* (Octopus v4, arXiv 2404.19296): a row of numbers whose product with the read-out
//! of the query (see [`ReadOut`]) is the token's logit. One more token, [`EXPERT_END`], stands for "no expert is called for".
//! It never answers: its probability is shared out evenly among the experts,
//! `p_k = softmax_k + softmax_end / K`, so that a vague query has a flat distribution and falls below the threshold
//! under which the router abstains. Probabilities are calibrated by a temperature (see [`crate::calibrate`]).
//!
//! Training is [`crate::train`]'s, the choice among configured experts [`crate::policy`]'s.

mod file;
mod read_out;

pub(crate) use file::{FORMAT, ModelIdentity, RouterFile, Settings};
pub use read_out::{Feature, PROMPT, Pooling, ReadOut, ReadOutSpec, Window};

use crate::{RouterError, calibrate, dataset};
use referral_lm::LanguageModel;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The functional token for "no expert is called for"; rows of training data carry it as their expert.
pub const EXPERT_END: &str = "<expert_end>";

/// Most tokens (template included) of one forward pass; a larger batch is read in several.
const BATCH_TOKENS: usize = 2048;

/// What the router thinks of one query. Abstention is part of it; policy comes after.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Calibrated probability of each expert, likeliest first; they add up to 1.
    pub probabilities: Vec<(String, f32)>,
    /// The likeliest expert's calibrated probability, in [0, 1].
    pub confidence: f32,
    /// Whether the confidence is below the router's threshold: the generalist should answer.
    pub abstained: bool,
    /// Time in the router: that of the whole batch, which is what each of its queries waited.
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
    inner: Arc<Inner>,
}

struct Inner {
    read_out: ReadOut,
    file: RouterFile,
    version: String,
}

impl Router {
    /// Loads a router directory (functional tokens, calibration, card) for `model`.
    ///
    /// # Errors
    /// [`RouterError::Io`] for a missing file, [`RouterError::BadFile`] for one that is corrupt or was
    /// trained on another model.
    pub fn load(directory: &Path, model: LanguageModel) -> Result<Self, RouterError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).map_err(|source| RouterError::Io { path, source })
        };
        Self::from_bytes(directory, &read(file::SETTINGS)?, &read(file::TOKENS)?, model)
    }

    /// The router that ships in the binary (trained on SmolLM2-135M-Instruct).
    ///
    /// # Errors
    /// [`RouterError::BadFile`] if `model` is not the one it was trained on.
    pub fn shipped(model: LanguageModel) -> Result<Self, RouterError> {
        let settings = include_bytes!("../data/shipped/router.json");
        let tokens = include_bytes!("../data/shipped/tokens.safetensors");
        Self::from_bytes(Path::new("the shipped router"), settings, tokens, model)
    }

    fn from_bytes(
        path: &Path,
        settings: &[u8],
        tokens: &[u8],
        model: LanguageModel,
    ) -> Result<Self, RouterError> {
        let file = RouterFile::parse(path, settings, tokens, &ModelIdentity::of(&model))?;
        let version = crate::digest::hex(&crate::digest::parts(&[settings, tokens]));
        let read_out = ReadOut::new(model, file.settings.read_out.clone())?;
        Ok(Self {
            inner: Arc::new(Inner {
                read_out,
                file,
                version,
            }),
        })
    }

    /// Names of the experts it knows, in token order.
    pub fn experts(&self) -> &[String] {
        &self.inner.file.settings.experts
    }

    /// Identifies the trained files (hex SHA-256): part of the decision cache's key.
    pub fn version(&self) -> &str {
        &self.inner.version
    }

    /// The confidence below which it abstains.
    pub fn threshold(&self) -> f32 {
        self.inner.file.settings.threshold
    }

    /// Routes a batch of queries (one forward pass, unless they are very long). Blocking compute: call it from a
    /// compute thread. Queries are normalised here, and long ones read through the router's window.
    pub fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        let start = Instant::now();
        let read_out = &self.inner.read_out;
        let tokens = queries
            .iter()
            .map(|query| read_out.tokens(&dataset::normalise(query)));
        let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
        let mut logits = Vec::with_capacity(queries.len());
        let mut rest = tokens.as_slice();
        while !rest.is_empty() {
            let mut sum = 0;
            let fits = |row: &&Vec<u32>| {
                sum += row.len();
                sum <= BATCH_TOKENS
            };
            let (batch, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            rest = later;
            for mut features in read_out.read(batch)? {
                self.inner.file.standardise(&mut features);
                logits.push(self.inner.file.head.logits(&features));
            }
        }
        let latency = start.elapsed();
        Ok(logits
            .iter()
            .map(|logits| decide(&self.inner.file.settings, logits, latency))
            .collect())
    }
}

/// Logits (the experts', then that of [`EXPERT_END`]) to a routing.
pub(crate) fn decide(settings: &Settings, logits: &[f32], latency: Duration) -> Routing {
    let shared = probabilities(logits, settings.temperature);
    let mut probabilities: Vec<(String, f32)> = settings.experts.iter().cloned().zip(shared).collect();
    probabilities.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let confidence = probabilities.first().map_or(0.0, |(_, p)| *p);
    Routing {
        confidence,
        abstained: confidence < settings.threshold,
        probabilities,
        latency,
    }
}

/// Probabilities of the experts, that of [`EXPERT_END`] (the last logit) shared out among them.
pub(crate) fn probabilities(logits: &[f32], temperature: f32) -> Vec<f32> {
    let mut p = calibrate::softmax(logits, temperature);
    let end = p.pop().unwrap_or(0.0);
    let share = end / p.len().max(1) as f32;
    p.iter_mut().for_each(|p| *p += share);
    p
}

#[cfg(test)]
mod tests;
