//! An expert that is a router of its own: trained, configured, followed, and refused where it leads in a circle.

use anyhow::{Context, ensure};
use referral_proto::v1::{ListExpertsRequest, Reason, RouteRequest};
use referral_tests::{Gateway, run};
use std::fmt::Write as _;
use std::path::Path;

const FRAMES: [&str; 4] = [
    "How is {} treated?",
    "patient with {}, what next",
    "my father has {} - is it dangerous?",
    "{} follow-up interval?",
];
const HEART: [&str; 8] = [
    "atrial fibrillation",
    "aortic stenosis",
    "heart failure",
    "an acute myocardial infarction",
    "angina",
    "mitral regurgitation",
    "bradycardia",
    "a dilated left ventricle",
];
const LUNG: [&str; 8] = [
    "asthma",
    "COPD with wheezing",
    "pneumothorax",
    "pulmonary fibrosis",
    "a chronic cough with sputum",
    "bronchiectasis",
    "low oxygen saturation at night, snoring",
    "a pleural effusion",
];

/// Rows of the subjects in `of`, for the two experts.
fn rows(of: std::ops::Range<usize>) -> String {
    let mut text = String::new();
    for (expert, subjects) in [("heart_clinic", HEART), ("lung_clinic", LUNG)] {
        for (i, subject) in subjects[of.clone()].iter().enumerate() {
            for (j, frame) in FRAMES.iter().enumerate() {
                let query = frame.replace("{}", subject);
                let row =
                    serde_json::json!({"id": format!("{expert}-{i}-{j}"), "query": query, "expert": expert});
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{row}");
            }
        }
    }
    text
}

fn referral(directory: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let (code, stdout, stderr) = run(directory, arguments, &[])?;
    ensure!(code == 0, "{arguments:?}: {stdout}{stderr}");
    Ok(stdout)
}

/// The default configuration, with a router in the place of cardiopulmonary.
fn configuration(router: &Path) -> String {
    format!(
        "experts:
  heart_clinic: {{ local: {{ model: smollm2-135m-instruct }} }}
  lung_clinic: {{ local: {{ model: smollm2-135m-instruct }} }}
  cardiopulmonary: {{ router: {{ directory: '{}', otherwise: general_medicine, min_confidence: 0.5 }} }}
",
        router.display()
    )
}

#[tokio::test]
async fn a_router_below_the_top_one_is_followed_and_a_circle_is_refused() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    std::fs::write(path.join("train.jsonl"), rows(0..6))?;
    std::fs::write(path.join("dev.jsonl"), rows(6..8))?;
    let train = [
        "train",
        "router",
        "--layer",
        "8",
        "--data",
        "train.jsonl",
        "--dev",
        "dev.jsonl",
    ];
    referral(path, &[&train[..], &["--out", "clinics"]].concat())?;

    let gateway = Gateway::start(&configuration(&path.join("clinics"))).await?;
    let mut client = gateway.client().await?;
    let query = "Which medicines slow the heart rate in atrial fibrillation?";
    let route = RouteRequest {
        query: query.to_owned(),
    };
    let decision = client
        .route(route.clone())
        .await?
        .into_inner()
        .decision
        .context("no decision")?;
    assert_eq!(decision.path, ["cardiopulmonary", "heart_clinic"], "{decision:?}");
    assert_eq!(decision.expert, "heart_clinic");
    let top = &decision.probabilities[0];
    assert_eq!(top.expert, "cardiopulmonary");
    // The router below, alone, says what its part of the product is.
    std::fs::write(
        path.join("queries.jsonl"),
        serde_json::json!({"id": "1", "query": query}).to_string(),
    )?;
    let below = referral(
        path,
        &["route", "--router", "clinics", "--input", "queries.jsonl"],
    )?;
    let below: serde_json::Value = serde_json::from_str(&below)?;
    let product = f64::from(top.probability) * below["confidence"].as_f64().context("no confidence")?;
    assert!(
        (f64::from(decision.confidence) - product).abs() < 1e-3,
        "{product}: {decision:?}"
    );
    let again = client
        .route(route)
        .await?
        .into_inner()
        .decision
        .context("no decision")?;
    assert!(again.reasons().any(|reason| reason == Reason::Cached));
    assert_eq!(
        (again.path, again.confidence),
        (decision.path, decision.confidence)
    );
    assert_eq!(
        gateway.metric("referral_descents_total", "depth=\"2\"").await?,
        2.0
    );

    let experts = client
        .list_experts(ListExpertsRequest {})
        .await?
        .into_inner()
        .experts;
    let find = |id: &str| experts.iter().find(|expert| expert.id == id);
    let router = find("cardiopulmonary").context("the router is not listed")?;
    assert!(
        router.model.starts_with("router: ") && router.model.contains("heart_clinic"),
        "{router:?}"
    );
    assert!(router.ready && router.routable);
    assert!(find("lung_clinic").is_some_and(|expert| expert.routable));

    // The same from a file, without a server.
    std::fs::write(
        path.join("graph.yaml"),
        format!("version: 1\n{}", configuration(&path.join("clinics"))),
    )?;
    let routed = referral(
        path,
        &["route", "--config", "graph.yaml", "--input", "queries.jsonl"],
    )?;
    let routed: serde_json::Value = serde_json::from_str(&routed)?;
    assert_eq!(
        routed["path"],
        serde_json::json!(["cardiopulmonary", "heart_clinic"])
    );

    let rename = [
        "router",
        "rename",
        "--from",
        "lung_clinic",
        "--to",
        "cardiopulmonary",
    ];
    referral(
        path,
        &[&rename[..], &["--router", "clinics", "--out", "circle"]].concat(),
    )?;
    let circle = configuration(&path.join("circle"))
        .replace("  lung_clinic: { local: { model: smollm2-135m-instruct } }\n", "");
    let refused = Gateway::start(&circle)
        .await
        .err()
        .context("it started")?
        .to_string();
    assert!(refused.contains("cardiopulmonary → cardiopulmonary"), "{refused}");
    Ok(())
}
