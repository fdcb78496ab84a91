//! The one error of this crate. Variants carry data; the sentence names field, value and fix.

use std::path::PathBuf;

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LmError {
    /// A file could not be read or written.
    #[error("cannot read or write {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// A file is there but is not what it should be (corrupt, truncated, other architecture).
    #[error("{path} is not usable as {what}: {detail}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What it should have been, e.g. `a GGUF model`.
        what: &'static str,
        /// What is wrong and what to do.
        detail: String,
    },
    /// A setting or argument is out of range.
    #[error("{field}: {value} is not allowed: {fix}")]
    Invalid {
        /// The field's name.
        field: &'static str,
        /// The value given.
        value: String,
        /// What is allowed.
        fix: String,
    },
    /// The prompt and the answer asked for do not fit the model's context or the KV budget.
    #[error(
        "prompt of {prompt} tokens plus {new} new ones exceeds the limit of {limit} tokens: shorten the query or lower max_new_tokens"
    )]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// The limit.
        limit: usize,
    },
    /// The bounded queue is full; try again later.
    #[error("the engine's queue is full ({capacity} waiting): retry later or raise queue_capacity")]
    QueueFull {
        /// The queue's bound.
        capacity: usize,
    },
    /// The engine has been shut down or its thread ended.
    #[error("the engine is stopped")]
    Stopped,
    /// The deadline passed before the answer was complete.
    #[error("deadline exceeded after {generated} tokens")]
    DeadlineExceeded {
        /// Tokens generated before it passed.
        generated: usize,
    },
    /// Weights could not be fetched; the text names the command to run by hand.
    #[error("cannot fetch {model}: {detail}")]
    Fetch {
        /// The model's name or source.
        model: String,
        /// What failed and the exact command to run by hand.
        detail: String,
    },
    /// Tokenizer or chat template failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// candle failed.
    #[error("tensor arithmetic: {0}")]
    Candle(#[from] candle_core::Error),
}
