//! The engine on the real weights.

use super::{Answer, answer};
use crate::engine::{Engine, EngineOptions, FinishReason, GenerateRequest};
use crate::load::{LoadOptions, Quantization};
use crate::sample::SamplingParams;
use crate::tokenize::single_turn;
use crate::{LanguageModel, fetch};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static MODEL: LazyLock<LanguageModel> = LazyLock::new(|| load(Quantization::default()));

fn load(quantization: Quantization) -> LanguageModel {
    let path = fetch::fetch(&fetch::builtin("smollm2-135m-instruct").unwrap()).unwrap();
    LanguageModel::load(
        &path,
        &LoadOptions {
            quantization,
            ..LoadOptions::default()
        },
    )
    .unwrap()
}

const QUERIES: [&str; 6] = [
    "What is gout?",
    "List three signs of dehydration in an older adult, as short as you can.",
    "hi",
    "A patient asks why the pharmacist told her to take the tablets with food. What do you tell her?",
    "Name the four chambers of the heart.",
    "What does the word 'benign' mean?",
];

fn engine() -> Engine {
    start(&MODEL)
}

fn start(model: &LanguageModel) -> Engine {
    Engine::start(
        "real",
        model.clone(),
        EngineOptions::default(),
        &prometheus::Registry::new(),
    )
    .unwrap()
}

fn request(query: &str, max_new_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: MODEL
            .encode_chat(&single_turn(Some("You answer briefly."), query), true)
            .unwrap(),
        shared_prefix: 0,
        max_new_tokens,
        sampling: SamplingParams::default(),
        stop: Vec::new(),
        adapter: None,
        deadline: None,
    }
}

fn ask(engine: &Engine, request: GenerateRequest) -> Answer {
    answer(&mut engine.generate(request).unwrap())
}

#[test]
fn an_answer_is_the_same_alone_and_in_company() {
    let engine = engine();
    let alone: Vec<Answer> = QUERIES
        .iter()
        .map(|query| ask(&engine, request(query, 16)))
        .collect();
    let mut open: Vec<_> = QUERIES
        .iter()
        .map(|query| engine.generate(request(query, 16)).unwrap())
        .collect();
    for (generation, alone) in open.iter_mut().zip(alone) {
        let together = answer(generation);
        assert_eq!(together.text, alone.text);
        assert_eq!(together.finished().0, alone.finished().0);
        let (a, b) = (together.finished().1, alone.finished().1);
        assert_eq!(a.completion_tokens, b.completion_tokens);
        let (a, b) = (a.mean_log_probability.unwrap(), b.mean_log_probability.unwrap());
        assert!(b < 0.0 && (a - b).abs() < 0.02, "{a} {b}");
    }
}

/// With f32 weights the answers are the same. With quantised ones a prompt read in other pieces goes
/// through other kernels, whose roundings differ: where two tokens are about equally likely the other
/// may win, but the likeliest token's probability hardly moves.
#[test]
fn a_cached_prefix_changes_no_answer() {
    let shared_prefix = 12;
    let shared = |query: &str, new| GenerateRequest {
        shared_prefix,
        ..request(query, new)
    };
    let heads: Vec<Vec<u32>> = QUERIES
        .iter()
        .map(|query| request(query, 1).prompt[..shared_prefix].to_vec())
        .collect();
    assert!(
        heads.windows(2).all(|pair| pair[0] == pair[1]),
        "the system prompt is shared"
    );

    let exact = start(&load(Quantization::F32));
    let quantised = start(&MODEL);
    assert_eq!(ask(&exact, shared("And now?", 1)).finished().1.cached_tokens, 0);
    assert_eq!(
        ask(&quantised, shared("And now?", 1)).finished().1.cached_tokens,
        0
    );
    for query in &QUERIES[..3] {
        let (plain, cached) = (ask(&exact, request(query, 8)), ask(&exact, shared(query, 8)));
        assert_eq!(cached.finished().1.cached_tokens, shared_prefix);
        assert_eq!(cached.text, plain.text);
        let first = |request| {
            ask(&quantised, request)
                .finished()
                .1
                .mean_log_probability
                .unwrap()
        };
        let (plain, cached) = (first(request(query, 1)), first(shared(query, 1)));
        println!("first token with quantised weights: {plain} whole, {cached} behind the prefix");
        assert!((plain - cached).abs() < 0.1, "{query}: {plain} {cached}");
    }
}

#[test]
fn cancellation_frees_the_engine() {
    let engine = engine();
    let mut first = engine.generate(request("Tell a very long story.", 1500)).unwrap();
    assert!(first.blocking_next().is_some());
    assert_eq!(engine.load(), (0, 1));
    let dropped = Instant::now();
    drop(first);
    while engine.load() != (0, 0) {
        assert!(dropped.elapsed() < Duration::from_secs(5), "{:?}", engine.load());
        std::thread::yield_now();
    }
    assert_eq!(ask(&engine, request("hi", 2)).finished().1.completion_tokens, 2);
}

#[test]
fn a_seed_reproduces_an_answer() {
    let engine = engine();
    let sampled = |seed| GenerateRequest {
        sampling: SamplingParams {
            temperature: 1.0,
            top_k: 50,
            top_p: 0.95,
            seed,
        },
        ..request("Invent a name for a clinic.", 16)
    };
    let [one, two, again] = [1, 2, 1].map(|seed| ask(&engine, sampled(seed)).text);
    assert_eq!(one, again);
    assert_ne!(one, two);
}

#[test]
fn a_stop_text_ends_a_real_answer_before_itself() {
    let engine = engine();
    let whole = ask(&engine, request(QUERIES[4], 32)).text;
    let (before, _) = whole.split_once(" the ").unwrap();
    let cut = ask(
        &engine,
        GenerateRequest {
            stop: vec![" the ".to_owned()],
            ..request(QUERIES[4], 32)
        },
    );
    assert_eq!(cut.text, before);
    assert_eq!(cut.finished().0, FinishReason::Stop);
}
