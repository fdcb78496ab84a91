//! Training of a low-rank adapter through the first layers together with a classifier on top of them.
//!
//! This is what a router's adapter is trained with: the classes' rows (functional tokens, Octopus v4) are
//! multiplied with hidden states pooled over each text's tokens, read at one or more depths, and the
//! cross-entropy trains the rows and the adapter jointly. Nothing above the deepest layer read is computed.

mod check;

use super::data::{Batch, Sequence};
use super::decoder::Decoder;
use super::decoder::pooled::{PooledBatch, PooledGradients, PooledHead};
use super::lora::Lora;
use super::optimiser::{self, Parameter};
use super::options::invalid;
use super::parallel::{PARTS, Workers};
use crate::adapter::Projection;
use crate::load::Checkpoint;
use crate::{LmError, Result};
use candle_core::Tensor;
use check::{check, check_examples};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// Examples from which the features' mean and spread are taken before training.
const PROBED: usize = 1024;

/// How a text's hidden states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean over the example's `pooled` tokens.
    Mean,
    /// The last token.
    Last,
}

/// One vector that the classes' rows see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PooledFeature {
    /// After which layer, counted from 1.
    pub layer: usize,
    /// Pooled how.
    pub pooling: Pooling,
}

/// A text with its class.
#[derive(Debug, Clone, PartialEq)]
pub struct PooledExample {
    /// All tokens, at least one.
    pub tokens: Vec<u32>,
    /// Those over which means are taken; not empty, within `tokens`.
    pub pooled: Range<usize>,
    /// Probability of each class, adding up to 1.
    pub target: Vec<f32>,
    /// Weight of its loss.
    pub weight: f32,
}

/// What to train and how.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainPooledOptions {
    /// The adapter to write.
    pub out: PathBuf,
    /// What is read; the deepest of these is the depth that is trained.
    #[serde(skip)]
    pub features: Vec<PooledFeature>,
    /// Adapter to go on from, of the same depth, targets and rank; `None`: from the base model.
    #[serde(skip)]
    pub start: Option<PathBuf>,
    /// Rank of the adapter's matrices.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f32,
    /// Which projections carry it.
    pub targets: Vec<Projection>,
    /// Passes over the examples.
    pub epochs: usize,
    /// Examples of one optimiser step.
    pub batch_rows: usize,
    /// Peak learning rate of the adapter; warm-up over a twentieth of the steps, then a cosine to a tenth.
    pub learning_rate: f64,
    /// Peak learning rate of the classes' rows.
    pub head_learning_rate: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to at most this global norm.
    pub clip: f64,
    /// Share of the feature values set to 0 in training (Srivastava et al. 2014), in [0, 1).
    pub dropout: f32,
    /// Seed of initial values, order and dropout.
    pub seed: u64,
    /// Threads; all of the machine's if `None`.
    pub threads: Option<usize>,
}

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PooledStep {
    /// Steps done.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Mean loss of the step's examples, in nats.
    pub loss: f64,
    /// Share of them classified as their likeliest target.
    pub accuracy: f64,
    /// Examples a second since the start.
    pub rows_per_second: f64,
}

/// The classifier that was trained with the adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct PooledClassifier {
    /// `classes × width`, row-major, over standardised features.
    pub rows: Vec<f32>,
    /// One per class.
    pub bias: Vec<f32>,
    /// Mean of each feature value before training.
    pub mean: Vec<f32>,
    /// Its standard deviation, times the square root of the number of features.
    pub scale: Vec<f32>,
    /// Mean loss of the last tenth of the steps.
    pub last_loss: f64,
    /// Optimiser steps.
    pub steps: usize,
    /// Trained numbers of the adapter.
    pub parameters: usize,
}

