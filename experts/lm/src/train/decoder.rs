//! The decoder as the trainer runs it: f32 weights on the CPU, a forward pass that remembers what
//! the backward pass needs, and a backward pass written out by hand.
//!
//! Written out, and not left to candle's automatic differentiation, because that computes the
//! gradient of every frozen weight as well (half of the backward pass's work) and adds every
//! gradient to a matrix of zeros first. Layers below the first adapter run forwards only; the
//! lowest adapted layer passes nothing further down; the vocabulary projection is computed for
//! predicted positions only and in pieces.

pub(super) mod pooled;

use super::attention::{Heads, SavedAttention};
use super::data::Batch;
use super::kernels::{self, Rotary};
use super::lora::Lora;
use crate::Result;
use crate::adapter::Projection;
use crate::load::{Checkpoint, LayerTensor, ModelConfig, TensorName};
use candle_core::{Device, Tensor};
use std::ops::Range;

/// Positions whose logits are in memory together.
const HEAD_ROWS: usize = 256;

/// A layer's seven projections, in the order of [`Projection::ALL`].
type Projections = [Map; 7];

/// One projection: a frozen matrix (`outputs × inputs`) and perhaps an adapter's two narrow ones beside it.
///
/// They stay apart: a step of a few hundred tokens spends more time on writing merged matrices to memory
/// than on two narrow products a token.
#[derive(Clone)]
struct Map {
    weight: Tensor,
    /// `A` (`rank × inputs`), `B` (`outputs × rank`) and `alpha / rank`.
    low_rank: Option<(Tensor, Tensor, f64)>,
}

impl Map {
    /// `x W^T + s (x A^T) B^T`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.low_rank {
            None => Ok(y),
            Some((a, b, scale)) => Ok((y + (x.matmul(&a.t()?)? * *scale)?.matmul(&b.t()?)?)?),
        }
    }

    /// The gradient of the input from that of the output: `dy W + s (dy B) A`.
    fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        let dx = dy.matmul(&self.weight)?;
        match &self.low_rank {
            None => Ok(dx),
            Some((a, b, scale)) => Ok((dx + (dy.matmul(b)? * *scale)?.matmul(a)?)?),
        }
    }
}

struct Layer {
    attention_norm: Vec<f32>,
    ffn_norm: Vec<f32>,
    projections: Projections,
}

/// What a layer's backward pass needs.
struct Saved {
    x: Tensor,
    attention_root: Vec<f32>,
    attention_in: Tensor,
    attention: SavedAttention,
    attention_out: Tensor,
    h: Tensor,
    ffn_root: Vec<f32>,
    ffn_in: Tensor,
    gate: Tensor,
    up: Tensor,
    product: Tensor,
}

/// The frozen model.
pub(super) struct Decoder {
    config: ModelConfig,
    embedding: Tensor,
    output: Tensor,
    output_norm: Vec<f32>,
    layers: Vec<Layer>,
    rotary: Rotary,
}

/// The adapted layers' projections with the adapter beside them, from the first such layer on.
pub(super) struct Adapted {
    first_layer: usize,
    layers: Vec<Projections>,
}

/// Summed loss of a batch and the gradient of every adapter parameter.
pub(super) struct LossAndGradients {
    pub(super) loss: f64,
    pub(super) gradients: Vec<Option<Tensor>>,
}

impl Decoder {
    /// Reads all weights as f32. `positions` is the longest row that will be given.
    pub(super) fn load(checkpoint: &Checkpoint, positions: usize) -> Result<Self> {
        Self::load_first(checkpoint, positions, checkpoint.config().layers)
    }

