//! Under load nothing is lost: every call ends in an answer or a named refusal.

use anyhow::Context;
use referral_proto::v1::{GenerateRequest, GenerationOptions, generate_stream_response::Event};
use referral_tests::Gateway;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::Code;

fn request(number: usize, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        query: format!("Patient {number} asks: what are the symptoms of asthma?"),
        options: Some(GenerationOptions {
            max_tokens: Some(max_tokens),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Starts `count` calls at once; each yields whether it was answered, or its status.
async fn burst(gateway: &Gateway, count: usize) -> anyhow::Result<JoinSet<Result<bool, tonic::Status>>> {
    let client = gateway.client().await?;
    let mut calls = JoinSet::new();
    for number in 0..count {
        let mut client = client.clone();
        calls.spawn(async move {
            client
                .generate(request(number, 16))
                .await
                .map(|answer| !answer.into_inner().text.trim().is_empty())
        });
    }
    Ok(calls)
}

#[tokio::test]
async fn sixty_four_at_once_all_end() -> anyhow::Result<()> {
    let gateway = Gateway::start(
        "server:\n  max_concurrent_requests: 40\n  default_deadline: 5m\n  max_deadline: 5m\n",
    )
    .await?;
    let (mut answered, mut refused) = (0, 0);
    for call in burst(&gateway, 64).await?.join_all().await {
        match call {
            Ok(true) => answered += 1,
            Ok(false) => panic!("an empty answer was passed on"),
            Err(status) if status.code() == Code::ResourceExhausted => refused += 1,
            Err(status) => panic!("{status:?}"),
        }
    }
    assert_eq!(answered + refused, 64);
    assert!(answered >= 40, "{answered} answered, {refused} refused");
    assert_eq!(gateway.metric("referral_in_flight", "").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn sigterm_under_load_loses_nothing_that_was_accepted() -> anyhow::Result<()> {
    // Long enough for a slow machine: what is tested is that nothing accepted is lost within it.
    let mut gateway =
        Gateway::start("server:\n  drain_grace: 5m\n  default_deadline: 5m\n  max_deadline: 5m\n").await?;
    let calls = burst(&gateway, 32).await?;
    // Wait until the gateway has accepted some, then ask it to end.
    for _ in 0..200 {
        if gateway.metric("referral_in_flight", "").await? >= 16.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let accepted = gateway.metric("referral_in_flight", "").await?;
    assert!(accepted >= 1.0, "nothing was accepted");
    gateway.terminate()?;
    let mut answered = 0.0;
    for call in calls.join_all().await {
        match call {
            Ok(complete) => {
                assert!(complete, "an accepted query was cut off");
                answered += 1.0;
            }
            // Not accepted: refused by name, or the connection was already closing.
            Err(status) => assert!(
                matches!(status.code(), Code::ResourceExhausted | Code::Unavailable),
                "{status:?}"
            ),
        }
    }
    assert!(
        answered >= accepted,
        "{accepted} were accepted, {answered} answered"
    );
    assert_eq!(
        gateway.exit_code(Duration::from_secs(60)).await?,
        0,
        "{}",
        gateway.stderr()
    );
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_engine() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let mut client = gateway.client().await?;
    let mut stream = client.generate_stream(request(1, 1_000)).await?.into_inner();
    loop {
        let event = stream.message().await?.context("the stream ended early")?.event;
        if matches!(event, Some(Event::Text(_))) {
            break;
        }
    }
    assert_eq!(gateway.metric("referral_engine_running", "").await?, 1.0);
    drop(stream);
    for _ in 0..100 {
        if gateway.metric("referral_engine_running", "").await? == 0.0
            && gateway.metric("referral_in_flight", "").await? == 0.0
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!(
        "the engine still works for a client that left: {}",
        gateway.metrics().await?
    );
}

#[tokio::test]
async fn a_deadline_is_answered_as_such() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let mut client = gateway.client().await?;
    let mut slow = tonic::Request::new(request(1, 1_000));
    // The header alone: the client's own timer must not answer first.
    slow.metadata_mut().insert("grpc-timeout", "300m".parse()?);
    let status = client.generate(slow).await.expect_err("1,000 tokens in 0.3 s");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    Ok(())
}
