//! A tiny random model for tests: a Hugging Face directory with a byte-level tokenizer, two words of whose
//! vocabulary are the chat template's.

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use referral_lm::LanguageModel;
use referral_lm::load::{Checkpoint, LoadOptions, Quantization};
use std::collections::HashMap;
use std::path::Path;

const WIDTH: usize = 32;
const FFN: usize = 48;
const VOCABULARY: usize = 258;
const LAYERS: usize = 3;

/// The model; every call makes the same.
pub(crate) fn model() -> LanguageModel {
    seeded(3)
}

/// A model of the same shape whose weights are drawn with `seed`.
pub(crate) fn seeded(seed: u64) -> LanguageModel {
    let directory = directory(seed);
    let options = LoadOptions {
        quantization: Quantization::F32,
        ..LoadOptions::default()
    };
    LanguageModel::load(directory.path(), &options).unwrap()
}

/// The model's file, as the trainer reads it; every call makes the same. It lives as long as the directory.
pub(crate) fn checkpoint() -> (tempfile::TempDir, Checkpoint) {
    let directory = directory(3);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    (directory, checkpoint)
}

fn directory(seed: u64) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_tokenizer(directory.path());
    write_weights(directory.path(), seed);
    directory
}

/// The letters that stand for the 256 bytes in byte-level vocabularies (GPT-2).
fn byte_letters() -> impl Iterator<Item = String> {
    let mut shifted = 0x100u32..;
    (0..256u32).map(move |byte| {
        let is_printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if is_printable {
            byte
        } else {
            shifted.next().unwrap()
        };
        char::from_u32(code).unwrap().to_string()
    })
}

fn write_tokenizer(directory: &Path) {
    let specials = ["<|im_start|>", "<|im_end|>"].map(str::to_owned);
    let vocabulary: serde_json::Map<String, serde_json::Value> = specials
        .iter()
        .cloned()
        .chain(byte_letters())
        .enumerate()
        .map(|(id, token)| (token, id.into()))
        .collect();
    let added: Vec<_> = specials
        .iter()
        .enumerate()
        .map(|(id, text)| {
            serde_json::json!({"id": id, "content": text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocabulary, "merges": []}
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let settings =
        serde_json::json!({"eos_token": "<|im_end|>", "bos_token": null, "chat_template": template});
    std::fs::write(directory.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

fn write_weights(directory: &Path, seed: u64) {
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 1, "_name_or_path": "tiny",
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| random.random_range(-0.3f32..0.3))
            .collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    };
    add("model.embed_tokens.weight".to_owned(), &[VOCABULARY, WIDTH]);
    add("model.norm.weight".to_owned(), &[WIDTH]);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", &[WIDTH][..]),
            ("post_attention_layernorm", &[WIDTH]),
            ("self_attn.q_proj", &[WIDTH, WIDTH]),
            ("self_attn.k_proj", &[WIDTH / 2, WIDTH]),
            ("self_attn.v_proj", &[WIDTH / 2, WIDTH]),
            ("self_attn.o_proj", &[WIDTH, WIDTH]),
            ("mlp.gate_proj", &[FFN, WIDTH]),
            ("mlp.up_proj", &[FFN, WIDTH]),
            ("mlp.down_proj", &[WIDTH, FFN]),
        ] {
            add(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
}
