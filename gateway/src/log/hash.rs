//! The keyed hash that stands for a query's text.
//!
//! A plain hash of a short text can be guessed by trying texts; with a key kept apart from the
//! database it cannot. The same query gives the same hash, so repeats can still be counted.

use super::error::LogError;
use crate::config::LogSettings;
use referral_router::dataset::normalise;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Key of the hash.
pub(super) struct QueryHasher([u8; 32]);

impl QueryHasher {
    /// From `log.hash_key`, or from a key file beside the database that is made at first use.
    pub(super) fn new(settings: &LogSettings) -> Result<Self, LogError> {
        if let Some(key) = &settings.hash_key {
            return Ok(Self(blake3::derive_key(
                "referral 2026 decision log query hash",
                key.reveal().as_bytes(),
            )));
        }
        let path = PathBuf::from(format!("{}.key", settings.path.display()));
        stored_key(&path).map(Self).map_err(|error| LogError::Unusable {
            path: path.clone(),
            detail: format!("no key for query hashes: {error}. Set log.hash_key, or make the file readable"),
        })
    }

    /// Hex digest of the query's normal form.
    pub(super) fn hash(&self, query: &str) -> String {
        blake3::keyed_hash(&self.0, normalise(query).as_bytes())
            .to_hex()
            .to_string()
    }
}

fn stored_key(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(mut file) => {
            let key: [u8; 32] = rand::random();
            file.write_all(&key)?;
            file.sync_all()?;
            Ok(key)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mut key = [0; 32];
            std::fs::File::open(path)?.read_exact(&mut key)?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}
