//! A model's weights in memory: what each layer holds, in which type, and how it is read from a file.

use super::{ModelInfo, rotary};
use crate::Result;
use crate::load::Quantization;
use crate::load::checkpoint::{Checkpoint, LayerTensor, ModelConfig, TensorName};
use crate::load::linear::Linear;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// Everything that clones of a model share.
pub(super) struct Weights {
    pub(super) info: ModelInfo,
    pub(super) config: ModelConfig,
    pub(super) device: Device,
    /// `vocabulary × width`, for look-up only.
    pub(super) embeddings: Tensor,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Tensor,
    pub(super) head: Linear,
    pub(super) inverse_frequencies: Vec<f32>,
}

/// One decoder layer.
pub(super) struct Layer {
    pub(super) attention_norm: Tensor,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) output: Linear,
    pub(super) ffn_norm: Tensor,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl Weights {
    pub(super) fn load(checkpoint: &Checkpoint, quantization: Quantization, device: Device) -> Result<Self> {
        let config = checkpoint.config().clone();
        let vector = |name| -> Result<Tensor> { Ok(checkpoint.tensor(name)?.to_device(&device)?) };
        let matrix = |name| Linear::load(checkpoint, name, quantization, &device);
        let layer = |index: usize| -> Result<Layer> {
            let name = |tensor| TensorName::Layer(index, tensor);
            Ok(Layer {
                attention_norm: vector(name(LayerTensor::AttentionNorm))?,
                q: matrix(name(LayerTensor::AttentionQ))?,
                k: matrix(name(LayerTensor::AttentionK))?,
                v: matrix(name(LayerTensor::AttentionV))?,
                output: matrix(name(LayerTensor::AttentionOutput))?,
                ffn_norm: vector(name(LayerTensor::FfnNorm))?,
                gate: matrix(name(LayerTensor::FfnGate))?,
                up: matrix(name(LayerTensor::FfnUp))?,
                down: matrix(name(LayerTensor::FfnDown))?,
            })
        };
        // The embedding matters as much as a fifth of the layers: both at once, all on rayon's threads.
        let ((embeddings, head), layers) = rayon::join(
            || {
                rayon::join(
                    || embeddings(checkpoint, quantization, &device),
                    || matrix(TensorName::Output),
                )
            },
            || {
                (0..config.layers)
                    .into_par_iter()
                    .map(layer)
                    .collect::<Result<Vec<_>>>()
            },
        );
        let (embeddings, head, layers) = (embeddings?, head?, layers?);
        let final_norm = vector(TensorName::OutputNorm)?;
        let layer_bytes: usize = layers.iter().map(Layer::bytes).sum();
        let info = ModelInfo {
            name: config.name.clone(),
            layers: config.layers,
            width: config.width,
            heads: config.heads,
            kv_heads: config.kv_heads,
            vocabulary: config.vocabulary,
            context_length: config.context_length,
            weight_bytes: tensor_bytes(&embeddings) + head.bytes() + layer_bytes + tensor_bytes(&final_norm),
        };
        let inverse_frequencies = rotary::inverse_frequencies(config.rope_base, config.head_dim);
        Ok(Self {
            info,
            config,
            device,
            embeddings,
            layers,
            final_norm,
            head,
            inverse_frequencies,
        })
    }
}

impl Layer {
    fn bytes(&self) -> usize {
        let linears = [
            &self.q,
            &self.k,
            &self.v,
            &self.output,
            &self.gate,
            &self.up,
            &self.down,
        ];
        linears.into_iter().map(Linear::bytes).sum::<usize>()
            + tensor_bytes(&self.attention_norm)
            + tensor_bytes(&self.ffn_norm)
    }
}

/// The look-up table: f16 beside quantised weights, whose error is far larger; else f32.
fn embeddings(checkpoint: &Checkpoint, quantization: Quantization, device: &Device) -> Result<Tensor> {
    let dtype = if quantization == Quantization::F32 {
        DType::F32
    } else {
        DType::F16
    };
    Ok(checkpoint
        .tensor(TensorName::TokenEmbedding)?
        .to_dtype(dtype)?
        .to_device(device)?)
}

fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
