//! The one error of this crate.

use std::path::PathBuf;

/// What can go wrong in the router.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouterError {
    /// A file could not be read or written.
    #[error("cannot read or write {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// A file is there but is not what it should be.
    #[error("{path} is not usable as {what}: {detail}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What it should have been, e.g. `a router`.
        what: &'static str,
        /// What is wrong and what to do.
        detail: String,
    },
    /// A row of a data file is wrong.
    #[error("{path} line {line}: {detail}")]
    BadRow {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
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
    /// The language model failed.
    #[error(transparent)]
    Lm(#[from] referral_lm::LmError),
}
