//! Training of low-rank adapters on question and answer rows.
//!
//! The model stays frozen; two narrow matrices beside each chosen projection of the last layers are
//! trained by [`train_adapter`] with AdamW on the cross-entropy of the answers. Training runs on the
//! CPU: its backward pass is this module's own, see `decoder`.

mod attention;
mod data;
mod decoder;
mod kernels;
mod lora;
mod optimiser;
mod parallel;
mod state;

use crate::adapter::Projection;
use crate::load::Checkpoint;
use crate::tokenize::Tokenizer;
use crate::{LmError, Result};
use data::{Batch, Encoder, Feed};
use decoder::{Decoder, LossAndGradients};
use indicatif::{ProgressBar, ProgressStyle};
use lora::Lora;
use parallel::Workers;
use serde::{Deserialize, Serialize};
use state::{Counts, Curve};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Steps over whose losses a run's first and last loss are averaged.
const LOSS_WINDOW: usize = 10;
/// Time between two lines of the log.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// What to train and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainAdapterOptions {
    /// JSON lines `{"question": .., "answer": ..}`, with an optional `"system"`; `.gz` is read too.
    pub data: PathBuf,
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
    fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
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

fn invalid(field: &'static str, value: impl ToString, fix: String) -> LmError {
    LmError::Invalid {
        field,
        value: value.to_string(),
        fix,
    }
}

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepRecord {
    /// Steps done, this one included.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Tokens trained on so far, prompts included.
    pub tokens: usize,
    /// Answer tokens trained on so far.
    pub answer_tokens: usize,
    /// Mean loss of this step's answer tokens, in nats.
    pub loss: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Global norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Seconds so far, those before a resume included.
    pub seconds: f64,
    /// Tokens a second since the start or the resume.
    pub tokens_per_second: f64,
    /// Seconds to go, by the mean time of a step.
    pub seconds_left: f64,
}

/// Perplexity on held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DevReport {
    /// Rows measured on.
    pub rows: usize,
    /// Their answer tokens.
    pub answer_tokens: usize,
    /// Perplexity of the base model.
    pub base_perplexity: f64,
    /// Perplexity with the adapter.
    pub adapter_perplexity: f64,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Optimiser steps.
    pub steps: usize,
    /// Rows trained on (a row seen twice counts twice).
    pub rows: usize,
    /// Tokens trained on, prompts included.
    pub tokens: usize,
    /// Answer tokens trained on.
    pub answer_tokens: usize,
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Mean loss of the first ten steps, in nats a token.
    pub first_loss: f64,
    /// Mean loss of the last ten steps.
    pub last_loss: f64,
    /// Trained numbers.
    pub parameters: usize,
    /// Perplexities on held-out rows, if a dev file was given.
    pub dev: Option<DevReport>,
}

