//! Weights from a Hugging Face hub, one file or a repository's safetensors.
//!
//! `hf-hub` keeps its partial downloads below `downloads/NAME/hub`, so a rerun continues them;
//! complete files wait in `downloads/NAME/files` until all are there and verified.

use super::{Fetcher, Job, create, io_error, progress, source};
use crate::Result;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};
use indicatif::ProgressBar;
use std::fs;
use std::path::{Path, PathBuf};

impl Fetcher {
    /// Returns the unverified file or directory.
    pub(super) fn fetch_hub(
        &self,
        job: &Job<'_>,
        repository: &str,
        file: Option<&str>,
        revision: Option<&str>,
    ) -> Result<PathBuf> {
        let files = job.downloads.join("files");
        create(&files)?;
        let mut by_hand = format!("hf download {repository}");
        if let Some(file) = file {
            by_hand += &format!(" {file}");
        }
        if let Some(revision) = revision {
            by_hand += &format!(" --revision {revision}");
        }
        let failed = |what: &str, error: ApiError| {
            job.error(format!(
                "{what}: {error}: run by hand, where there is a network: `{by_hand} --local-dir {}`, and then \
                 `referral models fetch {}`",
                files.display(),
                job.spec.name
            ))
        };
        let hub = self
            .open(job, repository, revision)
            .map_err(|error| failed("Hugging Face", error))?;
        let wanted = match file {
            Some(file) => vec![file.to_owned()],
            None => match hub.info() {
                Ok(info) => info
                    .siblings
                    .into_iter()
                    .map(|file| file.rfilename)
                    .filter(|f| is_wanted(f))
                    .collect(),
                // Offline, but somebody put the files there by hand: the digest will tell.
                Err(_) if is_complete(&files) => Vec::new(),
                Err(error) => return Err(failed(repository, error)),
            },
        };
        for name in &wanted {
            let place = files.join(name);
            if !place.exists() {
                let blob = download(&hub, job, name).map_err(|error| failed(name, error))?;
                place.parent().map_or(Ok(()), create)?;
                fs::rename(&blob, &place).map_err(|source| io_error(&place, source))?;
            }
        }
        Ok(file.map_or_else(|| files.clone(), |file| files.join(file)))
    }

    fn open(&self, job: &Job<'_>, repository: &str, revision: Option<&str>) -> Result<ApiRepo, ApiError> {
        let mut builder = ApiBuilder::from_env().with_progress(false);
        if let Ok(token) = std::env::var("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        if let Some(endpoint) = &self.hub {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.with_cache_dir(job.downloads.join("hub")).build()?;
        let repository = repository.to_owned();
        Ok(api.repo(match revision {
            Some(revision) => Repo::with_revision(repository, RepoType::Model, revision.to_owned()),
            None => Repo::new(repository, RepoType::Model),
        }))
    }
}

/// Returns the path of the downloaded blob.
fn download(hub: &ApiRepo, job: &Job<'_>, name: &str) -> Result<PathBuf, ApiError> {
    let message = format!("{}: {name}", job.spec.name);
    progress::announce(&message);
    let pointer = match hub.download_with_progress(name, Bytes(progress::bar(&message, 0))) {
        // A partial download that cannot be continued (complete already, or of another version).
        Err(error) if is_stale(&error) => {
            fs::remove_dir_all(job.downloads.join("hub"))?;
            hub.download_with_progress(name, Bytes(progress::bar(&message, 0)))?
        }
        other => other?,
    };
    let blob = fs::canonicalize(&pointer)?;
    fs::remove_file(&pointer)?;
    Ok(blob)
}

/// The server answers 416 when asked to continue after the last byte.
fn is_stale(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(error) => error.to_string().contains("416"),
        _ => false,
    }
}

/// Which of a repository's files the loader reads.
fn is_wanted(name: &str) -> bool {
    let is_known = matches!(
        name,
        "config.json"
            | "generation_config.json"
            | "tokenizer.json"
            | "tokenizer_config.json"
            | "special_tokens_map.json"
            | "chat_template.jinja"
            | "model.safetensors.index.json"
    );
    source::is_inner_path(name) && !name.contains('/') && (is_known || name.ends_with(".safetensors"))
}

fn is_complete(files: &Path) -> bool {
    let has_weights = fs::read_dir(files).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"))
    });
    has_weights && files.join("config.json").exists() && files.join("tokenizer.json").exists()
}

/// Our bar, driven by `hf-hub`.
struct Bytes(ProgressBar);

impl hf_hub::api::Progress for Bytes {
    fn init(&mut self, size: usize, _filename: &str) {
        self.0.set_length(size as u64);
        // Called a second time when a partial download goes on.
        self.0.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}
