//! Strong or weak: is a query worth the dearer model?
//!
//! [`GainModel`] predicts `P(strong right) − P(weak right)` from the query alone, by a second head on the kind of features
//! that the router reads (see [`ReadOut`]). Its parts:
//! 1. A softmax over the four outcomes (both wrong, only weak right, only strong right, both right) of the standardised
//!    read-out. Four outcomes rather than the difference, because how hard a query is says something even
//!    where both models do alike.
//! 2. Where the training data names a group of each query (a subject), a softmax over groups, and the
//!    mean gain of each: which field a query is from is the larger part of what can be known. The group is
//!    predicted from the query too, never read.
//!
//! The predicted gain is a fixed mixture of both. How good it is, is [`evaluate`]'s to say, by the curves of [`curve`];
//! who answers is [`crate::policy`]'s.

pub mod curve;
pub mod evaluate;
mod file;
pub mod train;

use crate::dataset::{self, Record};
use crate::functional::{ModelIdentity, ReadOut};
use crate::{RouterError, calibrate};
use curve::Outcome;
use file::GainFile;
use referral_lm::LanguageModel;
use serde::{Deserialize, Deserializer};
use std::path::Path;
use std::sync::Arc;

/// A query and whether each of the two models answered it right. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GainRow {
    /// Comes back beside the score.
    #[serde(deserialize_with = "dataset::string_or_integer")]
    pub id: String,
    /// The query: all that is looked at when its gain is predicted.
    #[serde(alias = "query")]
    pub prompt: String,
    /// Whether the strong model was right, where it is known.
    #[serde(default, deserialize_with = "is_right")]
    pub strong_correct: Option<bool>,
    /// Whether the weak model was right, where it is known.
    #[serde(default, deserialize_with = "is_right")]
    pub weak_correct: Option<bool>,
    /// The group that the query belongs to; used in training alone.
    #[serde(default)]
    pub subject: Option<String>,
}

impl GainRow {
    /// How the two models did, where it is known.
    pub fn outcome(&self) -> Option<Outcome> {
        Some(Outcome {
            strong: self.strong_correct?,
            weak: self.weak_correct?,
        })
    }
}

impl Record for GainRow {
    fn fault(&self) -> Option<String> {
        dataset::blank("id", &self.id).or_else(|| dataset::blank("prompt", &self.prompt))
    }
}

/// How the two models did on each row; all rows must know.
///
/// # Errors
/// [`RouterError::Invalid`] names the first row that does not.
pub fn outcomes(rows: &[GainRow]) -> Result<Vec<Outcome>, RouterError> {
    let known = rows.iter().map(|row| {
        row.outcome().ok_or_else(|| RouterError::Invalid {
            field: "strong_correct, weak_correct",
            value: format!("row {:?} without one of them", row.id),
            fix: "say of each row whether either model was right".to_owned(),
        })
    });
    known.collect()
}

fn is_right<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "strong_correct and weak_correct must be true or false")]
    enum Flag {
        Bool(bool),
        Integer(u8),
    }
    match Flag::deserialize(deserializer)? {
        Flag::Bool(flag) => Ok(Some(flag)),
        Flag::Integer(number @ (0 | 1)) => Ok(Some(number == 1)),
        Flag::Integer(number) => Err(serde::de::Error::custom(format!(
            "strong_correct and weak_correct must be true or false, not {number}"
        ))),
    }
}

