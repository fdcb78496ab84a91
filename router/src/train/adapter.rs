//! Training of the router's low-rank adapter: the backbone's first layers are tuned together with the functional tokens.
//!
//! A frozen small model knows more about form than about medicine. Trained jointly with the functional
//! tokens' rows, an adapter of a few megabytes turns the first layers into a classifier
//! (`referral_lm::train::pooled`). Each pass sees every row of a small file and as many rows of a large one as
//! `file_rows` allows, drawn anew, rare experts more often; a part of them with the noise of typing, and names in
//! shared frames beside them (see `augment`).

use super::augment;
use crate::RouterError;
use crate::dataset::{self, DataFile, Row};
use crate::functional::{Feature, Pooling, ReadOut};
use indicatif::ProgressBar;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use referral_lm::adapter::Projection;
use referral_lm::load::Checkpoint;
use referral_lm::train::pooled::{self, PooledExample, PooledFeature, TrainPooledOptions};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rows of an expert weigh `n^-β` in the draw from a large file.
const CLASS_BALANCE: f64 = 0.6;
/// Probability that is spread evenly over all experts in the targets (Szegedy et al. 2016).
const LABEL_SMOOTHING: f32 = 0.05;
/// Share of a row's target that goes to its second-best expert.
const SECOND: f32 = 0.25;

/// How the adapter is trained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterTraining {
    /// An earlier one of the same rank and layer to go on from.
    #[serde(skip)]
    pub start: Option<PathBuf>,
    /// Rank of its matrices.
    pub rank: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Most rows of one file in a pass.
    pub file_rows: usize,
    /// Names in frames, in a pass.
    pub framed_rows: usize,
    /// Share of the rows that get the noise of typing.
    pub noise: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of the read-out's values that are dropped in training.
    pub dropout: f32,
}

impl Default for AdapterTraining {
    fn default() -> Self {
        Self {
            start: None,
            rank: 16,
            epochs: 3,
            file_rows: 3000,
            framed_rows: 600,
            noise: 0.3,
            learning_rate: 1e-3,
            dropout: 0.1,
        }
    }
}

impl AdapterTraining {
    pub(super) fn check(&self) -> Result<(), RouterError> {
        let invalid = |field, value: String, fix: &str| {
            Err(RouterError::Invalid {
                field,
                value,
                fix: fix.to_owned(),
            })
        };
        if self.rank == 0 {
            return invalid("adapter_rank", "0".to_owned(), "at least 1");
        }
        if self.epochs == 0 {
            return invalid("adapter_epochs", "0".to_owned(), "at least 1");
        }
        if self.file_rows == 0 {
            return invalid("adapter_file_rows", "0".to_owned(), "at least 1");
        }
        if !(0.0..=1.0).contains(&self.noise) {
            return invalid("adapter_noise", self.noise.to_string(), "between 0 and 1");
        }
        Ok(())
    }
}

/// Trains the adapter for the features of the draw's read-out (whose own adapter, if any, is ignored) and writes it to
/// `out`.
pub(super) fn train(
    checkpoint: &Checkpoint,
    draw: &Draw<'_>,
    out: &Path,
    progress: &ProgressBar,
) -> Result<(), RouterError> {
    let Draw {
        read_out,
        known,
        training,
        seed,
        ..
    } = *draw;
    let features = read_out.spec().features.iter().map(pooled_feature).collect();
    // Tokens are made here, where an error can be told; the trainer's callback cannot fail.
    let mut passes = (0..training.epochs)
        .map(|pass| draw.examples(pass))
        .collect::<Result<Vec<_>, _>>()?;
    let options = TrainPooledOptions {
        out: out.to_owned(),
        features,
        start: training.start.clone(),
        rank: training.rank,
        alpha: 2.0 * training.rank as f32,
        targets: Projection::ALL.to_vec(),
        epochs: training.epochs,
        batch_rows: 32,
        learning_rate: training.learning_rate,
        head_learning_rate: 1e-3,
        weight_decay: 0.01,
        clip: 1.0,
        dropout: training.dropout,
        seed,
        threads: None,
    };
    let mut epoch = |pass: usize| passes.get_mut(pass).map(std::mem::take).unwrap_or_default();
    progress.set_position(0);
    pooled::train_pooled(checkpoint, known.len(), &mut epoch, &options, &mut |step| {
        progress.set_length(step.steps as u64);
        progress.set_position(step.step as u64);
        progress.set_message(format!(
            "training the adapter: loss {:.3}, {:.0} queries/s",
            step.loss, step.rows_per_second
        ));
    })?;
    Ok(())
}

