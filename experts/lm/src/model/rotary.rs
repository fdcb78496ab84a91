//! Rotary position embeddings (Su et al. 2021, RoFormer).
//!
//! A batch holds tokens of several sequences at unrelated positions, so cosines and sines are computed for
//! the positions at hand; there is no table whose length would bound the context. Checkpoints give query
//! and key rows in the interleaved order, in which components `2i` and `2i + 1` of a head turn together.

use crate::Result;
use crate::kernels::Angles;
use candle_core::{Device, Tensor};

/// The angles of one forward pass.
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// `inverse_frequencies` has `head_dim / 2` entries; `positions` one for each token of the batch.
    pub(super) fn new(inverse_frequencies: &[f32], positions: &[usize], device: &Device) -> Result<Self> {
        let shape = (positions.len(), 1, inverse_frequencies.len());
        let Angles { cos, sin } = angles(inverse_frequencies, positions);
        Ok(Self {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }

    /// Rotates `x` (`tokens × heads * head_dim`), giving `tokens × heads × head_dim`.
    pub(super) fn apply(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let head_dim = width / heads;
        // Every token is a batch entry of length 1: candle then takes one angle row for each.
        let x = x.reshape((tokens, heads, 1, head_dim))?;
        let rotated = candle_nn::rotary_emb::rope_i(&x, &self.cos, &self.sin)?;
        Ok(rotated.reshape((tokens, heads, head_dim))?)
    }
}

/// Cosines and sines, `head_dim / 2` for each position.
pub(super) fn angles(inverse_frequencies: &[f32], positions: &[usize]) -> Angles {
    let angles = positions
        .iter()
        .flat_map(|&p| inverse_frequencies.iter().map(move |f| p as f32 * f));
    let (sin, cos) = angles.map(f32::sin_cos).unzip();
    Angles { cos, sin }
}

/// `base^(-2i / head_dim)` for each pair `i` of a head.
pub(super) fn inverse_frequencies(base: f32, head_dim: usize) -> Vec<f32> {
    (0..head_dim)
        .step_by(2)
        .map(|i| 1.0 / base.powf(i as f32 / head_dim as f32))
        .collect()
}