/// Reads a whole file; an empty one, and an id that comes twice, are errors.
pub fn read_file(path: &Path) -> Result<Vec<GainRow>, RouterError> {
    let mut seen = std::collections::HashMap::new();
    let mut rows = Vec::new();
    let mut reader = dataset::Reader::<GainRow>::open(path)?;
    while let Some(row) = reader.next() {
        let row = row?;
        if let Some(first) = seen.insert(row.id.clone(), reader.line()) {
            return Err(RouterError::BadRow {
                path: path.to_owned(),
                line: reader.line(),
                detail: format!(
                    "id {:?} came before, in line {first}: give each row its own",
                    row.id
                ),
            });
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(RouterError::BadFile {
            path: path.to_owned(),
            what: "strong-or-weak data",
            detail: "it has no rows; write one JSON object {id, prompt, strong_correct, weak_correct} a line"
                .to_owned(),
        });
    }
    Ok(rows)
}

/// Predicts what the strong model gains over the weak one; clones share it.
#[derive(Clone)]
pub struct GainModel {
    inner: Arc<Inner>,
}

struct Inner {
    read_out: ReadOut,
    file: GainFile,
}

impl GainModel {
    /// Loads a directory written by [`train::train_gain`].
    ///
    /// # Errors
    /// [`RouterError::Io`] for a missing file, [`RouterError::BadFile`] for one that is corrupt or of another model.
    pub fn load(directory: &Path, model: LanguageModel) -> Result<Self, RouterError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).map_err(|source| RouterError::Io { path, source })
        };
        Self::from_bytes(directory, &read(file::SETTINGS)?, &read(file::TENSORS)?, model)
    }

    /// The one that ships in the binary: GPT-4 against Mixtral 8x7B on MMLU, read by SmolLM2-135M-Instruct.
    ///
    /// # Errors
    /// [`RouterError::BadFile`] if `model` is not the one it was trained on.
    pub fn shipped(model: LanguageModel) -> Result<Self, RouterError> {
        let settings = include_bytes!("../data/shipped_cost/cost.json");
        let tensors = include_bytes!("../data/shipped_cost/cost.safetensors");
        Self::from_bytes(Path::new("the shipped cost head"), settings, tensors, model)
    }

    fn from_bytes(
        path: &Path,
        settings: &[u8],
        tensors: &[u8],
        model: LanguageModel,
    ) -> Result<Self, RouterError> {
        let file = GainFile::parse(path, settings, tensors, &ModelIdentity::of(&model))?;
        let read_out = ReadOut::new(model, file.settings.read_out.clone(), None)?;
        Ok(Self {
            inner: Arc::new(Inner { read_out, file }),
        })
    }

    /// Predicted gains, in [−1, 1], one forward pass for each query. Blocking compute.
    pub fn gains(&self, queries: &[&str]) -> Result<Vec<f32>, RouterError> {
        let Inner { read_out, file } = &*self.inner;
        let mut gains = Vec::with_capacity(queries.len());
        for query in queries {
            let tokens = read_out.tokens(&dataset::normalise(query))?;
            for read in read_out.read(&[tokens])? {
                gains.push(file.gain(&file.standardise(&read)));
            }
        }
        Ok(gains)
    }

    /// The gain from which on a query goes to the strong model, so that about this share of queries like the dev rows
    /// does: 0 sends none, 1 all.
    pub fn threshold_for_share(&self, strong_share: f64) -> f32 {
        threshold_for_share(&self.inner.file.settings.gain_quantiles, strong_share)
    }
}

/// Interpolates in quantiles that go from the lowest gain to the highest.
fn threshold_for_share(quantiles: &[f32], strong_share: f64) -> f32 {
    if strong_share <= 0.0 || quantiles.is_empty() {
        return f32::INFINITY;
    }
    if strong_share >= 1.0 {
        return f32::NEG_INFINITY;
    }
    let place = (1.0 - strong_share) * (quantiles.len() - 1) as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let below = place as usize;
    let at = |i: usize| {
        quantiles
            .get(i)
            .or(quantiles.last())
            .copied()
            .unwrap_or(f32::INFINITY)
    };
    at(below) + (place - below as f64) as f32 * (at(below + 1) - at(below))
}

/// Predicted gain of the four-way softmax: `P(only strong) − P(only weak)`. The classes are
/// `2 · strong + weak`.
fn outcome_gain(logits: &[f32]) -> f32 {
    let p = calibrate::softmax(logits, 1.0);
    p.get(2).copied().unwrap_or(0.0) - p.get(1).copied().unwrap_or(0.0)
}

/// Predicted gain of the softmax over groups: the mean of their gains.
fn group_gain(logits: &[f32], gains: &[f32]) -> f32 {
    let p = calibrate::softmax(logits, 1.0);
    p.iter().zip(gains).map(|(p, gain)| p * gain).sum()
}

#[cfg(test)]
mod tests;
