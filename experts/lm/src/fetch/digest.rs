//! SHA-256 of files and directories, and the stamp that saves hashing them at every start.
//!
//! The stamp is trusted only while every file has the size and modification time it had when it was
//! verified. That catches damage and replacement by accident, not somebody who may write to the cache.

use super::{io_error, progress};
use crate::{LmError, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

const STAMP: &str = ".verified";

/// What happens to a file that is not the pinned one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnMismatch {
    /// It is the cache's own: gone, so that a rerun fetches it anew.
    Remove,
    /// It is the user's: it stays.
    Keep,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    sha256: String,
    files: Vec<Entry>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Entry {
    name: String,
    bytes: u64,
    modified_ns: u128,
}

/// The lower-case hex SHA-256 of a file. For a directory: of the list that `sha256sum *` prints in it
/// (files only, names in byte order, hidden ones left out), so `sha256sum * | sha256sum` under
/// `LC_ALL=C` gives the same.
///
/// # Errors
/// [`LmError::Io`] if something cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return of_file(path);
    }
    let mut list = String::new();
    for file in files(path)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(list, "{}  {name}", of_file(&file)?);
    }
    Ok(hex(Sha256::digest(list.as_bytes()).as_slice()))
}

/// Checks a file or directory against the pinned digest.
pub(super) fn verify(path: &Path, expected: &str, on_mismatch: OnMismatch) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let spinner = progress::spinner(&format!("verifying {name}"));
    spinner.set_position(super::directory_bytes(path));
    let found = sha256(path)?;
    spinner.finish_and_clear();
    if found == expected {
        return Ok(());
    }
    let consequence = match on_mismatch {
        OnMismatch::Keep => "give the right file or correct the pinned sha256",
        OnMismatch::Remove => {
            let removed = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
            removed.map_err(|source| io_error(path, source))?;
            "the file was removed; fetch it again, and if that does not help correct the pinned sha256"
        }
    };
    Err(LmError::BadFile {
        path: path.to_owned(),
        what: "the pinned model",
        detail: format!("its SHA-256 is {found}, pinned is {expected}: {consequence}"),
    })
}

/// Whether `path` was verified with this digest and has not been touched since.
pub(super) fn is_verified(home: &Path, path: &Path, sha256: &str) -> bool {
    let Ok(text) = fs::read(home.join(STAMP)) else {
        return false;
    };
    let Ok(stamp) = serde_json::from_slice::<Stamp>(&text) else {
        return false;
    };
    now(path, sha256).is_ok_and(|now| now == stamp)
}

/// Remembers that `path` has this digest.
pub(super) fn stamp(home: &Path, path: &Path, sha256: &str) -> Result<()> {
    let (stamp, place) = (now(path, sha256)?, home.join(STAMP));
    let text = serde_json::to_vec(&stamp).map_err(|error| io_error(&place, error.into()))?;
    fs::write(&place, text).map_err(|source| io_error(&place, source))
}

fn now(path: &Path, sha256: &str) -> Result<Stamp> {
    let listed = if path.is_dir() {
        files(path)?
    } else {
        vec![path.to_owned()]
    };
    let mut entries = Vec::with_capacity(listed.len());
    for file in listed {
        let metadata = fs::metadata(&file).map_err(|source| io_error(&file, source))?;
        let modified = metadata.modified().map_err(|source| io_error(&file, source))?;
        entries.push(Entry {
            name: file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            bytes: metadata.len(),
            modified_ns: modified
                .duration_since(UNIX_EPOCH)
                .map_or(0, |age| age.as_nanos()),
        });
    }
    Ok(Stamp {
        path: path.to_owned(),
        sha256: sha256.to_owned(),
        files: entries,
    })
}

/// A directory's own files in byte order, without hidden ones.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(|source| io_error(directory, source))? {
        let path = entry.map_err(|source| io_error(directory, source))?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_file() && !is_hidden {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn of_file(path: &Path) -> Result<String> {
    let read = |source| io_error(path, source);
    let mut file = File::open(path).map_err(read)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).map_err(read)? {
            0 => return Ok(hex(hasher.finalize().as_slice())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
