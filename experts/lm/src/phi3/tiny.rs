//! A tiny random Phi-3 for tests, as a Hugging Face directory and as a GGUF file of the same weights: two layers, a width of
//! 32, and the vocabulary of Octopus v4 with its special tokens at their places.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;

const WIDTH: usize = 32;
const FFN: usize = 48;
const LAYERS: usize = 2;
const VOCABULARY: usize = 32_064;

/// Tokens by id: bytes, letters, special tokens; what is not named is filler.
fn tokens() -> Vec<(String, f32, i32)> {
    let mut tokens: Vec<(String, f32, i32)> = (0..VOCABULARY)
        .map(|id| (format!("<filler_{id}>"), -1e9, 5))
        .collect();
    let mut put = |id: usize, text: &str, kind: i32| tokens[id] = (text.to_owned(), -(id as f32), kind);
    put(0, "<unk>", 2);
    put(1, "<s>", 3);
    put(2, "</s>", 3);
    for byte in 0..256 {
        put(3 + byte, &format!("<0x{byte:02X}>"), 6);
    }
    put(259, "\u{2581}", 1);
    for (place, letter) in (' '..='~').filter(|letter| *letter != ' ').enumerate() {
        put(260 + place, &letter.to_string(), 1);
    }
    put(400, "\u{2581}a", 1);
    put(32_000, "<|endoftext|>", 3);
    put(32_001, "<|assistant|>", 3);
    put(32_006, "<|system|>", 3);
    put(32_007, "<|end|>", 3);
    put(32_010, "<|user|>", 3);
    for function in 0..17 {
        put(32_011 + function, &format!("<nexa_{function}>"), 3);
    }
    put(32_041, "<nexa_end>", 3);
    tokens
}

fn weights(seed: u64) -> Vec<(String, String, Tensor)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut all = Vec::new();
    let mut add = |whole: String, gguf: String, shape: &[usize]| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| random.random_range(-0.3f32..0.3)).collect();
        all.push((
            whole,
            gguf,
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap(),
        ));
    };
    let names = [("model.embed_tokens", "token_embd"), ("lm_head", "output")];
    for (whole, gguf) in names {
        add(
            format!("{whole}.weight"),
            format!("{gguf}.weight"),
            &[VOCABULARY, WIDTH],
        );
    }
    add(
        "model.norm.weight".to_owned(),
        "output_norm.weight".to_owned(),
        &[WIDTH],
    );
    for layer in 0..LAYERS {
        for (whole, gguf, shape) in [
            ("input_layernorm", "attn_norm", &[WIDTH][..]),
            ("post_attention_layernorm", "ffn_norm", &[WIDTH]),
            // Four heads of queries, two of keys and values.
            ("self_attn.qkv_proj", "attn_qkv", &[2 * WIDTH, WIDTH]),
            ("self_attn.o_proj", "attn_output", &[WIDTH, WIDTH]),
            ("mlp.gate_up_proj", "ffn_up", &[2 * FFN, WIDTH]),
            ("mlp.down_proj", "ffn_down", &[WIDTH, FFN]),
        ] {
            add(
                format!("model.layers.{layer}.{whole}.weight"),
                format!("blk.{layer}.{gguf}.weight"),
                shape,
            );
        }
    }
    all
}

/// Writes the Hugging Face directory; `rope` is its `rope_scaling` and `original` what its positions were trained to.
pub(crate) fn write_directory(directory: &Path, seed: u64, rope: serde_json::Value, original: usize) {
    let config = json!({
        "model_type": "phi3", "hidden_act": "silu", "hidden_size": WIDTH, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096, "original_max_position_embeddings": original, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": rope, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 32000,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let tensors: HashMap<String, Tensor> = weights(seed)
        .into_iter()
        .map(|(name, _, tensor)| (name, tensor))
        .collect();
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
    std::fs::write(directory.join("tokenizer.json"), tokenizer().to_string()).unwrap();
}

/// The tokenizer as Hugging Face writes that of a SentencePiece vocabulary.
fn tokenizer() -> serde_json::Value {
    let tokens = tokens();
    let vocabulary: serde_json::Map<String, serde_json::Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, (text, _, _))| (text.clone(), id.into()))
        .collect();
    let added: Vec<_> = tokens
        .iter()
        .enumerate()
        .filter(|(_, (_, _, kind))| matches!(kind, 2 | 3))
        .map(|(id, (text, _, _))| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let space = json!({"String": " "});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": space, "content": "\u{2581}"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": [["\u{2581}", "a"]]},
    })
}

/// Writes the GGUF file; `more` are further entries of its header.
pub(crate) fn write_gguf(path: &Path, seed: u64, more: &[(&str, Value)]) {
    let tokens = tokens();
    let list = |values: Vec<Value>| Value::Array(values);
    let number = |number: usize| Value::U32(u32::try_from(number).unwrap());
    let mut metadata: Vec<(&str, Value)> = vec![
        ("general.architecture", Value::String("phi3".into())),
        ("phi3.context_length", number(4096)),
        ("phi3.embedding_length", number(WIDTH)),
        ("phi3.feed_forward_length", number(FFN)),
        ("phi3.block_count", number(LAYERS)),
        ("phi3.attention.head_count", number(4)),
        ("phi3.attention.head_count_kv", number(2)),
        ("phi3.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("phi3.rope.dimension_count", number(WIDTH / 4)),
        ("tokenizer.ggml.model", Value::String("llama".into())),
        (
            "tokenizer.ggml.tokens",
            list(
                tokens
                    .iter()
                    .map(|(text, _, _)| Value::String(text.clone()))
                    .collect(),
            ),
        ),
        (
            "tokenizer.ggml.scores",
            list(tokens.iter().map(|(_, score, _)| Value::F32(*score)).collect()),
        ),
        (
            "tokenizer.ggml.token_type",
            list(tokens.iter().map(|(_, _, kind)| Value::I32(*kind)).collect()),
        ),
        ("tokenizer.ggml.bos_token_id", number(1)),
        ("tokenizer.ggml.eos_token_id", number(32_000)),
    ];
    for (key, value) in more {
        metadata.retain(|(old, _)| old != key);
        metadata.push((key, value.clone()));
    }
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(String, QTensor)> = weights(seed)
        .into_iter()
        .map(|(_, name, tensor)| (name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap()))
        .collect();
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}
