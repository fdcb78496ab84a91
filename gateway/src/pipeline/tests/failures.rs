//! Routers and experts that fail: who stands in, who does not, and what the client is told.

use super::*;
use crate::metrics::Setback;

#[tokio::test]
async fn a_failed_router_leaves_it_to_the_generalist_and_is_counted() {
    let bench = Bench::new(GOOD, GOOD).await;
    let Whole { decision, result } = whole(&bench, "broken").await;
    let decision = decision.unwrap();
    assert!(result.is_ok());
    assert_eq!(
        (decision.expert.as_str(), decision.abstained),
        ("generalist", false)
    );
    assert_eq!(decision.reasons, [Reason::RouterFailed]);
    assert_eq!(
        bench.metric(r#"referral_errors_total{kind="router_failed"}"#),
        1.0
    );
}

#[tokio::test]
async fn a_failure_before_the_first_text_is_answered_by_another_and_told() {
    let late: &[Step] = &[Step::Say(" "), Step::Fail(ExpertErrorKind::Interrupted)];
    let empty: &[Step] = &[Step::Say("\n"), Step::End(Finish::Stop)];
    let endless: &[Step] = &[];
    let at_once: &[Step] = &[Step::Fail(ExpertErrorKind::Unavailable)];
    for (script, kind, decisions) in [
        (at_once, ExpertErrorKind::Unavailable, 1),
        (late, ExpertErrorKind::Interrupted, 2),
        (empty, ExpertErrorKind::Interrupted, 2),
        (endless, ExpertErrorKind::Interrupted, 2),
    ] {
        let bench = Bench::new(script, GOOD).await;
        let mut answering = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
        let mut seen = Vec::new();
        while let Some(event) = answering.next().await {
            seen.push(event.unwrap());
        }
        let told: Vec<&Decision> = seen
            .iter()
            .filter_map(|event| {
                if let Event::Decision(d) = event {
                    Some(&**d)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(told.len(), decisions);
        let last = told.last().unwrap();
        assert_eq!(last.expert, "generalist");
        assert_eq!(
            last.fallbacks,
            [FailedAttempt {
                expert: "pharmacy".to_owned(),
                setback: Setback::Failed(kind)
            }]
        );
        assert_eq!(last.reasons, [Reason::Routed, Reason::Fallback]);
        let texts = seen.iter().filter_map(|event| {
            if let Event::Text(text) = event {
                Some(text.as_str())
            } else {
                None
            }
        });
        assert_eq!(texts.collect::<String>(), "Take one.");
        assert!(matches!(seen.last(), Some(Event::End(_))));
        let label = crate::metrics::expert_error_label(kind);
        assert_eq!(
            bench.metric(&format!(
                r#"referral_fallbacks_total{{error_kind="{label}",from="pharmacy"}}"#
            )),
            1.0
        );
    }
}

#[tokio::test]
async fn a_failure_after_the_first_text_ends_in_its_status_and_nobody_else_is_asked() {
    let bench = Bench::new(
        &[Step::Say("Take"), Step::Fail(ExpertErrorKind::Unavailable)],
        GOOD,
    )
    .await;
    let mut answering = bench.pipeline.answer(envelope(), ask("pharmacy")).unwrap();
    assert!(matches!(answering.next().await, Some(Ok(Event::Decision(_)))));
    assert_eq!(
        answering.next().await.unwrap().unwrap(),
        Event::Text("Take".to_owned())
    );
    let error = answering.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(answering.next().await.is_none());
    assert_eq!(bench.generalist.asked.load(Ordering::SeqCst), 0);
    assert_eq!(bench.metric(r#"referral_errors_total{kind="expert"}"#), 1.0);
}

#[tokio::test]
async fn a_query_that_is_wrong_for_one_expert_is_not_tried_on_another() {
    let bench = Bench::new(&[Step::Fail(ExpertErrorKind::InvalidQuery)], GOOD).await;
    let error = whole(&bench, "pharmacy").await.result.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (tonic::Code::InvalidArgument, "expert pharmacy: as scripted")
    );
    assert_eq!(bench.generalist.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn fallbacks_have_a_limit() {
    let bench = Bench::with(&[Step::Fail(ExpertErrorKind::Overloaded)], GOOD, |s| {
        s.max_fallbacks = 0
    })
    .await;
    let error = whole(&bench, "pharmacy").await.result.unwrap_err();
    assert_eq!(error.code(), tonic::Code::ResourceExhausted);
}

#[tokio::test]
async fn a_defect_in_an_expert_is_a_named_error_and_frees_the_place() {
    let bench = Bench::new(&[Step::Say("Take"), Step::Panic], GOOD).await;
    let error = whole(&bench, "pharmacy").await.result.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Internal);
    eventually("the place is free", || bench.metric("referral_in_flight") == 0.0).await;
}
