//! `referral eval reformat`: how many queries the model puts in better words without losing a fact.

use super::super::failure::Failure;
use super::super::options::{ConfigOptions, ModelOptions};
use super::super::output::{Format, print_json, stdout};
use super::super::serve::block_on;
use super::counter;
use crate::compute::reformatter::{self, EngineReformatter};
use crate::pipeline::Reformatter as _;
use clap::Args;
use futures::{StreamExt as _, stream};
use referral_lm::engine::Engine;
use referral_router::reformat::{Outcome, Pair, argument, facts, judge};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Queries that the engine works on at a time.
const AT_A_TIME: usize = 4;
/// Longest wait for one query's words.
const LIMIT: Duration = Duration::from_secs(60);

/// Arguments of `referral eval reformat`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Rows {id, expert, query, reformatted}: JSON lines, .gz is read too
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Adapter written by `referral train reformat`; the default is the configuration's, else the shipped one
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// File to write, one line for each row: {id, outcome, written}
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to print the report
    #[arg(long, default_value = "text")]
    format: Format,
    #[command(flatten)]
    model: ModelOptions,
}

/// What is reported.
#[derive(Serialize)]
struct Report {
    rows: usize,
    /// Rows whose text could be parsed.
    parsed: usize,
    /// Of those, how many keep every number, unit, drug, negation and side.
    preserved: usize,
    /// Rows whose new wording would be used.
    accepted: usize,
    /// What became of each row.
    outcomes: BTreeMap<&'static str, usize>,
    /// How many of the file's own wordings would be used: what the checks cost.
    reference_accepted: usize,
    /// Median time for one query, while others are written too.
    median_seconds: f64,
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    outcome: Outcome,
    written: Option<&'a str>,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let pairs = Pair::read(&arguments.data)?;
    let output = match &arguments.output {
        Some(path) => Some(
            std::fs::File::create(path)
                .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?,
        ),
        None => None,
    };
    let settings = config.load()?.settings;
    let model = arguments.model.load(&settings)?;
    let file = arguments
        .adapter
        .as_deref()
        .or(settings.router.reformat_adapter.as_deref());
    let adapter = reformatter::adapter(file, &model)?;
    let options = arguments.model.settings(&settings)?.engine;
    let engine = Engine::start("router", model, options, &prometheus::Registry::new())?;
    let reformatter = EngineReformatter::new(engine, adapter);
    let bar = counter("queries written")?;
    let write = async |pair: &Pair| {
        let started = Instant::now();
        let written = reformatter
            .write(&pair.expert, &pair.query, started + LIMIT)
            .await;
        bar.inc(1);
        (written, started.elapsed())
    };
    let written: Vec<(Option<String>, Duration)> = block_on(async {
        Ok(stream::iter(&pairs)
            .map(write)
            .buffered(AT_A_TIME)
            .collect()
            .await)
    })?;
    bar.finish_and_clear();
    let judged: Vec<Outcome> = pairs
        .iter()
        .zip(&written)
        .map(|(pair, (written, _))| {
            written
                .as_deref()
                .map_or(Outcome::Failed, |text| judge(&pair.query, text).0)
        })
        .collect();
    if let Some(file) = output {
        let mut file = std::io::BufWriter::new(file);
        for ((pair, (written, _)), outcome) in pairs.iter().zip(&written).zip(&judged) {
            let line = Line {
                id: &pair.id,
                outcome: *outcome,
                written: written.as_deref(),
            };
            serde_json::to_writer(&mut file, &line).map_err(std::io::Error::from)?;
            writeln!(file)?;
        }
        file.flush()?;
    }
    let report = report(&pairs, &written, &judged);
    match arguments.format {
        Format::Json => print_json(&report),
        Format::Text => print(&report),
    }
}

fn report(pairs: &[Pair], written: &[(Option<String>, Duration)], judged: &[Outcome]) -> Report {
    let mut outcomes = BTreeMap::new();
    for outcome in judged {
        *outcomes.entry(outcome.as_str()).or_default() += 1;
    }
    let parsed = written
        .iter()
        .filter(|(text, _)| text.as_deref().and_then(argument).is_some())
        .count();
    let count = |wanted: Outcome| judged.iter().filter(|outcome| **outcome == wanted).count();
    let mut times: Vec<Duration> = written.iter().map(|(_, time)| *time).collect();
    times.sort_unstable();
    Report {
        rows: pairs.len(),
        parsed,
        preserved: count(Outcome::Accepted) + count(Outcome::Unchanged),
        accepted: count(Outcome::Accepted),
        outcomes,
        reference_accepted: pairs
            .iter()
            .filter(|pair| facts::compare(&pair.query, &pair.reformatted).is_ok())
            .count(),
        median_seconds: times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64),
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let mut out = stdout();
    let of =
        |part: usize, whole: usize| format!("{part} of {whole} ({:.3})", part as f64 / whole.max(1) as f64);
    writeln!(out, "parsed              {}", of(report.parsed, report.rows))?;
    writeln!(out, "exactly preserved   {}", of(report.preserved, report.parsed))?;
    writeln!(out, "accepted            {}", of(report.accepted, report.rows))?;
    writeln!(
        out,
        "references accepted {}",
        of(report.reference_accepted, report.rows)
    )?;
    writeln!(out, "median time         {:.2} s", report.median_seconds)?;
    for (outcome, count) in &report.outcomes {
        writeln!(out, "  {outcome:<17} {count}")?;
    }
    Ok(())
}
