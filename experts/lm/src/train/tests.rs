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
fn config(tied_embeddings: bool) -> ModelConfig {
    ModelConfig {
        layers: 3,
        vocabulary: 258,
        context_length: 128,
        tied_embeddings,
        ..tiny()
    }
}

fn write_model(directory: &Path, config: &ModelConfig) {
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

fn batch() -> Batch {
    let mut batch = Batch::default();
    for (answer, tokens) in [
        (2, vec![5, 9, 11, 40, 3, 1]),
        (1, vec![7, 8, 90]),
        (3, vec![250, 4, 4, 17]),
    ] {
        batch.push(Sequence { tokens, answer });
    }
    batch
}

/// Directional derivatives of the mean loss by central differences, for every adapter matrix.
#[test]
fn gradients_are_those_of_finite_differences() {
    for tied in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        write_model(directory.path(), &config(tied));
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let decoder = Decoder::load(&checkpoint, 16).unwrap();
        let batch = batch();
        let mut lora = Lora::new(checkpoint.config(), 2, &Projection::ALL, 3, 6.0, 1);
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let mut noise =
            |n: usize| -> Vec<f32> { (0..n).map(|_| 0.2 * (random.random::<f32>() - 0.5)).collect() };
        for parameter in &mut lora.parameters {
            // B is zero at the start, which would leave A without a gradient.
            parameter.values = noise(parameter.values.len());
        }
        let workers = Workers::new(None).unwrap();
        let gradients = step(&decoder, &lora, &batch, &workers).unwrap().gradients;
        let mean = |lora: &Lora| {
            let merged = decoder.merge(lora).unwrap();
            decoder.losses(&batch, &merged).unwrap().1 / batch.targets.len() as f64
        };
        assert_eq!(lora.parameters.len(), 2 * 2 * 7);
        for (index, gradient) in gradients.into_iter().enumerate() {
            let gradient = gradient.unwrap().flatten_all().unwrap();
            let gradient: Vec<f32> = gradient.to_vec1().unwrap();
            let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
            // Along the gradient itself, where the slope is steepest, mixed with a random direction.
            let direction: Vec<f32> = gradient
                .iter()
                .zip(noise(gradient.len()))
                .map(|(g, n)| g / norm + 0.5 * n)
                .collect();
            let expected: f64 = gradient
                .iter()
                .zip(&direction)
                .map(|(g, d)| f64::from(*g) * f64::from(*d))
                .sum();
            let before = lora.parameters[index].values.clone();
            let step = 2e-3_f32;
            let mut shifted = |sign: f32| {
                let moved = before.iter().zip(&direction).map(|(v, d)| v + sign * step * d);
                lora.parameters[index].values = moved.collect();
                mean(&lora)
            };
            let slope = (shifted(1.0) - shifted(-1.0)) / (2.0 * f64::from(step));
            lora.parameters[index].values = before;
            let name = &lora.parameters[index].name;
            assert!(
                (slope - expected).abs() < 0.01 * expected.abs() + 1e-4,
                "{name}: {slope} by differences, {expected} by the backward pass"
            );
        }
    }
}

#[test]
fn packed_rows_lose_what_single_rows_lose() {
    let fixture = Fixture::new();
    let decoder = Decoder::load(&fixture.checkpoint, 16).unwrap();
    let rows = [(2, vec![5, 9, 11, 40, 3, 1]), (1, vec![7, 8, 90])];
    let mut lora = Lora::new(fixture.checkpoint.config(), 2, &Projection::ALL, 2, 4.0, 0);
    lora.parameters
        .iter_mut()
        .for_each(|parameter| parameter.values.fill(0.05));
    let merged = decoder.merge(&lora).unwrap();
    let mut packed = Batch::default();
    let mut sum = 0.0;
    for (answer, tokens) in rows {
        let sequence = Sequence { tokens, answer };
        let mut single = Batch::default();
        single.push(sequence.clone());
        sum += decoder.losses(&single, &merged).unwrap().1;
        packed.push(sequence);
    }
    let (base, adapted) = decoder.losses(&packed, &merged).unwrap();
    assert!((adapted - sum).abs() < 1e-4, "{adapted} packed, {sum} one by one");
    assert!((base - adapted).abs() > 1e-2, "the adapter changes the loss");
}

