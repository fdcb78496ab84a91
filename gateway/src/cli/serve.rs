//! `referral serve`: the gateway in the foreground, until a signal drains it.

use super::failure::Failure;
use super::options::ConfigOptions;
use super::output::{stdout, warn};
use super::telemetry;
use crate::config::Settings;
use crate::serve::Gateway;
use clap::Args;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Instant;

/// Arguments of `referral serve`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where gRPC is served, instead of server.grpc_address; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS")]
    grpc_address: Option<SocketAddr>,
    /// Where metrics, health and JSON are served, instead of server.http_address
    #[arg(long, value_name = "ADDRESS")]
    http_address: Option<SocketAddr>,
    /// Print the addresses as one JSON line once the ports are open
    #[arg(long)]
    print_addresses: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let mut settings = config.load()?.settings;
    telemetry::start(&settings.telemetry);
    for warning in &settings.warnings {
        warn(warning);
    }
    settings.server.grpc_address = arguments.grpc_address.unwrap_or(settings.server.grpc_address);
    settings.server.http_address = arguments.http_address.unwrap_or(settings.server.http_address);
    block_on(serve(settings, arguments.print_addresses))
}

async fn serve(settings: Settings, print_addresses: bool) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let mut gateway = Gateway::open(settings).await?;
    if print_addresses {
        let mut out = stdout();
        let (grpc, http) = (gateway.grpc.to_string(), gateway.http.to_string());
        writeln!(out, "{}", serde_json::json!({"grpc": grpc, "http": http}))?;
        out.flush()?;
    }
    tracing::info!(grpc = %gateway.grpc, http = %gateway.http, "listening; loading models");
    let started = Instant::now();
    tokio::select! {
        loaded = gateway.load() => loaded?,
        () = signals.next() => {
            gateway.drain().await;
            return Ok(());
        }
    }
    tracing::info!(took = ?started.elapsed(), "serving");
    tokio::select! {
        error = gateway.failed() => return Err(error.into()),
        () = signals.next() => {}
    }
    tracing::info!(
        "draining: accepted queries may end, nobody else is admitted; a second signal ends at once"
    );
    tokio::select! {
        in_time = gateway.drain() => {
            tracing::info!(in_time, "drained");
            Ok(())
        }
        () = signals.next() => Err(Failure::new("ended at the second signal: accepted queries were cut off")),
    }
}

/// Runs a command's future. Blocking work that is still under way (a download, say) is not waited for.
pub(super) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(command);
    runtime.shutdown_background();
    done
}

/// Ctrl-C and, where there is one, SIGTERM.
pub(super) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// From now on signals end nothing by themselves.
    #[cfg(unix)]
    pub(super) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(not(unix))]
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// The next signal.
    pub(super) async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