    /// The same of the first `depth` layers only, as if the model had no more.
    pub(super) fn load_first(checkpoint: &Checkpoint, positions: usize, depth: usize) -> Result<Self> {
        let config = ModelConfig {
            layers: depth,
            ..checkpoint.config().clone()
        };
        let vector = |name| Ok::<_, crate::LmError>(checkpoint.tensor(name)?.to_vec1::<f32>()?);
        let layers = (0..config.layers)
            .map(|layer| {
                let read = |target: Projection| checkpoint.tensor(TensorName::Layer(layer, target.tensor()));
                let [q, k, v, o, gate, up, down] = Projection::ALL.map(|target| {
                    Ok::<_, crate::LmError>(Map {
                        weight: read(target)?,
                        low_rank: None,
                    })
                });
                Ok(Layer {
                    attention_norm: vector(TensorName::Layer(layer, LayerTensor::AttentionNorm))?,
                    ffn_norm: vector(TensorName::Layer(layer, LayerTensor::FfnNorm))?,
                    projections: [q?, k?, v?, o?, gate?, up?, down?],
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let embedding = checkpoint.tensor(TensorName::TokenEmbedding)?;
        let output = match config.tied_embeddings {
            true => embedding.clone(),
            false => checkpoint.tensor(TensorName::Output)?,
        };
        let rotary = Rotary::new(positions, config.head_dim, config.rope_base);
        Ok(Self {
            output_norm: vector(TensorName::OutputNorm)?,
            config,
            embedding,
            output,
            layers,
            rotary,
        })
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Puts the adapter as it is now beside the projections of its layers.
    pub(super) fn adapt(&self, lora: &Lora) -> Result<Adapted> {
        let layers = (self.layers[lora.first_layer..].iter().zip(&lora.pairs))
            .map(|(layer, pairs)| {
                let mut adapted = layer.projections.clone();
                for (map, pair) in adapted.iter_mut().zip(pairs) {
                    map.low_rank = pair.map(|pair| lora.factors(pair)).transpose()?;
                }
                Ok(adapted)
            })
            .collect::<Result<_>>()?;
        Ok(Adapted {
            first_layer: lora.first_layer,
            layers,
        })
    }

    /// Summed losses, in nats, over the batch's targets: of the base model and with the adapter.
    /// The layers below the adapter are computed once.
    pub(super) fn losses(&self, batch: &Batch, adapted: &Adapted) -> Result<(f64, f64)> {
        let (frozen, tuned) = self.layers.split_at(adapted.first_layer);
        let mut x = self.embed(batch)?;
        for layer in frozen {
            x = self.layer_forward(layer, &layer.projections, x, batch)?.0;
        }
        let (mut base, mut with_adapter) = (x.clone(), x);
        for (layer, projections) in tuned.iter().zip(&adapted.layers) {
            base = self.layer_forward(layer, &layer.projections, base, batch)?.0;
            with_adapter = self.layer_forward(layer, projections, with_adapter, batch)?.0;
        }
        Ok((
            self.head(&base, batch, None)?.0,
            self.head(&with_adapter, batch, None)?.0,
        ))
    }

    /// Summed loss of one batch, and the gradients of `scale` times that loss with respect to the
    /// adapter `lora`, which stands beside the layers in `adapted`.
    pub(super) fn loss_and_gradients(
        &self,
        batch: &Batch,
        lora: &Lora,
        adapted: &Adapted,
        scale: f32,
    ) -> Result<LossAndGradients> {
        let mut x = self.embed(batch)?;
        let (frozen, tuned) = self.layers.split_at(adapted.first_layer);
        for layer in frozen {
            x = self.layer_forward(layer, &layer.projections, x, batch)?.0;
        }
        let mut trail = Vec::with_capacity(tuned.len());
        for (layer, projections) in tuned.iter().zip(&adapted.layers) {
            let (y, saved) = self.layer_forward(layer, projections, x, batch)?;
            x = y;
            trail.push((layer, projections, saved));
        }
        let (loss, mut dy) = self.head(&x, batch, Some(scale))?;
        let mut gradients = vec![None; lora.parameters.len()];
        while let Some((layer, projections, saved)) = trail.pop() {
            let pairs = &lora.pairs[trail.len()];
            let mut learn = |target: usize, x: &Tensor, dy: &Tensor| match pairs[target] {
                Some(pair) => lora.gradients(pair, x, dy, &mut gradients),
                None => Ok(()),
            };
            let lowest = trail.is_empty();
            dy = self.layer_backward(layer, projections, saved, &dy, batch, lowest, &mut learn)?;
        }
        Ok(LossAndGradients { loss, gradients })
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let tokens = Tensor::from_slice(&batch.tokens, batch.tokens.len(), &Device::Cpu)?;
        Ok(self.embedding.index_select(&tokens, 0)?)
    }

    fn heads(&self) -> Heads {
        Heads {
            queries: self.config.heads,
            keys: self.config.kv_heads,
            dim: self.config.head_dim,
        }
    }

    fn layer_forward(
        &self,
        layer: &Layer,
        [wq, wk, wv, wo, w_gate, w_up, w_down]: &Projections,
        x: Tensor,
        batch: &Batch,
    ) -> Result<(Tensor, Saved)> {
        let epsilon = self.config.rms_epsilon;
        let (attention_in, attention_root) = kernels::rms_norm(&x, &layer.attention_norm, epsilon)?;
        let q = self
            .rotary
            .rotate(&wq.forward(&attention_in)?, &batch.positions, false)?;
        let k = self
            .rotary
            .rotate(&wk.forward(&attention_in)?, &batch.positions, false)?;
        let v = wv.forward(&attention_in)?;
        let (attention_out, attention) = self.heads().forward(&q, &k, &v, &batch.rows)?;
        let h = (&x + wo.forward(&attention_out)?)?;
        let (ffn_in, ffn_root) = kernels::rms_norm(&h, &layer.ffn_norm, epsilon)?;
        let gate = w_gate.forward(&ffn_in)?;
        let up = w_up.forward(&ffn_in)?;
        let product = kernels::swiglu(&gate, &up)?;
        let y = (&h + w_down.forward(&product)?)?;
        let saved = Saved {
            x,
            attention_root,
            attention_in,
            attention,
            attention_out,
            h,
            ffn_root,
            ffn_in,
            gate,
            up,
            product,
        };
        Ok((y, saved))
    }

    /// From the gradient of a layer's output to that of its input (`dy` itself, meaningless, for
    /// the lowest adapted layer). `learn` is told of every projection's input and output gradient.
    #[expect(
        clippy::too_many_arguments,
        reason = "a layer's forward state is what it takes"
    )]
    fn layer_backward(
        &self,
        layer: &Layer,
        [wq, wk, wv, wo, w_gate, w_up, w_down]: &Projections,
        saved: Saved,
        dy: &Tensor,
        batch: &Batch,
        lowest: bool,
        learn: &mut impl FnMut(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        learn(6, &saved.product, dy)?;
        let (d_gate, d_up) = kernels::swiglu_backward(&saved.gate, &saved.up, &w_down.backward(dy)?)?;
        learn(5, &saved.ffn_in, &d_up)?;
        learn(4, &saved.ffn_in, &d_gate)?;
        let d_ffn_in = (w_gate.backward(&d_gate)? + w_up.backward(&d_up)?)?;
        let dh = (dy + kernels::rms_norm_backward(&saved.h, &layer.ffn_norm, &saved.ffn_root, &d_ffn_in)?)?;
        learn(3, &saved.attention_out, &dh)?;
        let (dq, dk, dv) = self
            .heads()
            .backward(&saved.attention, &wo.backward(&dh)?, &batch.rows)?;
        let dq = self.rotary.rotate(&dq, &batch.positions, true)?;
        let dk = self.rotary.rotate(&dk, &batch.positions, true)?;
        learn(2, &saved.attention_in, &dv)?;
        learn(1, &saved.attention_in, &dk)?;
        learn(0, &saved.attention_in, &dq)?;
        if lowest {
            return Ok(dh);
        }
        let d_in = ((wq.backward(&dq)? + wk.backward(&dk)?)? + wv.backward(&dv)?)?;
        Ok(
            (dh + kernels::rms_norm_backward(
                &saved.x,
                &layer.attention_norm,
                &saved.attention_root,
                &d_in,
            )?)?,
        )
    }

    /// Summed loss over the batch's targets and, if `scale` is given, the gradient of `scale` times
    /// that loss with respect to the last layer's output `x` (else an empty one).
    fn head(&self, x: &Tensor, batch: &Batch, scale: Option<f32>) -> Result<(f64, Tensor)> {
        let mut loss = 0.0;
        let mut dx = vec![0.0; if scale.is_some() { x.elem_count() } else { 0 }];
        let width = self.config.width;
        for start in (0..batch.targets.len()).step_by(HEAD_ROWS) {
            let piece: Range<usize> = start..(start + HEAD_ROWS).min(batch.targets.len());
            let at = &batch.predicted_from[piece.clone()];
            let chosen = x.index_select(&Tensor::from_slice(at, at.len(), &Device::Cpu)?, 0)?;
            let (normed, root) = kernels::rms_norm(&chosen, &self.output_norm, self.config.rms_epsilon)?;
            let logits = normed.matmul(&self.output.t()?)?;
            let targets = &batch.targets[piece];
            loss += kernels::cross_entropy_gradient(&logits, targets, scale.unwrap_or(0.0))?;
            if scale.is_some() {
                let d_normed = logits.matmul(&self.output)?;
                let d = kernels::rms_norm_backward(&chosen, &self.output_norm, &root, &d_normed)?;
                for (row, &at) in kernels::Values::of(&d)?.chunks(width).zip(at) {
                    dx[at as usize * width..][..width].copy_from_slice(row);
                }
            }
        }
        let tokens = if scale.is_some() { x.dim(0)? } else { 0 };
        Ok((loss, Tensor::from_vec(dx, (tokens, width), &Device::Cpu)?))
    }
}