/// Trains an adapter and writes it to `options.out` in f16, in the canonical rotary convention of
/// [`crate::load::checkpoint`]. `progress` hears of every step; a progress bar is drawn if standard
/// error is a terminal, else a line goes to the log every half minute.
///
/// # Errors
/// [`LmError::Invalid`] for options out of range or a state of other options, [`LmError::BadFile`]
/// and [`LmError::Io`] for the files.
pub fn train_adapter(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    options: &TrainAdapterOptions,
    progress: &mut (dyn FnMut(&StepRecord) + Send),
) -> Result<TrainReport> {
    options.check(checkpoint)?;
    let (words, rows) = (tokenizer.vocabulary(), checkpoint.config().vocabulary);
    if words > rows {
        let fix = format!("the model has {rows} embeddings: give the model's own tokenizer");
        return Err(invalid("tokenizer vocabulary", words, fix));
    }
    let encoder = || Encoder {
        tokenizer,
        systems: &options.systems,
        max_tokens: options.max_tokens,
    };
    let rows = data::read_rows(&options.data)?;
    let dev = match &options.dev {
        Some(path) => {
            let rows = data::read_rows(path)?;
            data::sample(
                &rows,
                &encoder(),
                options.dev_rows,
                options.batch_tokens,
                options.seed,
            )?
        }
        None => Vec::new(),
    };
    let decoder = Decoder::load(checkpoint, options.max_tokens)?;
    let config = decoder.config();
    let mut lora = Lora::new(
        config,
        options.layers,
        &options.targets,
        options.rank,
        options.alpha,
        options.seed,
    );
    let mut feed = Feed::new(&rows, encoder(), options.seed);
    let resumed = match options.resume {
        true => state::restore(options, &config.name, &mut lora)?,
        false => None,
    };
    let mut counts = resumed.unwrap_or_default();
    for _ in 0..counts.steps {
        feed.batch(options.batch_tokens)?;
    }
    let workers = Workers::new(options.threads)?;
    let mut curve = Curve::open(&options.out, counts.steps)?;
    let bar = progress_bar(options.steps, counts.steps);
    let before = counts;
    let start = Instant::now();
    let mut logged = start;
    while counts.steps < options.steps {
        let batch = feed.batch(options.batch_tokens)?;
        let answer_tokens = batch.targets.len();
        let result = step(&decoder, &lora, &batch, &workers)?;
        let rate =
            optimiser::learning_rate(counts.steps, options.steps, options.warmup, options.learning_rate);
        let gradient_norm = optimiser::update(
            &mut lora.parameters,
            &result.gradients,
            counts.steps,
            rate,
            options.weight_decay,
            options.clip,
        )?;
        let elapsed = start.elapsed().as_secs_f64();
        counts = Counts {
            steps: counts.steps + 1,
            rows: counts.rows + batch.rows.len(),
            tokens: counts.tokens + batch.tokens.len(),
            answer_tokens: counts.answer_tokens + answer_tokens,
            seconds: before.seconds + elapsed,
        };
        let record = StepRecord {
            step: counts.steps,
            steps: options.steps,
            tokens: counts.tokens,
            answer_tokens: counts.answer_tokens,
            loss: result.loss / answer_tokens as f64,
            learning_rate: rate,
            gradient_norm,
            seconds: counts.seconds,
            tokens_per_second: (counts.tokens - before.tokens) as f64 / elapsed,
            seconds_left: elapsed / (counts.steps - before.steps) as f64
                * (options.steps - counts.steps) as f64,
        };
        curve.push(&record)?;
        progress(&record);
        bar.set_position(counts.steps as u64);
        bar.set_message(format!(
            "loss {:.3}, {:.0} tokens/s",
            record.loss, record.tokens_per_second
        ));
        if bar.is_hidden() && logged.elapsed() >= LOG_EVERY {
            logged = Instant::now();
            tracing::info!(
                step = record.step,
                steps = record.steps,
                loss = record.loss,
                tokens_per_second = record.tokens_per_second.round(),
                seconds_left = record.seconds_left.round(),
                "training an adapter"
            );
        }
        if counts.steps % options.save_every == 0 || counts.steps == options.steps {
            state::save(options, &config.name, &lora, counts)?;
        }
    }
    bar.finish();
    let losses = curve.losses()?;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    let window = LOSS_WINDOW.min(losses.len());
    let mut report = TrainReport {
        steps: counts.steps,
        rows: counts.rows,
        tokens: counts.tokens,
        answer_tokens: counts.answer_tokens,
        seconds: counts.seconds,
        tokens_per_second: counts.tokens as f64 / counts.seconds.max(1e-9),
        first_loss: mean(&losses[..window]),
        last_loss: mean(&losses[losses.len() - window..]),
        parameters: lora
            .parameters
            .iter()
            .map(|parameter| parameter.values.len())
            .sum(),
        dev: None,
    };
    lora.save(&options.out, config, &card(options, &report))?;
    if !dev.is_empty() {
        tracing::info!(batches = dev.len(), "measuring perplexity on held-out rows");
        report.dev = Some(measure(&decoder, &lora, &dev, &workers)?);
        lora.save(&options.out, config, &card(options, &report))?;
    }
    Ok(report)
}

/// Summed loss of a batch and the gradients of its mean loss, computed by all workers.
fn step(decoder: &Decoder, lora: &Lora, batch: &Batch, workers: &Workers) -> Result<LossAndGradients> {
    let merged = decoder.merge(lora)?;
    let scale = 1.0 / batch.targets.len() as f32;
    let parts = workers.map(batch, |part| {
        decoder.loss_and_gradients(part, lora, &merged, scale)
    })?;
    let mut sum = LossAndGradients {
        loss: 0.0,
        gradients: vec![None; lora.parameters.len()],
    };
    for part in parts {
        sum.loss += part.loss;
        for (sum, gradient) in sum.gradients.iter_mut().zip(part.gradients) {
            *sum = match (sum.take(), gradient) {
                (Some(sum), Some(gradient)) => Some((sum + gradient)?),
                (sum, gradient) => sum.or(gradient),
            };
        }
    }
    Ok(sum)
}

/// Perplexity of base model and adapter on the same batches.
fn measure(decoder: &Decoder, lora: &Lora, batches: &[Batch], workers: &Workers) -> Result<DevReport> {
    let merged = decoder.merge(lora)?;
    let (mut base, mut adapted) = (0.0, 0.0);
    for batch in batches {
        let losses = workers.map(batch, |part| decoder.losses(part, &merged))?;
        for (without, with) in losses {
            base += without;
            adapted += with;
        }
    }
    let answer_tokens: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    let perplexity = |loss: f64| (loss / answer_tokens.max(1) as f64).exp();
    Ok(DevReport {
        rows: batches.iter().map(|batch| batch.rows.len()).sum(),
        answer_tokens,
        base_perplexity: perplexity(base),
        adapter_perplexity: perplexity(adapted),
    })
}

/// What the file says of its training: options without paths of this machine, and the report.
fn card(options: &TrainAdapterOptions, report: &TrainReport) -> serde_json::Value {
    let file = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    serde_json::json!({
        "data": file(&options.data),
        "dev": options.dev.as_ref().and_then(file),
        "layers": options.layers,
        "targets": options.targets,
        "systems": options.systems,
        "batch_tokens": options.batch_tokens,
        "max_tokens": options.max_tokens,
        "learning_rate": options.learning_rate,
        "warmup": options.warmup,
        "weight_decay": options.weight_decay,
        "clip": options.clip,
        "seed": options.seed,
        "report": report,
    })
}

fn progress_bar(steps: usize, done: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_position(done as u64);
    let style = ProgressStyle::with_template("{bar:30} step {pos}/{len}, {msg}, {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests;