/// The written file, read by the engine, gives the answers the probability that the trainer saw.
#[test]
fn the_engine_agrees_with_the_trainer() {
    let fixture = Fixture::new();
    let options = TrainAdapterOptions {
        dev: Some(fixture.directory.path().join("rows.jsonl")),
        systems: Vec::new(),
        ..fixture.options("engine.safetensors")
    };
    let dev = fixture.train(&options).0.dev.unwrap();
    let load = LoadOptions {
        quantization: Quantization::F32,
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(fixture.directory.path(), &load).unwrap();
    let adapter = Adapter::load(&options.out, &model).unwrap();
    let perplexity = |adapter: Option<(&Adapter, f32)>| {
        let mut log_probabilities = Vec::new();
        for (question, answer) in ROWS {
            let prompt = model.encode_chat(&single_turn(None, question), true).unwrap();
            let answer = fixture.tokenizer.encode_answer(answer).unwrap();
            log_probabilities.extend(model.log_probabilities(&prompt, &answer, adapter).unwrap());
        }
        assert_eq!(log_probabilities.len(), dev.answer_tokens);
        f64::from(-log_probabilities.iter().sum::<f32>() / log_probabilities.len() as f32).exp()
    };
    let (base, adapted) = (perplexity(None), perplexity(Some((&adapter, 1.0))));
    assert!((base / dev.base_perplexity - 1.0).abs() < 1e-3, "{base}, {dev:?}");
    // The file holds f16 values.
    assert!(
        (adapted / dev.adapter_perplexity - 1.0).abs() < 5e-3,
        "{adapted}, {dev:?}"
    );
    assert!(adapted < 0.9 * base);
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let fixture = Fixture::new();
    let decoder = Decoder::load(&fixture.checkpoint, 16).unwrap();
    let lora = Lora::new(fixture.checkpoint.config(), 3, &Projection::ALL, 4, 8.0, 0);
    let merged = decoder.merge(&lora).unwrap();
    let (base, adapted) = decoder.losses(&batch(), &merged).unwrap();
    assert_eq!(base, adapted);
}

#[test]
fn four_rows_are_learnt_by_heart() {
    let fixture = Fixture::new();
    let options = TrainAdapterOptions {
        rank: 16,
        alpha: 32.0,
        layers: 3,
        steps: 150,
        batch_tokens: 256,
        learning_rate: 0.02,
        systems: Vec::new(),
        dev: Some(fixture.directory.path().join("rows.jsonl")),
        ..fixture.options("heart.safetensors")
    };
    let (report, _) = fixture.train(&options);
    assert!(report.first_loss > 3.0 && report.last_loss < 0.1, "{report:?}");
    let dev = report.dev.unwrap();
    assert_eq!(dev.rows, 4);
    assert!(
        dev.base_perplexity > 50.0 && dev.adapter_perplexity < 1.2,
        "{dev:?}"
    );
    assert_eq!(report.parameters, 3 * 16 * (64 + 48 + 48 + 64 + 80 + 80 + 80));
}

fn bytes(options: &TrainAdapterOptions) -> Vec<u8> {
    let tensors = candle_core::safetensors::load(&options.out, &candle_core::Device::Cpu).unwrap();
    let sorted: std::collections::BTreeMap<_, _> = tensors.into_iter().collect();
    let mut bytes = Vec::new();
    for (name, tensor) in sorted {
        bytes.extend(name.into_bytes());
        let wide = tensor
            .flatten_all()
            .unwrap()
            .to_dtype(candle_core::DType::F32)
            .unwrap();
        for value in wide.to_vec1::<f32>().unwrap() {
            bytes.extend(value.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn the_seed_decides_and_resuming_changes_nothing() {
    let fixture = Fixture::new();
    let whole = fixture.options("whole.safetensors");
    let (_, records) = fixture.train(&whole);
    let again = fixture.options("again.safetensors");
    fixture.train(&TrainAdapterOptions {
        threads: Some(1),
        ..again.clone()
    });
    assert_eq!(bytes(&whole), bytes(&again), "the same seed, one thread");
    let other = TrainAdapterOptions {
        seed: 1,
        ..fixture.options("other.safetensors")
    };
    fixture.train(&other);
    assert_ne!(bytes(&whole), bytes(&other), "another seed");

    // A run that dies in its fifth step goes on from the state of its third.
    let broken = fixture.options("broken.safetensors");
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut die = |record: &StepRecord| assert!(record.step < 5, "as a crash would");
        train_adapter(&fixture.checkpoint, &fixture.tokenizer, &broken, &mut die)
    }));
    assert!(died.is_err());
    let (report, rest) = fixture.train(&TrainAdapterOptions {
        resume: true,
        ..broken.clone()
    });
    assert_eq!(rest.first().unwrap().step, 4);
    assert_eq!(report.steps, 6);
    assert_eq!(bytes(&whole), bytes(&broken), "resumed");
    assert_eq!(records.last().unwrap().loss, rest.last().unwrap().loss);
    assert_eq!(records.last().unwrap().tokens, report.tokens);
    let curve = std::fs::read_to_string(state::curve_path(&broken.out)).unwrap();
    let steps: Vec<&str> = curve
        .lines()
        .skip(1)
        .map(|line| line.split(',').next().unwrap())
        .collect();
    assert_eq!(steps, ["1", "2", "3", "4", "5", "6"]);
}

#[test]
fn a_run_can_be_made_longer_but_not_another() {
    let fixture = Fixture::new();
    let options = fixture.options("a.safetensors");
    fixture.train(&options);
    let longer = TrainAdapterOptions {
        steps: 8,
        resume: true,
        ..options.clone()
    };
    let (_, records) = fixture.train(&longer);
    assert_eq!(
        records.iter().map(|record| record.step).collect::<Vec<_>>(),
        [7, 8]
    );
    let other = TrainAdapterOptions {
        learning_rate: 0.5,
        resume: true,
        ..options
    };
    let error = train_adapter(&fixture.checkpoint, &fixture.tokenizer, &other, &mut |_| {}).unwrap_err();
    assert!(
        matches!(error, LmError::Invalid { field: "resume", .. }),
        "{error}"
    );
}

#[test]
fn options_out_of_range_are_named() {
    let fixture = Fixture::new();
    let good = fixture.options("a.safetensors");
    let bad = [
        (
            "layers",
            TrainAdapterOptions {
                layers: 4,
                ..good.clone()
            },
        ),
        (
            "rank",
            TrainAdapterOptions {
                rank: 0,
                ..good.clone()
            },
        ),
        (
            "targets",
            TrainAdapterOptions {
                targets: Vec::new(),
                ..good.clone()
            },
        ),
        (
            "batch_tokens",
            TrainAdapterOptions {
                batch_tokens: 20,
                ..good.clone()
            },
        ),
        (
            "learning_rate",
            TrainAdapterOptions {
                learning_rate: f64::NAN,
                ..good.clone()
            },
        ),
        // The prompts alone take more than three quarters of it.
        (
            "max_tokens",
            TrainAdapterOptions {
                max_tokens: 30,
                ..good
            },
        ),
    ];
    for (name, options) in bad {
        match train_adapter(&fixture.checkpoint, &fixture.tokenizer, &options, &mut |_| {}) {
            Err(LmError::Invalid { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_file_says_what_it_is() {
    let fixture = Fixture::new();
    let options = TrainAdapterOptions {
        targets: vec![Projection::AttnQ, Projection::FfnDown],
        layers: 1,
        ..fixture.options("named.safetensors")
    };
    fixture.train(&options);
    let file = std::fs::read(&options.out).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let expected = [
        ("format", "referral-adapter/1"),
        ("rank", "4"),
        ("alpha", "8"),
        ("base", "tiny"),
        ("base_width", "32"),
        ("base_layers", "3"),
        ("rope", "interleaved"),
    ];
    for (key, value) in expected {
        assert_eq!(metadata[key], value, "{key}");
    }
    let card: serde_json::Value = serde_json::from_str(&metadata["card"]).unwrap();
    assert_eq!(card["report"]["steps"], 6);
    assert_eq!(card["data"], "rows.jsonl");
    let shapes: std::collections::BTreeMap<_, _> = header
        .tensors()
        .into_iter()
        .map(|(name, info)| (name, info.shape.clone()))
        .collect();
    let expected = [
        ("blk.2.attn_q.lora_a", [4, 32]),
        ("blk.2.attn_q.lora_b", [32, 4]),
        ("blk.2.ffn_down.lora_a", [4, 48]),
        ("blk.2.ffn_down.lora_b", [32, 4]),
    ];
    assert_eq!(
        shapes,
        expected
            .map(|(name, shape)| (name.to_owned(), shape.to_vec()))
            .into()
    );
}

#[test]
fn the_exponential_is_exact_to_a_few_ulp() {
    for index in -87_000..88_000 {
        let x = index as f32 / 1000.0;
        let exact = f64::from(x).exp();
        let error = (f64::from(kernels::exp(x)) - exact).abs() / exact;
        assert!(error < 4e-7, "e^{x} is off by {error}");
    }
}

#[test]
fn the_learning_rate_warms_up_and_decays() {
    let rate = |step| optimiser::learning_rate(step, 100, 10, 1.0);
    assert_eq!(rate(0), 0.1);
    assert_eq!(rate(9), 1.0);
    assert_eq!(rate(10), 1.0);
    assert!((rate(55) - 0.55).abs() < 1e-9);
    assert!(rate(99) < 0.101);
}
