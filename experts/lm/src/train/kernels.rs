//! The decoder's pointwise operations with their derivatives, fused and run over rows in parallel.
//!
//! candle's own fused norms, rotary embeddings and softmax have no backward pass, and their unfused
//! forms cost a pass over memory for every elementary step on one thread. Matrices are contiguous
//! f32 tensors on the CPU, one token a row.

use crate::Result;
pub(super) use crate::exp::exp;
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Deref;

/// Read access to a tensor's values.
pub(super) struct Values<G> {
    storage: G,
    range: (usize, usize),
}

impl Values<()> {
    /// Fails unless `tensor` is contiguous f32 on the CPU.
    pub(super) fn of(tensor: &Tensor) -> Result<Values<impl Deref<Target = Storage>>> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some(range) = layout.contiguous_offsets() else {
            return Err(candle_core::Error::msg("expected a contiguous tensor").into());
        };
        if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
            return Err(candle_core::Error::msg("expected f32 values on the CPU").into());
        }
        Ok(Values { storage, range })
    }
}

impl<G: Deref<Target = Storage>> Deref for Values<G> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.0..self.range.1],
            _ => &[], // ruled out by `of`
        }
    }
}

/// Rewrites a tensor's values where they lie. Only for tensors that nothing else reads.
pub(super) fn rewrite(tensor: &Tensor, change: impl FnMut(&mut [f32])) -> Result<()> {
    Ok(tensor.inplace_op1(&Rewrite(RefCell::new(change)))?)
}

struct Rewrite<F>(RefCell<F>);

impl<F: FnMut(&mut [f32])> InplaceOp1 for Rewrite<F> {
    fn name(&self) -> &'static str {
        "rewrite"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(values), Some((start, end))) => {
                (self.0.borrow_mut())(&mut values[start..end]);
                Ok(())
            }
            _ => Err(candle_core::Error::msg("expected a contiguous f32 tensor")),
        }
    }
}

/// Root-mean-square norm: `y = x * gain / sqrt(mean(x^2) + epsilon)`. Also gives each row's
/// reciprocal root, which the backward pass needs.
pub(super) fn rms_norm(x: &Tensor, gain: &[f32], epsilon: f64) -> Result<(Tensor, Vec<f32>)> {
    let values = Values::of(x)?;
    let width = gain.len();
    let mut y = vec![0.0; values.len()];
    let mut reciprocal = vec![0.0; values.len() / width];
    y.par_chunks_mut(width)
        .zip(values.par_chunks(width))
        .zip(&mut reciprocal)
        .for_each(|((y, x), reciprocal)| {
            let square: f32 = x.iter().map(|x| x * x).sum();
            *reciprocal = 1.0 / (square / width as f32 + epsilon as f32).sqrt();
            for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
                *y = x * *reciprocal * gain;
            }
        });
    Ok((Tensor::from_vec(y, x.shape(), x.device())?, reciprocal))
}

/// Gradient of [`rms_norm`] with respect to `x`.
pub(super) fn rms_norm_backward(x: &Tensor, gain: &[f32], reciprocal: &[f32], dy: &Tensor) -> Result<Tensor> {
    let (x_values, dy_values) = (Values::of(x)?, Values::of(dy)?);
    let width = gain.len();
    let mut dx = vec![0.0; x_values.len()];
    dx.par_chunks_mut(width)
        .zip(x_values.par_chunks(width))
        .zip(dy_values.par_chunks(width))
        .zip(reciprocal)
        .for_each(|(((dx, x), dy), &reciprocal)| {
            let inner: f32 = x
                .iter()
                .zip(dy)
                .zip(gain)
                .map(|((x, dy), gain)| x * dy * gain)
                .sum();
            let pull = inner * reciprocal * reciprocal / width as f32;
            for (((dx, x), dy), gain) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
                *dx = reciprocal * (dy * gain - x * pull);
            }
        });
    Ok(Tensor::from_vec(dx, x.shape(), x.device())?)
}

/// `silu(gate) * up`, the gated unit of the feed-forward layer.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gates, ups) = (Values::of(gate)?, Values::of(up)?);
    let mut y = vec![0.0; gates.len()];
    let width = gate.dim(1)?;
    y.par_chunks_mut(width)
        .zip(gates.par_chunks(width))
        .zip(ups.par_chunks(width))
        .for_each(|((y, gate), up)| {
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate * up / (1.0 + exp(-gate));
            }
        });
    Ok(Tensor::from_vec(y, gate.shape(), gate.device())?)
}

