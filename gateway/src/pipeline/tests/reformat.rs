//! Queries in better words: who gets them, and what the decision says.

use super::*;
use crate::config::ReformatMode;
use referral_router::reformat::Outcome;

async fn bench(mode: ReformatMode) -> Bench {
    Bench::with(GOOD, GOOD, |settings| {
        settings.router.reformat.mode = mode;
        settings.router.reformat.time_limit = Duration::from_millis(50);
    })
    .await
}

/// What became of the new words, and what the pharmacist was asked.
async fn asked(bench: &Bench, query: &str) -> (Option<Outcome>, String) {
    let answered = whole(bench, query).await;
    answered.result.unwrap();
    let texts: Vec<String> = bench
        .pharmacy
        .queries
        .lock()
        .unwrap()
        .drain(..)
        .map(|query| query.text)
        .collect();
    (
        answered.decision.unwrap().reformatted.map(|new| new.outcome),
        texts.concat(),
    )
}

#[tokio::test]
async fn the_expert_gets_both_wordings() {
    let bench = bench(ReformatMode::Always).await;
    let query = "pharmacy warfarin as: Is warfarin safe";
    let (outcome, text) = asked(&bench, query).await;
    assert_eq!(outcome, Some(Outcome::Accepted));
    assert_eq!(
        text,
        format!("{query}\n\nIn other words: Is warfarin safe (pharmacy)")
    );
    assert_eq!(
        bench.metric("referral_reformats_total{outcome=\"accepted\"}"),
        1.0
    );
}

#[tokio::test]
async fn words_that_lost_a_fact_are_not_passed_on() {
    let bench = bench(ReformatMode::Always).await;
    for (query, expected) in [
        ("pharmacy warfarin 5mg as: warfarin 50 mg", Outcome::Number),
        ("pharmacy no drink as: drink", Outcome::Negation),
        ("pharmacy nothing to say", Outcome::Failed),
        ("pharmacy slow", Outcome::Deadline),
    ] {
        assert_eq!(asked(&bench, query).await, (Some(expected), query.to_owned()));
    }
    let long = format!("pharmacy {} as: x", "very ".repeat(200));
    assert_eq!(asked(&bench, &long).await.0, Some(Outcome::TooLong));
}

#[tokio::test]
async fn only_what_the_router_refers_is_put_in_other_words() {
    for (mode, query, is_tried) in [
        (ReformatMode::Never, "pharmacy as: b", false),
        (ReformatMode::WhenConfident, "pharmacy as: b", true),
        (ReformatMode::Always, "vague as: b", false),
        (ReformatMode::Always, "broken as: b", false),
    ] {
        let bench = bench(mode).await;
        assert_eq!(
            asked(&bench, query).await.0.is_some(),
            is_tried,
            "{mode:?} {query}"
        );
    }
    let bench = Bench::with(GOOD, GOOD, |settings| {
        settings.router.reformat.mode = ReformatMode::WhenConfident;
        settings.router.reformat.min_confidence = 0.95;
    })
    .await;
    assert_eq!(asked(&bench, "pharmacy as: b").await.0, None);
}

#[tokio::test]
async fn an_expert_that_takes_over_gets_the_original_alone() {
    let bench = Bench::with(&[Step::Fail(ExpertErrorKind::Unavailable)], GOOD, |settings| {
        settings.router.reformat.mode = ReformatMode::Always;
    })
    .await;
    let query = "pharmacy one as: one";
    let answered = whole(&bench, query).await;
    answered.result.unwrap();
    assert_eq!(bench.generalist.queries.lock().unwrap()[0].text, query);
}
