//! What can go wrong with the decision log.

use std::path::PathBuf;
use uuid::Uuid;

/// A failure of the decision log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database could not be opened or used at start.
    #[error("decision log {path} cannot be used: {detail}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        detail: String,
    },
    /// SQLite failed later on.
    #[error("decision log: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Feedback for a decision that is not there.
    #[error("decision {0} is not in the log: use the id from the answer's decision")]
    UnknownDecision(Uuid),
    /// The database could not be written.
    #[error("decision log could not be written: {detail}")]
    NotWritten {
        /// SQLite's word.
        detail: String,
    },
    /// The writer has ended.
    #[error("the decision log is closed")]
    Closed,
}