/// Trains adapter and classifier; writes the adapter to `options.out` in f16. `epoch` gives each pass its
/// examples, so that they can be drawn and varied anew.
///
/// # Errors
/// [`LmError::Invalid`] for options or examples out of range, [`LmError::Io`] for the file.
pub fn train_pooled(
    checkpoint: &Checkpoint,
    classes: usize,
    epoch: &mut dyn FnMut(usize) -> Vec<PooledExample>,
    options: &TrainPooledOptions,
    progress: &mut dyn FnMut(&PooledStep),
) -> Result<PooledClassifier> {
    let depth = check(checkpoint, options)?;
    let mut examples = epoch(0);
    let config = checkpoint.config();
    check_examples(&examples, classes, config)?;
    let positions = config.context_length;
    let decoder = Decoder::load_first(checkpoint, positions, depth)?;
    let mut lora = Lora::new(
        decoder.config(),
        depth,
        &options.targets,
        options.rank,
        options.alpha,
        options.seed,
    );
    if let Some(path) = &options.start {
        lora.start_from(path)?;
    }
    let workers = Workers::new(options.threads)?;
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let (mean, scale) = spread(&decoder, &lora, &examples, options, &workers, &mut random)?;
    let columns = mean.len();
    let mut head = [
        Parameter::new("rows".into(), (classes, columns), vec![0.0; classes * columns]),
        Parameter::new("bias".into(), (1, classes), vec![0.0; classes]),
    ];
    let per_epoch = examples.len().div_ceil(options.batch_rows);
    let steps = per_epoch * options.epochs;
    let warmup = (steps / 20).max(1);
    let mut losses = Vec::with_capacity(steps);
    let (start, mut seen, mut step) = (Instant::now(), 0, 0);
    for pass in 0..options.epochs {
        if pass > 0 {
            examples = epoch(pass);
            check_examples(&examples, classes, config)?;
        }
        examples.shuffle(&mut random);
        // Later passes may draw a few examples more or fewer: the schedule goes by the first.
        for chunk in examples.chunks(options.batch_rows).take(per_epoch) {
            let result = gradients(
                &decoder,
                &lora,
                &head,
                chunk,
                (&mean, &scale),
                options,
                &workers,
                &mut random,
            )?;
            if !result.loss.is_finite() {
                return Err(invalid(
                    "learning_rate",
                    options.learning_rate,
                    format!("the loss is not finite at step {}: lower it", step + 1),
                ));
            }
            let rate = |peak| optimiser::learning_rate(step, steps, warmup, peak);
            let (decay, clip) = (options.weight_decay, options.clip);
            optimiser::update(
                &mut lora.parameters,
                &result.adapter,
                step,
                rate(options.learning_rate),
                decay,
                clip,
            )?;
            let bias = Tensor::from_slice(&result.bias, (1, classes), &candle_core::Device::Cpu)?;
            let head_gradients = [Some(result.rows), Some(bias)];
            optimiser::update(
                &mut head,
                &head_gradients,
                step,
                rate(options.head_learning_rate),
                decay,
                clip,
            )?;
            step += 1;
            seen += chunk.len();
            losses.push(result.loss / chunk.len() as f64);
            progress(&PooledStep {
                step,
                steps,
                loss: result.loss / chunk.len() as f64,
                accuracy: result.right as f64 / chunk.len() as f64,
                rows_per_second: seen as f64 / start.elapsed().as_secs_f64().max(1e-9),
            });
        }
    }
    let last = &losses[losses.len() - (losses.len() / 10).max(1)..];
    let card = serde_json::json!({ "kind": "pooled classifier", "depth": depth, "steps": step, "options": {
        "epochs": options.epochs, "batch_rows": options.batch_rows, "learning_rate": options.learning_rate,
        "head_learning_rate": options.head_learning_rate, "weight_decay": options.weight_decay,
        "clip": options.clip, "dropout": options.dropout, "seed": options.seed } });
    lora.save(&options.out, checkpoint.config(), &card)?;
    let [rows, bias] = head;
    Ok(PooledClassifier {
        rows: rows.values,
        bias: bias.values,
        mean,
        scale,
        last_loss: last.iter().sum::<f64>() / last.len() as f64,
        steps: step,
        parameters: lora
            .parameters
            .iter()
            .map(|parameter| parameter.values.len())
            .sum(),
    })
}

/// Mean and scale of each feature value over a sample of the examples, before any training.
fn spread(
    decoder: &Decoder,
    lora: &Lora,
    examples: &[PooledExample],
    options: &TrainPooledOptions,
    workers: &Workers,
    random: &mut ChaCha8Rng,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let adapted = decoder.adapt(lora)?;
    let mut order: Vec<&PooledExample> = examples.iter().collect();
    order.shuffle(random);
    order.truncate(PROBED);
    let batches: Vec<PooledBatch<'_>> = order
        .chunks(options.batch_rows)
        .map(|chunk| pack(chunk.to_vec()))
        .collect();
    let vectors = workers
        .map_parts(&batches, |batch| {
            decoder.pooled(batch, &adapted, &options.features)
        })?
        .concat();
    Ok(moments(vectors.iter().map(Vec::as_slice), options.features.len()))
}

