//! The reading side: what `referral decisions` shows. Opens the file read-only, beside a running gateway.

use super::error::LogError;
use super::schema;
use rusqlite::{Connection, OptionalExtension as _, Row};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A decision as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredDecision {
    /// Grows with each row; orders decisions as they were written.
    #[serde(skip)]
    pub row: i64,
    /// UUIDv7.
    pub id: String,
    /// When the query was accepted, RFC 3339 in UTC.
    pub received: String,
    /// W3C trace id.
    pub trace_id: String,
    /// Which call it was.
    pub endpoint: String,
    /// Keyed hash of the query's normal form.
    pub query_hash: String,
    /// The query, if texts are stored.
    pub query: Option<String>,
    /// The caller's labels.
    pub labels: Value,
    /// Who answered.
    pub expert: Option<String>,
    /// The router's likeliest expert.
    pub likeliest: Option<String>,
    /// The router's confidence.
    pub confidence: Option<f64>,
    /// Probability that the query is anything for the experts.
    pub in_scope: Option<f64>,
    /// Predicted gain of the strong expert over the weak one, if the choice fell on such a pair.
    pub gain: Option<f64>,
    /// The names along which routers referred to the expert, itself the last.
    pub path: Value,
    /// Probability by expert, likeliest first.
    pub probabilities: Value,
    /// Whether the router abstained.
    pub abstained: bool,
    /// Why.
    pub reasons: Value,
    /// Experts that were asked and gave no text.
    pub fallbacks: Value,
    /// Digest of the router's files.
    pub router_version: String,
    /// Digest of the settings.
    pub config_version: String,
    /// Microseconds in the router.
    pub router_us: i64,
    /// Microseconds to the first text.
    pub time_to_first_token_us: Option<i64>,
    /// Microseconds to the end.
    pub total_us: i64,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Mean natural-log probability of the answer's tokens.
    pub mean_log_probability: Option<f64>,
    /// What became of it.
    pub outcome: String,
    /// Kind of failure.
    pub error_kind: Option<String>,
    /// Why the answer ended.
    pub finish_reason: Option<String>,
    /// What became of putting the query in better words.
    pub reformat: Option<String>,
    /// The better words, if they were used and texts are stored.
    pub reformatted: Option<String>,
}

/// Feedback as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredFeedback {
    /// When it came, RFC 3339 in UTC.
    pub received: String,
    /// -1 to 1.
    pub score: Option<f64>,
    /// Who should have answered.
    pub correct_expert: Option<String>,
    /// Free text, if texts are stored.
    pub comment: Option<String>,
}

/// A decision log opened for reading.
pub struct DecisionStore {
    connection: Connection,
}

impl DecisionStore {
    /// Opens the file, which must be there.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Ok(Self {
            connection: schema::open_for_reading(path)?,
        })
    }

    /// The last `count` decisions, oldest first.
    pub fn last(&self, count: usize) -> Result<Vec<StoredDecision>, LogError> {
        let mut statement = self
            .connection
            .prepare("SELECT rowid, * FROM decisions ORDER BY rowid DESC LIMIT ?1")?;
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let mut rows = statement
            .query_map([count], decision)?
            .collect::<Result<Vec<_>, _>>()?;
        rows.reverse();
        Ok(rows)
    }

    /// Decisions written after `row`, oldest first.
    pub fn after(&self, row: i64) -> Result<Vec<StoredDecision>, LogError> {
        let mut statement = self
            .connection
            .prepare("SELECT rowid, * FROM decisions WHERE rowid > ?1 ORDER BY rowid")?;
        Ok(statement
            .query_map([row], decision)?
            .collect::<Result<Vec<_>, _>>()?)
    }

    /// One decision and its feedback.
    pub fn get(&self, id: &str) -> Result<Option<(StoredDecision, Vec<StoredFeedback>)>, LogError> {
        let mut statement = self
            .connection
            .prepare("SELECT rowid, * FROM decisions WHERE id = ?1")?;
        let Some(found) = statement.query_row([id], decision).optional()? else {
            return Ok(None);
        };
        let mut statement = self.connection.prepare(
            "SELECT received_us, score, correct_expert, comment FROM feedback WHERE decision_id = ?1 ORDER BY 1",
        )?;
        let feedback = statement.query_map([id], |row| {
            Ok(StoredFeedback {
                received: rfc3339(row.get(0)?),
                score: row.get(1)?,
                correct_expert: row.get(2)?,
                comment: row.get(3)?,
            })
        })?;
        Ok(Some((found, feedback.collect::<Result<Vec<_>, _>>()?)))
    }

    /// Hands every decision received at `since` or later to `sink`, oldest first, one at a time.
    pub fn each_since<E: From<LogError>>(
        &self,
        since: SystemTime,
        mut sink: impl FnMut(StoredDecision) -> Result<(), E>,
    ) -> Result<(), E> {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let mut statement = self
            .connection
            .prepare("SELECT rowid, * FROM decisions WHERE received_us >= ?1 ORDER BY received_us, rowid")
            .map_err(LogError::from)?;
        let since = i64::try_from(since).unwrap_or(i64::MAX);
        for row in statement.query_map([since], decision).map_err(LogError::from)? {
            sink(row.map_err(LogError::from)?)?;
        }
        Ok(())
    }
}

fn decision(row: &Row<'_>) -> rusqlite::Result<StoredDecision> {
    let json = |column: &str| -> rusqlite::Result<Value> {
        Ok(serde_json::from_str(&row.get::<_, String>(column)?).unwrap_or_default())
    };
    Ok(StoredDecision {
        row: row.get("rowid")?,
        id: row.get("id")?,
        received: rfc3339(row.get("received_us")?),
        trace_id: row.get("trace_id")?,
        endpoint: row.get("endpoint")?,
        query_hash: row.get("query_hash")?,
        query: row.get("query")?,
        labels: json("labels")?,
        expert: row.get("expert")?,
        likeliest: row.get("likeliest")?,
        confidence: row.get("confidence")?,
        in_scope: row.get("in_scope")?,
        gain: row.get("gain")?,
        path: json("path")?,
        probabilities: json("probabilities")?,
        abstained: row.get("abstained")?,
        reasons: json("reasons")?,
        fallbacks: json("fallbacks")?,
        router_version: row.get("router_version")?,
        config_version: row.get("config_version")?,
        router_us: row.get("router_us")?,
        time_to_first_token_us: row.get("time_to_first_token_us")?,
        total_us: row.get("total_us")?,
        prompt_tokens: row.get("prompt_tokens")?,
        completion_tokens: row.get("completion_tokens")?,
        mean_log_probability: row.get("mean_log_probability")?,
        outcome: row.get("outcome")?,
        error_kind: row.get("error_kind")?,
        finish_reason: row.get("finish_reason")?,
        reformat: row.get("reformat")?,
        reformatted: row.get("reformatted")?,
    })
}

fn rfc3339(unix_us: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_micros(u64::try_from(unix_us).unwrap_or(0));
    humantime::format_rfc3339_millis(time).to_string()
}
