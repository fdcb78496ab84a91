//! `referral eval`: measures a router on labelled queries.

use super::failure::Failure;
use super::options::{ConfigOptions, LabelFields, RouterOptions};
use super::output::{print_json, stdout};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use referral_router::dataset::{Reader, Row};
use referral_router::evaluate::evaluate_files;
use std::io::Write as _;
use std::path::PathBuf;

/// Arguments of `referral eval`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Route labelled queries and report accuracy, macro-F1, calibration, coverage and latency
    Routing {
        /// Rows {id, query, expert}: JSON lines, .gz is read too; give it again to measure files together, e.g. one with
        /// rows labelled <expert_end>, which call for no expert
        #[arg(long, value_name = "FILE", required = true)]
        data: Vec<PathBuf>,
        #[command(flatten)]
        fields: LabelFields,
        #[command(flatten)]
        router: RouterOptions,
        /// Draw reliability, risk–coverage and confusion as SVG into this directory
        #[arg(long, value_name = "DIR")]
        plots: Option<PathBuf>,
        /// How to print the report
        #[arg(long, default_value = "text")]
        format: Format,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let Command::Routing {
        data,
        fields,
        router,
        plots,
        format,
    } = &arguments.command;
    let fields = fields.fields()?;
    // Opened once before the model is loaded: a typo is told at once.
    for path in data {
        Reader::<Row>::open(path)?;
    }
    let router = router.load(&config.load()?.settings)?;
    let bar = counter("queries routed")?;
    let evaluation = evaluate_files(&router, data, &fields, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if let Some(directory) = plots {
        let names: Vec<_> = data
            .iter()
            .map(|path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
            .collect();
        referral_router::plots::write(&evaluation, &names.join(" + "), directory)?;
    }
    match format {
        Format::Text => Ok(write!(stdout(), "{evaluation}")?),
        Format::Json => print_json(&evaluation),
    }
}

/// A counter on stderr, drawn only on a terminal.
pub(super) fn counter(of_what: &'static str) -> Result<ProgressBar, Failure> {
    let style = ProgressStyle::with_template("{spinner} {pos} {msg} ({per_sec}, {elapsed})")?;
    Ok(ProgressBar::new_spinner().with_style(style).with_message(of_what))
}
