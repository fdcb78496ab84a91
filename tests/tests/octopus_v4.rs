//! The published Octopus v4 as the router's backend, with a tiny random Phi-3 in the place of its weights.

use anyhow::{Context, ensure};
use referral_proto::v1::{Reason, RouteRequest};
use referral_tests::{Gateway, run};
use serde_json::{Map, Value, json};
use std::path::Path;

const WIDTH: usize = 32;
const FFN: usize = 48;
const VOCABULARY: usize = 32_064;
/// Where the tiny vocabulary has `<nexa_0>`.
const FIRST_FUNCTION: usize = 32_011;

/// Numbers between -0.5 and 0.5, the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        // Knuth's linear congruential generator (MMIX); its upper bits are good enough for weights.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

/// Writes one tensor file in the safetensors format: length of the header, header, numbers.
fn write_weights(file: &Path) -> anyhow::Result<()> {
    let mut random = Random(4);
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![VOCABULARY, WIDTH]),
        ("lm_head".to_owned(), vec![VOCABULARY, WIDTH]),
        ("model.norm".to_owned(), vec![WIDTH]),
    ];
    for (name, shape) in [
        ("input_layernorm", vec![WIDTH]),
        ("post_attention_layernorm", vec![WIDTH]),
        ("self_attn.qkv_proj", vec![2 * WIDTH, WIDTH]),
        ("self_attn.o_proj", vec![WIDTH, WIDTH]),
        ("mlp.gate_up_proj", vec![2 * FFN, WIDTH]),
        ("mlp.down_proj", vec![WIDTH, FFN]),
    ] {
        shapes.push((format!("model.layers.0.{name}"), shape));
    }
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in shapes {
        let start = data.len();
        let functions = FIRST_FUNCTION * WIDTH..(FIRST_FUNCTION + 17) * WIDTH;
        for i in 0..shape.iter().product() {
            // Only functional tokens have a say, as in a model that was trained to call functions.
            let is_silent = name == "lm_head" && !functions.contains(&i);
            let number = if is_silent { 0.0 } else { random.next() };
            data.extend_from_slice(&number.to_le_bytes());
        }
        header.insert(
            format!("{name}.weight"),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let length = u64::try_from(header.len())?.to_le_bytes();
    Ok(std::fs::write(
        file,
        [&length[..], header.as_bytes(), &data].concat(),
    )?)
}

fn write_model(directory: &Path) -> anyhow::Result<()> {
    let config = json!({
        "model_type": "phi3", "hidden_act": "silu", "hidden_size": WIDTH, "intermediate_size": FFN,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 32000,
    });
    std::fs::write(directory.join("config.json"), config.to_string())?;
    let mut special: Vec<(usize, String)> = vec![
        (0, "<unk>".into()),
        (1, "<s>".into()),
        (32_001, "<|assistant|>".into()),
        (32_006, "<|system|>".into()),
        (32_007, "<|end|>".into()),
        (32_010, "<|user|>".into()),
        (32_041, "<nexa_end>".into()),
    ];
    special.extend((0..17).map(|function| (FIRST_FUNCTION + function, format!("<nexa_{function}>"))));
    special.sort();
    let bytes = (0..256).map(|byte| (3 + byte, format!("<0x{byte:02X}>")));
    let vocabulary: Map<String, Value> = special
        .iter()
        .cloned()
        .chain(bytes)
        .map(|(id, token)| (token, id.into()))
        .collect();
    let added: Vec<Value> = special
        .iter()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": []},
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string())?;
    write_weights(&directory.join("model.safetensors"))
}

fn configuration(model: &Path, unmatched: bool) -> String {
    format!(
        "router:
  backend: octopus_v4
  allow_unmatched: {unmatched}
  octopus:
    source: 'file:{}'
    device: cpu
    experts: {{ health: general_medicine, biology: genetics, chemistry: pharmacy }}
    otherwise: general
",
        model.display()
    )
}

#[tokio::test]
async fn a_checkpoint_routes_to_the_experts_its_functions_are_mapped_to() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    let model = path.join("octopus");
    std::fs::create_dir(&model)?;
    write_model(&model)?;

    let gateway = Gateway::start(&configuration(&model, true)).await?;
    let query = "Is the patient's INR of 3.5 safe?";
    let route = RouteRequest {
        query: query.to_owned(),
    };
    let decision = gateway
        .client()
        .await?
        .route(route)
        .await?
        .into_inner()
        .decision
        .context("no decision")?;
    let mut names: Vec<&str> = decision.probabilities.iter().map(|p| p.expert.as_str()).collect();
    assert_eq!(decision.expert, names[0]);
    names.sort_unstable();
    assert_eq!(names, ["general", "general_medicine", "genetics", "pharmacy"]);
    let mass: f32 = decision.probabilities.iter().map(|p| p.probability).sum();
    assert!((mass - 1.0).abs() < 1e-4, "{mass}");
    assert_eq!(decision.reasons().collect::<Vec<_>>(), [Reason::Routed]);

    std::fs::write(
        path.join("queries.jsonl"),
        json!({"id": "1", "query": query}).to_string(),
    )?;
    let yaml = format!("version: 1\n{}", configuration(&model, true));
    std::fs::write(path.join("octopus.yaml"), yaml)?;
    let route = [
        "route",
        "--config",
        "octopus.yaml",
        "--input",
        "queries.jsonl",
        "--argument",
    ];
    let (code, stdout, stderr) = run(path, &route, &[])?;
    ensure!(code == 0, "{stderr}");
    let line: Value = serde_json::from_str(&stdout)?;
    assert_eq!(line["expert"], decision.expert);
    // Random weights write no argument that can be read.
    assert_eq!(line.get("argument"), Some(&Value::Null));

    let refused = Gateway::start(&configuration(&model, false))
        .await
        .err()
        .context("it started")?;
    assert!(
        refused.to_string().contains("router.octopus.experts"),
        "{refused}"
    );
    let elsewhere = model.join("tokenizer.json");
    let refused = Gateway::start(&configuration(&elsewhere, true))
        .await
        .err()
        .context("it started")?;
    assert!(refused.to_string().contains("tokenizer.json"), "{refused}");
    Ok(())
}
