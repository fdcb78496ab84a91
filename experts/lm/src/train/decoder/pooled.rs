//! The first layers as a classifier: hidden states pooled over each row's tokens, times one row of
//! numbers per class, and the gradients of its cross-entropy.
//!
//! Features may come from several depths, so their gradients join the backward pass at the layers they
//! were read after.

use super::{Adapted, Decoder, Lora};
use crate::Result;
use crate::train::data::Batch;
use crate::train::kernels::Values;
use crate::train::pooled::{PooledExample, PooledFeature, Pooling};
use candle_core::{Device, Tensor};
use std::ops::Range;

/// The classes' rows with the standardisation of what they are multiplied with.
pub(in crate::train) struct PooledHead<'a> {
    pub(in crate::train) features: &'a [PooledFeature],
    pub(in crate::train) mean: &'a [f32],
    pub(in crate::train) scale: &'a [f32],
    /// `classes × width`.
    pub(in crate::train) rows: &'a Tensor,
    pub(in crate::train) bias: &'a [f32],
}

/// Examples that go through the model together.
pub(in crate::train) struct PooledBatch<'a> {
    pub(in crate::train) batch: Batch,
    pub(in crate::train) examples: Vec<&'a PooledExample>,
    /// For each example a factor for each feature value; empty: all 1.
    pub(in crate::train) masks: Vec<Vec<f32>>,
}

/// Of one batch: weighted loss, rows classified rightly, and gradients.
pub(in crate::train) struct PooledGradients {
    pub(in crate::train) loss: f64,
    pub(in crate::train) right: usize,
    pub(in crate::train) adapter: Vec<Option<Tensor>>,
    pub(in crate::train) rows: Tensor,
    pub(in crate::train) bias: Vec<f32>,
}

impl Decoder {
    /// Raw features of each example: one vector per feature, side by side.
    pub(in crate::train) fn pooled(
        &self,
        batch: &PooledBatch<'_>,
        adapted: &Adapted,
        features: &[PooledFeature],
    ) -> Result<Vec<Vec<f32>>> {
        let mut x = self.embed(&batch.batch)?;
        let mut pooled = vec![vec![0.0; features.len() * self.config.width]; batch.examples.len()];
        for (index, (layer, projections)) in self.layers.iter().zip(&adapted.layers).enumerate() {
            x = self.layer_forward(layer, projections, x, &batch.batch)?.0;
            self.pool(&x, batch, features, index + 1, &mut pooled)?;
        }
        Ok(pooled)
    }

    /// Adds the features read after `layer`.
    fn pool(
        &self,
        x: &Tensor,
        batch: &PooledBatch<'_>,
        features: &[PooledFeature],
        layer: usize,
        pooled: &mut [Vec<f32>],
    ) -> Result<()> {
        let width = self.config.width;
        let values = Values::of(x)?;
        for (slot, feature) in features.iter().enumerate().filter(|(_, f)| f.layer == layer) {
            for ((example, row), out) in batch
                .examples
                .iter()
                .zip(&batch.batch.rows)
                .zip(pooled.iter_mut())
            {
                let tokens = tokens(feature.pooling, example, row);
                let share = 1.0 / tokens.len().max(1) as f32;
                let out = &mut out[slot * width..][..width];
                for token in values[tokens.start * width..tokens.end * width].chunks_exact(width) {
                    out.iter_mut().zip(token).for_each(|(sum, x)| *sum += share * x);
                }
            }
        }
        Ok(())
    }

