//! `referral eval`: measures a router on labelled queries.

mod reformat;

use super::failure::Failure;
use super::options::{ConfigOptions, GainOptions, LabelFields, RouterOptions};
use super::output::{Format, print_json, stdout};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use referral_router::cost::evaluate::{figures, predict};
use referral_router::cost::{outcomes, read_file};
use referral_router::dataset::{Reader, Row};
use referral_router::evaluate::evaluate_files;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

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
    /// Predict what a strong model gains over a weak one and report APGR, CPT50 and CPT80
    #[command(after_help = COST_EXAMPLES)]
    Cost(CostArguments),
    /// Put queries in better words and report how many keep every fact
    Reformat(reformat::Arguments),
}

const COST_EXAMPLES: &str = "\
Only the prompt is looked at to predict. Rows may lack strong_correct and weak_correct if --output is
given: then there are scores, but no figures.

Example:
  referral eval cost --data pairs.jsonl.gz --output scores.jsonl";

#[derive(Debug, Args)]
struct CostArguments {
    /// Rows {id, prompt, strong_correct, weak_correct}: JSON lines, .gz is read too
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// File to write, one line for each row: {id, score}; higher means send it to the strong model
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    head: GainOptions,
    /// Bootstrap resamples of the intervals
    #[arg(long, default_value_t = 10_000)]
    resamples: usize,
    /// Seed of the resamples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How to print the report
    #[arg(long, default_value = "text")]
    format: Format,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    match &arguments.command {
        Command::Routing {
            data,
            fields,
            router,
            plots,
            format,
        } => routing(data, fields, router, plots.as_deref(), *format, config),
        Command::Cost(arguments) => cost(arguments, config),
        Command::Reformat(arguments) => reformat::run(arguments, config),
    }
}

fn routing(
    data: &[PathBuf],
    fields: &LabelFields,
    router: &RouterOptions,
    plots: Option<&Path>,
    format: Format,
    config: &ConfigOptions,
) -> Result<(), Failure> {
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

/// A line of the scores' file.
#[derive(Serialize)]
struct Score<'a> {
    id: &'a str,
    score: f32,
}

fn cost(arguments: &CostArguments, config: &ConfigOptions) -> Result<(), Failure> {
    let rows = read_file(&arguments.data)?;
    let is_labelled = rows.iter().any(|row| row.outcome().is_some());
    if is_labelled || arguments.output.is_none() {
        // Told before the model is loaded.
        outcomes(&rows)?;
    }
    let named = |path: &Path, error| Failure::new(format!("cannot write {}: {error}", path.display()));
    let file = arguments.output.as_deref();
    let file = file.map(|path| File::create(path).map_err(|error| named(path, error)));
    let file = file.transpose()?;
    let head = arguments.head.load(&config.load()?.settings)?;
    let bar = counter("queries read")?;
    let gains = predict(&head, &rows, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if let Some(file) = file {
        let mut file = BufWriter::new(file);
        for (row, score) in rows.iter().zip(&gains) {
            let line = Score {
                id: &row.id,
                score: *score,
            };
            serde_json::to_writer(&mut file, &line).map_err(std::io::Error::from)?;
            writeln!(file)?;
        }
        file.flush()?;
    }
    if !is_labelled {
        return Ok(());
    }
    let evaluation = figures(&rows, &gains, arguments.resamples, arguments.seed)?;
    match arguments.format {
        Format::Text => Ok(write!(stdout(), "{evaluation}")?),
        Format::Json => print_json(&evaluation),
    }
}

/// A counter on stderr, drawn only on a terminal.
pub(super) fn counter(of_what: &'static str) -> Result<ProgressBar, Failure> {
    let style = ProgressStyle::with_template("{spinner} {pos} {msg} ({per_sec}, {elapsed})")?;
    Ok(ProgressBar::new_spinner().with_style(style).with_message(of_what))
}
