use super::*;
use crate::log::Feedback;
use proptest::prelude::*;
use std::collections::HashMap;

fn ask(query: &str) -> v1::GenerateRequest {
    v1::GenerateRequest {
        query: query.to_owned(),
        ..Default::default()
    }
}

fn with(options: v1::GenerationOptions) -> v1::GenerateRequest {
    v1::GenerateRequest {
        options: Some(options),
        ..ask("What is asthma?")
    }
}

fn labelled(labels: impl IntoIterator<Item = (String, String)>) -> v1::GenerateRequest {
    v1::GenerateRequest {
        labels: labels.into_iter().collect(),
        ..ask("What is asthma?")
    }
}

#[test]
fn what_is_wrong_is_named() {
    let options = v1::GenerationOptions::default;
    let cases = [
        (ask(""), "query: an empty text"),
        (ask(" \u{a0}\n\t"), "query: an empty text"),
        (
            ask(&"x".repeat(101)),
            "query: a text of 101 bytes is not allowed: send at most 100 bytes",
        ),
        (ask("a\0b"), "query: a text with a NUL"),
        (
            v1::GenerateRequest {
                expert: Some("Dr. House".into()),
                ..ask("q")
            },
            "expert: \"Dr. House\"",
        ),
        (
            v1::GenerateRequest {
                expert: Some(String::new()),
                ..ask("q")
            },
            "expert: \"\"",
        ),
        (
            with(v1::GenerationOptions {
                max_tokens: Some(0),
                ..options()
            }),
            "options.max_tokens: 0 ",
        ),
        (
            with(v1::GenerationOptions {
                max_tokens: Some(u32::MAX),
                ..options()
            }),
            "options.max_tokens: 4294967295",
        ),
        (
            with(v1::GenerationOptions {
                temperature: Some(-0.1),
                ..options()
            }),
            "options.temperature: -0.1",
        ),
        (
            with(v1::GenerationOptions {
                temperature: Some(f32::NAN),
                ..options()
            }),
            "options.temperature: NaN",
        ),
        (
            with(v1::GenerationOptions {
                temperature: Some(2.01),
                ..options()
            }),
            "options.temperature: 2.01",
        ),
        (
            with(v1::GenerationOptions {
                top_p: Some(0.0),
                ..options()
            }),
            "options.top_p: 0",
        ),
        (
            with(v1::GenerationOptions {
                top_p: Some(f32::INFINITY),
                ..options()
            }),
            "options.top_p: inf",
        ),
        (
            with(v1::GenerationOptions {
                stop: vec!["x".into(); 9],
                ..options()
            }),
            "options.stop: 9 texts",
        ),
        (
            with(v1::GenerationOptions {
                stop: vec![String::new()],
                ..options()
            }),
            "options.stop: a text of 0 bytes",
        ),
        (
            with(v1::GenerationOptions {
                system: Some("x".repeat(101)),
                ..options()
            }),
            "options.system: a text of 101",
        ),
        (
            labelled((0..17).map(|n| (format!("k{n}"), String::new()))),
            "labels: 17 labels",
        ),
        (
            labelled([("no spaces".into(), String::new())]),
            "labels: \"no spaces\"",
        ),
        (
            labelled([("ward".into(), "x".repeat(257))]),
            "labels: a text of 257 bytes",
        ),
    ];
    for (request, message) in cases {
        let error = ValidQuery::new(request, 100).unwrap_err();
        assert!(
            error.to_string().starts_with(message),
            "{error} does not start with {message}"
        );
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
    }
}

