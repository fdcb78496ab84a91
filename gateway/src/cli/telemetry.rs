//! Log lines: to stderr, as text or JSON.

use crate::config::TelemetrySettings;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Starts log lines for this process; a second call changes nothing. `RUST_LOG` wins over the setting.
pub(crate) fn start(settings: &TelemetrySettings) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&settings.filter));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let started = if settings.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(colours).try_init()
    };
    // The only error is that log lines were started before.
    drop(started);
}
