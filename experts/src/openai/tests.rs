//! The expert against a scripted server on loopback that says and does, byte by byte, what real
//! servers and broken ones do.

mod faults;
mod health;
mod server;

use super::*;
use crate::collect;
use crate::expert::{Answer, Finish, Modality, Residency, TokenUsage};
use serde_json::json;
use server::{STREAM_HEAD, Step, delta, finish, response, send, serve, streamed};
use std::time::Duration;

const KEY: &str = "sk-very-secret-0123456789";
const QUERY: &str = "Which dose of metoprolol after a myocardial infarction?";

fn settings(base: &str) -> OpenAiSettings {
    OpenAiSettings {
        api_key: Some(KEY.to_owned()),
        ..OpenAiSettings::new(base, "toy-model")
    }
}

fn expert(settings: OpenAiSettings) -> OpenAiExpert {
    OpenAiExpert::new(
        ExpertId::try_from("toy").unwrap(),
        ExpertKind::Specialist,
        card(),
        settings,
    )
    .unwrap()
}

fn card() -> Card {
    Card {
        model: "toy-model".into(),
        licence: "Apache-2.0".into(),
        description: String::new(),
        languages: vec!["en".into()],
        modality: Modality::Text,
        price_per_million_input: 0.0,
        price_per_million_output: 0.0,
        residency: Residency::OnPremises,
    }
}

fn query() -> Query {
    Query {
        text: QUERY.to_owned(),
        system: None,
        max_tokens: None,
        temperature: None,
        top_p: None,
        seed: None,
        stop: vec![],
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn ask(expert: &OpenAiExpert) -> Result<Answer, ExpertError> {
    collect(expert.id(), expert.answer(query(), soon()).await?).await
}

async fn answer_to(script: Vec<Step>) -> Result<Answer, ExpertError> {
    ask(&expert(settings(&serve(script).await.base))).await
}

async fn failure_of(script: Vec<Step>) -> ExpertError {
    answer_to(script).await.unwrap_err()
}

#[tokio::test]
async fn a_good_stream_in_awkward_pieces() {
    let first = json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": null}}]});
    let text = json!({"choices": [{"index": 0, "delta": {"content": "Start low 🩺"}, "finish_reason": null,
        "logprobs": {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]}}], "usage": null});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 17, "completion_tokens": 2}});
    let events = format!(
        ": ping\r\n\r\ndata: {first}\r\n\r\ndata: {text}\r\n\r\n{}data: {usage}\r\n\r\ndata: [DONE]\r\n\r\n",
        finish("stop").replace('\n', "\r\n")
    );
    let mut script = vec![send(STREAM_HEAD)];
    // Seven bytes at a time: cuts within the four-byte character and between CR and LF.
    script.extend(events.as_bytes().chunks(7).map(send));
    let mut server = serve(script).await;
    let expert = expert(OpenAiSettings {
        log_probabilities: true,
        ..settings(&server.base)
    });
    let answer = ask(&expert).await.unwrap();
    assert_eq!(
        answer,
        Answer {
            text: "Start low 🩺".into(),
            finish: Finish::Stop,
            usage: TokenUsage {
                prompt: 17,
                completion: 2
            },
            mean_log_probability: Some(-1.5),
        }
    );

    let (head, body) = server.received.recv().await.unwrap();
    assert!(head.starts_with("post /v1/chat/completions "), "{head}");
    assert!(head.contains(&format!("authorization: bearer {KEY}")), "{head}");
    assert!(
        head.contains("traceparent: 00-0af7651916cd43dd8448eb211c80319c-"),
        "{head}"
    );
    assert_eq!(
        body,
        json!({"model": "toy-model", "messages": [{"role": "user", "content": QUERY}], "stream": true,
            "stream_options": {"include_usage": true}, "max_tokens": 512, "logprobs": true})
    );
}

#[tokio::test]
async fn every_part_of_a_query_is_sent() {
    let mut server = serve(response("200 OK", "", "")).await;
    let expert = expert(OpenAiSettings {
        token_limit_field: TokenLimitField::MaxCompletionTokens,
        stream: false,
        system_prompt: Some("own".into()),
        headers: vec![(http::HeaderName::from_static("x-team"), "cardio".into())],
        ..settings(&server.base)
    });
    let query = Query {
        system: Some("theirs".into()),
        max_tokens: Some(7),
        temperature: Some(0.5),
        top_p: Some(0.25),
        seed: Some(3),
        stop: vec!["END".into()],
        trace_id: "not hex".into(),
        ..query()
    };
    let _ = expert.answer(query, soon()).await;
    let (head, body) = server.received.recv().await.unwrap();
    assert!(
        head.contains("x-team: cardio") && !head.contains("traceparent"),
        "{head}"
    );
    assert_eq!(
        body,
        json!({"model": "toy-model", "messages": [{"role": "system", "content": "theirs"},
            {"role": "user", "content": QUERY}], "stream": false, "max_completion_tokens": 7,
            "temperature": 0.5, "top_p": 0.25, "seed": 3, "stop": ["END"]})
    );
}

