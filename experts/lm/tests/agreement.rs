//! The real weights: logits agree with candle-transformers' own llama in f32, and quantisation changes
//! little. Fetches SmolLM2-135M-Instruct into the cache unless `REFERRAL_TEST_GGUF` names a file.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly in its helpers too")]

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama;
use referral_lm::LanguageModel;
use referral_lm::fetch;
use referral_lm::load::{Checkpoint, DeviceSpec, LayerTensor, LoadOptions, Quantization, TensorName};
use referral_lm::model::Step;
use referral_lm::tokenize::single_turn;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const QUERIES: [&str; 20] = [
    "What are the early signs of sepsis in an elderly patient?",
    "chest pain on exertion, relieved by rest",
    "Can I take ibuprofen with warfarin?",
    "My daughter has had a fever of 39 degrees for two days and now a rash on both arms.",
    "Explain how beta blockers work.",
    "hi",
    "82-year-old after a hip fracture, newly confused overnight: what should be ruled out first, and with which tests?",
    "What does an HbA1c of 9.2 % mean?",
    "Name three causes of microcytic anaemia.",
    "Is a CT scan safe during pregnancy?",
    "Which vaccines does a child need before starting school?",
    "I feel sad most days and cannot sleep.",
    "How long is a patient contagious with influenza?",
    "Write a discharge summary for an uncomplicated appendectomy.",
    "What is the difference between Crohn's disease and ulcerative colitis?",
    "Dose of paracetamol for a child of 14 kg?",
    "What time does the hospital canteen open?",
    "Please summarise the evidence for statins in primary prevention.",
    "The wound is red, warm and smells.",
    "What is 17 times 23?",
];

/// An answer to the first query, as a textbook would put it.
const ANSWER: &str = "In older people sepsis often begins without fever. The first signs are new confusion, \
    drowsiness or agitation, a fast heart rate, fast breathing, low blood pressure, and passing little urine. The \
    skin may be mottled, cold or clammy, and the patient may fall, stop eating, or be unable to get out of bed. A \
    temperature below 36 degrees is as worrying as a high one. Because frail patients can deteriorate within hours, \
    anyone with an infection and such signs should be seen urgently, have blood cultures and lactate taken, and be \
    given antibiotics and fluids without delay.";

fn weights_path() -> PathBuf {
    if let Some(path) = std::env::var_os("REFERRAL_TEST_GGUF") {
        return path.into();
    }
    fetch::fetch(&fetch::builtin("smollm2-135m-instruct").unwrap()).unwrap()
}

fn load(path: &Path, quantization: Quantization) -> LanguageModel {
    LanguageModel::load(
        path,
        &LoadOptions {
            device: DeviceSpec::Cpu,
            quantization,
        },
    )
    .unwrap()
}

fn prompts(model: &LanguageModel) -> Vec<Vec<u32>> {
    QUERIES
        .iter()
        .map(|query| model.encode_chat(&single_turn(None, query), true).unwrap())
        .collect()
}

/// Logits at the end of each prompt, all in one ragged batch.
fn logits(model: &LanguageModel, prompts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let mut caches: Vec<_> = prompts
        .iter()
        .map(|p| model.new_cache(None, p.len()).unwrap())
        .collect();
    let mut steps: Vec<_> = caches
        .iter_mut()
        .zip(prompts)
        .map(|(cache, tokens)| Step {
            cache,
            tokens,
            adapter: None,
            wants_logits: true,
        })
        .collect();
    model
        .forward(&mut steps)
        .unwrap()
        .into_iter()
        .map(Option::unwrap)
        .collect()
}

