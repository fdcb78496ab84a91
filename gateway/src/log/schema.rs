//! The database: tables, version, and opening it with errors that say what to do.

use super::error::LogError;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// Version of the tables, kept in SQLite's `user_version`.
const VERSION: i64 = 3;
/// What a table of that version lacks, in the order in which a new table has it as its last columns.
const ADDED: &[(i64, &str)] = &[
    (1, "ALTER TABLE decisions ADD COLUMN in_scope REAL"),
    (2, "ALTER TABLE decisions ADD COLUMN gain REAL"),
    (
        2,
        "ALTER TABLE decisions ADD COLUMN path TEXT NOT NULL DEFAULT '[]'",
    ),
    (2, "ALTER TABLE decisions ADD COLUMN reformat TEXT"),
    (2, "ALTER TABLE decisions ADD COLUMN reformatted TEXT"),
];

const TABLES: &str = "
CREATE TABLE decisions (
    id TEXT PRIMARY KEY,
    received_us INTEGER NOT NULL,
    trace_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    query_hash TEXT NOT NULL,
    query TEXT,
    labels TEXT NOT NULL,
    expert TEXT,
    likeliest TEXT,
    confidence REAL,
    probabilities TEXT NOT NULL,
    abstained INTEGER NOT NULL,
    reasons TEXT NOT NULL,
    fallbacks TEXT NOT NULL,
    router_version TEXT NOT NULL,
    config_version TEXT NOT NULL,
    router_us INTEGER NOT NULL,
    time_to_first_token_us INTEGER,
    total_us INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    mean_log_probability REAL,
    outcome TEXT NOT NULL,
    error_kind TEXT,
    finish_reason TEXT,
    in_scope REAL,
    gain REAL,
    path TEXT NOT NULL DEFAULT '[]',
    reformat TEXT,
    reformatted TEXT
) STRICT;
CREATE INDEX decisions_received ON decisions (received_us);
CREATE TABLE feedback (
    decision_id TEXT NOT NULL REFERENCES decisions (id) ON DELETE CASCADE,
    idempotency_key TEXT NOT NULL,
    received_us INTEGER NOT NULL,
    score REAL,
    correct_expert TEXT,
    comment TEXT,
    PRIMARY KEY (decision_id, idempotency_key)
) STRICT;
";

/// Opens for writing; makes directory, file (readable by its owner only) and tables where they are missing.
pub(super) fn open_for_writing(path: &Path) -> Result<Connection, LogError> {
    let unusable = |detail: String| LogError::Unusable {
        path: path.to_owned(),
        detail,
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .map_err(|e| unusable(format!("cannot make its directory: {e}. Set log.path elsewhere")))?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
        .open(path)
        .map_err(|e| unusable(format!("{e}. Make it writable or set log.path elsewhere")))?;
    prepare(path).map_err(|error| match error {
        Refusal::Sqlite(error) => unusable(explain(&error)),
        Refusal::Version(found) => unusable(version_message(found)),
        Refusal::Foreign => unusable("it is another program's database. Set log.path elsewhere".to_owned()),
    })
}

/// Opens an existing log for reading only.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, LogError> {
    let unusable = |detail: String| LogError::Unusable {
        path: path.to_owned(),
        detail,
    };
    if !path.exists() {
        return Err(unusable(
            "there is no such file: nothing was logged yet, or log.path is another".to_owned(),
        ));
    }
    let open = || {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        Ok((user_version(&connection)?, connection))
    };
    match open() {
        Ok((VERSION, connection)) => Ok(connection),
        Ok((found, _)) => Err(unusable(version_message(found))),
        Err(error) => Err(unusable(explain(&error))),
    }
}

enum Refusal {
    Sqlite(rusqlite::Error),
    Version(i64),
    Foreign,
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn prepare(path: &Path) -> Result<Connection, Refusal> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    // NORMAL in WAL mode: a commit survives a crash of the process; a power cut may take the last ones.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Taking the write lock here finds a locked or read-only database at start instead of at the first query.
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    match user_version(&transaction)? {
        VERSION => {}
        older @ 1..VERSION => {
            for (_, column) in ADDED.iter().filter(|(lacking, _)| *lacking >= older) {
                transaction.execute_batch(column)?;
            }
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        0 => {
            let tables: i64 =
                transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            if tables > 0 {
                return Err(Refusal::Foreign);
            }
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        found => return Err(Refusal::Version(found)),
    }
    transaction.commit()?;
    Ok(connection)
}

fn user_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn version_message(found: i64) -> String {
    if found == 0 {
        return "it is no decision log. Set log.path to one".to_owned();
    }
    if (1..VERSION).contains(&found) {
        return format!(
            "its tables have version {found}: start `referral serve` once to bring them up to date"
        );
    }
    format!("its tables have version {found}, this build knows {VERSION}: use the referral that wrote it")
}

fn explain(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            format!("{error}. Move it away to start a new log, or restore it from a copy")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("{error}: another process holds it. End that process or set log.path elsewhere")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            format!("{error}. Make the file and its directory writable or set log.path elsewhere")
        }
        _ => error.to_string(),
    }
}
