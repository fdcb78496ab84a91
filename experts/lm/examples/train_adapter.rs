//! Trains a low-rank adapter from a JSON file of options.
//!
//! ```text
//! cargo run --release -p referral-lm --example train_adapter -- MODEL OPTIONS.json
//! ```
//!
//! `MODEL` is a GGUF file or a directory of Hugging Face safetensors. `OPTIONS.json` holds the
//! fields of [`TrainAdapterOptions`]; those left out keep their defaults, `data` is needed:
//! `{"data": "train.jsonl.gz", "dev": "dev.jsonl.gz", "out": "medical.safetensors", "steps": 300}`.
//! Prints one JSON line for every tenth step and the report at the end.

use referral_lm::load::Checkpoint;
use referral_lm::tokenize::Tokenizer;
use referral_lm::train::{StepRecord, TrainAdapterOptions, train_adapter};
use std::error::Error;
use std::io::Write;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, options] = arguments.as_slice() else {
        return Err("usage: train_adapter MODEL OPTIONS.json".into());
    };
    let options: TrainAdapterOptions = serde_json::from_str(&std::fs::read_to_string(options)?)?;
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let tokenizer = Tokenizer::open(Path::new(model))?;
    let mut out = std::io::stdout();
    let mut print = |record: &StepRecord| {
        if record.step.is_multiple_of(10) || record.step == 1 {
            // A closed pipe is no reason to stop training.
            let _ = writeln!(out, "{}", serde_json::json!(record));
        }
    };
    let report = train_adapter(&checkpoint, &tokenizer, &options, &mut print)?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    Ok(())
}
