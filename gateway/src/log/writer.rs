//! The writing side: a bounded queue and one thread that commits batches.

use super::error::LogError;
use super::hash::QueryHasher;
use super::record::{DecisionRecord, Feedback};
use super::schema;
use crate::config::LogSettings;
use referral_experts::Finish;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Records of one transaction, at most.
const BATCH: usize = 256;
/// Times a batch is tried before it is given up (a full disk, say).
const ATTEMPTS: u32 = 5;

enum Command {
    Record(Box<DecisionRecord>),
    Feedback(Feedback, oneshot::Sender<Result<bool, LogError>>),
    Flush(oneshot::Sender<()>),
}

/// The decision log's writing side. Dropping it writes what is queued and waits for that; in async code
/// `flush` first, so that the wait is short.
pub struct DecisionLog {
    queue: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    lost: Arc<AtomicU64>,
}

impl DecisionLog {
    /// Opens or makes the database and starts the writer. Errors name what keeps it from being used.
    pub fn open(settings: &LogSettings) -> Result<Self, LogError> {
        let connection = schema::open_for_writing(&settings.path)?;
        let hasher = QueryHasher::new(settings)?;
        let (queue, commands) = mpsc::channel(settings.queue_capacity);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            connection,
            hasher,
            store_text: settings.store_text,
            retention: settings.retention,
            last_cleaning: None,
            lost: lost.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("decision-log".to_owned())
            .spawn(move || writer.run(commands))
            .map_err(|e| LogError::Unusable {
                path: settings.path.clone(),
                detail: e.to_string(),
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            lost,
        })
    }

    /// Queues a record; waits while the queue is full. Call it when the caller has its answer.
    pub async fn record(&self, record: DecisionRecord) -> Result<(), LogError> {
        self.send(Command::Record(Box::new(record))).await
    }

    /// Queues a record without waiting (for destructors); gives it back if the queue is full or closed.
    pub fn try_record(&self, record: DecisionRecord) -> Result<(), Box<DecisionRecord>> {
        let queue = self.queue.as_ref();
        let command = Command::Record(Box::new(record));
        let refused = match queue.map(|queue| queue.try_send(command)) {
            Some(Err(
                mpsc::error::TrySendError::Full(command) | mpsc::error::TrySendError::Closed(command),
            )) => command,
            _ => return Ok(()),
        };
        if let Command::Record(record) = refused {
            Err(record)
        } else {
            Ok(())
        }
    }

    /// Stores feedback; `false` if its key was known already. Returns when it is committed.
    pub async fn feedback(&self, feedback: Feedback) -> Result<bool, LogError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Feedback(feedback, reply)).await?;
        answer.await.map_err(|_| LogError::Closed)?
    }

    /// Returns when all that was queued before is committed.
    pub async fn flush(&self) -> Result<(), LogError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Flush(reply)).await?;
        answer.await.map_err(|_| LogError::Closed)
    }

    /// Records that wait to be written.
    pub fn waiting(&self) -> usize {
        self.queue
            .as_ref()
            .map_or(0, |queue| queue.max_capacity() - queue.capacity())
    }

    /// Records given up since the start because the database could not be written; each was reported.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    async fn send(&self, command: Command) -> Result<(), LogError> {
        self.queue
            .as_ref()
            .ok_or(LogError::Closed)?
            .send(command)
            .await
            .map_err(|_| LogError::Closed)
    }
}

impl Drop for DecisionLog {
    fn drop(&mut self) {
        self.queue = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the decision log's writer panicked");
        }
    }
}

struct Writer {
    connection: Connection,
    hasher: QueryHasher,
    store_text: bool,
    retention: Option<Duration>,
    last_cleaning: Option<Instant>,
    lost: Arc<AtomicU64>,
}

/// What became of one command of a batch.
enum Written {
    Record,
    Feedback(bool),
    UnknownDecision(Uuid),
}

