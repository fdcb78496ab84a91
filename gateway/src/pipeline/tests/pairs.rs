//! A strong and a weak expert: who is asked, what is held back, and what the client is told.

use super::*;
use crate::metrics::Setback;
use crate::scripted::{ScriptedExpert, ScriptedGains};

/// The scripted answers' mean log-probability is -0.5.
const SURE: f32 = -0.6;
const UNSURE: f32 = -0.4;
const STRONG: &[Step] = &[Step::Say("Half"), Step::Say(" of one."), Step::End(Finish::Stop)];

struct Duo {
    bench: Bench,
    strong: Arc<ScriptedExpert>,
    gains: Arc<ScriptedGains>,
}

async fn duo(weak: &[Step], strong: &[Step], cascade: Option<f32>) -> Duo {
    let strong = ScriptedExpert::new("strong", strong);
    let gains = Arc::new(ScriptedGains::default());
    Duo {
        bench: Bench::with_strong(weak, &strong, &gains, cascade).await,
        strong,
        gains,
    }
}

impl Duo {
    fn answers(&self, outcome: &str) -> f64 {
        self.bench.metric(&format!(
            r#"referral_pair_answers_total{{outcome="{outcome}",weak="pharmacy"}}"#
        ))
    }

    /// The decisions that were told, and the text.
    async fn told(&self, query: &str) -> (Vec<Decision>, String) {
        let mut answering = self.bench.pipeline.answer(envelope(), ask(query)).unwrap();
        let (mut decisions, mut text) = (Vec::new(), String::new());
        while let Some(event) = answering.next().await {
            match event.unwrap() {
                Event::Decision(decision) => {
                    assert_eq!(text, "", "a decision after text");
                    decisions.push(*decision);
                }
                Event::Text(more) => text.push_str(&more),
                Event::End(end) => assert_eq!(end.usage.completion, 2),
            }
        }
        (decisions, text)
    }
}

fn setback(expert: &str, setback: Setback) -> FailedAttempt {
    FailedAttempt {
        expert: expert.to_owned(),
        setback,
    }
}

