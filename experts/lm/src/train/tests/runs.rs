//! Whole runs: what they learn, what they write, how they resume, and which options they refuse.

use super::*;
use crate::LmError;

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
