//! What probes and answers say of a server's health.

use super::*;
use std::sync::atomic::Ordering;

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
