//! Servers that fail, stall or are not there: the kind and the text of each error.

use super::*;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

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