impl Writer {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.delete_expired();
        while let Some(first) = commands.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH {
                let Ok(next) = commands.try_recv() else { break };
                batch.push(next);
            }
            self.commit(batch);
            if self
                .last_cleaning
                .is_none_or(|last| last.elapsed() >= Duration::from_secs(3600))
            {
                self.delete_expired();
            }
        }
    }

    fn commit(&mut self, batch: Vec<Command>) {
        let mut written = self.try_commit(&batch);
        for attempt in 1..ATTEMPTS {
            if written.is_ok() {
                break;
            }
            // Nobody unparks this thread: it is a wait before the next attempt.
            std::thread::park_timeout(Duration::from_millis(100) * attempt);
            written = self.try_commit(&batch);
        }
        match written {
            Ok(written) => batch
                .into_iter()
                .zip(written)
                .for_each(|(command, written)| reply(command, written)),
            Err(error) => self.give_up(batch, &error),
        }
    }

    fn try_commit(&mut self, batch: &[Command]) -> rusqlite::Result<Vec<Written>> {
        let transaction = self.connection.transaction()?;
        let mut written = Vec::with_capacity(batch.len());
        for command in batch {
            written.push(match command {
                Command::Record(record) => {
                    insert(
                        &transaction,
                        record,
                        &self.hasher.hash(&record.query),
                        self.store_text,
                    )?;
                    Written::Record
                }
                Command::Feedback(feedback, _) => insert_feedback(&transaction, feedback, self.store_text)?,
                Command::Flush(_) => Written::Record,
            });
        }
        transaction.commit()?;
        Ok(written)
    }

    fn give_up(&self, batch: Vec<Command>, error: &rusqlite::Error) {
        for command in batch {
            match command {
                Command::Record(record) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(decision = %record.id, %error, "decision could not be logged and is lost");
                }
                Command::Feedback(_, reply) => {
                    // The caller may have gone; nobody else waits for this.
                    let _ = reply.send(Err(LogError::NotWritten {
                        detail: error.to_string(),
                    }));
                }
                Command::Flush(reply) => drop(reply.send(())),
            }
        }
    }

    fn delete_expired(&mut self) {
        self.last_cleaning = Some(Instant::now());
        let Some(oldest) = self
            .retention
            .and_then(|kept| SystemTime::now().checked_sub(kept))
        else {
            return;
        };
        match self
            .connection
            .execute("DELETE FROM decisions WHERE received_us < ?1", [unix_us(oldest)])
        {
            Ok(0) => {}
            Ok(decisions) => tracing::info!(decisions, "deleted decisions older than log.retention"),
            Err(error) => tracing::warn!(%error, "cannot delete decisions older than log.retention"),
        }
    }
}

fn reply(command: Command, written: Written) {
    match (command, written) {
        (Command::Feedback(_, reply), Written::Feedback(is_new)) => drop(reply.send(Ok(is_new))),
        (Command::Feedback(_, reply), Written::UnknownDecision(id)) => {
            drop(reply.send(Err(LogError::UnknownDecision(id))));
        }
        (Command::Flush(reply), _) => drop(reply.send(())),
        _ => {}
    }
}

fn insert(
    transaction: &Transaction<'_>,
    record: &DecisionRecord,
    query_hash: &str,
    store_text: bool,
) -> rusqlite::Result<()> {
    let probabilities: Map<String, Value> = record
        .probabilities
        .iter()
        .map(|(name, p)| (name.clone(), shortest(*p).into()))
        .collect();
    let mut statement = transaction.prepare_cached(
        "INSERT OR IGNORE INTO decisions (
            id, received_us, trace_id, endpoint, query_hash, query, labels, expert, likeliest, confidence, probabilities,
            abstained, reasons, fallbacks, router_version, config_version, router_us, time_to_first_token_us, total_us,
            prompt_tokens, completion_tokens, mean_log_probability, outcome, error_kind, finish_reason, in_scope,
            gain, path, reformat, reformatted
         ) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
    )?;
    statement.execute(params![
        record.id.to_string(),
        unix_us(record.received),
        record.trace_id,
        record.endpoint.as_str(),
        query_hash,
        store_text.then_some(&record.query),
        json(&record.labels),
        record.expert,
        record.probabilities.first().map(|(name, _)| name),
        record.confidence.map(shortest),
        Value::Object(probabilities).to_string(),
        record.abstained,
        json(&record.reasons),
        json(&record.fallbacks),
        record.router_version,
        record.config_version,
        micros(record.router_latency),
        record.time_to_first_token.map(micros),
        micros(record.total),
        record.usage.prompt,
        record.usage.completion,
        record.mean_log_probability.map(shortest),
        record.outcome.as_str(),
        record.error_kind,
        record.finish.map(|finish| match finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ContentFilter => "content_filter",
        }),
        record.in_scope.map(shortest),
        record.gain.map(shortest),
        json(&record.path),
        record.reformat,
        record.reformatted.as_ref().filter(|_| store_text),
    ])?;
    Ok(())
}

fn insert_feedback(
    transaction: &Transaction<'_>,
    feedback: &Feedback,
    store_text: bool,
) -> rusqlite::Result<Written> {
    let id = feedback.decision_id.to_string();
    let mut known = transaction.prepare_cached("SELECT 1 FROM decisions WHERE id = ?1")?;
    if known.query_row([&id], |_| Ok(())).optional()?.is_none() {
        return Ok(Written::UnknownDecision(feedback.decision_id));
    }
    let mut statement =
        transaction.prepare_cached("INSERT OR IGNORE INTO feedback VALUES (?1,?2,?3,?4,?5,?6)")?;
    let rows = statement.execute(params![
        id,
        feedback.idempotency_key,
        unix_us(SystemTime::now()),
        feedback.score.map(shortest),
        feedback.correct_expert,
        feedback.comment.as_ref().filter(|_| store_text),
    ])?;
    Ok(Written::Feedback(rows > 0))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// The double that prints like the float, so that 0.7 stays 0.7 in the database.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| f64::from(number))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn unix_us(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, micros)
}