#[tokio::test]
async fn what_servers_leave_out() {
    // No usage, no [DONE], connection closed after the finish reason.
    let answer = answer_to(streamed(&(delta("ok") + &finish("length"))))
        .await
        .unwrap();
    assert_eq!(
        (answer.finish, answer.usage),
        (Finish::Length, TokenUsage::default())
    );
    assert_eq!(answer.mean_log_probability, None);
    // [DONE] without a finish reason.
    let answer = answer_to(streamed(&(delta("ok") + "data: [DONE]\n\n")))
        .await
        .unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("ok", Finish::Stop));
    // No [DONE], connection left open: the text is complete, so no error, and no long wait.
    let mut script = streamed(&(delta("ok") + &finish("content_filter")));
    script.push(Step::AwaitClose);
    let started = Instant::now();
    assert_eq!(answer_to(script).await.unwrap().finish, Finish::ContentFilter);
    assert!(started.elapsed() < Duration::from_secs(5));
    // The last event without its blank line.
    let unterminated = delta("ok") + finish("stop").trim_end();
    assert_eq!(answer_to(streamed(&unterminated)).await.unwrap().text, "ok");
}

#[tokio::test]
async fn whole_answers() {
    let body = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "Ask a cardiologist."},
        "finish_reason": "stop", "logprobs": null}], "usage": {"prompt_tokens": 9, "completion_tokens": 4}});
    let script = response("200 OK", "content-type: application/json\r\n", &body.to_string());
    let server = serve(script).await;
    for stream in [true, false] {
        let answer = ask(&expert(OpenAiSettings {
            stream,
            ..settings(&server.base)
        }))
        .await
        .unwrap();
        assert_eq!(answer.text, "Ask a cardiologist.");
        assert_eq!(
            answer.usage,
            TokenUsage {
                prompt: 9,
                completion: 4
            }
        );
    }
    let html = response("200 OK", "content-type: text/html\r\n", "<html>welcome</html>");
    let server = serve(html).await;
    let error = ask(&expert(OpenAiSettings {
        stream: false,
        ..settings(&server.base)
    }))
    .await
    .unwrap_err();
    assert_eq!(error.kind, ExpertErrorKind::Interrupted);
    assert!(error.detail.contains("base_url"), "{error}");
}

#[tokio::test]
async fn dropping_the_answer_closes_the_connection() {
    let mut server = serve(vec![send(STREAM_HEAD), send(delta("half")), Step::AwaitClose]).await;
    let expert = expert(settings(&server.base));
    let mut stream = expert.answer(query(), soon()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), Chunk::Text("half".into()));
    assert!(server.closed.try_recv().is_err());
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), server.closed.recv())
        .await
        .unwrap()
        .unwrap();
}

/// Runs against a real server (llama.cpp, vLLM, …) named by `REFERRAL_TEST_OPENAI_URL`, with the model
/// `REFERRAL_TEST_OPENAI_MODEL`; without one there is nothing to test.
#[tokio::test]
async fn a_real_server() {
    let Ok(url) = std::env::var("REFERRAL_TEST_OPENAI_URL") else {
        return;
    };
    let model = std::env::var("REFERRAL_TEST_OPENAI_MODEL").unwrap_or_else(|_| "default".to_owned());
    for stream in [true, false] {
        let expert = expert(OpenAiSettings {
            stream,
            max_tokens: 24,
            ..OpenAiSettings::new(&url, &model)
        });
        assert_eq!(expert.health().await, Health::Ready);
        let asked = Query {
            temperature: Some(0.0),
            ..query()
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        let answer = collect(expert.id(), expert.answer(asked, deadline).await.unwrap())
            .await
            .unwrap();
        assert!(!answer.text.trim().is_empty(), "{answer:?}");
        assert!(
            answer.usage.prompt > 5 && (1..=24).contains(&answer.usage.completion),
            "{answer:?}"
        );
    }
}
