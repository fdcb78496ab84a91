//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// A layer is no YAML mapping.
    #[error("{origin}: {detail}")]
    Syntax {
        /// The file.
        origin: String,
        /// Where and what.
        detail: String,
    },
    /// Keys or values are wrong; all that were found.
    #[error("{0}")]
    Invalid(Problems),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, dotted, e.g. `server.grpc_address`.
    pub path: String,
    /// The value, what is wrong with it, and the fix.
    pub message: String,
    /// The file or environment variable that says so; `None` where no single layer does.
    pub origin: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        self.origin
            .as_ref()
            .map_or(Ok(()), |origin| write!(f, " (in {origin})"))
    }
}

/// All that is wrong, in the order of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "configuration: {one}"),
            many => {
                write!(f, "configuration has {} problems:", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}
