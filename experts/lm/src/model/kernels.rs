//! The element-wise steps between the matrix products.
//!
//! On the CPU they are operators of our own, because candle's would take a third of a long prefill: they
//! mask by adding a matrix, run on one thread and call the exact exponential for every element. Ours loop
//! only over visible keys, share the threads that candle's quantised products keep warm, and use an
//! exponential that the compiler turns into vector instructions. Other devices get candle's operators.

use crate::Result;
use crate::exp::exp;
use crate::kernels::each_row;
use candle_core::{CpuStorage, CustomOp2, InplaceOp1, Layout, Shape, Tensor};

/// Softmax over the visible keys of `scores * scale`. `scores` is `kv_heads × (group * rows) × visible`;
/// row `i` of the `rows` query tokens sees all but the last `rows - 1 - i` keys.
pub(super) fn causal_softmax(scores: Tensor, rows: usize, scale: f32) -> Result<Tensor> {
    if scores.device().is_cpu() {
        scores.inplace_op1(&CausalSoftmax { rows, scale })?;
        return Ok(scores);
    }
    let (kv_heads, grouped, visible) = scores.dims3()?;
    let scores = (scores * f64::from(scale))?;
    if rows == 1 {
        return Ok(candle_nn::ops::softmax_last_dim(&scores)?);
    }
    let past = visible - rows;
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| (0..visible).map(move |key| if key <= past + row { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    let mask = Tensor::from_vec(mask, (1, rows, visible), scores.device())?;
    let scores = scores
        .reshape((kv_heads * grouped / rows, rows, visible))?
        .broadcast_add(&mask)?;
    Ok(candle_nn::ops::softmax_last_dim(&scores)?.reshape((kv_heads, grouped, visible))?)
}

/// Root-mean-square normalisation of each row of `x` (`rows × width`), times `weight`; the result has
/// zero columns appended up to `padded_width`, ready for the next matrix.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32, padded_width: usize) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.apply_op2_no_bwd(
            weight,
            &RmsNorm {
                epsilon,
                padded_width,
            },
        )?);
    }
    Ok(candle_nn::ops::rms_norm(x, weight, epsilon)?)
}

/// `silu(gate) * up`, element by element.
pub(super) fn silu_product(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() {
        return Ok(gate.apply_op2_no_bwd(up, &SiluProduct)?);
    }
    Ok((gate.silu()? * up)?)
}

struct CausalSoftmax {
    rows: usize,
    scale: f32,
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (Some((start, end)), CpuStorage::F32(values)) = (layout.contiguous_offsets(), storage) else {
            candle_core::bail!("{}: scores must be contiguous f32", self.name())
        };
        let visible = layout.shape().dims3()?.2;
        let scores = values.get_mut(start..end).unwrap_or_default();
        each_row(scores, visible, |index, row| {
            let hidden = self.rows - 1 - index % self.rows;
            let (seen, unseen) = row.split_at_mut(visible - hidden);
            softmax(seen, self.scale);
            unseen.fill(0.0);
        });
        Ok(())
    }
}

struct RmsNorm {
    epsilon: f32,
    padded_width: usize,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm-padded"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(x, x_layout, self.name())?;
        let weight = contiguous(weight, weight_layout, self.name())?;
        let (rows, width) = x_layout.shape().dims2()?;
        let padded = self.padded_width.max(width);
        let mut output = vec![0f32; rows * padded];
        each_row(&mut output, padded, |index, output| {
            let x = x.get(index * width..(index + 1) * width).unwrap_or_default();
            let factor = (sum_of_squares(x) / width as f32 + self.epsilon).sqrt().recip();
            for ((o, x), w) in output.iter_mut().zip(x).zip(weight) {
                *o = x * factor * w;
            }
        });
        Ok((CpuStorage::F32(output), Shape::from((rows, padded))))
    }
}

struct SiluProduct;

