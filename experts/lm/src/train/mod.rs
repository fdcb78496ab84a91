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
mod options;
mod parallel;
pub mod pooled;
mod state;

pub use data::RowFields;
pub use options::TrainAdapterOptions;

use crate::Result;
use crate::load::Checkpoint;
use crate::tokenize::Tokenizer;
use data::{Batch, Encoder, Feed};
use decoder::{Decoder, LossAndGradients};
use indicatif::{ProgressBar, ProgressStyle};
use lora::Lora;
use options::invalid;
use parallel::Workers;
use serde::{Deserialize, Serialize};
use state::{Counts, Curve};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Steps over whose losses a run's first and last loss are averaged.
const LOSS_WINDOW: usize = 10;
/// Time between two lines of the log.
const LOG_EVERY: Duration = Duration::from_secs(30);

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
/// [`crate::LmError::Invalid`] for options out of range or a state of other options, [`crate::LmError::BadFile`]
/// and [`crate::LmError::Io`] for the files.
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
    let rows = data::read_rows(&options.data, &options.fields)?;
    let dev = match &options.dev {
        Some(path) => {
            let rows = data::read_rows(path, &options.fields)?;
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
    let adapted = decoder.adapt(lora)?;
    let scale = 1.0 / batch.targets.len() as f32;
    let parts = workers.map(batch, |part| {
        decoder.loss_and_gradients(part, lora, &adapted, scale)
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
    let adapted = decoder.adapt(lora)?;
    let (mut base, mut tuned) = (0.0, 0.0);
    for batch in batches {
        let losses = workers.map(batch, |part| decoder.losses(part, &adapted))?;
        for (without, with) in losses {
            base += without;
            tuned += with;
        }
    }
    let answer_tokens: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    let perplexity = |loss: f64| (loss / answer_tokens.max(1) as f64).exp();
    Ok(DevReport {
        rows: batches.iter().map(|batch| batch.rows.len()).sum(),
        answer_tokens,
        base_perplexity: perplexity(base),
        adapter_perplexity: perplexity(tuned),
    })
}

/// What the file says of its training: options without paths of this machine, and the report.
fn card(options: &TrainAdapterOptions, report: &TrainReport) -> serde_json::Value {
    let file = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    serde_json::json!({
        "data": file(&options.data),
        "dev": options.dev.as_ref().and_then(file),
        "fields": options.fields,
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
