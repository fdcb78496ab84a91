//! The element-wise steps between the matrix products.

use crate::Result;
use candle_core::Tensor;

/// Softmax over the visible keys of `scores * scale`. `scores` is `kv_heads × (group * rows) × visible`;
/// row `i` of the `rows` query tokens sees all but the last `rows - 1 - i` keys.
pub(super) fn causal_softmax(scores: Tensor, rows: usize, scale: f32) -> Result<Tensor> {
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
    let scores = scores.reshape((kv_heads * grouped / rows, rows, visible))?.broadcast_add(&mask)?;
    Ok(candle_nn::ops::softmax_last_dim(&scores)?.reshape((kv_heads, grouped, visible))?)
}

/// Root-mean-square normalisation of each row, times `weight`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    Ok(candle_nn::ops::rms_norm(x, weight, epsilon)?)
}

/// `silu(gate) * up`.
pub(super) fn silu_product(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((gate.silu()? * up)?)
}
