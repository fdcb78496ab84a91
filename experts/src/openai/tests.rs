//! The expert against a scripted server on loopback that says and does, byte by byte, what real
//! servers and broken ones do.

use super::*;
use crate::collect;
use crate::expert::{Answer, Finish, Modality, Residency, TokenUsage};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const KEY: &str = "sk-very-secret-0123456789";
const QUERY: &str = "Which dose of metoprolol after a myocardial infarction?";
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// What the server does with one connection.
#[derive(Clone)]
enum Step {
    Send(Vec<u8>),
    /// Goes on only when the client has closed the connection, and says so.
    AwaitClose,
}

struct Server {
    base: String,
    requests: Arc<AtomicUsize>,
    received: mpsc::Receiver<(String, Value)>,
    closed: mpsc::Receiver<()>,
}

fn send(text: impl AsRef<[u8]>) -> Step {
    Step::Send(text.as_ref().to_vec())
}

/// A server that does the same for every connection.
async fn serve(script: Vec<Step>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let (note, received) = mpsc::channel(16);
    let (say_closed, closed) = mpsc::channel(16);
    let counter = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(play(stream, script.clone(), note.clone(), say_closed.clone()));
        }
    });
    Server {
        base,
        requests,
        received,
        closed,
    }
}

async fn play(
    mut stream: TcpStream,
    script: Vec<Step>,
    note: mpsc::Sender<(String, Value)>,
    closed: mpsc::Sender<()>,
) {
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    let _ = note.try_send(request);
    for step in script {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                // Lets the client see this piece by itself.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Step::AwaitClose => {
                while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {}
                let _ = closed.try_send(());
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        if bytes.len() >= at + 4 + length {
            return Some((
                head,
                serde_json::from_slice(&bytes[at + 4..]).unwrap_or(Value::Null),
            ));
        }
    }
}

/// A whole response.
fn response(status: &str, headers: &str, body: &str) -> Vec<Step> {
    vec![send(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ))]
}

fn streamed(events: &str) -> Vec<Step> {
    vec![send(STREAM_HEAD), send(events)]
}

fn delta(text: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
    )
}