/// Mean of each column, and its standard deviation times the square root of `vectors`, the number of vectors that lie
/// side by side in a row: a row so standardised has the length of one vector, so that one regulariser suits
/// all read-outs.
pub fn moments<'a, X: Copy + Into<f64> + 'a>(
    rows: impl Iterator<Item = &'a [X]>,
    vectors: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (mut sums, mut n) = (Vec::new(), 0.0f64);
    for row in rows {
        sums.resize(row.len(), (0.0f64, 0.0f64));
        for ((sum, squares), x) in sums.iter_mut().zip(row) {
            let x: f64 = (*x).into();
            *sum += x;
            *squares += x * x;
        }
        n += 1.0;
    }
    let spread = (vectors as f64).sqrt();
    sums.into_iter()
        .map(|(sum, squares)| {
            let variance = (squares / n - (sum / n).powi(2)).max(0.0);
            ((sum / n) as f32, (spread * variance.sqrt().max(1e-6)) as f32)
        })
        .unzip()
}

fn pack(examples: Vec<&PooledExample>) -> PooledBatch<'_> {
    let mut batch = Batch::default();
    for example in &examples {
        batch.push(Sequence {
            tokens: example.tokens.clone(),
            answer: example.tokens.len(),
        });
    }
    PooledBatch {
        batch,
        examples,
        masks: Vec::new(),
    }
}

/// Summed loss of a step's examples and the gradients of its mean.
#[expect(clippy::too_many_arguments, reason = "one step's state is what it takes")]
fn gradients(
    decoder: &Decoder,
    lora: &Lora,
    head: &[Parameter; 2],
    examples: &[PooledExample],
    (mean, scale): (&[f32], &[f32]),
    options: &TrainPooledOptions,
    workers: &Workers,
    random: &mut ChaCha8Rng,
) -> Result<PooledGradients> {
    let adapted = decoder.adapt(lora)?;
    let [rows, bias] = head;
    let matrix = rows.tensor()?;
    let head = PooledHead {
        features: &options.features,
        mean,
        scale,
        rows: &matrix,
        bias: &bias.values,
    };
    // The longest first, each to the part with the fewest tokens so far.
    let mut order: Vec<&PooledExample> = examples.iter().collect();
    order.sort_by_key(|example| std::cmp::Reverse(example.tokens.len()));
    let mut split: Vec<(usize, Vec<&PooledExample>)> = vec![(0, Vec::new()); PARTS.min(order.len())];
    for example in order {
        if let Some((tokens, part)) = split.iter_mut().min_by_key(|(tokens, _)| *tokens) {
            *tokens += example.tokens.len();
            part.push(example);
        }
    }
    let parts: Vec<PooledBatch<'_>> = split
        .into_iter()
        .map(|(_, part)| {
            let mut batch = pack(part);
            if options.dropout > 0.0 {
                let keep = 1.0 / (1.0 - options.dropout);
                let mask = |_: &&PooledExample| {
                    (0..mean.len())
                        .map(|_| {
                            if random.random::<f32>() < options.dropout {
                                0.0
                            } else {
                                keep
                            }
                        })
                        .collect()
                };
                batch.masks = batch.examples.iter().map(mask).collect();
            }
            batch
        })
        .collect();
    let share = 1.0 / examples.len() as f32;
    let results = workers.map_parts(&parts, |part| {
        decoder.pooled_gradients(part, lora, &adapted, &head, share)
    })?;
    let sum = results.into_iter().map(Ok).reduce(|sum, part| add(sum?, part?));
    sum.unwrap_or_else(|| Err(invalid("examples", 0, "give at least one".to_owned())))
}

fn add(mut sum: PooledGradients, part: PooledGradients) -> Result<PooledGradients, LmError> {
    sum.loss += part.loss;
    sum.right += part.right;
    sum.rows = (sum.rows + part.rows)?;
    sum.bias.iter_mut().zip(&part.bias).for_each(|(sum, d)| *sum += d);
    for (sum, gradient) in sum.adapter.iter_mut().zip(part.adapter) {
        *sum = match (sum.take(), gradient) {
            (Some(sum), Some(gradient)) => Some((sum + gradient)?),
            (sum, gradient) => sum.or(gradient),
        };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
