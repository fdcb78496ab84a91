//! A strong and a weak expert of one field, with the shipped gain model and the built-in engine.

use anyhow::Context;
use referral_proto::v1::{GenerateRequest, GenerationOptions, Reason, generate_stream_response::Event};
use referral_tests::Gateway;

/// The gain always speaks for the strong pharmacist and never for the strong oncologist, where no weak answer is sure
/// enough.
const PAIRS: &str = "
policy:
  pairs:
    - strong: senior_pharmacist
      weak: pharmacy
      threshold: { gain: -1 }
    - strong: senior_oncologist
      weak: oncology
      threshold: { share: 0 }
      cascade: { min_mean_log_probability: 0 }
experts:
  senior_pharmacist: { local: { model: smollm2-135m-instruct, adapter: 'shipped:medical' } }
  senior_oncologist: { local: { model: smollm2-135m-instruct, adapter: 'shipped:medical' } }
";

fn query(text: &str) -> GenerateRequest {
    GenerateRequest {
        query: text.to_owned(),
        options: Some(GenerationOptions {
            max_tokens: Some(8),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_gain_chooses_and_an_unsure_answer_is_escalated() -> anyhow::Result<()> {
    let gateway = Gateway::start(PAIRS).await?;
    let mut client = gateway.client().await?;
    let text = "I forgot my apixaban last night, do I take two this morning?";
    let answer = client.generate(query(text)).await?.into_inner();
    let decision = answer.decision.context("no decision")?;
    assert_eq!(decision.expert, "senior_pharmacist");
    assert_eq!(
        decision.probabilities[0].expert, "pharmacy",
        "the router's own word"
    );
    assert_eq!(
        decision.reasons().collect::<Vec<_>>(),
        [Reason::Routed, Reason::Strong]
    );
    let gain = decision.gain.context("no gain")?;
    assert!((-1.0..=1.0).contains(&gain) && gain != 0.0, "{gain}");

    let mut stream = client
        .generate_stream(query("What does stage IIIA mean for lung cancer?"))
        .await?
        .into_inner();
    let (mut decisions, mut text) = (Vec::new(), String::new());
    while let Some(message) = stream.message().await? {
        match message.event.context("empty message")? {
            Event::Decision(decision) => decisions.push(decision),
            Event::Text(more) => text.push_str(&more),
            Event::End(end) => assert!(end.usage.is_some()),
        }
    }
    let [first, last] = decisions.as_slice() else {
        panic!("{decisions:?}")
    };
    assert_eq!(
        (first.expert.as_str(), last.expert.as_str()),
        ("oncology", "senior_oncologist")
    );
    assert_eq!(
        last.reasons().collect::<Vec<_>>(),
        [Reason::Routed, Reason::Weak, Reason::Escalated]
    );
    assert_eq!(last.fallbacks[0].error_kind, "unsure");
    assert!(!text.trim().is_empty());

    let answers = |outcome: &'static str| gateway.metric("referral_pair_answers_total", outcome);
    assert_eq!(answers("outcome=\"strong\"").await?, 1.0);
    assert_eq!(answers("outcome=\"escalated\"").await?, 1.0);
    Ok(())
}
