//! The functional-token router: one forward pass through the first layers, one small product, a decision.
//!
//! Each expert has a *functional token* (Octopus v4, arXiv 2404.19296): a row of numbers whose product with the read-out
//! of the query (see [`ReadOut`]) is the token's logit. One more token, [`EXPERT_END`], stands for "no expert is called for".
//! It never answers. It tells, with an energy and a distance (`scope`), how probably the query is in scope, `q`; what is left
//! is shared out evenly among the experts, `p_k = q · softmax_k + (1 - q) / K`, so that a vague query has a flat distribution
//! and falls below the threshold under which the router abstains; it also abstains where `q` itself is below a threshold
//! of its own. Probabilities are calibrated by a temperature (see [`crate::calibrate`]).
//!
//! Training is [`crate::train`]'s, the choice among configured experts [`crate::policy`]'s.

mod file;
mod read_out;
mod tensors;

pub(crate) use file::{ADAPTER, FORMAT, ModelIdentity, RouterFile, SETTINGS, Settings, TOKENS};
pub use read_out::{Feature, PROMPT, Pooling, ReadOut, ReadOutSpec, Window};
pub(crate) use tensors::{TensorFile, halved, whole};

use crate::calibrate::{self, Temperature};
use crate::scope::{Scope, Scored};
use crate::{RouterError, dataset};
use referral_lm::LanguageModel;
use referral_lm::adapter::Adapter;
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
    /// Probability that the query is anything for these experts, in [0, 1], if three in four queries are.
    pub in_scope: f32,
    /// Whether that is below the router's threshold for it.
    pub out_of_scope: bool,
    /// Whether the query is out of scope or the confidence below the router's threshold: the generalist should answer.
    pub abstained: bool,
    /// Whether the query is longer than the router's window, so that its middle was not read.
    pub windowed: bool,
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
        let adapter = match directory.join(file::ADAPTER).exists() {
            true => Some(read(file::ADAPTER)?),
            false => None,
        };
        Self::from_bytes(
            directory,
            &read(file::SETTINGS)?,
            &read(file::TOKENS)?,
            adapter.as_deref(),
            model,
        )
    }

    /// The router that ships in the binary (trained on SmolLM2-135M-Instruct).
    ///
    /// # Errors
    /// [`RouterError::BadFile`] if `model` is not the one it was trained on.
    pub fn shipped(model: LanguageModel) -> Result<Self, RouterError> {
        let settings = include_bytes!("../data/shipped/router.json");
        let tokens = include_bytes!("../data/shipped/tokens.safetensors");
        let adapter = include_bytes!("../data/shipped/adapter.safetensors");
        Self::from_bytes(
            Path::new("the shipped router"),
            settings,
            tokens,
            Some(adapter),
            model,
        )
    }

    fn from_bytes(
        path: &Path,
        settings: &[u8],
        tokens: &[u8],
        adapter: Option<&[u8]>,
        model: LanguageModel,
    ) -> Result<Self, RouterError> {
        let file = RouterFile::parse(path, settings, tokens, &ModelIdentity::of(&model))?;
        let version = crate::digest::hex(&crate::digest::parts(&[
            settings,
            tokens,
            adapter.unwrap_or_default(),
        ]));
        let adapter = load_adapter(path, &file.settings, adapter, &model)?;
        let read_out = ReadOut::new(model, file.settings.read_out.clone(), adapter)?;
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
        let normal: Vec<String> = queries.iter().map(|query| dataset::normalise(query)).collect();
        let scored: Vec<Scored> = self
            .features(&normal)?
            .iter()
            .zip(&normal)
            .map(|(features, query)| self.inner.file.score(features, query))
            .collect();
        let windowed = normal
            .iter()
            .map(|query| self.inner.read_out.is_windowed(query))
            .collect::<Result<Vec<_>, _>>()?;
        let latency = start.elapsed();
        Ok(scored
            .iter()
            .zip(windowed)
            .map(|(scored, windowed)| Routing {
                windowed,
                ..decide(&self.inner.file.settings, scored, latency)
            })
            .collect())
    }

    /// Standardised features of normalised queries, as the functional tokens meet them.
    pub(crate) fn features(&self, queries: &[String]) -> Result<Vec<Vec<f32>>, RouterError> {
        let read_out = &self.inner.read_out;
        let tokens = queries.iter().map(|query| read_out.tokens(query));
        let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
        let mut all = Vec::with_capacity(queries.len());
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
                all.push(features);
            }
        }
        Ok(all)
    }
}

/// The adapter that the settings name; its absence, another one, or one too many is an error.
fn load_adapter(
    path: &Path,
    settings: &Settings,
    bytes: Option<&[u8]>,
    model: &LanguageModel,
) -> Result<Option<Arc<Adapter>>, RouterError> {
    let bad = |detail: String| RouterError::BadFile {
        path: path.to_owned(),
        what: "a router",
        detail: format!("{}: {detail}", file::ADAPTER),
    };
    let (bytes, wanted) = match (bytes, &settings.adapter_sha256) {
        (None, None) => return Ok(None),
        (Some(bytes), Some(wanted)) => (bytes, wanted),
        (None, Some(_)) => {
            return Err(bad(
                "it is missing: copy it there, or train the router again".to_owned()
            ));
        }
        (Some(_), None) => {
            return Err(bad("the router was trained without one: remove it".to_owned()));
        }
    };
    let found = crate::digest::sha256(bytes);
    if found != *wanted {
        return Err(bad(format!(
            "its SHA-256 is {found}, the router was trained with {wanted}: copy both from one place"
        )));
    }
    let adapter = Adapter::from_bytes(bytes, model).map_err(|error| bad(error.to_string()))?;
    Ok(Some(Arc::new(adapter)))
}

/// What was read of a query, calibrated: a routing.
pub(crate) fn decide(settings: &Settings, scored: &Scored, latency: Duration) -> Routing {
    let in_scope = in_scope(settings.scope.as_ref(), scored);
    let p = probabilities(settings.temperature(), scored, in_scope);
    let mut probabilities: Vec<(String, f32)> = settings.experts.iter().cloned().zip(p).collect();
    probabilities.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let confidence = probabilities.first().map_or(0.0, |(_, p)| *p);
    let out_of_scope = settings
        .scope
        .as_ref()
        .is_some_and(|scope| in_scope < scope.threshold);
    Routing {
        confidence,
        in_scope,
        out_of_scope,
        abstained: out_of_scope || confidence < settings.threshold,
        probabilities,
        windowed: false,
        latency,
    }
}

/// Probability that a query is in scope; that of the experts' tokens together where no regression was fitted.
pub(crate) fn in_scope(scope: Option<&Scope>, scored: &Scored) -> f32 {
    match scope {
        Some(scope) => scope.probability(scored),
        None => {
            let p = calibrate::softmax(&scored.logits, 1.0);
            1.0 - p.last().copied().unwrap_or(0.0)
        }
    }
}

/// Probabilities of the experts, in token order.
pub(crate) fn probabilities(temperature: Temperature, scored: &Scored, in_scope: f32) -> Vec<f32> {
    let experts = scored.logits.split_last().map_or(&[][..], |(_, experts)| experts);
    calibrate::probabilities(experts, temperature.at(scored.distance), in_scope)
}

#[cfg(test)]
mod tests;
