//! A tiny random model, written as a GGUF file, for this crate's tests.

use crate::load::{LayerTensor, LoadOptions, ModelConfig, Quantization, TensorName};
use crate::model::LanguageModel;
use candle_core::quantized::{GgmlDType, QTensor, gguf_file, gguf_file::Value};
use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use std::path::Path;

/// Bytes as tokens, two special tokens and one merged pair.
pub(crate) const VOCABULARY: usize = 259;

pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        name: "tiny".into(),
        layers: 3,
        width: 64,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        ffn_width: 112,
        vocabulary: VOCABULARY,
        context_length: 512,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
        tied_embeddings: true,
        bos: Some(256),
        eos: vec![257],
    }
}

/// Random weights under canonical names, the same for a seed; deviations near a trained model's keep
/// activations in a sane range.
pub(crate) fn weights(config: &ModelConfig, seed: u64) -> Vec<(TensorName, Tensor)> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut tensor = |name: TensorName| {
        let shape = config.shape(name);
        let (centre, spread) = match name {
            TensorName::OutputNorm
            | TensorName::Layer(_, LayerTensor::AttentionNorm | LayerTensor::FfnNorm) => (1.0, 0.3),
            TensorName::TokenEmbedding => (0.0, 1.0),
            _ => (0.0, 1.7 / (shape[1] as f32).sqrt()),
        };
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| centre + spread * random.random_range(-1.0f32..1.0))
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    config.tensors().map(|name| (name, tensor(name))).collect()
}

/// Writes the weights in f32 with a tokenizer of bytes.
pub(crate) fn write_gguf(path: &Path, config: &ModelConfig, weights: &[(TensorName, Tensor)]) {
    let number = |n: usize| Value::U32(u32::try_from(n).unwrap());
    let strings = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let mut tokens = byte_letters();
    tokens.extend([
        "<|im_start|>".to_owned(),
        "<|im_end|>".to_owned(),
        "ab".to_owned(),
    ]);
    let types = (0..VOCABULARY)
        .map(|id| Value::I32(if matches!(id, 256 | 257) { 3 } else { 1 }))
        .collect();
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("general.name", Value::String(config.name.clone())),
        ("llama.block_count", number(config.layers)),
        ("llama.embedding_length", number(config.width)),
        ("llama.attention.head_count", number(config.heads)),
        ("llama.attention.head_count_kv", number(config.kv_heads)),
        ("llama.attention.key_length", number(config.head_dim)),
        ("llama.attention.value_length", number(config.head_dim)),
        ("llama.rope.dimension_count", number(config.head_dim)),
        ("llama.feed_forward_length", number(config.ffn_width)),
        ("llama.context_length", number(config.context_length)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.tokens", strings(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(types)),
        ("tokenizer.ggml.merges", strings(vec!["a b".into()])),
        ("tokenizer.ggml.bos_token_id", Value::U32(256)),
        ("tokenizer.ggml.eos_token_id", Value::U32(257)),
    ];
    save_gguf(path, &metadata, weights);
}

/// Writes a GGUF file of this metadata and these weights, in f32.
pub(crate) fn save_gguf(path: &Path, metadata: &[(&str, Value)], weights: &[(TensorName, Tensor)]) {
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = weights
        .iter()
        .map(|(name, tensor)| {
            (
                name.to_string(),
                QTensor::quantize(tensor, GgmlDType::F32).unwrap(),
            )
        })
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}

/// A tiny model of these weights, through a file as any other.
pub(crate) fn model_of(weights: &[(TensorName, Tensor)], quantization: Quantization) -> LanguageModel {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    write_gguf(&path, &config(), weights);
    let options = LoadOptions {
        device: crate::load::DeviceSpec::Cpu,
        quantization,
    };
    LanguageModel::load(&path, &options).unwrap()
}

/// The tiny model in f32.
pub(crate) fn model() -> LanguageModel {
    model_of(&weights(&config(), 1), Quantization::F32)
}

/// The letters that stand for the 256 bytes in byte-level vocabularies (GPT-2).
fn byte_letters() -> Vec<String> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut shifted = 0x100..;
    (0..256)
        .map(|byte| {
            if printable(byte) {
                byte
            } else {
                shifted.next().unwrap()
            }
        })
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect()
}
