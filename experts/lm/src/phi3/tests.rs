use super::*;
use candle_core::quantized::gguf_file::Value as Gguf;
use serde_json::json;

const PROMPT: [u32; 7] = [1, 32_006, 280, 300, 32_007, 400, 261];

fn load(path: &Path, context: usize) -> Phi3 {
    Phi3::load(path, DeviceSpec::Cpu, context).unwrap()
}

fn refused(path: &Path) -> String {
    Phi3::load(path, DeviceSpec::Cpu, 64).err().unwrap().to_string()
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "logits differ by {worst}");
}

#[test]
fn both_file_formats_give_the_same_logits_at_once_and_token_by_token() {
    let directory = tempfile::tempdir().unwrap();
    tiny::write_directory(directory.path(), 7, serde_json::Value::Null, 4096);
    let file = directory.path().join("tiny.gguf");
    tiny::write_gguf(&file, 7, &[]);
    let (whole, quantised) = (load(directory.path(), 64), load(&file, 64));
    assert_eq!((whole.context(), quantised.context()), (64, 64));
    let expected = whole.start(&PROMPT).unwrap();
    assert_eq!(expected.logits().len(), 32_064);
    assert_close(quantised.start(&PROMPT).unwrap().logits(), expected.logits());
    for model in [&whole, &quantised] {
        let mut decoding = model.start(&PROMPT[..3]).unwrap();
        let early = decoding.logits().to_vec();
        for token in &PROMPT[3..] {
            decoding.read(&[*token]).unwrap();
        }
        assert_close(decoding.logits(), expected.logits());
        assert!(
            early
                .iter()
                .zip(expected.logits())
                .any(|(a, b)| (a - b).abs() > 0.01)
        );
        // What one decoding has cached does not reach the next.
        assert_close(model.start(&PROMPT[..3]).unwrap().logits(), &early);
    }
    for text in ["a b", "<|end|>", "é"] {
        let ids = |model: &Phi3| model.tokenizer().encode(text, true).unwrap();
        assert_eq!(ids(&whole), ids(&quantised), "{text}");
    }
}

#[test]
fn sequences_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    tiny::write_directory(directory.path(), 7, serde_json::Value::Null, 4096);
    let model = load(directory.path(), 8);
    assert!(matches!(model.start(&[]), Err(LmError::Invalid { .. })));
    assert!(matches!(
        model.start(&[1; 9]),
        Err(LmError::TooLong { limit: 8, .. })
    ));
    let mut decoding = model.start(&[1; 8]).unwrap();
    assert!(matches!(decoding.read(&[1]), Err(LmError::TooLong { .. })));
}

/// With factors of 1 the long embedding is the plain one but for the scaling of attention, which is computed here from
/// weights whose queries and keys were scaled by hand.
#[test]
fn the_long_rotary_embedding_scales_attention() {
    let long = |kind: &str| json!({"type": kind, "short_factor": [1, 1, 1, 1], "long_factor": [9, 9, 9, 9]});
    let make = |rope, original| {
        let directory = tempfile::tempdir().unwrap();
        tiny::write_directory(directory.path(), 7, rope, original);
        directory
    };
    let logits = |directory: &tempfile::TempDir| {
        load(directory.path(), 64)
            .start(&PROMPT)
            .unwrap()
            .logits()
            .to_vec()
    };
    let plain = logits(&make(serde_json::Value::Null, 4096));
    assert_close(&logits(&make(long("su"), 4096)), &plain);
    let stretched = make(long("longrope"), 512);
    let scaled = logits(&stretched);
    assert!(
        scaled.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-3),
        "nothing was scaled"
    );
    let by_hand = make(serde_json::Value::Null, 4096);
    let file = by_hand.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let factor = (1.0 + 8f64.ln() / 512f64.ln()).sqrt();
    for (name, tensor) in &mut tensors {
        if name.contains("qkv_proj") {
            // Four heads of queries and two of keys, eight numbers each.
            let rows: Vec<Tensor> = (0..64)
                .map(|row| (tensor.narrow(0, row, 1).unwrap() * if row < 48 { factor } else { 1.0 }).unwrap())
                .collect();
            *tensor = Tensor::cat(&rows, 0).unwrap();
        }
    }
    candle_core::safetensors::save(&tensors, &file).unwrap();
    assert_close(&scaled, &logits(&by_hand));
    assert_eq!(
        load(stretched.path(), 4096).context(),
        512,
        "beyond that the long factors would count"
    );
}

#[test]
fn wrong_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert!(refused(path).contains("config.json"));
    tiny::write_directory(path, 7, serde_json::Value::Null, 4096);
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    for (from, to, words) in [
        ("\"phi3\"", "\"llama\"", "only \"phi3\""),
        (
            "\"num_attention_heads\":4",
            "\"num_attention_heads\":0",
            "do not share a width",
        ),
        (
            "\"num_key_value_heads\":2",
            "\"num_key_value_heads\":0",
            "do not share a width",
        ),
        ("\"vocab_size\":32064", "\"vocab_size\":9", "shape"),
        (
            "\"rope_scaling\":null",
            "\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1],\"long_factor\":[1]}",
            "short_factor",
        ),
        ("{", "", "config.json"),
    ] {
        assert!(config.contains(from), "{from}");
        std::fs::write(path.join("config.json"), config.replacen(from, to, 1)).unwrap();
        let said = refused(path);
        assert!(
            said.contains(words) && said.contains(&path.display().to_string()),
            "{to}: {said}"
        );
    }
    std::fs::write(path.join("config.json"), config).unwrap();
    std::fs::remove_file(path.join("tokenizer.json")).unwrap();
    assert!(refused(path).contains("tokenizer.json"));

    let file = path.join("odd.gguf");
    for (key, value, words) in [
        (
            "general.architecture",
            Gguf::String("llama".into()),
            "only \"phi3\"",
        ),
        (
            "phi3.attention.head_count",
            Gguf::U32(0),
            "head_count is missing, zero",
        ),
        (
            "phi3.attention.head_count_kv",
            Gguf::U32(3),
            "do not share a width",
        ),
        ("phi3.rope.freq_base", Gguf::F32(1e6), "give the safetensors"),
        ("phi3.block_count", Gguf::U32(5), "blk.2"),
    ] {
        tiny::write_gguf(&file, 7, &[(key, value)]);
        let said = refused(&file);
        assert!(said.contains(words) && said.contains("odd.gguf"), "{key}: {said}");
    }
    std::fs::write(&file, b"GGUF but not really").unwrap();
    assert!(refused(&file).contains("odd.gguf"));
}