fn finish(reason: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    )
}

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
async fn errors_within_a_stream() {
    use ExpertErrorKind::*;
    for (event, kind) in [
        (
            r#"data: {"error": {"message": "out of memory", "code": 503}}"#,
            Unavailable,
        ),
        (
            r#"data: {"error": {"message": "out of memory", "type": "x", "code": "429"}}"#,
            Overloaded,
        ),
        (
            r#"data: {"error": {"message": "out of memory", "code": "context_length_exceeded"}}"#,
            Interrupted,
        ),
        (r#"data: {"error": "out of memory"}"#, Interrupted),
        (
            r#"data: {"object": "error", "message": "out of memory", "code": 400}"#,
            InvalidQuery,
        ),
        (
            "event: error\ndata: {\"message\": \"out of memory\"}",
            Interrupted,
        ),
        ("event: error\ndata: out of memory", Interrupted),
        (r#"error: {"code": 500, "message": "out of memory"}"#, Internal),
    ] {
        let server = serve(streamed(&format!("{}{event}\n\n", delta("half")))).await;
        let expert = expert(settings(&server.base));
        let mut stream = expert.answer(query(), soon()).await.unwrap();
        assert_eq!(
            stream.next().await.unwrap().unwrap(),
            Chunk::Text("half".into()),
            "text before it arrives"
        );
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind, kind, "{event}");
        assert!(error.detail.contains("out of memory"), "{error}");
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn cut_off_streams_are_interruptions() {
    let partial = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n";
    let endless = vec![send(STREAM_HEAD), send(vec![b'x'; (1 << 20) + 1])];
    for script in [
        streamed(&delta("half")),
        vec![send(partial), send(delta("half"))],
        streamed("data: {\"choices\": [\n\n"),
        streamed("data: {\"choices\": 7}\n\n"),
        streamed(""),
        endless,
        vec![],
    ] {
        let error = failure_of(script).await;
        assert_eq!(error.kind, ExpertErrorKind::Interrupted, "{error}");
    }
    // A broken connection after the finish reason loses nothing.
    let script = vec![send(partial), send(delta("all") + &finish("stop"))];
    assert_eq!(answer_to(script).await.unwrap().text, "all");
}

#[tokio::test]
async fn statuses_have_kinds() {
    use ExpertErrorKind::*;
    for (status, kind, hint) in [
        ("400 Bad Request", InvalidQuery, "nothing doing"),
        ("413 Payload Too Large", InvalidQuery, "nothing doing"),
        ("422 Unprocessable Entity", InvalidQuery, "nothing doing"),
        ("401 Unauthorized", Unauthorized, "api_key"),
        ("403 Forbidden", Unauthorized, "api_key"),
        ("404 Not Found", Unavailable, "base_url"),
        ("408 Request Timeout", Timeout, "nothing doing"),
        ("429 Too Many Requests", Overloaded, "retry after 7"),
        ("500 Internal Server Error", Internal, "nothing doing"),
        ("502 Bad Gateway", Unavailable, "nothing doing"),
        ("503 Service Unavailable", Unavailable, "nothing doing"),
        ("504 Gateway Timeout", Timeout, "nothing doing"),
        (
            "307 Temporary Redirect",
            Unavailable,
            "redirects are not followed",
        ),
    ] {
        for body in [
            r#"{"error": {"message": "nothing doing", "code": 1}}"#,
            r#"{"error": "nothing doing"}"#,
            r#"{"object": "error", "message": "nothing doing"}"#,
            r#"{"detail": "nothing doing"}"#,
            "nothing doing",
        ] {
            let error = failure_of(response(status, "retry-after: 7\r\nlocation: /v2\r\n", body)).await;
            assert_eq!(error.kind, kind, "{status}");
            assert!(
                error.detail.contains(&status[..3]) && error.detail.contains("nothing doing"),
                "{error}"
            );
            assert!(error.detail.contains(hint), "{error}");
        }
    }
}

#[tokio::test]
async fn error_texts_are_bounded_and_hold_no_secret() {
    let part = &QUERY[10..34];
    for body in [
        format!(r#"{{"error": {{"message": "bad key {KEY}"}}}}"#),
        format!(r#"{{"detail": [{{"input": "{QUERY}"}}]}}"#),
        format!("no template for {}", part.to_uppercase()),
    ] {
        let detail = failure_of(response("400 Bad Request", "", &body)).await.detail;
        assert!(detail.contains("withheld"), "{detail}");
        assert!(
            !detail.contains(KEY) && !detail.to_lowercase().contains(&part.to_lowercase()),
            "{detail}"
        );
    }
    let event = format!("data: {}\n\n", json!({"error": {"message": QUERY}}));
    let detail = failure_of(streamed(&event)).await.detail;
    assert!(
        detail.contains("withheld") && !detail.contains("metoprolol"),
        "{detail}"
    );
    let event = format!("data: {}\n\n", json!({"choices": QUERY}));
    let detail = failure_of(streamed(&event)).await.detail;
    assert!(!detail.contains("metoprolol"), "{detail}");

    let detail = failure_of(response("500 Oops", "", &"long ".repeat(2_000)))
        .await
        .detail;
    assert!(detail.len() < 400, "{} bytes", detail.len());
    // Too long to be read at all, but the status still counts.
    let error = failure_of(response("503 Oops", "", &"x".repeat(MAX_ERROR_BYTES + 1))).await;
    assert_eq!(error.kind, ExpertErrorKind::Unavailable);
}

#[tokio::test]
async fn an_oversized_whole_answer_is_refused() {
    let mut script = vec![send(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
    )];
    script.extend(vec![send(vec![b' '; 1 << 20]); 17]);
    let error = failure_of(script).await;
    assert_eq!(error.kind, ExpertErrorKind::Interrupted);
    assert!(error.detail.contains("exceeds"), "{error}");
}

#[tokio::test]
async fn deadlines_and_silences() {
    let silent = vec![Step::AwaitClose];
    let mid_stream = vec![send(STREAM_HEAD), send(delta("half")), Step::AwaitClose];
    for stream in [true, false] {
        for script in [&silent, &mid_stream] {
            let mut server = serve(script.clone()).await;
            let expert = expert(OpenAiSettings {
                stream,
                ..settings(&server.base)
            });
            let deadline = Instant::now() + Duration::from_millis(150);
            let answer = async { collect(expert.id(), expert.answer(query(), deadline).await?).await };
            let error = answer.await.unwrap_err();
            assert_eq!(error.kind, ExpertErrorKind::Timeout, "{error}");
            assert!(error.detail.contains("deadline"), "{error}");
            server.closed.recv().await.unwrap();
        }
    }
    for script in [silent, mid_stream] {
        let server = serve(script).await;
        let impatient = OpenAiSettings {
            idle_timeout: Duration::from_millis(100),
            ..settings(&server.base)
        };
        let error = ask(&expert(impatient)).await.unwrap_err();
        assert_eq!(error.kind, ExpertErrorKind::Timeout);
        assert!(error.detail.contains("100ms"), "{error}");
    }
    let error = expert(settings("http://127.0.0.1:1"))
        .answer(query(), Instant::now())
        .await
        .err()
        .unwrap();
    assert_eq!(
        error.kind,
        ExpertErrorKind::Timeout,
        "a deadline that has passed starts nothing"
    );
}

#[tokio::test]
async fn nobody_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let expert = expert(settings(&format!("http://{address}")));
    let error = ask(&expert).await.unwrap_err();
    assert_eq!(error.kind, ExpertErrorKind::Unavailable, "{error}");
    assert!(matches!(expert.health().await, Health::Unavailable(_)));
}

#[tokio::test]
async fn tls_failures_are_named() {
    // Not TLS at all, which is what a wrong scheme or port looks like.
    let raw = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}", raw.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = raw.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let id = ExpertId::try_from("toy").unwrap();
    match OpenAiExpert::new(id, ExpertKind::Specialist, card(), settings(&base)) {
        Ok(expert) => {
            let error = ask(&expert).await.unwrap_err();
            assert_eq!(error.kind, ExpertErrorKind::Unavailable);
            assert!(error.detail.contains("TLS failed"), "{error}");
        }
        // A machine without any certificate authority says so when set up.
        Err(error) => assert!(matches!(error, InvalidSettings::Client(_)), "{error}"),
    }
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

#[tokio::test]
async fn health_is_probed_once_and_remembered() {
    let server = serve(response("200 OK", "", r#"{"data": []}"#)).await;
    let ready = expert(settings(&server.base));
    let probes = (0..8).map(|_| ready.health());
    assert!(
        futures::future::join_all(probes)
            .await
            .iter()
            .all(|health| *health == Health::Ready)
    );
    assert_eq!(server.requests.load(Ordering::SeqCst), 1, "one probe for all");

    for (status, is_ready) in [
        ("404 Not Found", true),
        ("429 Busy", true),
        ("503 Loading", false),
        ("401 Unauthorized", false),
    ] {
        let server = serve(response(status, "", "")).await;
        let health = expert(settings(&server.base)).health().await;
        assert_eq!(health == Health::Ready, is_ready, "{status}: {health:?}");
    }
}

#[tokio::test]
async fn a_failed_answer_counts_as_an_observation() {
    let server = serve(response("503 Loading", "", "loading model")).await;
    let expert = expert(settings(&server.base));
    ask(&expert).await.unwrap_err();
    assert!(matches!(expert.health().await, Health::Unavailable(why) if why.contains("loading model")));
    assert_eq!(server.requests.load(Ordering::SeqCst), 1, "no probe was needed");
    // The query's own fault says nothing of the server.
    let server = serve(response("400 Bad Request", "", "")).await;
    let expert = self::expert(settings(&server.base));
    ask(&expert).await.unwrap_err();
    expert.health().await;
    assert_eq!(server.requests.load(Ordering::SeqCst), 2);
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