/// Gradients of [`swiglu`] with respect to `gate` and `up`.
pub(super) fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (gates, ups, dys) = (Values::of(gate)?, Values::of(up)?, Values::of(dy)?);
    let width = gate.dim(1)?;
    let mut d_gate = vec![0.0; gates.len()];
    let mut d_up = vec![0.0; gates.len()];
    d_gate
        .par_chunks_mut(width)
        .zip(d_up.par_chunks_mut(width))
        .zip(gates.par_chunks(width))
        .zip(ups.par_chunks(width))
        .zip(dys.par_chunks(width))
        .for_each(|((((d_gate, d_up), gate), up), dy)| {
            for ((((d_gate, d_up), gate), up), dy) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(dy) {
                let sigmoid = 1.0 / (1.0 + exp(-gate));
                *d_gate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
                *d_up = dy * gate * sigmoid;
            }
        });
    Ok((
        Tensor::from_vec(d_gate, gate.shape(), gate.device())?,
        Tensor::from_vec(d_up, gate.shape(), gate.device())?,
    ))
}

/// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]`.
pub(super) struct Rotary {
    cosine: Vec<f32>,
    sine: Vec<f32>,
    half: usize,
}

impl Rotary {
    /// Angles `position * base^(-2i / head_dim)`.
    pub(super) fn new(positions: usize, head_dim: usize, base: f32) -> Self {
        let half = head_dim / 2;
        let angles = (0..positions).flat_map(|position| {
            (0..half).map(move |i| position as f64 * f64::from(base).powf(-2.0 * i as f64 / head_dim as f64))
        });
        let (sine, cosine) = angles
            .map(|angle| (angle.sin() as f32, angle.cos() as f32))
            .unzip();
        Self { cosine, sine, half }
    }

    /// Rotates the interleaved pairs of every head by the row's position; `backward` rotates back,
    /// which is the gradient.
    pub(super) fn rotate(&self, x: &Tensor, positions: &[usize], backward: bool) -> Result<Tensor> {
        let values = Values::of(x)?;
        let width = x.dim(1)?;
        let sign = if backward { -1.0 } else { 1.0 };
        let mut y = vec![0.0; values.len()];
        y.par_chunks_mut(width)
            .zip(values.par_chunks(width))
            .zip(positions)
            .for_each(|((y, x), &position)| {
                let angles = position * self.half..(position + 1) * self.half;
                let (cosine, sine) = (&self.cosine[angles.clone()], &self.sine[angles]);
                for (y, x) in y.chunks_mut(2 * self.half).zip(x.chunks(2 * self.half)) {
                    for (((y, x), c), s) in y.chunks_mut(2).zip(x.chunks(2)).zip(cosine).zip(sine) {
                        let s = sign * s;
                        y[0] = x[0] * c - x[1] * s;
                        y[1] = x[0] * s + x[1] * c;
                    }
                }
            });
        Ok(Tensor::from_vec(y, x.shape(), x.device())?)
    }
}

/// Turns rows of logits into the gradient of their summed cross-entropy, `softmax - onehot`, times
/// `scale`, in place, and returns the summed cross-entropy in nats.
pub(super) fn cross_entropy_gradient(logits: &Tensor, targets: &[u32], scale: f32) -> Result<f64> {
    let width = logits.dim(1)?;
    let mut losses = vec![0.0_f64; targets.len()];
    rewrite(logits, |values| {
        values
            .par_chunks_mut(width)
            .zip(targets)
            .zip(&mut losses)
            .for_each(|((row, &target), loss)| {
                let target = target as usize;
                let wanted = row[target];
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                // Sums of short stretches keep the rounding error of a 49,152-term sum small.
                let mut sum = 0.0_f64;
                for stretch in row.chunks_mut(256) {
                    let mut part = 0.0;
                    for value in stretch {
                        *value = exp(*value - largest);
                        part += *value;
                    }
                    sum += f64::from(part);
                }
                *loss = sum.ln() + f64::from(largest) - f64::from(wanted);
                let factor = scale / sum as f32;
                row.iter_mut().for_each(|value| *value *= factor);
                row[target] -= scale;
            });
    })?;
    Ok(losses.iter().sum())
}
