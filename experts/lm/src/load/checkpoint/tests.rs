use super::*;
use crate::model::tiny::save_gguf;
use candle_core::quantized::gguf_file::Value;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

pub(crate) fn tiny() -> ModelConfig {
    ModelConfig {
        name: "tiny".into(),
        layers: 2,
        width: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn_width: 48,
        vocabulary: 40,
        context_length: 64,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
        tied_embeddings: true,
        bos: Some(1),
        eos: vec![2],
    }
}

/// Random weights under canonical names and convention.
pub(crate) fn weights(config: &ModelConfig) -> Vec<(TensorName, Tensor)> {
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let mut random = |name| {
        let shape = config.shape(name);
        // As in models that can learn: gains about 1, embeddings far apart.
        let (mean, deviation): (f32, f32) = match name {
            TensorName::TokenEmbedding | TensorName::Output => (0.0, 1.0),
            _ if shape.len() == 1 => (1.0, 0.1),
            _ => (0.0, 0.1),
        };
        let bound = 3.0_f32.sqrt() * deviation;
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| mean + bound * (2.0 * generator.random::<f32>() - 1.0))
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    config.tensors().map(|name| (name, random(name))).collect()
}

fn write_gguf(path: &Path, weights: &[(TensorName, Tensor)], architecture: &str) {
    let config = tiny();
    let number = |n: usize| Value::U32(u32::try_from(n).unwrap());
    let metadata = [
        ("general.architecture", Value::String(architecture.into())),
        ("general.name", Value::String("tiny".into())),
        ("llama.block_count", number(config.layers)),
        ("llama.embedding_length", number(config.width)),
        ("llama.attention.head_count", number(config.heads)),
        ("llama.attention.head_count_kv", number(config.kv_heads)),
        ("llama.feed_forward_length", number(config.ffn_width)),
        ("llama.context_length", number(config.context_length)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
    ];
    save_gguf(path, &metadata, weights);
}

/// Undoes [`interleave`]: what a Hugging Face file would hold.
fn half_split(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    let pairs = weight.reshape((heads, rows / heads / 2, 2, columns)).unwrap();
    pairs
        .transpose(1, 2)
        .unwrap()
        .reshape((rows, columns))
        .unwrap()
        .contiguous()
        .unwrap()
}

/// A model as Hugging Face lays it out, in two shards.
pub(crate) fn write_safetensors(directory: &Path, config: &ModelConfig, weights: &[(TensorName, Tensor)]) {
    let text = serde_json::json!({
        "model_type": "llama", "hidden_size": config.width, "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context_length, "rms_norm_eps": config.rms_epsilon,
        "rope_theta": config.rope_base, "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": 1, "eos_token_id": 2, "_name_or_path": config.name,
    });
    std::fs::write(directory.join("config.json"), text.to_string()).unwrap();
    let (mut first, mut second) = (HashMap::new(), HashMap::new());
    for (index, (name, tensor)) in weights.iter().enumerate() {
        let tensor = match name {
            TensorName::Layer(_, LayerTensor::AttentionQ) => half_split(tensor, config.heads),
            TensorName::Layer(_, LayerTensor::AttentionK) => half_split(tensor, config.kv_heads),
            _ => tensor.clone(),
        };
        let shard = if index % 2 == 0 { &mut first } else { &mut second };
        shard.insert(name.huggingface(), tensor);
    }
    candle_core::safetensors::save(&first, directory.join("model-00001-of-00002.safetensors")).unwrap();
    candle_core::safetensors::save(&second, directory.join("model-00002-of-00002.safetensors")).unwrap();
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn detail(result: Result<Checkpoint>) -> String {
    match result {
        Err(LmError::BadFile { detail, .. }) => detail,
        other => panic!("expected BadFile, got {other:?}"),
    }
}

#[test]
fn both_formats_give_the_same_configuration_and_tensors() {
    let directory = tempfile::tempdir().unwrap();
    let weights = weights(&tiny());
    let gguf = directory.path().join("tiny.gguf");
    write_gguf(&gguf, &weights, "llama");
    let folder = directory.path().join("tiny");
    std::fs::create_dir(&folder).unwrap();
    write_safetensors(&folder, &tiny(), &weights);
    let (gguf, folder) = (
        Checkpoint::open(&gguf).unwrap(),
        Checkpoint::open(&folder).unwrap(),
    );
    let close = |config: &ModelConfig| {
        assert!((config.rms_epsilon - 1e-5).abs() < 1e-9);
        ModelConfig {
            rms_epsilon: 1e-5,
            ..config.clone()
        }
    };
    assert_eq!(close(gguf.config()), tiny());
    assert_eq!(close(folder.config()), tiny());
    for (name, tensor) in &weights {
        assert_eq!(
            values(&gguf.tensor(*name).unwrap()),
            values(tensor),
            "{name} of the GGUF file"
        );
        assert_eq!(
            values(&folder.tensor(*name).unwrap()),
            values(tensor),
            "{name} of the directory"
        );
    }
    let tied = gguf.tensor(TensorName::Output).unwrap();
    assert_eq!(values(&tied), values(&weights[0].1));
    assert!(gguf.quantised(TensorName::OutputNorm).unwrap().is_some());
    assert!(folder.quantised(TensorName::OutputNorm).unwrap().is_none());
    assert!(matches!(
        gguf.tensor(TensorName::Layer(2, LayerTensor::FfnUp)),
        Err(LmError::BadFile { .. })
    ));
}

#[test]
fn another_architecture_and_a_missing_tensor_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let mut weights = weights(&tiny());
    write_gguf(&path, &weights, "qwen3");
    assert!(detail(Checkpoint::open(&path)).contains("qwen3"));
    weights.retain(|(name, _)| *name != TensorName::Layer(1, LayerTensor::FfnGate));
    write_gguf(&path, &weights, "llama");
    assert!(detail(Checkpoint::open(&path)).contains("blk.1.ffn_gate.weight"));
}

#[test]
fn truncated_and_corrupt_gguf_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    write_gguf(&path, &weights(&tiny()), "llama");
    let whole = std::fs::read(&path).unwrap();
    for cut in (0..whole.len()).step_by(997).chain([1, 4, 8, 24]) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        detail(Checkpoint::open(&path));
    }
    // A corrupt byte anywhere in the header is an error or another valid value, never a panic.
    for position in 0..1200 {
        let mut bytes = whole.clone();
        bytes[position] ^= 0xff;
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = Checkpoint::open(&path) {
            assert!(matches!(error, LmError::BadFile { .. }), "{error}");
        }
    }
}

#[test]
fn a_zero_alignment_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let alignment = Value::U32(0);
    let mut file = std::fs::File::create(&path).unwrap();
    gguf_file::write(&mut file, &[("general.alignment", &alignment)], &[]).unwrap();
    detail(Checkpoint::open(&path));
}

#[test]
fn truncated_and_corrupt_safetensors_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    write_safetensors(directory.path(), &tiny(), &weights(&tiny()));
    let path = directory.path().join("model-00001-of-00002.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        detail(Checkpoint::open(directory.path()));
    }
    let mut absurd = whole.clone();
    absurd[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&path, &absurd).unwrap();
    detail(Checkpoint::open(directory.path()));
    std::fs::remove_file(&path).unwrap();
    assert!(detail(Checkpoint::open(directory.path())).contains("is missing"));
}
