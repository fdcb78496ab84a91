mod arithmetic;
mod runs;

use super::data::Sequence;
use super::*;
use crate::LanguageModel;
use crate::adapter::{Adapter, Projection};
use crate::load::checkpoint::tests::{tiny, weights, write_safetensors};
use crate::load::{Checkpoint, LoadOptions, ModelConfig, Quantization};
use crate::tokenize::single_turn;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// A random model whose vocabulary is bytes and the two tokens of ChatML.
pub(super) fn config(tied_embeddings: bool) -> ModelConfig {
    ModelConfig {
        layers: 3,
        vocabulary: 258,
        context_length: 128,
        tied_embeddings,
        ..tiny()
    }
}

pub(super) fn write_model(directory: &Path, config: &ModelConfig) {
    write_safetensors(directory, config, &weights(config));
    let mut letters: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
        .into_iter()
        .collect();
    letters.sort_unstable();
    let mut vocabulary = serde_json::Map::new();
    for token in ["<|im_start|>", "<|im_end|>"] {
        vocabulary.insert(token.to_owned(), vocabulary.len().into());
    }
    for letter in letters {
        vocabulary.insert(letter.to_string(), vocabulary.len().into());
    }
    let added = |id: u32, text: &str| {
        serde_json::json!({"id": id, "content": text, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<|im_start|>"), added(1, "<|im_end|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocabulary, "merges": []}
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn write_rows(path: &Path, rows: &[(&str, &str)]) {
    let lines: Vec<String> = rows
        .iter()
        .map(|(question, answer)| serde_json::json!({"question": question, "answer": answer}).to_string())
        .collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

const ROWS: [(&str, &str); 4] = [
    ("heart?", "beats"),
    ("lung?", "breathes air"),
    ("kidney?", "filters"),
    ("skin?", "covers it"),
];

/// A model and four rows on disk, and options for a short run.
struct Fixture {
    directory: tempfile::TempDir,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_model(directory.path(), &config(true));
        write_rows(&directory.path().join("rows.jsonl"), &ROWS);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let tokenizer = Tokenizer::open(directory.path()).unwrap();
        Self {
            directory,
            checkpoint,
            tokenizer,
        }
    }

    fn options(&self, name: &str) -> TrainAdapterOptions {
        TrainAdapterOptions {
            data: self.directory.path().join("rows.jsonl"),
            out: self.directory.path().join(name),
            rank: 4,
            alpha: 8.0,
            layers: 2,
            steps: 6,
            batch_tokens: 128,
            max_tokens: 100,
            warmup: 2,
            learning_rate: 0.01,
            save_every: 3,
            systems: vec![String::new(), "Be brief.".into()],
            ..TrainAdapterOptions::default()
        }
    }

    fn train(&self, options: &TrainAdapterOptions) -> (TrainReport, Vec<StepRecord>) {
        let mut records = Vec::new();
        let report = train_adapter(&self.checkpoint, &self.tokenizer, options, &mut |r| {
            records.push(*r)
        })
        .unwrap();
        (report, records)
    }
}
