//! Standard output: where commands print what they found.
//!
//! Written with `writeln!`, not `println!`, so that a reader that closes the pipe early (`| head`) ends
//! the command quietly instead of with a panic. Colours go only to a terminal, and never with NO_COLOR.

use super::failure::Failure;
use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write;

/// How a command prints its report.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// For readers.
    Text,
    /// For programs.
    Json,
}

/// Standard output, without colours where there is no terminal.
pub(crate) type Output = anstream::AutoStream<std::io::StdoutLock<'static>>;

/// Headings of tables.
pub(crate) const HEADING: Style = Style::new().bold();
/// What is as it should be.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What deserves a look.
pub(crate) const NOTICE: Style = AnsiColor::Yellow.on_default();
/// What matters less.
pub(crate) const FAINT: Style = Style::new().dimmed();

/// Standard output for one command.
pub(crate) fn stdout() -> Output {
    anstream::AutoStream::auto(std::io::stdout()).lock()
}

/// Prints a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from)?;
    Ok(writeln!(out)?)
}

/// Prints a warning to stderr.
pub(crate) fn warn(message: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(anstream::stderr(), "{NOTICE}warning:{NOTICE:#} {message}");
}

/// Prints rows in columns as wide as their widest cell; the last column is left ragged.
pub(crate) fn print_table(headings: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        let heading = headings.get(column).map_or(0, |heading| heading.len());
        cells.chain([heading]).max().unwrap_or(0)
    };
    let last = headings.len().saturating_sub(1);
    let line = |cells: &mut dyn Iterator<Item = &str>| -> String {
        let padded = cells.enumerate().map(|(column, cell)| {
            let missing = if column == last {
                0
            } else {
                width(column) - cell.chars().count()
            };
            format!("{cell}{}", " ".repeat(missing))
        });
        padded.collect::<Vec<_>>().join("  ")
    };
    let mut out = stdout();
    writeln!(out, "{HEADING}{}{HEADING:#}", line(&mut headings.iter().copied()))?;
    for row in rows {
        writeln!(out, "{}", line(&mut row.iter().map(String::as_str)))?;
    }
    Ok(())
}
