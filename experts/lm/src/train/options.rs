//! What a training run is told, and which values it accepts.

use super::RowFields;
use crate::adapter::Projection;
use crate::load::Checkpoint;
use crate::{LmError, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to train and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainAdapterOptions {
    /// JSON lines `{"question": .., "answer": ..}`, with an optional `"system"`; `.gz` is read too.
    pub data: PathBuf,
    /// Other names of these fields, and which rows of `data` and `dev` are read.
    pub fields: RowFields,
    /// Held-out rows of the same form, for the perplexity at the end.
    pub dev: Option<PathBuf>,
    /// Rows of `dev` to measure on, chosen by the seed.
    pub dev_rows: usize,
    /// The adapter to write. `OUT.loss.csv` and `OUT.state` are written beside it.
    pub out: PathBuf,
    /// Rank of the two matrices.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f32,
    /// How many of the last layers carry adapters.
    pub layers: usize,
    /// Which of their projections.
    pub targets: Vec<Projection>,
    /// System prompts from which each row without its own takes one by the seed; an empty text is
    /// a prompt without one, an empty list likewise.
    pub systems: Vec<String>,
    /// Optimiser steps.
    pub steps: usize,
    /// Most tokens in a step; a step holds as many whole rows as fit.
    pub batch_tokens: usize,
    /// Most tokens of a row, prompt included.
    pub max_tokens: usize,
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up; a cosine to a tenth of the peak follows.
    pub warmup: usize,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to at most this global norm.
    pub clip: f64,
    /// Seed of initial values and of the rows' order.
    pub seed: u64,
    /// Steps between two saved states.
    pub save_every: usize,
    /// Go on from `OUT.state` if it is there. Only files, threads and `steps` may differ from those of
    /// the run that wrote it.
    pub resume: bool,
    /// Threads; all of the machine's if `None`.
    pub threads: Option<usize>,
}

impl Default for TrainAdapterOptions {
    fn default() -> Self {
        Self {
            data: PathBuf::new(),
            fields: RowFields::default(),
            dev: None,
            dev_rows: 300,
            out: PathBuf::from("adapter.safetensors"),
            rank: 16,
            alpha: 32.0,
            layers: 10,
            targets: Projection::ALL.to_vec(),
            systems: Vec::new(),
            steps: 300,
            batch_tokens: 1536,
            max_tokens: 256,
            learning_rate: 1e-3,
            warmup: 20,
            weight_decay: 0.0,
            clip: 1.0,
            seed: 0,
            save_every: 20,
            resume: false,
            threads: None,
        }
    }
}

impl TrainAdapterOptions {
    /// Names the first option out of range.
    pub(super) fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let config = checkpoint.config();
        let bounds = [
            ("rank", self.rank, 1, 256),
            ("layers", self.layers, 1, config.layers),
            ("targets", self.targets.len(), 1, 7),
            ("steps", self.steps, 1, 1 << 30),
            ("max_tokens", self.max_tokens, 16, config.context_length),
            ("batch_tokens", self.batch_tokens, self.max_tokens, 1 << 17),
            ("save_every", self.save_every, 1, 1 << 30),
            ("threads", self.threads.unwrap_or(1), 1, 1024),
        ];
        for (field, value, low, high) in bounds {
            if value < low || value > high {
                return Err(invalid(field, value, format!("give {low} to {high}")));
            }
        }
        let positive = [
            ("alpha", f64::from(self.alpha)),
            ("learning_rate", self.learning_rate),
            ("clip", self.clip),
        ];
        for (field, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(invalid(field, value, "give a positive number".into()));
            }
        }
        if !(0.0..1.0).contains(&self.weight_decay) {
            return Err(invalid(
                "weight_decay",
                self.weight_decay,
                "give 0 or more and less than 1".into(),
            ));
        }
        Ok(())
    }
}

pub(super) fn invalid(field: &'static str, value: impl ToString, fix: String) -> LmError {
    LmError::Invalid {
        field,
        value: value.to_string(),
        fix,
    }
}
