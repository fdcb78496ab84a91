//! The batched forward pass.
//!
//! Batches are ragged: the new tokens of all rows stand below one another in one `tokens × width` matrix
//! that goes through every linear layer at once, without padding; only attention looks at one sequence at
//! a time, against that sequence's own cache. Prefill, decoding and hidden states are the same pass.

use super::attention::attend;
use super::cache::KvCache;
use super::kernels::{rms_norm, silu_product};
use super::packed::PackedPass;
use super::rotary::{Rotation, angles};
use super::weights::{Layer, TensorLayer, Weights};
use crate::adapter::{Adapter, Projection};
use crate::load::linear::Linear;
use crate::{LmError, Result};
use candle_core::{Device, Tensor};

/// New tokens of one sequence in a batch.
pub(super) struct Row<'a> {
    pub(super) cache: &'a mut KvCache,
    pub(super) tokens: &'a [u32],
    pub(super) adapter: Option<(&'a Adapter, f32)>,
}

/// The tokens of a batch that use one adapter.
pub(super) struct AdapterGroup<'a> {
    pub(super) adapter: &'a Adapter,
    /// Indices into the batch's tokens, ascending.
    pub(super) rows: Vec<u32>,
    /// Each token's scale times the adapter's own.
    pub(super) scales: Vec<f32>,
}

/// A batch on its way through the layers: the residual stream and what every layer needs.
enum Pass<'a> {
    /// On candle's operators.
    Tensors {
        x: Tensor,
        rotation: Rotation,
        adapted: Vec<AdaptedRows<'a>>,
    },
    /// On the CPU's own kernels.
    Packed { x: Vec<f32>, pass: PackedPass<'a> },
}

/// The same tokens, for candle's operators.
struct AdaptedRows<'a> {
    adapter: &'a Adapter,
    /// Indices into the batch's tokens; `None` when it is all of them.
    indices: Option<Tensor>,
    /// `tokens × 1`: each token's scale times the adapter's own.
    scales: Tensor,
}

