//! The decision log: one row in SQLite for each decision, written off the query's path.
//!
//! A writer thread of its own takes records from a bounded queue and commits them in batches, so no
//! async worker ever waits for the disk. [`DecisionLog::record`] waits where the queue is full:
//! call it after the last chunk is sent, and a slow disk slows accounting but never answers, and
//! loses nothing. A crash of the process (not a drain) loses at most what was queued and the batch
//! not yet committed; what was committed survives, in WAL mode. By default the query is kept as a keyed
//! hash only.

mod error;
mod hash;
mod record;
mod schema;
mod store;
mod writer;

pub use error::LogError;
pub use record::{DecisionRecord, Endpoint, FallbackRecord, Feedback, Outcome};
pub use store::{DecisionStore, StoredDecision, StoredFeedback};
pub use writer::DecisionLog;

#[cfg(test)]
mod tests;
