//! What the user sees while a model is on its way: a bar on a terminal, one line elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Says what begins where no bar can be seen (a log file, a pipe): silence for minutes is a worry.
pub(super) fn announce(message: &str) {
    let mut stderr = std::io::stderr();
    if !stderr.is_terminal() {
        let _ = writeln!(stderr, "{message}");
    }
}

/// A bar over `total` bytes.
pub(super) fn bar(message: &str, total: u64) -> ProgressBar {
    show(
        ProgressBar::new(total),
        message,
        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )
}

/// A spinner with the bytes so far, for work whose length is unknown; its position is bytes.
pub(super) fn spinner(message: &str) -> ProgressBar {
    let spinner = show(
        ProgressBar::new_spinner(),
        message,
        "{spinner} {msg} {bytes} ({elapsed})",
    );
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

fn show(bar: ProgressBar, message: &str, template: &str) -> ProgressBar {
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.with_message(message.to_owned())
}