#[tokio::test]
async fn the_predicted_gain_says_who_of_the_pair_answers() {
    let duo = duo(GOOD, STRONG, None).await;
    let hard = whole(&duo.bench, "pharmacy hard").await;
    assert_eq!(hard.result.unwrap().0, "Half of one.");
    let hard = hard.decision.unwrap();
    assert_eq!((hard.expert.as_str(), hard.gain), ("strong", Some(0.75)));
    assert_eq!(hard.reasons, [Reason::Routed, Reason::Strong]);
    assert_eq!(
        hard.probabilities[0].0, "pharmacy",
        "the router's word stays as it is"
    );
    let easy = whole(&duo.bench, "pharmacy easy").await.decision.unwrap();
    assert_eq!((easy.expert.as_str(), easy.gain), ("pharmacy", Some(0.0)));
    assert_eq!(easy.reasons, [Reason::Routed, Reason::Weak]);
    assert_eq!((duo.answers("strong"), duo.answers("weak")), (1.0, 1.0));
    assert_eq!(
        duo.bench
            .metric(r#"referral_predicted_gain_count{weak="pharmacy"}"#),
        2.0
    );

    assert!(duo.bench.pipeline.drain(Duration::from_secs(5)).await);
    let store = DecisionStore::open(&duo.bench.settings.log.path).unwrap();
    let stored = store.get(&hard.id.to_string()).unwrap().unwrap().0;
    assert_eq!(stored.gain, Some(0.75));
    assert_eq!(stored.reasons, serde_json::json!(["routed", "strong"]));
}

#[tokio::test]
async fn the_gain_is_asked_only_where_it_matters_and_once_while_it_is_cached() {
    let duo = duo(GOOD, STRONG, None).await;
    let vague = whole(&duo.bench, "vague").await.decision.unwrap();
    assert_eq!((vague.expert.as_str(), vague.gain), ("generalist", None));
    let request = v1::GenerateRequest {
        expert: Some("pharmacy".to_owned()),
        ..ask("pharmacy hard")
    };
    let named = duo
        .bench
        .pipeline
        .answer(envelope(), request)
        .unwrap()
        .whole()
        .await;
    assert_eq!(named.decision.unwrap().expert, "pharmacy");
    assert_eq!(duo.gains.asked.load(Ordering::SeqCst), 0);
    for reasons in [
        &[Reason::Routed, Reason::Strong][..],
        &[Reason::Routed, Reason::Strong, Reason::Cached],
    ] {
        let decision = whole(&duo.bench, "pharmacy hard").await.decision.unwrap();
        assert_eq!(decision.reasons, reasons);
    }
    assert_eq!(duo.gains.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn where_the_gain_cannot_be_predicted_the_choice_stands() {
    let duo = duo(GOOD, STRONG, Some(UNSURE)).await;
    let decision = whole(&duo.bench, "pharmacy odd").await.decision.unwrap();
    assert_eq!((decision.expert.as_str(), decision.gain), ("pharmacy", None));
    assert_eq!(decision.reasons, [Reason::Routed]);
    assert_eq!(
        duo.bench.metric(r#"referral_errors_total{kind="router_failed"}"#),
        1.0
    );
}

#[tokio::test]
async fn a_sure_weak_answer_is_held_back_and_then_given() {
    let duo = duo(
        &[
            Step::Say("Take"),
            Step::Gate,
            Step::Say(" one."),
            Step::End(Finish::Stop),
        ],
        STRONG,
        Some(SURE),
    )
    .await;
    let mut answering = duo
        .bench
        .pipeline
        .answer(envelope(), ask("pharmacy easy"))
        .unwrap();
    let Some(Ok(Event::Decision(decision))) = answering.next().await else {
        panic!("no decision")
    };
    assert_eq!(decision.expert, "pharmacy");
    let early = tokio::time::timeout(Duration::from_millis(50), answering.next()).await;
    assert!(
        early.is_err(),
        "text left before the weak expert's end: {early:?}"
    );
    duo.bench.pharmacy.gate.add_permits(1);
    assert_eq!(
        answering.next().await.unwrap().unwrap(),
        Event::Text("Take one.".to_owned())
    );
    assert!(matches!(answering.next().await, Some(Ok(Event::End(_)))));
    assert_eq!(duo.strong.asked.load(Ordering::SeqCst), 0);
    assert_eq!(duo.answers("weak"), 1.0);
}

#[tokio::test]
async fn an_unsure_weak_answer_never_leaves_and_the_strong_one_answers() {
    let duo = duo(GOOD, STRONG, Some(UNSURE)).await;
    let (decisions, text) = duo.told("pharmacy easy").await;
    assert_eq!(text, "Half of one.");
    assert_eq!(decisions.len(), 2);
    assert_eq!(decisions[0].expert, "pharmacy");
    let last = &decisions[1];
    assert_eq!((last.expert.as_str(), last.id), ("strong", decisions[0].id));
    assert_eq!(last.reasons, [Reason::Routed, Reason::Weak, Reason::Escalated]);
    assert_eq!(last.fallbacks, [setback("pharmacy", Setback::Unsure)]);
    assert_eq!(duo.answers("escalated"), 1.0);
    for (series, count) in [
        (r#"fallbacks_total{error_kind="unsure",from="pharmacy"}"#, 1.0),
        // What the weak one generated was paid for too.
        (r#"tokens_total{expert="pharmacy",type="completion"}"#, 2.0),
        (r#"tokens_total{expert="strong",type="completion"}"#, 2.0),
    ] {
        assert_eq!(duo.bench.metric(&format!("referral_{series}")), count, "{series}");
    }
}

#[tokio::test]
async fn if_the_strong_one_fails_the_held_answer_is_given_and_the_decision_says_so() {
    for (script, kind) in [
        (
            &[Step::Fail(ExpertErrorKind::InvalidQuery)][..],
            ExpertErrorKind::InvalidQuery,
        ),
        (
            &[Step::Say(" "), Step::Fail(ExpertErrorKind::Overloaded)],
            ExpertErrorKind::Overloaded,
        ),
    ] {
        let duo = duo(GOOD, script, Some(UNSURE)).await;
        let (decisions, text) = duo.told("pharmacy easy").await;
        assert_eq!(text, "Take one.");
        let last = decisions.last().unwrap();
        assert_eq!(last.expert, "pharmacy");
        assert_eq!(
            last.reasons,
            [Reason::Routed, Reason::Weak, Reason::Escalated, Reason::Fallback]
        );
        assert_eq!(
            last.fallbacks,
            [
                setback("pharmacy", Setback::Unsure),
                setback("strong", Setback::Failed(kind))
            ]
        );
        assert_eq!(duo.answers("kept"), 1.0);
        assert_eq!(
            duo.bench
                .metric(r#"referral_tokens_total{expert="pharmacy",type="completion"}"#),
            2.0,
            "counted twice"
        );
    }
}

#[tokio::test]
async fn a_strong_one_that_is_not_in_time_does_not_cost_the_held_answer() {
    let duo = duo(GOOD, &[Step::Hang], Some(UNSURE)).await;
    let envelope = Envelope {
        timeout: Some(Duration::from_millis(400)),
        ..envelope()
    };
    let Whole { decision, result } = duo
        .bench
        .pipeline
        .answer(envelope, ask("pharmacy easy"))
        .unwrap()
        .whole()
        .await;
    assert_eq!(result.unwrap().0, "Take one.");
    let decision = decision.unwrap();
    assert_eq!(decision.expert, "pharmacy");
    assert_eq!(
        decision.fallbacks[1],
        setback("strong", Setback::Failed(ExpertErrorKind::Timeout))
    );
    eventually("the strong one is let go", || {
        duo.strong.running.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn a_weak_one_that_fails_midway_is_replaced_without_a_word_of_it() {
    let script = [Step::Say("Take all"), Step::Fail(ExpertErrorKind::Interrupted)];
    let duo = duo(&script, STRONG, Some(SURE)).await;
    let (decisions, text) = duo.told("pharmacy easy").await;
    assert_eq!(text, "Half of one.");
    let last = decisions.last().unwrap();
    assert_eq!(last.reasons, [Reason::Routed, Reason::Weak, Reason::Fallback]);
    assert_eq!(
        last.fallbacks,
        [setback("pharmacy", Setback::Failed(ExpertErrorKind::Interrupted))]
    );
}

#[tokio::test]
async fn a_weak_answer_too_long_to_be_held_is_dropped() {
    static LONG: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| "x".repeat(100 * 1024));
    let say = Step::Say(&LONG);
    let script = [say.clone(), say.clone(), say, Step::End(Finish::Stop)];
    let duo = duo(&script, STRONG, Some(SURE)).await;
    let (decisions, text) = duo.told("pharmacy easy").await;
    assert_eq!(text, "Half of one.");
    assert_eq!(
        decisions.last().unwrap().fallbacks,
        [setback("pharmacy", Setback::Unsure)]
    );
    eventually("the weak one is let go", || {
        duo.bench.pharmacy.running.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn a_query_that_is_only_routed_names_the_one_that_would_be_asked_first() {
    let duo = duo(GOOD, STRONG, Some(UNSURE)).await;
    let request = v1::RouteRequest {
        query: "pharmacy easy".to_owned(),
    };
    let routed = duo.bench.pipeline.route(envelope(), request).unwrap();
    let decision = routed.decision().await.unwrap();
    assert_eq!((decision.expert.as_str(), decision.gain), ("pharmacy", Some(0.0)));
    assert_eq!(duo.bench.pharmacy.asked.load(Ordering::SeqCst), 0);
}
