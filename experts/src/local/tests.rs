//! On the real weights, since a prompt's head and an engine's refusals are theirs.

use super::*;
use crate::collect;
use crate::expert::{Answer, Modality, Residency};
use referral_lm::engine::EngineOptions;
use referral_lm::fetch;
use referral_lm::load::LoadOptions;
use std::sync::LazyLock;
use std::time::Duration;

const SYSTEM: &str = "You are a cardiologist. Answer in one sentence.";

static MODEL: LazyLock<LanguageModel> = LazyLock::new(|| {
    let path = fetch::fetch(&fetch::builtin("smollm2-135m-instruct").unwrap()).unwrap();
    LanguageModel::load(&path, &LoadOptions::default()).unwrap()
});

fn engine(max_sequence_tokens: usize) -> Engine {
    let options = EngineOptions {
        max_batch: 2,
        queue_capacity: 1,
        max_sequence_tokens,
        ..EngineOptions::default()
    };
    Engine::start("test", MODEL.clone(), options, &prometheus::Registry::new()).unwrap()
}

fn expert(engine: &Engine, max_tokens: u32) -> LocalExpert {
    let defaults = LocalDefaults {
        system_prompt: Some(SYSTEM.to_owned()),
        max_tokens,
        ..LocalDefaults::default()
    };
    let card = Card {
        model: "SmolLM2-135M-Instruct".into(),
        licence: "Apache-2.0".into(),
        description: String::new(),
        languages: vec!["en".into()],
        modality: Modality::Text,
        price_per_million_input: 0.0,
        price_per_million_output: 0.0,
        residency: Residency::OnPremises,
    };
    let id = ExpertId::try_from("cardiology").unwrap();
    LocalExpert::new(id, ExpertKind::Specialist, card, engine.clone(), None, defaults).unwrap()
}

fn query(text: &str) -> Query {
    Query {
        text: text.to_owned(),
        system: None,
        max_tokens: None,
        temperature: None,
        top_p: None,
        seed: None,
        stop: vec![],
        trace_id: String::new(),
    }
}

async fn ask(expert: &LocalExpert, query: Query) -> Result<Answer, ExpertError> {
    let deadline = Instant::now() + Duration::from_secs(120);
    collect(expert.id(), expert.answer(query, deadline).await?).await
}

#[tokio::test]
async fn answers_with_counts_and_confidence() {
    let expert = expert(&engine(512), 8);
    let asked = query("What does a high troponin mean?");
    let answer = ask(&expert, asked.clone()).await.unwrap();
    assert!(!answer.text.trim().is_empty());
    assert_eq!((answer.finish, answer.usage.completion), (Finish::Length, 8));
    assert!(answer.usage.prompt as usize > expert.head.len());
    assert!(
        answer.mean_log_probability.is_some_and(|mean| mean < 0.0),
        "{answer:?}"
    );
    // The second time the head comes from the prefix cache; greedy decoding must not notice.
    assert_eq!(ask(&expert, asked.clone()).await.unwrap().text, answer.text);
    assert_eq!(expert.health().await, Health::Ready);

    let other = Query {
        system: Some("Answer in French.".to_owned()),
        ..asked
    };
    assert_ne!(
        ask(&expert, other).await.unwrap().usage.prompt,
        answer.usage.prompt,
        "the query's own system prompt"
    );
}

#[test]
fn the_head_is_the_system_prompt() {
    let expert = expert(&engine(512), 8);
    assert!(MODEL.decode(&expert.head).unwrap().contains(SYSTEM));
    let chat = single_turn(Some(SYSTEM), "anything else");
    let prompt = MODEL.encode_chat(&chat, true).unwrap();
    assert_eq!(common(&expert.head, &prompt), expert.head.len());
}

#[tokio::test]
async fn refusals_have_kinds() {
    let expert = expert(&engine(64), 1_000);
    // The default is cut to what fits; what the caller asks for is not.
    let answer = ask(&expert, query("Why?")).await.unwrap();
    assert!((1..64).contains(&answer.usage.completion), "{answer:?}");
    let error = ask(
        &expert,
        Query {
            max_tokens: Some(1_000),
            ..query("Why?")
        },
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind, ExpertErrorKind::InvalidQuery);
    let error = ask(&expert, query(&"long ".repeat(200))).await.unwrap_err();
    assert_eq!(error.kind, ExpertErrorKind::InvalidQuery, "{error}");
    let error = ask(
        &expert,
        Query {
            temperature: Some(f32::NAN),
            ..query("Why?")
        },
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind, ExpertErrorKind::InvalidQuery, "{error}");
    let passed = expert.answer(query("Why?"), Instant::now()).await;
    let error = match passed {
        Ok(stream) => collect(expert.id(), stream).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind, ExpertErrorKind::Timeout, "{error}");
}

#[tokio::test]
async fn dropping_the_answer_frees_the_engine() {
    let engine = engine(2_048);
    let expert = expert(&engine, 1_500);
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut stream = expert
        .answer(query("Tell a long story about a heart."), deadline)
        .await
        .unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Chunk::Text(_)))));
    assert_ne!(engine.load(), (0, 0));
    drop(stream);
    let freed = async {
        while engine.load() != (0, 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed)
        .await
        .unwrap();
}

#[test]
fn every_error_has_its_kind() {
    use ExpertErrorKind::*;
    let id = ExpertId::try_from("cardiology").unwrap();
    let invalid = LmError::Invalid {
        field: "temperature",
        value: "-1".into(),
        fix: "0 or more".into(),
    };
    for (error, kind) in [
        (LmError::QueueFull { capacity: 1 }, Overloaded),
        (
            LmError::TooLong {
                prompt: 9,
                new: 1,
                limit: 8,
            },
            InvalidQuery,
        ),
        (invalid, InvalidQuery),
        (LmError::DeadlineExceeded { generated: 3 }, Timeout),
        (LmError::Stopped, Unavailable),
        (LmError::Tokenizer("broken".into()), Internal),
    ] {
        assert_eq!(expert_error(&id, &error).kind, kind, "{error}");
    }
}