impl CustomOp2 for SiluProduct {
    fn name(&self) -> &'static str {
        "silu-product"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let gate = contiguous(gate, gate_layout, self.name())?;
        let up = contiguous(up, up_layout, self.name())?;
        let (rows, width) = gate_layout.shape().dims2()?;
        let mut output = vec![0f32; rows * width];
        each_row(&mut output, width, |index, output| {
            let range = index * width..(index + 1) * width;
            let gate = gate.get(range.clone()).unwrap_or_default();
            let up = up.get(range).unwrap_or_default();
            for ((o, &g), u) in output.iter_mut().zip(gate).zip(up) {
                *o = g / (1.0 + exp(-g)) * u;
            }
        });
        Ok((CpuStorage::F32(output), gate_layout.shape().clone()))
    }
}

fn contiguous<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    operator: &str,
) -> candle_core::Result<&'a [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(values.get(start..end).unwrap_or_default()),
        _ => candle_core::bail!("{operator}: inputs must be contiguous f32"),
    }
}

/// Softmax of `values * scale` in place.
fn softmax(values: &mut [f32], scale: f32) {
    let largest = lanes(values, f32::NEG_INFINITY, |m, v| if v > m { v } else { m })
        .into_iter()
        .fold(f32::NEG_INFINITY, f32::max);
    for value in values.iter_mut() {
        *value = exp((*value - largest) * scale);
    }
    let total: f32 = lanes(values, 0.0, |sum, v| sum + v).into_iter().sum();
    let factor = total.recip();
    for value in values.iter_mut() {
        *value *= factor;
    }
}

fn sum_of_squares(values: &[f32]) -> f32 {
    lanes(values, 0.0, |sum, v| sum + v * v).into_iter().sum()
}

/// Folds every eighth value together. A single running sum would have to be added in order, which rules
/// out vector instructions and loses more digits besides.
fn lanes(values: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut folded = [start; 8];
    for chunk in chunks {
        for (f, &v) in folded.iter_mut().zip(chunk) {
            *f = fold(*f, v);
        }
    }
    for (f, &v) in folded.iter_mut().zip(rest) {
        *f = fold(*f, v);
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn masked_softmax_equals_the_softmax_of_the_visible_keys() {
        // Large enough for several threads; 2 heads in a group, 60 query tokens behind 40 earlier keys.
        let (rows, visible) = (60, 100);
        let scores = Tensor::randn(0f32, 3.0, (3, 2 * rows, visible), &Device::Cpu).unwrap();
        let before = scores.to_vec3::<f32>().unwrap();
        let after = causal_softmax(scores.copy().unwrap(), rows, 0.125)
            .unwrap()
            .to_vec3::<f32>()
            .unwrap();
        for (head, (before, after)) in before.iter().zip(&after).enumerate() {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                let seen = visible - rows + 1 + index % rows;
                let weights: Vec<f64> = before[..seen]
                    .iter()
                    .map(|v| (f64::from(*v) * 0.125).exp())
                    .collect();
                let total: f64 = weights.iter().sum();
                for (found, weight) in after.iter().zip(&weights) {
                    assert!(
                        (f64::from(*found) - weight / total).abs() < 1e-6,
                        "head {head} row {index}"
                    );
                }
                assert!(after[seen..].iter().all(|v| *v == 0.0));
            }
        }
    }

    #[test]
    fn the_norm_equals_candles_and_pads_with_zeros() {
        let x = Tensor::randn(0f32, 2.0, (200, 90), &Device::Cpu).unwrap();
        let weight = Tensor::randn(1f32, 0.5, 90, &Device::Cpu).unwrap();
        let found = rms_norm(&x, &weight, 1e-5, 256).unwrap();
        let expected = candle_nn::ops::rms_norm(&x, &weight, 1e-5).unwrap();
        let difference = (found.narrow(1, 0, 90).unwrap() - expected)
            .unwrap()
            .abs()
            .unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        let padding = found.narrow(1, 90, 166).unwrap().abs().unwrap();
        assert_eq!(padding.max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }

    #[test]
    fn the_gated_product_equals_candles() {
        let gate = Tensor::randn(0f32, 4.0, (200, 90), &Device::Cpu).unwrap();
        let up = Tensor::randn(0f32, 1.0, (200, 90), &Device::Cpu).unwrap();
        let expected = (gate.silu().unwrap() * &up).unwrap();
        let difference = (silu_product(&gate, &up).unwrap() - expected)
            .unwrap()
            .abs()
            .unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
    }
}
