//! A model's weights in memory: what each layer holds, in which type, and how it is read from a file.

use super::packed::{PackedLayer, pack_vocabulary};
use super::{ModelInfo, rotary};
use crate::Result;
use crate::kernels::Packed;
use crate::load::Quantization;
use crate::load::checkpoint::{Checkpoint, LayerTensor, ModelConfig, TensorName};
use crate::load::linear::Linear;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Everything that clones of a model share.
pub(super) struct Weights {
    pub(super) info: ModelInfo,
    pub(super) config: ModelConfig,
    pub(super) device: Device,
    pub(super) embeddings: Embeddings,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Tensor,
    pub(super) head: Linear,
    pub(super) inverse_frequencies: Vec<f32>,
}

/// The look-up table, `vocabulary × width`.
pub(super) enum Embeddings {
    Table(Tensor),
    /// Shared with the output projection if the model has them tied.
    Packed(Arc<Packed>),
}

/// One decoder layer.
pub(super) enum Layer {
    /// On candle's operators.
    Tensors(Box<TensorLayer>),
    /// On the CPU's own kernels.
    Packed(Box<PackedLayer>),
}

/// A decoder layer on candle's operators.
pub(super) struct TensorLayer {
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
        let layers = || -> Result<Vec<Layer>> {
            if device.is_cpu() {
                let load = |index| PackedLayer::load(checkpoint, index, quantization);
                let packed = (0..config.layers).into_par_iter().map(load);
                if let Some(layers) = packed.collect::<Result<Option<Vec<_>>>>()? {
                    return Ok(layers
                        .into_iter()
                        .map(|layer| Layer::Packed(Box::new(layer)))
                        .collect());
                }
            }
            let load = |index| TensorLayer::load(checkpoint, index, quantization, &device);
            let layers = (0..config.layers).into_par_iter().map(load);
            Ok(layers
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .map(|layer| Layer::Tensors(Box::new(layer)))
                .collect())
        };
        // The embedding matters as much as a fifth of the layers: both at once, all on rayon's threads.
        let (vocabulary, layers) =
            rayon::join(|| Vocabulary::load(checkpoint, quantization, &device), layers);
        let (vocabulary, layers) = (vocabulary?, layers?);
        let final_norm = checkpoint.tensor(TensorName::OutputNorm)?.to_device(&device)?;
        let layer_bytes: usize = layers.iter().map(Layer::bytes).sum();
        let info = ModelInfo {
            name: config.name.clone(),
            layers: config.layers,
            width: config.width,
            heads: config.heads,
            kv_heads: config.kv_heads,
            vocabulary: config.vocabulary,
            context_length: config.context_length,
            weight_bytes: vocabulary.bytes() + layer_bytes + tensor_bytes(&final_norm),
        };
        let inverse_frequencies = rotary::inverse_frequencies(config.rope_base, config.head_dim);
        Ok(Self {
            info,
            config,
            device,
            embeddings: vocabulary.embeddings,
            layers,
            final_norm,
            head: vocabulary.head,
            inverse_frequencies,
        })
    }
}

/// Embedding and output projection.
struct Vocabulary {
    embeddings: Embeddings,
    head: Linear,
}

impl Vocabulary {
    fn load(checkpoint: &Checkpoint, quantization: Quantization, device: &Device) -> Result<Self> {
        let packed = |name| match device.is_cpu() {
            true => Ok(pack_vocabulary(checkpoint, name, quantization)?.map(Arc::new)),
            false => Ok::<_, crate::LmError>(None),
        };
        if let Some(embeddings) = packed(TensorName::TokenEmbedding)? {
            let head = if checkpoint.config().tied_embeddings {
                Some(Arc::clone(&embeddings))
            } else {
                packed(TensorName::Output)?
            };
            let head = match head {
                Some(head) => Linear::packed(head),
                None => Linear::load(checkpoint, TensorName::Output, quantization, device)?,
            };
            let embeddings = Embeddings::Packed(embeddings);
            return Ok(Self { embeddings, head });
        }
        // f16 beside quantised weights, whose error is far larger; else f32.
        let dtype = if quantization == Quantization::F32 {
            DType::F32
        } else {
            DType::F16
        };
        let table = checkpoint
            .tensor(TensorName::TokenEmbedding)?
            .to_dtype(dtype)?
            .to_device(device)?;
        Ok(Self {
            embeddings: Embeddings::Table(table),
            head: Linear::load(checkpoint, TensorName::Output, quantization, device)?,
        })
    }

    fn bytes(&self) -> usize {
        match &self.embeddings {
            Embeddings::Table(table) => tensor_bytes(table) + self.head.bytes(),
            Embeddings::Packed(packed) if self.head.shares(packed) => packed.bytes(),
            Embeddings::Packed(packed) => packed.bytes() + self.head.bytes(),
        }
    }
}

impl Embeddings {
    /// The rows of `tokens`, all of which must be there: `tokens × width` in f32.
    pub(super) fn look_up(&self, tokens: &[u32], width: usize, device: &Device) -> Result<Tensor> {
        match self {
            Self::Table(table) => {
                let ids = Tensor::from_vec(tokens.to_vec(), tokens.len(), device)?;
                Ok(table.index_select(&ids, 0)?.to_dtype(DType::F32)?)
            }
            Self::Packed(packed) => {
                let mut values = vec![0.0; tokens.len() * width];
                for (token, row) in tokens.iter().zip(values.chunks_exact_mut(width)) {
                    packed.row(*token as usize, row);
                }
                Ok(Tensor::from_vec(values, (tokens.len(), width), device)?)
            }
        }
    }
}

impl Layer {
    fn bytes(&self) -> usize {
        match self {
            Self::Tensors(layer) => layer.bytes(),
            Self::Packed(layer) => layer.bytes(),
        }
    }
}

impl TensorLayer {
    fn load(
        checkpoint: &Checkpoint,
        index: usize,
        quantization: Quantization,
        device: &Device,
    ) -> Result<Self> {
        let vector = |tensor| -> Result<Tensor> {
            Ok(checkpoint
                .tensor(TensorName::Layer(index, tensor))?
                .to_device(device)?)
        };
        let matrix =
            |tensor| Linear::load(checkpoint, TensorName::Layer(index, tensor), quantization, device);
        Ok(Self {
            attention_norm: vector(LayerTensor::AttentionNorm)?,
            q: matrix(LayerTensor::AttentionQ)?,
            k: matrix(LayerTensor::AttentionK)?,
            v: matrix(LayerTensor::AttentionV)?,
            output: matrix(LayerTensor::AttentionOutput)?,
            ffn_norm: vector(LayerTensor::FfnNorm)?,
            gate: matrix(LayerTensor::FfnGate)?,
            up: matrix(LayerTensor::FfnUp)?,
            down: matrix(LayerTensor::FfnDown)?,
        })
    }

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

/// A norm's weights as plain values.
pub(super) fn vector(checkpoint: &Checkpoint, name: TensorName) -> Result<Vec<f32>> {
    Ok(checkpoint.tensor(name)?.to_vec1()?)
}

fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
