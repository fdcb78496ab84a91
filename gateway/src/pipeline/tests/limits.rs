//! Deadlines, clients that leave, too many queries at once, and draining.

use super::*;

#[tokio::test]
async fn the_deadline_ends_a_query_before_and_within_its_stream() {
    for script in [&[Step::Hang][..], &[Step::Say("Take"), Step::Hang]] {
        let bench = Bench::new(script, GOOD).await;
        let envelope = Envelope {
            timeout: Some(Duration::from_millis(60)),
            ..envelope()
        };
        let error = bench
            .pipeline
            .answer(envelope, ask("pharmacy"))
            .unwrap()
            .whole()
            .await
            .result
            .unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        eventually("the expert is let go", || {
            bench.pharmacy.running.load(Ordering::SeqCst) == 0
        })
        .await;
        assert_eq!(bench.metric("referral_in_flight"), 0.0);
        assert_eq!(
            bench.metric(r#"referral_errors_total{kind="deadline_exceeded"}"#),
            1.0
        );
    }
}

#[tokio::test]
async fn a_client_that_goes_away_frees_expert_and_place_and_is_recorded() {
    let bench = Bench::new(&[Step::Say("Take"), Step::Hang], GOOD).await;
    let mut answering = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
    let id = answering.id;
    answering.next().await.unwrap().unwrap();
    answering.next().await.unwrap().unwrap();
    assert_eq!(bench.metric("referral_in_flight"), 1.0);
    drop(answering);
    eventually("the place is free", || bench.metric("referral_in_flight") == 0.0).await;
    assert_eq!(bench.pharmacy.running.load(Ordering::SeqCst), 0);
    assert_eq!(
        bench.metric(r#"referral_requests_total{code="CANCELLED",method="generate"}"#),
        1.0
    );
    bench.pipeline.drain(Duration::from_secs(5)).await;
    let stored = DecisionStore::open(&bench.settings.log.path)
        .unwrap()
        .get(&id.to_string())
        .unwrap()
        .unwrap()
        .0;
    assert_eq!(serde_json::to_value(stored).unwrap()["outcome"], "cancelled");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_query_at_the_deadline() {
    let chatter = vec![Step::Say("words "); 4 * UNREAD];
    let bench = Bench::new(&chatter, GOOD).await;
    let envelope = Envelope {
        timeout: Some(Duration::from_millis(60)),
        ..envelope()
    };
    let mut answering = bench.pipeline.answer(envelope, ask("pharmacy")).unwrap();
    eventually("the place is free", || bench.metric("referral_in_flight") == 0.0).await;
    let mut last = None;
    while let Some(event) = answering.next().await {
        last = Some(event);
    }
    assert_eq!(last.unwrap().unwrap_err().code(), tonic::Code::DeadlineExceeded);
}

#[tokio::test]
async fn of_64_at_once_each_is_answered_or_refused() {
    let gated: &[Step] = &[Step::Gate, Step::Say("Take one."), Step::End(Finish::Stop)];
    let bench = Bench::with(gated, GOOD, |s| s.server.max_concurrent_requests = 16).await;
    let calls: Vec<_> = (0..64)
        .map(|n| bench.pipeline.answer(envelope(), ask(&format!("pharmacy {n}"))))
        .collect();
    assert_eq!(bench.metric("referral_in_flight"), 16.0);
    bench.pharmacy.gate.add_permits(64);
    let (mut answered, mut refused) = (0, 0);
    for call in calls {
        match call {
            Ok(answering) => {
                assert_eq!(answering.whole().await.result.unwrap().0, "Take one.");
                answered += 1;
            }
            Err(error) => {
                assert_eq!(error.code(), tonic::Code::ResourceExhausted);
                assert!(error.retry_after().is_some());
                refused += 1;
            }
        }
    }
    assert_eq!((answered, refused), (16, 48));
    assert_eq!(bench.metric("referral_in_flight"), 0.0);
    assert_eq!(bench.metric(r#"referral_errors_total{kind="overloaded"}"#), 48.0);
}

#[tokio::test]
async fn draining_finishes_what_was_accepted_and_refuses_the_rest() {
    let gated: &[Step] = &[Step::Gate, Step::Say("Take one."), Step::End(Finish::Stop)];
    let bench = Bench::new(gated, GOOD).await;
    let accepted = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
    bench.pipeline.close();
    let refused = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap_err();
    assert!(matches!(refused, GatewayError::Draining));
    bench.pharmacy.gate.add_permits(1);
    let (in_time, whole) = tokio::join!(bench.pipeline.drain(Duration::from_secs(10)), accepted.whole());
    assert!(in_time && whole.result.is_ok());
}

#[tokio::test]
async fn a_drain_that_takes_too_long_cuts_off_by_name() {
    let bench = Bench::new(&[Step::Say("Take"), Step::Hang], GOOD).await;
    let accepted = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
    assert!(!bench.pipeline.drain(Duration::from_millis(20)).await);
    let error = accepted.whole().await.result.unwrap_err();
    assert!(matches!(error, GatewayError::Draining), "{error}");
}
