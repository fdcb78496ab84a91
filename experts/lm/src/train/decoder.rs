//! The decoder as the trainer runs it: f32 weights on the CPU, a forward pass that remembers what
//! the backward pass needs, and a backward pass written out by hand.
//!
//! Written out, and not left to candle's automatic differentiation, because that computes the
//! gradient of every frozen weight as well (half of the backward pass's work) and adds every
//! gradient to a matrix of zeros first. Layers below the first adapter run forwards only; the
//! lowest adapted layer passes nothing further down; the vocabulary projection is computed for
//! predicted positions only and in pieces.

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
type Projections = [Tensor; 7];

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

/// The adapted layers' projections with the adapter merged in, from the first such layer on.
pub(super) struct Merged {
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
        let config = checkpoint.config().clone();
        let vector = |name| Ok::<_, crate::LmError>(checkpoint.tensor(name)?.to_vec1::<f32>()?);
        let layers = (0..config.layers)
            .map(|layer| {
                let read = |target: Projection| checkpoint.tensor(TensorName::Layer(layer, target.tensor()));
                let [q, k, v, o, gate, up, down] = Projection::ALL.map(read);
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

    /// Merges the adapter into the projections of its layers.
    pub(super) fn merge(&self, lora: &Lora) -> Result<Merged> {
        let layers = (self.layers[lora.first_layer..].iter().zip(&lora.pairs))
            .map(|(layer, pairs)| {
                let mut merged = layer.projections.clone();
                for (weight, pair) in merged.iter_mut().zip(pairs) {
                    if let Some(pair) = pair {
                        *weight = lora.merge(weight, *pair)?;
                    }
                }
                Ok(merged)
            })
            .collect::<Result<_>>()?;
        Ok(Merged {
            first_layer: lora.first_layer,
            layers,
        })
    }

    /// Summed losses, in nats, over the batch's targets: of the base model and with the adapter.
    /// The layers below the adapter are computed once.
    pub(super) fn losses(&self, batch: &Batch, merged: &Merged) -> Result<(f64, f64)> {
        let (frozen, adapted) = self.layers.split_at(merged.first_layer);
        let mut x = self.embed(batch)?;
        for layer in frozen {
            x = self.layer_forward(layer, &layer.projections, x, batch)?.0;
        }
        let (mut base, mut with_adapter) = (x.clone(), x);
        for (layer, projections) in adapted.iter().zip(&merged.layers) {
            base = self.layer_forward(layer, &layer.projections, base, batch)?.0;
            with_adapter = self.layer_forward(layer, projections, with_adapter, batch)?.0;
        }
        Ok((
            self.head(&base, batch, None)?.0,
            self.head(&with_adapter, batch, None)?.0,
        ))
    }

    /// Summed loss of one batch, and the gradients of `scale` times that loss with respect to the
    /// adapter `lora`, whose merged form is `merged`.
    pub(super) fn loss_and_gradients(
        &self,
        batch: &Batch,
        lora: &Lora,
        merged: &Merged,
        scale: f32,
    ) -> Result<LossAndGradients> {
        let mut x = self.embed(batch)?;
        let (frozen, adapted) = self.layers.split_at(merged.first_layer);
        for layer in frozen {
            x = self.layer_forward(layer, &layer.projections, x, batch)?.0;
        }
        let mut trail = Vec::with_capacity(adapted.len());
        for (layer, projections) in adapted.iter().zip(&merged.layers) {
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
            .rotate(&attention_in.matmul(&wq.t()?)?, &batch.positions, false)?;
        let k = self
            .rotary
            .rotate(&attention_in.matmul(&wk.t()?)?, &batch.positions, false)?;
        let v = attention_in.matmul(&wv.t()?)?;
        let (attention_out, attention) = self.heads().forward(&q, &k, &v, &batch.rows)?;
        let h = (&x + attention_out.matmul(&wo.t()?)?)?;
        let (ffn_in, ffn_root) = kernels::rms_norm(&h, &layer.ffn_norm, epsilon)?;
        let gate = ffn_in.matmul(&w_gate.t()?)?;
        let up = ffn_in.matmul(&w_up.t()?)?;
        let product = kernels::swiglu(&gate, &up)?;
        let y = (&h + product.matmul(&w_down.t()?)?)?;
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
        let (d_gate, d_up) = kernels::swiglu_backward(&saved.gate, &saved.up, &dy.matmul(w_down)?)?;
        learn(5, &saved.ffn_in, &d_up)?;
        learn(4, &saved.ffn_in, &d_gate)?;
        let d_ffn_in = (d_gate.matmul(w_gate)? + d_up.matmul(w_up)?)?;
        let dh = (dy + kernels::rms_norm_backward(&saved.h, &layer.ffn_norm, &saved.ffn_root, &d_ffn_in)?)?;
        learn(3, &saved.attention_out, &dh)?;
        let (dq, dk, dv) = self
            .heads()
            .backward(&saved.attention, &dh.matmul(wo)?, &batch.rows)?;
        let dq = self.rotary.rotate(&dq, &batch.positions, true)?;
        let dk = self.rotary.rotate(&dk, &batch.positions, true)?;
        learn(2, &saved.attention_in, &dv)?;
        learn(1, &saved.attention_in, &dk)?;
        learn(0, &saved.attention_in, &dq)?;
        if lowest {
            return Ok(dh);
        }
        let d_in = ((dq.matmul(wq)? + dk.matmul(wk)?)? + dv.matmul(wv)?)?;
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