impl Weights {
    /// Runs the rows through the first `depth` layers, appending to their caches. `after_layer` sees the
    /// residual stream (`tokens × width`) after each layer of `wanted`, counted from 1. Returns the last of them.
    ///
    /// Caches count the new tokens only when the whole pass has succeeded.
    pub(super) fn run(
        &self,
        rows: &mut [Row<'_>],
        depth: usize,
        wanted: &[usize],
        mut after_layer: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        self.check(rows, depth)?;
        for row in rows.iter_mut() {
            row.cache.reserve(row.tokens.len())?;
        }
        let tokens: Vec<u32> = rows.iter().flat_map(|r| r.tokens).copied().collect();
        let positions: Vec<usize> = rows
            .iter()
            .flat_map(|r| (0..r.tokens.len()).map(|i| r.cache.len() + i))
            .collect();
        let x = self
            .embeddings
            .look_up(&tokens, self.config.width, &self.device)?;
        let mut pass = Pass::new(self, x, &positions, group_by_adapter(rows))?;
        for (index, layer) in self.layers.iter().take(depth).enumerate() {
            match (&mut pass, layer) {
                (Pass::Packed { x, pass }, Layer::Packed(layer)) => layer.run(index, x, rows, pass)?,
                (Pass::Tensors { x, rotation, adapted }, Layer::Tensors(layer)) => {
                    *x = self.layer(index, layer, x, rows, rotation, adapted)?;
                }
                _ => return Err(invalid("model", "layers of two kinds", "load it anew")),
            }
            if wanted.contains(&(index + 1)) {
                after_layer(index + 1, &pass.stream(self.config.width)?)?;
            }
        }
        let x = pass.stream(self.config.width)?;
        for row in rows {
            row.cache.advance(row.tokens.len());
        }
        Ok(x)
    }

    fn layer(
        &self,
        index: usize,
        layer: &TensorLayer,
        x: &Tensor,
        rows: &[Row<'_>],
        rotation: &Rotation,
        adapted: &[AdaptedRows<'_>],
    ) -> Result<Tensor> {
        let adapt = |projection, input: &Tensor, output: Tensor| {
            adapted
                .iter()
                .try_fold(output, |y, rows| rows.add_update(index, projection, input, y))
        };
        let epsilon = self.config.rms_epsilon as f32;
        let input = rms_norm(x, &layer.attention_norm, epsilon, layer.q.padded_inputs())?;
        let [q, k, v] = Linear::forward_shared([&layer.q, &layer.k, &layer.v], &input)?;
        let q = rotation.apply(&adapt(Projection::AttnQ, &input, q)?, self.config.heads)?;
        let k = rotation.apply(&adapt(Projection::AttnK, &input, k)?, self.config.kv_heads)?;
        let v = adapt(Projection::AttnV, &input, v)?;
        let v = v.reshape((v.dim(0)?, self.config.kv_heads, self.config.head_dim))?;

        let mut mixed = Vec::with_capacity(rows.len());
        let mut start = 0;
        for row in rows {
            let count = row.tokens.len();
            let new_keys = k.narrow(0, start, count)?;
            let new_values = v.narrow(0, start, count)?;
            let (keys, values) = row.cache.write(index, &new_keys, &new_values)?;
            mixed.push(attend(&q.narrow(0, start, count)?, &keys, &values)?);
            start += count;
        }
        let mixed = match mixed.as_slice() {
            [one] => one.clone(),
            _ => Tensor::cat(&mixed, 0)?,
        };
        let x = (x + adapt(Projection::AttnOutput, &mixed, layer.output.forward(&mixed)?)?)?;

        let input = rms_norm(&x, &layer.ffn_norm, epsilon, layer.gate.padded_inputs())?;
        let [gate, up] = Linear::forward_shared([&layer.gate, &layer.up], &input)?;
        let gate = adapt(Projection::FfnGate, &input, gate)?;
        let up = adapt(Projection::FfnUp, &input, up)?;
        let inner = silu_product(&gate, &up)?;
        Ok((x + adapt(Projection::FfnDown, &inner, layer.down.forward(&inner)?)?)?)
    }

    /// Logits (`rows × vocabulary`) of final residual rows.
    pub(super) fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.head.forward(&rms_norm(
            x,
            &self.final_norm,
            self.config.rms_epsilon as f32,
            self.head.padded_inputs(),
        )?)
    }

    fn check(&self, rows: &[Row<'_>], depth: usize) -> Result<()> {
        if rows.is_empty() {
            return Err(invalid("batch", "no rows", "give at least one row"));
        }
        for row in rows {
            if row.tokens.is_empty() {
                return Err(invalid("tokens", "none", "give every row at least one token"));
            }
            if let Some(token) = row.tokens.iter().find(|&&t| t as usize >= self.config.vocabulary) {
                let fix = format!("token ids are below the vocabulary's {}", self.config.vocabulary);
                return Err(LmError::Invalid {
                    field: "token",
                    value: token.to_string(),
                    fix,
                });
            }
            if row.cache.len() + row.tokens.len() > self.config.context_length {
                return Err(LmError::TooLong {
                    prompt: row.cache.len(),
                    new: row.tokens.len(),
                    limit: self.config.context_length,
                });
            }
            if row.cache.layers() < depth {
                let value = format!("{} layers", row.cache.layers());
                return Err(invalid(
                    "cache",
                    &value,
                    "use a cache made by this model's new_cache",
                ));
            }
        }
        Ok(())
    }
}

impl<'a> Pass<'a> {
    fn new(
        weights: &'a Weights,
        x: Tensor,
        positions: &[usize],
        groups: Vec<AdapterGroup<'a>>,
    ) -> Result<Self> {
        let frequencies = &weights.inverse_frequencies;
        if matches!(weights.layers.first(), Some(Layer::Packed(_))) {
            return Ok(Self::Packed {
                x: x.flatten_all()?.to_vec1()?,
                pass: PackedPass::new(&weights.config, angles(frequencies, positions), groups),
            });
        }
        let adapted = groups
            .iter()
            .map(|group| AdaptedRows::new(group, positions.len(), &weights.device))
            .collect::<Result<_>>()?;
        Ok(Self::Tensors {
            x,
            rotation: Rotation::new(frequencies, positions, &weights.device)?,
            adapted,
        })
    }

    /// The residual stream, `tokens × width`.
    fn stream(&self, width: usize) -> Result<Tensor> {
        Ok(match self {
            Self::Tensors { x, .. } => x.clone(),
            Self::Packed { x, .. } => Tensor::from_slice(x, (x.len() / width, width), &Device::Cpu)?,
        })
    }
}

/// Tokens with an adapter, grouped by adapter. Rows with scale 0 are the base model's and cost nothing.
fn group_by_adapter<'a>(rows: &[Row<'a>]) -> Vec<AdapterGroup<'a>> {
    let mut groups: Vec<AdapterGroup<'a>> = Vec::new();
    let mut start = 0u32;
    for row in rows {
        let end = start + row.tokens.len() as u32;
        if let Some((adapter, scale)) = row.adapter
            && scale != 0.0
        {
            let known = groups.iter().position(|g| std::ptr::eq(g.adapter, adapter));
            let index = known.unwrap_or(groups.len());
            if known.is_none() {
                groups.push(AdapterGroup {
                    adapter,
                    rows: Vec::new(),
                    scales: Vec::new(),
                });
            }
            if let Some(group) = groups.get_mut(index) {
                group.rows.extend(start..end);
                group
                    .scales
                    .resize(group.rows.len(), scale * adapter.unit_scale());
            }
        }
        start = end;
    }
    groups
}

impl<'a> AdaptedRows<'a> {
    /// `tokens` is the number of all tokens of the batch.
    fn new(group: &AdapterGroup<'a>, tokens: usize, device: &Device) -> Result<Self> {
        let count = group.rows.len();
        let indices = match count == tokens {
            true => None,
            false => Some(Tensor::from_vec(group.rows.clone(), count, device)?),
        };
        Ok(Self {
            adapter: group.adapter,
            indices,
            scales: Tensor::from_vec(group.scales.clone(), (count, 1), device)?,
        })
    }
}

impl AdaptedRows<'_> {
    /// `output` plus the adapter's share of it on its rows.
    fn add_update(
        &self,
        layer: usize,
        projection: Projection,
        input: &Tensor,
        output: Tensor,
    ) -> Result<Tensor> {
        let input = match &self.indices {
            None => input.clone(),
            Some(indices) => input.index_select(indices, 0)?,
        };
        let Some(update) = self.adapter.update(layer, projection, &input, &self.scales)? else {
            return Ok(output);
        };
        Ok(match &self.indices {
            None => (output + update)?,
            Some(indices) => output.index_add(indices, &update, 0)?,
        })
    }
}

fn invalid(field: &'static str, value: &str, fix: &str) -> LmError {
    LmError::Invalid {
        field,
        value: value.to_owned(),
        fix: fix.to_owned(),
    }
}
