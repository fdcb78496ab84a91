use super::tiny;
use super::*;
use crate::adapter::Projection;
use crate::load::{Quantization, TensorName};
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;

const LENGTHS: [usize; 5] = [1, 7, 300, 2, 40];

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(0..256)).collect()
}

fn prompts() -> Vec<Vec<u32>> {
    LENGTHS
        .iter()
        .enumerate()
        .map(|(seed, &count)| tokens(count, seed as u64))
        .collect()
}

fn last_logits(model: &LanguageModel, prompt: &[u32], adapter: Option<(&Adapter, f32)>) -> Vec<f32> {
    let mut cache = model.new_cache(None, 4).unwrap();
    let step = Step {
        cache: &mut cache,
        tokens: prompt,
        adapter,
        wants_logits: true,
    };
    model.forward(&mut [step]).unwrap().remove(0).unwrap()
}

/// Largest difference, relative to the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0);
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[track_caller]
fn assert_close(a: &[f32], b: &[f32]) {
    let distance = distance(a, b);
    assert!(distance < 1e-4, "relative distance {distance}");
}

/// Factors for every projection of every layer but the second's.
fn adapter_tensors(seed: u64) -> HashMap<String, Tensor> {
    let config = tiny::config();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut tensors = HashMap::new();
    for layer in [0, 2] {
        for projection in Projection::ALL {
            let shape = config.shape(TensorName::Layer(layer, projection.tensor()));
            for (suffix, dims) in [("lora_a", [4, shape[1]]), ("lora_b", [shape[0], 4])] {
                let values: Vec<f32> = (0..dims[0] * dims[1])
                    .map(|_| random.random_range(-0.2f32..0.2))
                    .collect();
                let tensor = Tensor::from_vec(values, dims.as_slice(), &Device::Cpu).unwrap();
                tensors.insert(format!("blk.{layer}.{}.{suffix}", projection.name()), tensor);
            }
        }
    }
    tensors
}

fn adapter(model: &LanguageModel, seed: u64) -> Adapter {
    Adapter::from_tensors(&adapter_tensors(seed), 4, 8.0, "tiny", model).unwrap()
}

