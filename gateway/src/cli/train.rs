//! `referral train`: routers and low-rank adapters from data files.

mod adapter;

use super::failure::Failure;
use super::options::{ConfigOptions, LabelFields, ModelOptions};
use super::output::stdout;
use super::telemetry;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use referral_lm::fetch::fetch;
use referral_lm::load::Checkpoint;
use referral_router::cost::GainRow;
use referral_router::cost::train::{TrainGainOptions, train_gain};
use referral_router::dataset::{Reader, Row};
use referral_router::train::{AdapterTraining, TrainRouterOptions, train_router};
use std::io::Write as _;
use std::path::PathBuf;

/// Arguments of `referral train`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a router for any set of experts
    #[command(after_help = ROUTER_EXAMPLES)]
    Router(RouterArguments),
    /// Train a head that predicts what a strong model gains over a weak one
    #[command(after_help = COST_EXAMPLES)]
    Cost(CostArguments),
    /// Train a low-rank adapter on questions and answers
    #[command(after_help = adapter::EXAMPLES)]
    Adapter(adapter::Arguments),
    /// Train the adapter that puts queries in better words for the expert
    #[command(after_help = adapter::REFORMAT_EXAMPLES)]
    Reformat(adapter::ReformatArguments),
}

const ROUTER_EXAMPLES: &str = "\
The experts are the names in the data. DIR gets the router, a report (text and JSON) and a card.

Example:
  referral train router --data templates.jsonl.gz --data natural.jsonl --dev dev.jsonl --out my-router
  referral eval routing --data test.jsonl --router my-router
  REFERRAL__ROUTER__DIRECTORY=my-router referral serve";

const COST_EXAMPLES: &str = "\
Rows: {id, prompt, strong_correct, weak_correct}; a subject in all rows helps. DIR gets cost.json,
cost.safetensors, a report and a card.

Example:
  referral train cost --data train.jsonl.gz --dev dev.jsonl.gz --out my-pair
  referral eval cost --data test.jsonl.gz --router my-pair";

#[derive(Debug, Args)]
struct RouterArguments {
    /// Training rows {id, query, expert}: JSON lines, .gz is read too; give it again for more files
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// Rows on which choices and calibration are made; give it again for more files
    #[arg(long, value_name = "FILE", required = true)]
    dev: Vec<PathBuf>,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Read queries after this layer of the model; if left out, the dev rows decide
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// Most training rows of one expert from one file
    #[arg(long, value_name = "N")]
    max_per_expert: Option<usize>,
    /// Share of accepted dev rows that may be wrong; sets the threshold of abstention
    #[arg(long, value_name = "SHARE", default_value_t = TrainRouterOptions::MAX_ERROR)]
    max_error: f64,
    /// Also train a low-rank adapter for the layers that are read: slower, and better on queries as people
    /// write them; needs --layer
    #[arg(long, requires = "layer")]
    adapter: bool,
    /// Rank of that adapter
    #[arg(long, value_name = "N", requires = "adapter", default_value_t = AdapterTraining::default().rank)]
    adapter_rank: usize,
    /// Go on from this adapter of an earlier run, of the same rank and layer, instead of beginning anew
    #[arg(long, value_name = "FILE", requires = "adapter")]
    adapter_start: Option<PathBuf>,
    /// Its peak learning rate
    #[arg(long, value_name = "RATE", requires = "adapter", default_value_t = AdapterTraining::default().learning_rate)]
    adapter_learning_rate: f64,
    /// Its passes over the data
    #[arg(long, value_name = "N", requires = "adapter", default_value_t = AdapterTraining::default().epochs)]
    adapter_epochs: usize,
    /// Most rows of one file in one of its passes, drawn anew each time
    #[arg(long, value_name = "N", requires = "adapter", default_value_t = AdapterTraining::default().file_rows)]
    adapter_file_rows: usize,
    /// Read through this adapter of an earlier run instead of training one; needs --layer
    #[arg(long, value_name = "FILE", requires = "layer", conflicts_with = "adapter")]
    adapter_from: Option<PathBuf>,
    /// File that keeps the model's features from run to run
    #[arg(long, value_name = "FILE")]
    feature_cache: Option<PathBuf>,
    /// Seed of all that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    fields: LabelFields,
    #[command(flatten)]
    model: ModelOptions,
}

