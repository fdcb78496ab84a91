//! What a caller gets: decisions, answers, streams, comparisons, feedback, the list of experts.

use anyhow::Context;
use referral_proto::v1::{
    CompareRequest, FinishReason, GenerateRequest, GenerationOptions, ListExpertsRequest, Reason,
    RouteRequest, SendFeedbackRequest, compared_answer, generate_stream_response::Event,
};
use referral_tests::{Gateway, run};
use std::collections::HashSet;

fn query(text: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        query: text.to_owned(),
        options: Some(GenerationOptions {
            max_tokens: Some(max_tokens),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_query_is_referred_answered_logged_and_measured() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let mut client = gateway.client().await?;
    let text = "I forgot my apixaban last night, do I take two this morning?";
    let answer = client.generate(query(text, 12)).await?.into_inner();
    let decision = answer.decision.context("no decision")?;
    assert_eq!(decision.expert, "pharmacy");
    assert!(
        decision.confidence > 0.5 && decision.confidence <= 1.0,
        "{decision:?}"
    );
    let mass: f32 = decision.probabilities.iter().map(|p| p.probability).sum();
    assert!((mass - 1.0).abs() < 1e-3, "probabilities add up to {mass}");
    assert_eq!(decision.reasons().collect::<Vec<_>>(), [Reason::Routed]);
    assert!(!answer.text.trim().is_empty());
    let usage = answer.usage.context("no usage")?;
    assert!(
        usage.prompt_tokens > 5 && (1..=12).contains(&usage.completion_tokens),
        "{usage:?}"
    );
    assert!(usage.mean_log_probability.is_some_and(|p| p <= 0.0), "{usage:?}");
    assert!(usage.time_to_first_token_us > 0 && usage.time_to_first_token_us <= usage.total_us);

    // The same query again: the decision comes from the cache and is the same but for its id.
    let again = client
        .generate(query(&format!("  {text} "), 4))
        .await?
        .into_inner()
        .decision
        .context("no decision")?;
    assert!(again.reasons().any(|r| r == Reason::Cached), "{again:?}");
    assert_eq!(
        (&again.expert, again.confidence),
        (&decision.expert, decision.confidence)
    );
    assert_ne!(again.id, decision.id);

    assert_eq!(
        gateway
            .metric("referral_decisions_total", "expert=\"pharmacy\"")
            .await?,
        2.0
    );
    assert!(
        gateway
            .metric("referral_engine_generated_tokens_total", "")
            .await?
            >= 2.0
    );

    // The log has both decisions, and not the query's text. Records are written off the query's path.
    let mut shown = String::new();
    for _ in 0..50 {
        let (code, stdout, stderr) = run(
            gateway.directory.path(),
            &["decisions", "show", &decision.id],
            &[],
        )?;
        shown = format!("{stdout}{stderr}");
        if code == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(
        shown.contains("pharmacy") && !shown.contains("apixaban"),
        "{shown}"
    );
    Ok(())
}

#[tokio::test]
async fn a_stream_opens_with_the_decision_and_closes_with_the_end() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let mut client = gateway.client().await?;
    let mut stream = client
        .generate_stream(query("What does stage IIIA mean for lung cancer?", 16))
        .await?
        .into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.push(message.event.context("empty message")?);
    }
    assert!(
        matches!(&events[0], Event::Decision(d) if d.expert == "oncology"),
        "{:?}",
        events[0]
    );
    let Some(Event::End(end)) = events.last() else {
        panic!("no end: {:?}", events.last())
    };
    assert!(matches!(
        end.finish_reason(),
        FinishReason::Length | FinishReason::Stop
    ));
    let middle = &events[1..events.len() - 1];
    assert!(middle.len() > 1, "the text came as one piece: {middle:?}");
    assert!(
        middle
            .iter()
            .all(|e| matches!(e, Event::Text(t) if !t.is_empty()))
    );
    Ok(())
}

#[tokio::test]
async fn vague_queries_are_answered_by_the_generalist_who_says_so() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let mut client = gateway.client().await?;
    let answer = client.generate(query("it hurts again", 8)).await?.into_inner();
    let decision = answer.decision.context("no decision")?;
    assert!(decision.abstained, "{decision:?}");
    assert_eq!(decision.expert, "generalist");
    assert!(
        decision
            .reasons()
            .any(|r| matches!(r, Reason::Abstained | Reason::OutOfScope))
    );
    Ok(())
}

#[tokio::test]
async fn route_compare_feedback_and_list() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let mut client = gateway.client().await?;

    let route = RouteRequest {
        query: "which vaccines do we need for a month in rural Kenya".into(),
    };
    let decision = client
        .route(route)
        .await?
        .into_inner()
        .decision
        .context("no decision")?;
    assert_eq!(decision.expert, "infectious_disease");

    let experts = client
        .list_experts(ListExpertsRequest {})
        .await?
        .into_inner()
        .experts;
    let names: HashSet<&str> = experts.iter().map(|e| e.id.as_str()).collect();
    assert!(
        names.contains("generalist") && names.contains("oncology"),
        "{names:?}"
    );
    assert!(
        experts
            .iter()
            .all(|e| e.ready && !e.model.is_empty() && !e.licence.is_empty())
    );
    assert_eq!(experts.iter().filter(|e| e.routable).count(), 11, "{experts:?}");

    let compare = CompareRequest {
        query: "What are the symptoms of asthma?".into(),
        expert_a: "cardiopulmonary".into(),
        expert_b: "generalist".into(),
        options: query("", 10).options,
    };
    let both = client.compare(compare).await?.into_inner();
    for (side, expert) in [(both.a, "cardiopulmonary"), (both.b, "generalist")] {
        let side = side.context("a side is missing")?;
        let Some(compared_answer::Result::Answer(answer)) = side.result else {
            panic!("{:?}", side.result)
        };
        assert!(!answer.text.trim().is_empty());
        assert_eq!(side.decision.context("no decision")?.expert, expert);
    }

    let answer = client
        .generate(query("How is gout treated?", 4))
        .await?
        .into_inner();
    let feedback = SendFeedbackRequest {
        decision_id: answer.decision.context("no decision")?.id,
        score: Some(0.5),
        idempotency_key: "k1".into(),
        ..Default::default()
    };
    assert!(
        client
            .send_feedback(feedback.clone())
            .await?
            .into_inner()
            .recorded
    );
    assert!(
        !client
            .send_feedback(feedback.clone())
            .await?
            .into_inner()
            .recorded,
        "the same key counted twice"
    );
    let unknown = SendFeedbackRequest {
        decision_id: "0198c0de-0000-7000-8000-000000000000".into(),
        idempotency_key: "k2".into(),
        ..feedback
    };
    assert_eq!(
        client
            .send_feedback(unknown)
            .await
            .expect_err("unknown decision")
            .code(),
        tonic::Code::NotFound
    );
    Ok(())
}