fn pooled_feature(feature: &Feature) -> PooledFeature {
    PooledFeature {
        layer: feature.layer,
        pooling: match feature.pooling {
            Pooling::Mean => pooled::Pooling::Mean,
            Pooling::Last => pooled::Pooling::Last,
        },
    }
}

/// What an adapter file says of its training; `None` if it says nothing.
pub(super) fn card(path: &Path) -> Result<Option<serde_json::Value>, RouterError> {
    let bytes = std::fs::read(path).map_err(|source| RouterError::Io {
        path: path.to_owned(),
        source,
    })?;
    let header = safetensors::SafeTensors::read_metadata(&bytes).map_err(|error| RouterError::BadFile {
        path: path.to_owned(),
        what: "an adapter",
        detail: error.to_string(),
    })?;
    let metadata = header.1.metadata().clone().unwrap_or_default();
    Ok(metadata
        .get("card")
        .and_then(|card| serde_json::from_str(card).ok()))
}

/// What the passes are drawn from, and how.
pub(super) struct Draw<'a> {
    pub(super) read_out: &'a ReadOut,
    pub(super) data: &'a [DataFile],
    /// The classes: the experts, then `<expert_end>`.
    pub(super) known: &'a [String],
    pub(super) training: &'a AdapterTraining,
    pub(super) seed: u64,
}

impl Draw<'_> {
    fn examples(&self, pass: usize) -> Result<Vec<PooledExample>, RouterError> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(1 + pass as u64);
        let mut examples = Vec::new();
        for file in self.data {
            for row in self.rows_of(file, &mut random) {
                let query = match random.random_bool(self.training.noise) {
                    true => augment::noisy(&row.query, &mut random),
                    false => row.query.clone(),
                };
                examples.extend(self.example(row, &query)?);
            }
        }
        for row in self.with_focus(&mut random) {
            if let Some(query) = augment::framed(row, &mut random) {
                examples.extend(self.example(row, &query)?);
            }
        }
        Ok(examples)
    }

    /// All rows of a small file; of a large one a draw without repetition, rare experts first.
    fn rows_of<'d>(&self, file: &'d DataFile, random: &mut ChaCha8Rng) -> Vec<&'d Row> {
        if file.rows.len() <= self.training.file_rows {
            return file.rows.iter().collect();
        }
        let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
        for row in &file.rows {
            *counts.entry(&row.expert).or_default() += 1.0;
        }
        // Efraimidis and Spirakis 2006: the largest u^(1/w) are a weighted draw without repetition.
        let mut keyed: Vec<(f64, &Row)> = file
            .rows
            .iter()
            .map(|row| {
                let n = counts.get(row.expert.as_str()).copied().unwrap_or(1.0);
                (random.random::<f64>().ln() * n.powf(CLASS_BALANCE), row)
            })
            .collect();
        keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
        keyed
            .into_iter()
            .take(self.training.file_rows)
            .map(|(_, row)| row)
            .collect()
    }

    /// Rows with a focus, each expert that has any as often as the others.
    fn with_focus(&self, random: &mut ChaCha8Rng) -> Vec<&Row> {
        let mut by_expert: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in self
            .data
            .iter()
            .flat_map(|file| &file.rows)
            .filter(|row| row.focus.is_some())
        {
            by_expert.entry(&row.expert).or_default().push(row);
        }
        let each = self.training.framed_rows / by_expert.len().max(1);
        let mut chosen = Vec::new();
        for rows in by_expert.values() {
            chosen.extend((0..each).filter_map(|_| rows.choose(random).copied()));
        }
        chosen
    }

    /// `None` for a query without tokens.
    fn example(&self, row: &Row, query: &str) -> Result<Option<PooledExample>, RouterError> {
        let (tokens, pooled) = self
            .read_out
            .row(&self.read_out.tokens(&dataset::normalise(query))?);
        let place = |expert: &str| self.known.iter().position(|known| known == expert);
        let Some(label) = place(&row.expert) else {
            return Ok(None);
        };
        let floor = LABEL_SMOOTHING / self.known.len() as f32;
        let mut target = vec![floor; self.known.len()];
        let mut rest = 1.0 - LABEL_SMOOTHING;
        if let Some(second) = row
            .second
            .as_deref()
            .and_then(place)
            .filter(|second| *second != label)
        {
            target[second] += SECOND * rest;
            rest *= 1.0 - SECOND;
        }
        target[label] += rest;
        Ok((!pooled.is_empty()).then_some(PooledExample {
            tokens,
            pooled,
            target,
            weight: 1.0,
        }))
    }
}