/// candle-transformers' llama of the same tensors, with Hugging Face names and rotary order.
fn reference(path: &Path) -> (llama::Llama, llama::Config) {
    let checkpoint = Checkpoint::open(path).unwrap();
    let config = checkpoint.config();
    let half_split = |tensor: Tensor, heads: usize| {
        let (rows, columns) = tensor.dims2().unwrap();
        let pairs = tensor.reshape((heads, rows / heads / 2, 2, columns)).unwrap();
        pairs.transpose(1, 2).unwrap().reshape((rows, columns)).unwrap()
    };
    let tensors: HashMap<String, Tensor> = config
        .tensors()
        .map(|name| {
            let tensor = checkpoint.tensor(name).unwrap();
            let tensor = match name {
                TensorName::Layer(_, LayerTensor::AttentionQ) => half_split(tensor, config.heads),
                TensorName::Layer(_, LayerTensor::AttentionK) => half_split(tensor, config.kv_heads),
                _ => tensor,
            };
            (name.huggingface(), tensor)
        })
        .collect();
    let config = llama::Config {
        hidden_size: config.width,
        intermediate_size: config.ffn_width,
        vocab_size: config.vocabulary,
        num_hidden_layers: config.layers,
        num_attention_heads: config.heads,
        num_key_value_heads: config.kv_heads,
        use_flash_attn: false,
        rms_norm_eps: config.rms_epsilon,
        rope_theta: config.rope_base,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 256,
        tie_word_embeddings: config.tied_embeddings,
    };
    let variables = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    (llama::Llama::load(variables, &config).unwrap(), config)
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
        .unwrap()
}

/// Largest difference over all logits, relative to the largest logit.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    found
        .iter()
        .zip(expected)
        .fold(0f32, |m, (a, b)| m.max((a - b).abs()))
        / largest
}

/// Kullback-Leibler divergence, in nats, of the next token's distribution.
fn divergence(exact: &[f32], found: &[f32]) -> f64 {
    let log_total = |logits: &[f32]| logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
    let (total, total_found) = (log_total(exact), log_total(found));
    let terms = exact.iter().zip(found).map(|(a, b)| {
        let (a, b) = (f64::from(*a) - total, f64::from(*b) - total_found);
        a.exp() * (a - b)
    });
    terms.sum()
}

/// One test, so that the weights are read once for each form.
#[test]
fn real_logits_agree() {
    let path = weights_path();
    let exact = load(&path, Quantization::F32);
    let prompts = prompts(&exact);
    let found = logits(&exact, &prompts);
    let answer = exact.encode(ANSWER, false).unwrap();
    let exact_answer = exact.log_probabilities(&prompts[0], &answer, None).unwrap();
    drop(exact);

    let (model, config) = reference(&path);
    for ((query, prompt), found) in QUERIES.iter().zip(&prompts).zip(&found) {
        let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        let input = Tensor::new(prompt.as_slice(), &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        let expected = model.forward(&input, 0, &mut cache).unwrap().squeeze(0).unwrap();
        let expected = expected.to_vec1::<f32>().unwrap();
        let distance = distance(found, &expected);
        assert!(distance < 1e-3, "{query}: relative distance {distance}");
        assert_eq!(best(found), best(&expected), "{query}");
    }
    drop(model);

    // Measured for Q8_0 and Q4_1 (the file's own blocks): 18 and 20 of 20, furthest logit 0.048 and 0.033, KL
    // divergence 0.0067 and 0.0045, log probability off by 0.014 and 0.010. Activations are rounded to 8 bits
    // in blocks of 32 in both; the bounds are there to catch anything worse.
    for quantization in [Quantization::Q8_0, Quantization::Q4_1] {
        let quantised = load(&path, quantization);
        let logits = logits(&quantised, &prompts);
        let pairs = || found.iter().zip(&logits);
        let same = pairs().filter(|(a, b)| best(a) == best(b)).count();
        let furthest = pairs().map(|(a, b)| distance(b, a)).fold(0f32, f32::max);
        let divergence = pairs().map(|(a, b)| divergence(a, b)).sum::<f64>() / 20.0;
        let given = quantised.log_probabilities(&prompts[0], &answer, None).unwrap();
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let drift = (mean(&given) - mean(&exact_answer)).abs();
        println!(
            "{quantization:?}: same best token {same} of 20, furthest logit {furthest:.4}, divergence \
             {divergence:.4}, mean log probability of {} tokens off by {drift:.4}",
            answer.len()
        );
        assert!(
            same >= 16,
            "only {same} of 20 prompts have the same likeliest next token in {quantization:?}"
        );
        assert!(
            furthest < 0.08,
            "a {quantization:?} logit is {furthest} of the largest away"
        );
        assert!(
            divergence < 0.02,
            "{quantization:?} predictions diverge by {divergence} nats"
        );
        assert!(
            drift < 0.04,
            "mean log probability drifts by {drift} in {quantization:?}"
        );
    }
}