#[test]
fn logits_agree_with_candle_transformers() {
    // candle-transformers derives the head's size from the width.
    let config = ModelConfig {
        width: 96,
        ..tiny::config()
    };
    let weights = tiny::weights(&config, 5);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    tiny::write_gguf(&path, &config, &weights);
    let options = LoadOptions {
        quantization: Quantization::F32,
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(&path, &options).unwrap();
    let file = std::fs::read(&path).unwrap();
    let mut file = std::io::Cursor::new(file);
    let content = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
    let mut reference = candle_transformers::models::quantized_llama::ModelWeights::from_gguf(
        content,
        &mut file,
        &Device::Cpu,
    )
    .unwrap();
    for prompt in prompts() {
        let input = Tensor::new(prompt.as_slice(), &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        let expected = reference
            .forward(&input, 0)
            .unwrap()
            .squeeze(0)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_close(&last_logits(&model, &prompt, None), &expected);
    }
}

#[test]
fn a_ragged_batch_equals_its_sequences_alone() {
    let model = tiny::model();
    let prompts = prompts();
    let mut caches: Vec<_> = prompts
        .iter()
        .map(|_| model.new_cache(None, 1).unwrap())
        .collect();
    let mut steps: Vec<_> = caches
        .iter_mut()
        .zip(&prompts)
        .enumerate()
        .map(|(i, (cache, tokens))| Step {
            cache,
            tokens,
            adapter: None,
            wants_logits: i != 2,
        })
        .collect();
    let logits = model.forward(&mut steps).unwrap();
    for (i, (prompt, logits)) in prompts.iter().zip(&logits).enumerate() {
        match logits {
            Some(logits) => assert_close(logits, &last_logits(&model, prompt, None)),
            None => assert_eq!(i, 2),
        }
    }
    // A second step of other lengths, on top of what the caches hold.
    let more: Vec<_> = [3, 1, 1, 150, 1]
        .iter()
        .map(|&n| tokens(n, 100 + n as u64))
        .collect();
    let mut steps: Vec<_> = caches
        .iter_mut()
        .zip(&more)
        .map(|(cache, tokens)| Step {
            cache,
            tokens,
            adapter: None,
            wants_logits: true,
        })
        .collect();
    let logits = model.forward(&mut steps).unwrap();
    for ((prompt, more), logits) in prompts.iter().zip(&more).zip(&logits) {
        let whole = [prompt.as_slice(), more].concat();
        assert_close(logits.as_ref().unwrap(), &last_logits(&model, &whole, None));
    }
    assert_eq!(caches[3].len(), 152);
}

#[test]
fn a_shared_prefix_equals_the_whole_prompt() {
    let model = tiny::model();
    let (head, tail) = (tokens(33, 1), tokens(9, 2));
    let whole = [head.as_slice(), &tail].concat();
    let expected = last_logits(&model, &whole, None);
    let computed = model.prefix(&head, None, None).unwrap();
    let mut cache = model.new_cache(None, 8).unwrap();
    let step = Step {
        cache: &mut cache,
        tokens: &whole,
        adapter: None,
        wants_logits: false,
    };
    assert!(model.forward(&mut [step]).unwrap()[0].is_none());
    let taken = cache.to_prefix(&head).unwrap();
    for prefix in [computed, taken] {
        assert_eq!(prefix.tokens(), head);
        for _ in 0..2 {
            let mut cache = model.new_cache(Some(&prefix), 40).unwrap();
            assert_eq!(cache.len(), 33);
            let step = Step {
                cache: &mut cache,
                tokens: &tail,
                adapter: None,
                wants_logits: true,
            };
            assert_close(
                model.forward(&mut [step]).unwrap()[0].as_ref().unwrap(),
                &expected,
            );
        }
    }
}

#[test]
fn hidden_states_are_the_residual_stream_before_norms() {
    let model = tiny::model();
    let prompts = prompts();
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let states = model.hidden_states(None, &rows, &[3, 1], None).unwrap();
    for (prompt, state) in prompts.iter().zip(&states) {
        assert_eq!(state.tokens, prompt.len());
        assert!(state.layers.iter().all(|l| l.len() == prompt.len() * 64));
        // The last layer's through final norm and head give the logits.
        let last = &state.layers[0][(prompt.len() - 1) * 64..];
        let x = Tensor::new(last, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model
            .inner
            .logits(&x)
            .unwrap()
            .squeeze(0)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_close(&logits, &last_logits(&model, prompt, None));
    }
    // Behind a prefix computed just as deep, the rest of a row is the same.
    let (head, tail) = prompts[4].split_at(30);
    let prefix = model.prefix(head, Some(1), None).unwrap();
    let behind = model
        .hidden_states(Some(&prefix), &[tail, tail], &[1], None)
        .unwrap();
    for state in &behind {
        assert_close(&state.layers[0], &states[4].layers[1][30 * 64..]);
    }
    let message = model
        .hidden_states(Some(&prefix), &[tail], &[2], None)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("prefix") && message.contains("2 layers"),
        "{message}"
    );
    assert!(model.new_cache(Some(&prefix), 40).is_err());
    assert!(model.hidden_states(None, &rows, &[0], None).is_err());
    assert!(model.hidden_states(None, &rows, &[4], None).is_err());
    assert!(model.hidden_states(None, &rows, &[], None).is_err());
}

#[test]
fn an_adapter_of_scale_0_is_the_base_and_of_scale_1_its_materialised_weights() {
    let weights = tiny::weights(&tiny::config(), 1);
    let model = tiny::model_of(&weights, Quantization::F32);
    let adapter = adapter(&model, 3);
    let merged: Vec<_> = weights
        .iter()
        .map(|(name, weight)| {
            let merged = match name {
                TensorName::Layer(layer, tensor) => Projection::ALL
                    .into_iter()
                    .find(|p| p.tensor() == *tensor)
                    .map(|p| adapter.materialise(*layer, p, weight, 1.0).unwrap()),
                _ => None,
            };
            (*name, merged.unwrap_or_else(|| weight.clone()))
        })
        .collect();
    let merged = tiny::model_of(&merged, Quantization::F32);
    for prompt in prompts() {
        let base = last_logits(&model, &prompt, None);
        assert_eq!(last_logits(&model, &prompt, Some((&adapter, 0.0))), base);
        let adapted = last_logits(&model, &prompt, Some((&adapter, 1.0)));
        assert_close(&adapted, &last_logits(&merged, &prompt, None));
        assert!(distance(&adapted, &base) > 0.01, "the adapter must matter");
    }
}

#[test]
fn scales_and_adapters_differ_by_row() {
    let model = tiny::model();
    let (one, two) = (adapter(&model, 3), adapter(&model, 4));
    let prompts = prompts();
    let uses = [
        Some((&one, 1.0)),
        None,
        Some((&two, 0.5)),
        Some((&one, 0.0)),
        Some((&one, -0.3)),
    ];
    let mut caches: Vec<_> = prompts
        .iter()
        .map(|_| model.new_cache(None, 1).unwrap())
        .collect();
    let mut steps: Vec<_> = caches
        .iter_mut()
        .zip(&prompts)
        .zip(uses)
        .map(|((cache, tokens), adapter)| Step {
            cache,
            tokens,
            adapter,
            wants_logits: true,
        })
        .collect();
    let logits = model.forward(&mut steps).unwrap();
    for ((prompt, adapter), logits) in prompts.iter().zip(uses).zip(logits) {
        assert_close(&logits.unwrap(), &last_logits(&model, prompt, adapter));
    }
}

#[test]
fn log_probabilities_are_those_of_each_token_given_the_ones_before() {
    let model = tiny::model();
    let (prompt, continuation) = (tokens(5, 1), tokens(LOGITS_CHUNK + 3, 2));
    let found = model.log_probabilities(&prompt, &continuation, None).unwrap();
    assert_eq!(found.len(), continuation.len());
    for (index, &token) in continuation.iter().enumerate() {
        let before = [prompt.as_slice(), &continuation[..index]].concat();
        let logits = last_logits(&model, &before, None);
        let total = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        assert!((f64::from(logits[token as usize]) - total - f64::from(found[index])).abs() < 1e-3);
    }
    assert!(model.log_probabilities(&[], &continuation, None).is_err());
    assert!(model.log_probabilities(&prompt, &[], None).is_err());
    assert!(model.log_probabilities(&prompt, &[259], None).is_err());
}

#[test]
fn every_quantisation_stays_near_f32() {
    let weights = tiny::weights(&tiny::config(), 1);
    let exact = tiny::model_of(&weights, Quantization::F32);
    for (quantization, bound) in [
        (Quantization::AsIs, 1e-3),
        (Quantization::Q8_0, 0.05),
        (Quantization::Q4K, 0.6),
    ] {
        let model = tiny::model_of(&weights, quantization);
        for prompt in prompts() {
            let distance = distance(
                &last_logits(&model, &prompt, None),
                &last_logits(&exact, &prompt, None),
            );
            assert!(distance < bound, "{quantization:?}: {distance}");
        }
    }
}

#[test]
fn bad_batches_are_named_and_leave_caches_alone() {
    let model = tiny::model();
    let mut cache = model.new_cache(None, 4).unwrap();
    let long = vec![1; 513];
    let message = |tokens: &[u32], cache: &mut KvCache| {
        let step = Step {
            cache,
            tokens,
            adapter: None,
            wants_logits: true,
        };
        model.forward(&mut [step]).unwrap_err().to_string()
    };
    assert!(message(&[], &mut cache).contains("at least one token"));
    assert!(message(&[1, 259], &mut cache).contains("token: 259"));
    assert!(message(&long, &mut cache).contains("512"));
    assert!(model.forward(&mut []).is_err());
    assert!(cache.is_empty());
    assert!(cache.to_prefix(&[1]).is_err());
    assert!(model.prefix(&[], None, None).is_err());
}
