//! The built `referral` command as a user meets it: help, configuration, decision log, exit codes.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

const OK: Option<i32> = Some(0);
const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const BAD_CONFIG: Option<i32> = Some(78);

/// Runs the binary with a state directory of its own and no settings from this process's environment.
fn referral(
    directory: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_referral"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REFERRAL_") {
            command.env_remove(name);
        }
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(arguments)
        .current_dir(directory)
        .env("XDG_STATE_HOME", directory)
        .env("REFERRAL_CACHE", directory.join("cache"))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        status.code(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

fn in_empty_directory(arguments: &[&str]) -> (Option<i32>, String, String) {
    referral(tempfile::tempdir().unwrap().path(), arguments, &[])
}

#[test]
fn help_names_every_command_with_examples() {
    let (code, help, _) = in_empty_directory(&["--help"]);
    assert_eq!(code, OK);
    for word in [
        "serve",
        "demo",
        "ask",
        "route",
        "train",
        "eval",
        "models",
        "experts",
        "config",
        "decisions",
        "Examples:",
        "not a medical device",
        "REFERRAL_CONFIG",
    ] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    for command in [
        &["config"][..],
        &["config", "check"],
        &["decisions"],
        &["decisions", "export"],
        &["train", "router"],
        &["train", "adapter"],
        &["train", "cost"],
        &["eval", "routing"],
        &["eval", "cost"],
        &["route"],
        &["models", "fetch"],
        &["experts"],
        &["serve"],
        &["demo"],
        &["ask"],
    ] {
        let (code, help, _) = in_empty_directory(&[command, &["--help"]].concat());
        assert_eq!(code, OK, "{command:?}");
        assert!(help.contains("Usage: referral"), "{command:?}:\n{help}");
        assert!(!help.contains('\u{1b}'), "colours although there is no terminal");
    }
    let (code, version, _) = in_empty_directory(&["--version"]);
    assert_eq!(
        (code, version),
        (OK, format!("referral {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn data_that_cannot_be_used_is_told_before_a_model_is_fetched() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("empty", "");
    write("unlabelled", r#"{"id": 1, "prompt": "Why?"}"#);
    write("map", r#"{"labels": {}}"#);
    for (arguments, words) in [
        (&["eval", "cost", "--data", "empty"][..], "no rows"),
        (&["eval", "cost", "--data", "unlabelled"], "strong_correct"),
        (&["eval", "cost", "--data", "nowhere"], "nowhere"),
        (
            &["eval", "routing", "--data", "unlabelled", "--labels", "map"],
            "labels is empty",
        ),
    ] {
        let (code, _, said) = referral(directory.path(), arguments, &[]);
        assert!(code == FAILED && said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn wrong_arguments_end_with_2_and_a_suggestion() {
    let (code, _, said) = in_empty_directory(&["serv"]);
    assert_eq!(code, USAGE);
    assert!(said.contains("serve"), "{said}");
    assert_eq!(in_empty_directory(&[]).0, USAGE);
    assert_eq!(
        in_empty_directory(&["config", "show", "--format", "toml"]).0,
        USAGE
    );
    assert_eq!(
        in_empty_directory(&["decisions", "export", "--since", "yesterday"]).0,
        USAGE
    );
}

#[test]
fn good_configurations_pass() {
    let (code, said, warned) = in_empty_directory(&["config", "check"]);
    assert_eq!((code, warned.as_str()), (OK, ""));
    assert!(said.starts_with("good: defaults, 12 experts, 1 models"), "{said}");
    let directory = tempfile::tempdir().unwrap();
    let yaml = "version: 1\nexperts: { mine: { openai: { base_url: 'http://x:1/v1', model: m } } }";
    std::fs::write(directory.path().join("mine.yaml"), yaml).unwrap();
    for (arguments, environment) in [
        (&["config", "check", "mine.yaml"][..], &[][..]),
        (&["config", "check", "--config", "mine.yaml"], &[]),
        (&["config", "check"], &[("REFERRAL_CONFIG", "mine.yaml")]),
    ] {
        let (code, said, warned) = referral(directory.path(), arguments, environment);
        assert_eq!(code, OK, "{warned}");
        assert!(said.starts_with("good: mine.yaml, 13 experts"), "{said}");
        assert!(warned.starts_with("warning: expert mine is external"), "{warned}");
    }
}

#[test]
fn bad_configurations_end_with_78_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("bad.yaml"),
        "version: 1\nserver: { grpc_adress: x, max_query_bytes: 0 }",
    )
    .unwrap();
    for command in [
        &["config", "check"][..],
        &["serve"],
        &["experts"],
        &["decisions", "tail"],
        &["models", "list"],
    ] {
        let (code, out, said) = referral(
            directory.path(),
            &[command, &["--config", "bad.yaml"]].concat(),
            &[],
        );
        assert_eq!(code, BAD_CONFIG, "{command:?}: {said}");
        assert_eq!(out, "");
        assert!(
            said.starts_with("error: configuration has 2 problems:\n"),
            "{said}"
        );
        assert!(
            said.contains("server.grpc_adress: unknown key: did you mean grpc_address? (in bad.yaml)"),
            "{said}"
        );
        assert!(
            said.contains("server.max_query_bytes: 0 is out of range: use 1 to 4194304"),
            "{said}"
        );
    }
    let (code, _, said) = referral(directory.path(), &["config", "check", "none.yaml"], &[]);
    assert_eq!(code, BAD_CONFIG);
    assert!(said.contains("cannot read configuration none.yaml"), "{said}");
    let (code, _, said) = referral(
        directory.path(),
        &["config", "check"],
        &[("REFERRAL__SERVER__REFLECTION", "9")],
    );
    assert_eq!(code, BAD_CONFIG);
    assert!(
        said.contains("in environment variable REFERRAL__SERVER__REFLECTION"),
        "{said}"
    );
}

#[test]
fn schema_accepts_what_show_prints() {
    let directory = tempfile::tempdir().unwrap();
    let (code, schema, _) = referral(directory.path(), &["config", "schema"], &[]);
    assert_eq!(code, OK);
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let environment = [("REFERRAL__LOG__HASH_KEY", "sesame-sesame-sesame")];
    let (code, json, _) = referral(
        directory.path(),
        &["config", "show", "--format", "json"],
        &environment,
    );
    assert_eq!(code, OK);
    let (_, yaml, _) = referral(directory.path(), &["config", "show"], &environment);
    assert!(!json.contains("sesame") && !yaml.contains("sesame"));
    let shown: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(shown["log"]["hash_key"], "[redacted]");
    assert!(
        validator.is_valid(&shown),
        "{:?}",
        validator
            .iter_errors(&shown)
            .map(|e| e.to_string())
            .collect::<Vec<_>>()
    );
    assert_eq!(
        serde_yaml_ng::from_str::<serde_json::Value>(&yaml).unwrap(),
        shown
    );
}

#[test]
fn experts_are_listed_from_the_configuration() {
    let (code, table, _) = in_empty_directory(&["experts"]);
    assert_eq!(code, OK);
    assert_eq!(table.lines().count(), 13, "{table}");
    let (_, json, _) = in_empty_directory(&["experts", "--json"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    let generalist = rows.iter().find(|row| row["id"] == "generalist").unwrap();
    assert_eq!(
        (&generalist["kind"], &generalist["residency"]),
        (&"generalist".into(), &"on_premises".into())
    );
    let (code, _, said) = in_empty_directory(&["experts", "--address", "127.0.0.1:9"]);
    assert_eq!(code, FAILED);
    assert!(
        said.contains("no gateway answers at http://127.0.0.1:9") && said.contains("referral serve"),
        "{said}"
    );
}

#[test]
fn models_are_listed_and_unknown_ones_named() {
    let (code, table, _) = in_empty_directory(&["models", "list"]);
    assert_eq!(code, OK);
    assert!(table.contains("smollm2-135m-instruct  not fetched"), "{table}");
    let (code, _, said) = in_empty_directory(&["models", "fetch", "gpt-9"]);
    assert_eq!(code, FAILED);
    assert!(
        said.contains("no model called \"gpt-9\"\nit has: smollm2-135m-instruct"),
        "{said}"
    );
}

#[test]
fn missing_data_is_named_before_a_model_is_loaded() {
    for command in [
        &["route", "--input", "none.jsonl"][..],
        &["eval", "routing", "--data", "none.jsonl"],
        &[
            "train",
            "router",
            "--data",
            "none.jsonl",
            "--dev",
            "none.jsonl",
            "--out",
            "router",
        ],
    ] {
        let (code, _, said) = in_empty_directory(command);
        assert_eq!(code, FAILED, "{command:?}");
        assert!(
            said.starts_with("error: cannot read or write none.jsonl: "),
            "{said}"
        );
    }
}

mod decisions {
    use super::*;
    use referral::config::LogSettings;
    use referral::log::{DecisionLog, DecisionRecord, Endpoint, Feedback, Outcome};
    use referral_experts::TokenUsage;
    use std::time::{Duration, SystemTime};
    use uuid::Uuid;

    fn record(expert: &str, age: Duration) -> DecisionRecord {
        DecisionRecord {
            id: Uuid::now_v7(),
            received: SystemTime::now() - age,
            trace_id: "0".repeat(32),
            endpoint: Endpoint::Route,
            query: "a, \"quoted\" query".to_owned(),
            labels: [("note".to_owned(), "a, b".to_owned())].into(),
            expert: Some(expert.to_owned()),
            probabilities: vec![(expert.to_owned(), 1.0)],
            confidence: Some(0.9),
            in_scope: Some(0.8),
            gain: None,
            path: Vec::new(),
            abstained: false,
            reasons: Vec::new(),
            fallbacks: Vec::new(),
            router_version: "r".to_owned(),
            config_version: "c".to_owned(),
            router_latency: Duration::from_millis(3),
            time_to_first_token: None,
            total: Duration::from_millis(4),
            usage: TokenUsage::default(),
            mean_log_probability: None,
            outcome: Outcome::Routed,
            error_kind: None,
            finish: None,
            reformat: None,
            reformatted: None,
        }
    }

    #[tokio::test]
    async fn are_shown_tailed_and_exported() {
        let directory = tempfile::tempdir().unwrap();
        let settings = LogSettings {
            path: directory.path().join("referral/decisions.sqlite"),
            store_text: true,
            hash_key: None,
            queue_capacity: 16,
            retention: None,
        };
        let log = DecisionLog::open(&settings).unwrap();
        let records = [
            record("oncology", Duration::from_secs(7200)),
            record("genetics", Duration::ZERO),
        ];
        for record in &records {
            log.record(record.clone()).await.unwrap();
        }
        let opinion = Feedback {
            decision_id: records[1].id,
            idempotency_key: "k".to_owned(),
            score: Some(-1.0),
            correct_expert: None,
            comment: None,
        };
        assert!(log.feedback(opinion).await.unwrap());
        // The log stays open: reading works beside a running gateway.
        let run = |arguments: &[&str]| referral(directory.path(), &[&["decisions"], arguments].concat(), &[]);

        let (code, out, _) = run(&["tail"]);
        assert_eq!(code, OK);
        let lines: Vec<&str> = out.lines().collect();
        assert!(
            lines.len() == 2 && lines[0].contains("oncology") && lines[1].contains("genetics"),
            "{out}"
        );
        let (_, out, _) = run(&["tail", "-n", "1", "--json"]);
        let last: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(last["id"], records[1].id.to_string());

        let (code, out, _) = run(&["show", &records[1].id.to_string()]);
        assert_eq!(code, OK);
        let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&shown["expert"], &shown["feedback"][0]["score"]),
            (&"genetics".into(), &(-1.0).into())
        );
        let (code, _, said) = run(&["show", "nothing"]);
        assert_eq!(code, FAILED);
        assert!(
            said.contains("decision \"nothing\" is not in") && said.contains("decisions tail"),
            "{said}"
        );

        let (code, out, _) = run(&["export", "--since", "1h"]);
        assert_eq!((code, out.lines().count()), (OK, 1));
        let (code, _, _) = run(&["export", "--format", "csv", "--output", "all.csv"]);
        assert_eq!(code, OK);
        let csv = std::fs::read_to_string(directory.path().join("all.csv")).unwrap();
        assert_eq!(csv.lines().count(), 3);
        assert!(csv.starts_with("id,received,trace_id,"), "{csv}");
        assert!(csv.contains("\"a, \"\"quoted\"\" query\""), "{csv}");
    }

    #[tokio::test]
    async fn are_followed_as_they_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("followed.sqlite");
        let settings = LogSettings {
            path: path.clone(),
            store_text: false,
            hash_key: None,
            queue_capacity: 4,
            retention: None,
        };
        let log = DecisionLog::open(&settings).unwrap();
        log.record(record("oncology", Duration::ZERO)).await.unwrap();
        log.flush().await.unwrap();
        let mut tail = Command::new(env!("CARGO_BIN_EXE_referral"))
            .args(["decisions", "tail", "--follow", "--json", "--log"])
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(tail.stdout.take().unwrap()));
        let mut expert = || -> serde_json::Value {
            let line = lines.next().unwrap().unwrap();
            serde_json::from_str::<serde_json::Value>(&line).unwrap()["expert"].clone()
        };
        assert_eq!(expert(), "oncology");
        log.record(record("genetics", Duration::ZERO)).await.unwrap();
        log.flush().await.unwrap();
        assert_eq!(expert(), "genetics");
        // Nobody reads on: the next row ends the command, quietly.
        drop(lines);
        log.record(record("neurology", Duration::ZERO)).await.unwrap();
        assert_eq!(tail.wait().unwrap().code(), OK);
    }

    #[test]
    fn missing_and_foreign_logs_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let (code, _, said) = referral(directory.path(), &["decisions", "tail"], &[]);
        assert_eq!(code, FAILED);
        assert!(
            said.contains("decisions.sqlite cannot be used: there is no such file"),
            "{said}"
        );
        std::fs::write(directory.path().join("text"), "no database").unwrap();
        let (code, _, said) = referral(directory.path(), &["decisions", "tail", "--log", "text"], &[]);
        assert_eq!(code, FAILED);
        assert!(
            said.contains("text cannot be used: file is not a database"),
            "{said}"
        );
    }
}