    /// Loss of a batch, and the gradients of `scale` times that loss. The adapter must start at the first layer.
    pub(in crate::train) fn pooled_gradients(
        &self,
        batch: &PooledBatch<'_>,
        lora: &Lora,
        adapted: &Adapted,
        head: &PooledHead<'_>,
        scale: f32,
    ) -> Result<PooledGradients> {
        let width = self.config.width;
        let mut x = self.embed(&batch.batch)?;
        let mut trail = Vec::with_capacity(self.layers.len());
        let mut pooled = vec![vec![0.0; head.features.len() * width]; batch.examples.len()];
        for (index, (layer, projections)) in self.layers.iter().zip(&adapted.layers).enumerate() {
            let (y, saved) = self.layer_forward(layer, projections, x, &batch.batch)?;
            self.pool(&y, batch, head.features, index + 1, &mut pooled)?;
            trail.push((layer, projections, saved));
            x = y;
        }
        for (index, row) in pooled.iter_mut().enumerate() {
            for ((x, mean), scale) in row.iter_mut().zip(head.mean).zip(head.scale) {
                *x = (*x - mean) / scale;
            }
            if let Some(mask) = batch.masks.get(index) {
                row.iter_mut().zip(mask).for_each(|(x, keep)| *x *= keep);
            }
        }
        let (count, columns) = (pooled.len(), head.mean.len());
        let inputs = Tensor::from_vec(pooled.concat(), (count, columns), &Device::Cpu)?;
        let mut errors = inputs.matmul(&head.rows.t()?)?.to_vec2::<f32>()?;
        let (mut loss, mut right) = (0.0, 0);
        let mut bias = vec![0.0; head.bias.len()];
        for (logits, example) in errors.iter_mut().zip(&batch.examples) {
            logits.iter_mut().zip(head.bias).for_each(|(z, b)| *z += b);
            right += usize::from(argmax(logits) == argmax(&example.target));
            loss += cross_entropy(logits, example, scale);
            bias.iter_mut().zip(logits.iter()).for_each(|(sum, d)| *sum += d);
        }
        let errors = Tensor::from_vec(errors.concat(), (count, head.bias.len()), &Device::Cpu)?;
        let rows = errors.t()?.matmul(&inputs)?;
        let mut d_pooled = errors.matmul(head.rows)?.to_vec2::<f32>()?;
        for (index, row) in d_pooled.iter_mut().enumerate() {
            row.iter_mut().zip(head.scale).for_each(|(d, scale)| *d /= scale);
            if let Some(mask) = batch.masks.get(index) {
                row.iter_mut().zip(mask).for_each(|(d, keep)| *d *= keep);
            }
        }

        let mut adapter = vec![None; lora.parameters.len()];
        let mut dy: Option<Tensor> = None;
        while let Some((layer, projections, saved)) = trail.pop() {
            let depth = trail.len() + 1;
            let own = self.unpool(batch, head.features, depth, &d_pooled)?;
            let Some(d) = (match (dy.take(), own) {
                (Some(dy), Some(own)) => Some((dy + own)?),
                (dy, own) => dy.or(own),
            }) else {
                continue; // nothing is read at or above this layer
            };
            let pairs = &lora.pairs[depth - 1];
            let mut learn = |target: usize, x: &Tensor, dy: &Tensor| match pairs[target] {
                Some(pair) => lora.gradients(pair, x, dy, &mut adapter),
                None => Ok(()),
            };
            dy = Some(self.layer_backward(
                layer,
                projections,
                saved,
                &d,
                &batch.batch,
                depth == 1,
                &mut learn,
            )?);
        }
        Ok(PooledGradients {
            loss,
            right,
            adapter,
            rows,
            bias,
        })
    }

    /// Gradient of the hidden states after `layer` from the features read there; `None` if there are none.
    fn unpool(
        &self,
        batch: &PooledBatch<'_>,
        features: &[PooledFeature],
        layer: usize,
        d_pooled: &[Vec<f32>],
    ) -> Result<Option<Tensor>> {
        let width = self.config.width;
        let count = batch.batch.tokens.len();
        let mut dx = Vec::new();
        for (slot, feature) in features.iter().enumerate().filter(|(_, f)| f.layer == layer) {
            dx.resize(count * width, 0.0);
            for ((example, row), d) in batch.examples.iter().zip(&batch.batch.rows).zip(d_pooled) {
                let tokens = tokens(feature.pooling, example, row);
                let share = 1.0 / tokens.len().max(1) as f32;
                let d = &d[slot * width..][..width];
                for token in dx[tokens.start * width..tokens.end * width].chunks_exact_mut(width) {
                    token.iter_mut().zip(d).for_each(|(sum, d)| *sum += share * d);
                }
            }
        }
        Ok(match dx.is_empty() {
            true => None,
            false => Some(Tensor::from_vec(dx, (count, width), &Device::Cpu)?),
        })
    }
}

/// The tokens of a packed row that a feature is the mean of.
fn tokens(pooling: Pooling, example: &PooledExample, row: &Range<usize>) -> Range<usize> {
    match pooling {
        Pooling::Mean => row.start + example.pooled.start..row.start + example.pooled.end,
        Pooling::Last => row.end - 1..row.end,
    }
}

fn argmax(values: &[f32]) -> usize {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(index, _)| index)
}

/// The example's weighted loss; `logits` become the gradient of `scale` times it.
fn cross_entropy(logits: &mut [f32], example: &PooledExample, scale: f32) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|z| (z - top).exp()).sum();
    let log_sum = top + sum.ln();
    let mut loss = 0.0;
    for (z, target) in logits.iter_mut().zip(&example.target) {
        let log_p = *z - log_sum;
        loss -= f64::from(*target) * f64::from(log_p);
        *z = scale * example.weight * (log_p.exp() - target);
    }
    loss * f64::from(example.weight)
}
