//! What is written is read back, nothing is lost, and bad databases are refused at the start.

use super::*;
use crate::config::{LogSettings, Secret};
use referral_experts::{Finish, TokenUsage};
use referral_router::policy::Reason;
use std::path::Path;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

fn settings(directory: &Path) -> LogSettings {
    LogSettings {
        path: directory.join("nested/decisions.sqlite"),
        store_text: false,
        hash_key: None,
        queue_capacity: 8,
        retention: None,
    }
}

fn record(query: &str) -> DecisionRecord {
    DecisionRecord {
        id: Uuid::now_v7(),
        received: SystemTime::now(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        endpoint: Endpoint::Generate,
        query: query.to_owned(),
        labels: [("ward".to_owned(), "7b".to_owned())].into(),
        expert: Some("oncology".to_owned()),
        probabilities: vec![("oncology".to_owned(), 0.7), ("general".to_owned(), 0.3)],
        confidence: Some(0.7),
        in_scope: Some(0.95),
        gain: Some(0.125),
        path: vec!["cancer".to_owned(), "oncology".to_owned()],
        abstained: false,
        reasons: vec![Reason::Routed, Reason::Fallback],
        fallbacks: vec![FallbackRecord {
            expert: "genetics".to_owned(),
            error_kind: "timeout",
        }],
        router_version: "r1".to_owned(),
        config_version: "c1".to_owned(),
        router_latency: Duration::from_micros(1_500),
        time_to_first_token: Some(Duration::from_millis(20)),
        total: Duration::from_millis(90),
        usage: TokenUsage {
            prompt: 12,
            completion: 34,
        },
        mean_log_probability: Some(-0.25),
        outcome: Outcome::Answered,
        error_kind: None,
        reformat: Some("accepted"),
        reformatted: Some(format!("What about {query}?")),
        finish: Some(Finish::Stop),
    }
}

fn feedback(decision_id: Uuid, key: &str) -> Feedback {
    Feedback {
        decision_id,
        idempotency_key: key.to_owned(),
        score: Some(0.5),
        correct_expert: Some("genetics".to_owned()),
        comment: Some("free text".to_owned()),
    }
}

#[tokio::test]
async fn what_is_recorded_is_read_back_without_its_text() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let log = DecisionLog::open(&settings).unwrap();
    let written = record("Is this  mole cancer? ");
    log.record(written.clone()).await.unwrap();
    log.record(record("Is this mole cancer?")).await.unwrap();
    log.record(record("something else")).await.unwrap();
    log.flush().await.unwrap();

    let store = DecisionStore::open(&settings.path).unwrap();
    let (read, opinions) = store.get(&written.id.to_string()).unwrap().unwrap();
    assert_eq!(opinions, []);
    assert_eq!(
        (read.query, read.outcome.as_str(), read.endpoint.as_str()),
        (None, "answered", "generate")
    );
    assert_eq!(
        (read.expert.as_deref(), read.likeliest.as_deref()),
        (Some("oncology"), Some("oncology"))
    );
    assert_eq!(read.confidence, Some(0.7));
    assert_eq!(
        read.probabilities,
        serde_json::json!({ "oncology": 0.7, "general": 0.3 })
    );
    assert_eq!(read.reasons, serde_json::json!(["routed", "fallback"]));
    assert_eq!(
        read.fallbacks,
        serde_json::json!([{ "expert": "genetics", "error_kind": "timeout" }])
    );
    assert_eq!(read.labels, serde_json::json!({ "ward": "7b" }));
    assert_eq!(
        (read.router_us, read.time_to_first_token_us, read.total_us),
        (1_500, Some(20_000), 90_000)
    );
    assert_eq!((read.prompt_tokens, read.completion_tokens), (12, 34));
    assert_eq!(
        (read.mean_log_probability, read.finish_reason.as_deref()),
        (Some(-0.25), Some("stop"))
    );
    let hashes: Vec<String> = store
        .last(10)
        .unwrap()
        .into_iter()
        .map(|row| row.query_hash)
        .collect();
    assert_eq!(hashes[0], hashes[1], "the same query in its normal form");
    assert_ne!(hashes[0], hashes[2]);
    let bytes = std::fs::read(&settings.path).unwrap();
    assert!(!bytes.windows(4).any(|window| window == b"mole"));
}

#[tokio::test]
async fn text_and_comments_are_stored_only_on_request() {
    let directory = tempfile::tempdir().unwrap();
    for store_text in [false, true] {
        let mut settings = settings(directory.path());
        settings.store_text = store_text;
        let log = DecisionLog::open(&settings).unwrap();
        let written = record("a query");
        log.record(written.clone()).await.unwrap();
        assert!(log.feedback(feedback(written.id, "k")).await.unwrap());
        let store = DecisionStore::open(&settings.path).unwrap();
        let (read, opinions) = store.get(&written.id.to_string()).unwrap().unwrap();
        assert_eq!(read.query.is_some(), store_text);
        assert_eq!(opinions[0].comment.is_some(), store_text);
        assert_eq!(opinions[0].score, Some(0.5));
    }
}