#[test]
fn what_is_right_arrives_unchanged() {
    let request = v1::GenerateRequest {
        query: "  What is\nasthma? ".to_owned(),
        expert: Some("pharmacy".to_owned()),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(1),
            temperature: Some(2.0),
            top_p: Some(1.0),
            seed: Some(7),
            stop: vec!["\n".to_owned()],
            system: Some("Be brief.".to_owned()),
        }),
        labels: HashMap::from([("ward".to_owned(), "7B".to_owned())]),
    };
    let valid = ValidQuery::new(request, 100).unwrap();
    assert_eq!(valid.ask.text, "  What is\nasthma? ");
    assert_eq!(valid.normalised, "What is asthma?");
    assert_eq!(valid.expert.unwrap().as_str(), "pharmacy");
    assert_eq!((valid.ask.max_tokens, valid.ask.seed), (Some(1), Some(7)));
    assert_eq!((valid.ask.temperature, valid.ask.top_p), (Some(2.0), Some(1.0)));
    assert_eq!(
        (valid.ask.stop, valid.ask.system),
        (vec!["\n".to_owned()], Some("Be brief.".to_owned()))
    );
    assert_eq!(valid.labels["ward"], "7B");
}

#[test]
fn white_space_and_unicode_form_do_not_matter() {
    let normalised = |query| ValidQuery::new(ask(query), 100).unwrap().normalised;
    assert_eq!(normalised("  caf\u{65}\u{301} \n au\tlait "), "café au lait");
}

#[test]
fn a_comparison_wants_two_experts() {
    let request = |a: &str, b: &str| v1::CompareRequest {
        query: "q".into(),
        expert_a: a.into(),
        expert_b: b.into(),
        options: None,
    };
    assert!(ValidComparison::new(request("a", "b"), 9).is_ok());
    let same = ValidComparison::new(request("a", "a"), 9)
        .unwrap_err()
        .to_string();
    assert!(same.starts_with("expert_b: \"a\" is not allowed"), "{same}");
    let none = ValidComparison::new(request("", "b"), 9).unwrap_err().to_string();
    assert!(none.starts_with("expert_a"), "{none}");
}

#[test]
fn feedback_says_something_about_a_decision() {
    let good = v1::SendFeedbackRequest {
        decision_id: uuid::Uuid::now_v7().to_string(),
        score: Some(-1.0),
        idempotency_key: "k".to_owned(),
        ..Default::default()
    };
    assert_eq!(Feedback::try_from(good.clone()).unwrap().score, Some(-1.0));
    let cases = [
        (
            v1::SendFeedbackRequest {
                decision_id: "seven".into(),
                ..good.clone()
            },
            "decision_id",
        ),
        (
            v1::SendFeedbackRequest {
                score: Some(f32::NAN),
                ..good.clone()
            },
            "score",
        ),
        (
            v1::SendFeedbackRequest {
                score: None,
                ..good.clone()
            },
            "score",
        ),
        (
            v1::SendFeedbackRequest {
                idempotency_key: String::new(),
                ..good.clone()
            },
            "idempotency_key",
        ),
        (
            v1::SendFeedbackRequest {
                comment: Some("x".repeat(4097)),
                ..good.clone()
            },
            "comment",
        ),
        (
            v1::SendFeedbackRequest {
                correct_expert: Some("?".into()),
                ..good
            },
            "correct_expert",
        ),
    ];
    for (request, field) in cases {
        let error = Feedback::try_from(request).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    }
}

proptest! {
    #[test]
    fn no_request_panics(
        query in any::<String>(), expert in any::<Option<String>>(), max_tokens in any::<Option<u32>>(),
        temperature in any::<Option<f32>>(), top_p in any::<Option<f32>>(), stop in any::<Vec<String>>(),
        labels in any::<HashMap<String, String>>(), limit in 0usize..64,
    ) {
        let options = v1::GenerationOptions { max_tokens, temperature, top_p, stop, ..Default::default() };
        let request = v1::GenerateRequest { query: query.clone(), expert, options: Some(options), labels };
        if let Ok(valid) = ValidQuery::new(request, limit) {
            prop_assert!(!valid.normalised.is_empty() && query.len() <= limit);
        }
    }

    #[test]
    fn no_feedback_panics(id in any::<String>(), key in any::<String>(), score in any::<Option<f32>>()) {
        let request = v1::SendFeedbackRequest { decision_id: id, idempotency_key: key, score, ..Default::default() };
        let _any = Feedback::try_from(request);
    }
}
