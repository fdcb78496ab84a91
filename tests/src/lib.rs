//! End-to-end tests: the real binary, real servers, over real sockets.
//!
//! This crate is only a harness ([`Gateway`] starts the built `referral` binary on free ports and ends
//! it again); the tests are in `tests/tests/`, one file a promise.

use anyhow::{Context, bail};
use referral_proto::v1::referral_service_client::ReferralServiceClient;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::Channel;

/// A client of the gateway.
pub type Client = ReferralServiceClient<Channel>;

/// How long a gateway may take to load its models on a busy two-core machine, the one-time weight
/// download included.
const START_LIMIT: Duration = Duration::from_secs(300);

/// A running gateway; ended when dropped.
pub struct Gateway {
    child: Option<Child>,
    /// gRPC address, e.g. `http://127.0.0.1:41234`.
    pub grpc: String,
    /// HTTP address.
    pub http: String,
    /// Holds configuration and decision log.
    pub directory: TempDir,
}

/// The built binary: beside this test binary's `deps` directory. Cargo builds it for `cargo test`
/// because the gateway has an integration test of its own.
pub fn binary() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("test binary outside a target directory")?;
    let binary = profile.join("referral");
    if !binary.exists() {
        bail!(
            "{} is missing: run `cargo test` for the whole workspace, or build the binary first",
            binary.display()
        );
    }
    Ok(binary)
}

/// A command of the binary with a clean environment for settings: its decision log and state are in `directory`.
pub fn command(directory: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars() {
        if name.starts_with("REFERRAL_") && name != "REFERRAL_CACHE" {
            command.env_remove(name);
        }
    }
    command
        .env("NO_COLOR", "1")
        .env("REFERRAL__LOG__PATH", directory.join("decisions.sqlite"))
        .current_dir(directory);
    // Several gateways run side by side in the tests, and candle's pool spins while it waits: with one
    // compute thread each, they don't keep each other off the cores.
    command
        .env("CANDLE_NUM_THREADS", "1")
        .env("RAYON_NUM_THREADS", "1");
    Ok(command)
}

impl Gateway {
    /// Starts `referral serve` with `yaml` laid over the defaults, on free ports, and waits until it is ready.
    pub async fn start(yaml: &str) -> anyhow::Result<Self> {
        let mut gateway = Self::spawn(yaml)?;
        gateway.wait_ready().await?;
        Ok(gateway)
    }

    /// Starts it without waiting for the models.
    pub fn spawn(yaml: &str) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("referral.yaml");
        std::fs::write(&config, format!("version: 1\n{yaml}"))?;
        let mut child = command(directory.path())?
            .args([
                "serve",
                "--print-addresses",
                "--grpc-address",
                "127.0.0.1:0",
                "--http-address",
                "127.0.0.1:0",
            ])
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(Stdio::from(std::fs::File::create(
                directory.path().join("stderr.log"),
            )?))
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let gateway = |grpc: &str, http: &str| Self {
            child: Some(child),
            grpc: format!("http://{grpc}"),
            http: format!("http://{http}"),
            directory,
        };
        let Ok(addresses) = serde_json::from_str::<serde_json::Value>(&line) else {
            let failed = gateway("", "");
            bail!(
                "the gateway printed no addresses but {line:?}; stderr: {}",
                failed.stderr()
            );
        };
        let text = |key: &str| {
            addresses[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {key} in {line}"))
        };
        Ok(gateway(&text("grpc")?, &text("http")?))
    }

    /// Waits until `/readyz` says so.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < START_LIMIT {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                bail!(
                    "the gateway ended with {status} before it was ready: {}",
                    self.stderr()
                );
            }
            if let Ok(response) = http().get(format!("{}/readyz", self.http)).send().await
                && response.status().is_success()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!(
            "the gateway was not ready after {START_LIMIT:?}: {}",
            self.stderr()
        )
    }

    /// A new client on a connection of its own.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.grpc.clone()).await?)
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stderr.log")).unwrap_or_default()
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        Ok(http()
            .get(format!("{}/metrics", self.http))
            .send()
            .await?
            .error_for_status()?
            .text()
            .await?)
    }

    /// The sum over all series of `name` whose labels contain `filter`.
    pub async fn metric(&self, name: &str, filter: &str) -> anyhow::Result<f64> {
        Ok(sum_series(&self.metrics().await?, name, filter))
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> anyhow::Result<()> {
        let pid = self.child.as_ref().context("already ended")?.id();
        let status = Command::new("kill").args(["-TERM", &pid.to_string()]).status()?;
        anyhow::ensure!(status.success(), "kill -TERM {pid}: {status}");
        Ok(())
    }

    /// Waits for it to end by itself and returns its exit code.
    pub async fn exit_code(&mut self, limit: Duration) -> anyhow::Result<i32> {
        let start = Instant::now();
        let child = self.child.as_mut().context("already ended")?;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return status.code().context("ended by a signal");
            }
            anyhow::ensure!(start.elapsed() < limit, "still running after {limit:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Nothing to do about a child that is already gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs the binary to its end: exit code, stdout, stderr.
pub fn run(
    directory: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> anyhow::Result<(i32, String, String)> {
    let mut child = command(directory)?
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Both pipes are read at once: a child that fills one would otherwise wait for ever.
    let mut out = child.stdout.take().context("no stdout")?;
    let mut err = child.stderr.take().context("no stderr")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let mut stdout = String::new();
    out.read_to_string(&mut stdout)?;
    let stderr = reader
        .join()
        .map_err(|_| anyhow::anyhow!("reader of stderr panicked"))??;
    Ok((child.wait()?.code().context("ended by a signal")?, stdout, stderr))
}

/// The sum over all series of `name` in a Prometheus text whose labels contain `filter`.
pub fn sum_series(text: &str, name: &str, filter: &str) -> f64 {
    text.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && line.contains(filter)
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// An HTTP client; TLS is set up although only loopback is asked, because the client wants a provider.
pub fn http() -> reqwest::Client {
    // A second installation fails because the first stands: that is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

#[cfg(test)]
mod tests {
    use super::sum_series;

    #[test]
    fn sums_only_the_named_metric() {
        let text = "a_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_more 7\na 1\n";
        assert_eq!(sum_series(text, "a_total", ""), 5.0);
        assert_eq!(sum_series(text, "a_total", "x=\"2\""), 3.0);
        assert_eq!(sum_series(text, "a", ""), 1.0);
    }
}