#[tokio::test]
async fn feedback_counts_once_and_only_for_known_decisions() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let log = DecisionLog::open(&settings).unwrap();
    let written = record("a query");
    log.record(written.clone()).await.unwrap();
    assert!(log.feedback(feedback(written.id, "first")).await.unwrap());
    assert!(!log.feedback(feedback(written.id, "first")).await.unwrap());
    assert!(log.feedback(feedback(written.id, "second")).await.unwrap());
    let unknown = Uuid::now_v7();
    let refused = log.feedback(feedback(unknown, "third")).await;
    assert!(
        matches!(refused, Err(LogError::UnknownDecision(id)) if id == unknown),
        "{refused:?}"
    );
    let store = DecisionStore::open(&settings.path).unwrap();
    assert_eq!(store.get(&written.id.to_string()).unwrap().unwrap().1.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_lose_nothing_and_dropping_flushes() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let log = std::sync::Arc::new(DecisionLog::open(&settings).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..32 {
        let log = log.clone();
        writers.spawn(async move {
            for query in 0..25 {
                log.record(record(&format!("{writer}/{query}"))).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    drop(log);
    let rows = DecisionStore::open(&settings.path).unwrap().last(10_000).unwrap();
    assert_eq!(rows.len(), 800);
    let hashes: std::collections::BTreeSet<_> = rows.into_iter().map(|row| row.query_hash).collect();
    assert_eq!(hashes.len(), 800);
}

#[tokio::test]
async fn a_full_queue_gives_the_record_back_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let log = DecisionLog::open(&settings).unwrap();
    // Another connection holds the write lock, so the writer cannot drain the queue.
    let blocker = rusqlite::Connection::open(&settings.path).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut accepted = 0;
    let returned = loop {
        match log.try_record(record("x")) {
            Ok(()) => accepted += 1,
            Err(returned) => break returned,
        }
        assert!(accepted <= 1_000, "the queue has no bound");
    };
    assert_eq!(log.waiting(), settings.queue_capacity);
    blocker.execute_batch("COMMIT").unwrap();
    log.record(*returned).await.unwrap();
    log.flush().await.unwrap();
    assert_eq!(
        DecisionStore::open(&settings.path)
            .unwrap()
            .last(10_000)
            .unwrap()
            .len(),
        accepted + 1
    );
    assert_eq!((log.waiting(), log.lost()), (0, 0));
}

#[tokio::test]
async fn committed_rows_survive_without_a_clean_end() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let log = DecisionLog::open(&settings).unwrap();
    log.record(record("before the crash")).await.unwrap();
    log.flush().await.unwrap();
    // As a kill would: nothing is dropped, closed or checkpointed.
    std::mem::forget(log);
    let copied = directory.path().join("after.sqlite");
    for suffix in ["", "-wal"] {
        let from = format!("{}{suffix}", settings.path.display());
        std::fs::copy(from, format!("{}{suffix}", copied.display())).unwrap();
    }
    let mut reopened = settings;
    reopened.path = copied;
    let log = DecisionLog::open(&reopened).unwrap();
    log.record(record("after it")).await.unwrap();
    drop(log);
    assert_eq!(
        DecisionStore::open(&reopened.path)
            .unwrap()
            .last(10)
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn followers_and_exports_see_rows_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let log = DecisionLog::open(&settings).unwrap();
    let mut old = record("old");
    old.received = SystemTime::now() - Duration::from_secs(3600);
    let fresh = record("fresh");
    log.record(old.clone()).await.unwrap();
    log.record(fresh.clone()).await.unwrap();
    log.flush().await.unwrap();
    let store = DecisionStore::open(&settings.path).unwrap();
    let last = store.last(1).unwrap();
    assert_eq!(last[0].id, fresh.id.to_string());
    assert_eq!(store.after(last[0].row).unwrap(), []);
    let mut exported = Vec::new();
    let since = SystemTime::now() - Duration::from_secs(60);
    store
        .each_since(since, |row| {
            exported.push(row.id);
            Ok::<_, LogError>(())
        })
        .unwrap();
    assert_eq!(exported, [fresh.id.to_string()]);
    exported.clear();
    store
        .each_since(SystemTime::UNIX_EPOCH, |row| {
            exported.push(row.id);
            Ok::<_, LogError>(())
        })
        .unwrap();
    assert_eq!(exported, [old.id.to_string(), fresh.id.to_string()]);
}

#[tokio::test]
async fn retention_deletes_old_decisions_and_their_feedback() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path());
    let log = DecisionLog::open(&settings).unwrap();
    let mut old = record("old");
    old.received = SystemTime::now() - Duration::from_secs(7200);
    log.record(old.clone()).await.unwrap();
    log.feedback(feedback(old.id, "k")).await.unwrap();
    log.record(record("fresh")).await.unwrap();
    drop(log);
    settings.retention = Some(Duration::from_secs(3600));
    let log = DecisionLog::open(&settings).unwrap();
    log.flush().await.unwrap();
    let store = DecisionStore::open(&settings.path).unwrap();
    assert_eq!(store.last(10).unwrap().len(), 1);
    assert!(store.get(&old.id.to_string()).unwrap().is_none());
}

#[tokio::test]
async fn hashes_need_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let mut hashes = Vec::new();
    for (file, key) in [
        ("a", None),
        ("a", None),
        ("b", None),
        ("c", Some("k".repeat(16))),
        ("d", Some("k".repeat(16))),
    ] {
        let mut settings = settings(directory.path());
        settings.path = directory.path().join(file);
        settings.hash_key = key.map(Secret::from);
        let log = DecisionLog::open(&settings).unwrap();
        log.record(record("the same")).await.unwrap();
        drop(log);
        hashes.push(
            DecisionStore::open(&settings.path).unwrap().last(1).unwrap()[0]
                .query_hash
                .clone(),
        );
    }
    assert_eq!(hashes[0], hashes[1], "the key file is kept");
    assert_ne!(hashes[1], hashes[2], "each log has a key of its own");
    assert_eq!(hashes[3], hashes[4], "the setting decides");
    assert_ne!(hashes[3], blake3::hash(b"the same").to_hex().to_string());
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_read_log_and_key() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    drop(DecisionLog::open(&settings).unwrap());
    for suffix in ["", ".key"] {
        let path = format!("{}{suffix}", settings.path.display());
        assert_eq!(
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}

#[test]
fn unusable_databases_are_refused_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |name: &str| {
        let mut settings = settings(directory.path());
        settings.path = directory.path().join(name);
        let Err(error) = DecisionLog::open(&settings) else {
            panic!("{name} was accepted")
        };
        let text = error.to_string();
        assert!(text.contains(name), "{text}");
        text
    };
    std::fs::write(
        directory.path().join("corrupt"),
        "not a database, but long enough to be read as one".repeat(99),
    )
    .unwrap();
    assert!(refused("corrupt").contains("Move it away"));

    let foreign = rusqlite::Connection::open(directory.path().join("foreign")).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(refused("foreign").contains("another program's"));

    let newer = rusqlite::Connection::open(directory.path().join("newer")).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    assert!(refused("newer").contains("version 99, this build knows 3"));

    let locked = rusqlite::Connection::open(directory.path().join("locked")).unwrap();
    locked.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert!(refused("locked").contains("another process holds it"));

    std::fs::create_dir(directory.path().join("directory")).unwrap();
    assert!(refused("directory").contains("set log.path elsewhere"));
    std::fs::write(directory.path().join("file"), "").unwrap();
    assert!(refused("file/below").contains("cannot make its directory"));
    assert!(DecisionStore::open(&directory.path().join("none")).is_err());
}

#[test]
fn a_log_of_an_older_version_is_brought_up_to_date() {
    let new = ["in_scope", "gain", "path", "reformat", "reformatted"];
    for (version, lacking) in [(1, &new[..]), (2, &new[1..])] {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        let log = DecisionLog::open(&settings).unwrap();
        log.try_record(record("an old one")).unwrap();
        drop(log);
        let old = rusqlite::Connection::open(&settings.path).unwrap();
        for column in lacking {
            old.execute_batch(&format!("ALTER TABLE decisions DROP COLUMN {column}"))
                .unwrap();
        }
        old.pragma_update(None, "user_version", version).unwrap();
        drop(old);
        let refusal = DecisionStore::open(&settings.path).err().unwrap().to_string();
        assert!(refusal.contains("referral serve"), "{refusal}");
        let log = DecisionLog::open(&settings).unwrap();
        log.try_record(record("a new one")).unwrap();
        drop(log);
        let rows = DecisionStore::open(&settings.path).unwrap().last(2).unwrap();
        assert_eq!((rows[0].gain, rows[1].gain), (None, Some(0.125)), "{version}");
        assert_eq!(rows[1].in_scope, Some(0.95));
        assert_eq!(rows[0].path, serde_json::json!([]));
        assert_eq!(rows[1].path, serde_json::json!(["cancer", "oncology"]));
    }
}