#[derive(Debug, Args)]
struct CostArguments {
    /// Training rows {id, prompt, strong_correct, weak_correct}: JSON lines, .gz is read too
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Held-out rows, for figures and thresholds; they choose nothing
    #[arg(long, value_name = "FILE")]
    dev: PathBuf,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Read queries after this layer of the model
    #[arg(long, value_name = "N", default_value_t = 15)]
    layer: usize,
    /// File that keeps the model's features from run to run
    #[arg(long, value_name = "FILE")]
    feature_cache: Option<PathBuf>,
    /// Seed of all that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    model: ModelOptions,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    match &arguments.command {
        Command::Router(arguments) => router(arguments, config),
        Command::Cost(arguments) => cost(arguments, config),
        Command::Adapter(arguments) => adapter::run(arguments, config),
        Command::Reformat(arguments) => adapter::reformat(arguments, config),
    }
}

fn router(arguments: &RouterArguments, config: &ConfigOptions) -> Result<(), Failure> {
    let settings = config.load()?.settings;
    telemetry::start(&settings.telemetry);
    let fields = arguments.fields.fields()?;
    for path in arguments.data.iter().chain(&arguments.dev) {
        // Opened once before the model is loaded: a typo is told at once.
        Reader::<Row>::open(path)?;
    }
    let options = TrainRouterOptions {
        fields,
        layer: arguments.layer,
        seed: arguments.seed,
        max_per_expert: arguments.max_per_expert,
        max_error: arguments.max_error,
        feature_cache: arguments.feature_cache.clone(),
        adapter_from: arguments.adapter_from.clone(),
        adapter: arguments.adapter.then(|| AdapterTraining {
            start: arguments.adapter_start.clone(),
            rank: arguments.adapter_rank,
            learning_rate: arguments.adapter_learning_rate,
            epochs: arguments.adapter_epochs,
            file_rows: arguments.adapter_file_rows,
            ..AdapterTraining::default()
        }),
        ..TrainRouterOptions::new(
            arguments.data.clone(),
            arguments.dev.clone(),
            arguments.out.clone(),
        )
    };
    let bar = bar()?;
    let model = arguments.model.load(&settings)?;
    let checkpoint = match options.adapter {
        Some(_) => Some(Checkpoint::open(&fetch(
            &arguments.model.settings(&settings)?.spec,
        )?)?),
        None => None,
    };
    let report = train_router(&model, checkpoint.as_ref(), &options, &bar)?;
    bar.finish_and_clear();
    writeln!(stdout(), "{report}")?;
    Ok(())
}

fn bar() -> Result<ProgressBar, Failure> {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} ({per_sec}, {eta} left)")?;
    Ok(ProgressBar::new(0).with_style(style))
}

fn cost(arguments: &CostArguments, config: &ConfigOptions) -> Result<(), Failure> {
    let settings = config.load()?.settings;
    telemetry::start(&settings.telemetry);
    for path in [&arguments.data, &arguments.dev] {
        Reader::<GainRow>::open(path)?;
    }
    let options = TrainGainOptions {
        data: arguments.data.clone(),
        dev: arguments.dev.clone(),
        out: arguments.out.clone(),
        layer: arguments.layer,
        seed: arguments.seed,
        feature_cache: arguments.feature_cache.clone(),
    };
    let bar = bar()?;
    let report = train_gain(&arguments.model.load(&settings)?, &options, &bar)?;
    bar.finish_and_clear();
    write!(stdout(), "{report}")?;
    Ok(())
}
