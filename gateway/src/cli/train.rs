//! `referral train`: routers and low-rank adapters from data files.

use super::failure::Failure;
use super::options::{ConfigOptions, LabelFields, ModelOptions};
use super::output::{print_json, stdout};
use super::telemetry;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use referral_lm::fetch::fetch;
use referral_lm::load::Checkpoint;
use referral_lm::tokenize::Tokenizer;
use referral_lm::train::{TrainAdapterOptions, TrainReport, train_adapter};
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
    #[command(after_help = ADAPTER_EXAMPLES)]
    Adapter(AdapterArguments),
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

const ADAPTER_EXAMPLES: &str = "\
Beside FILE, the loss curve (FILE.loss.csv) and the state to resume from (FILE.state) are written.

Example:
  referral train adapter --data answers.jsonl.gz --dev dev.jsonl.gz --out cardiology.safetensors --steps 600
then, in the configuration:
  experts: { cardiopulmonary: { local: { adapter: cardiology.safetensors } } }";

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

#[derive(Debug, Args)]
struct AdapterArguments {
    /// Rows {question, answer}, with an optional system: JSON lines, .gz is read too
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Held-out rows, for perplexity with and without the adapter
    #[arg(long, value_name = "FILE")]
    dev: Option<PathBuf>,
    /// Adapter to write (safetensors)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// System prompt for rows without one; give it again for more, each row draws one
    #[arg(long = "system", value_name = "TEXT")]
    systems: Vec<String>,
    /// Rank of the adapter
    #[arg(long, default_value_t = TrainAdapterOptions::default().rank)]
    rank: usize,
    /// The update is scaled by alpha / rank
    #[arg(long, default_value_t = TrainAdapterOptions::default().alpha)]
    alpha: f32,
    /// How many of the last layers carry it
    #[arg(long, default_value_t = TrainAdapterOptions::default().layers)]
    layers: usize,
    /// Optimiser steps
    #[arg(long, default_value_t = TrainAdapterOptions::default().steps)]
    steps: usize,
    /// Most tokens in a step
    #[arg(long, default_value_t = TrainAdapterOptions::default().batch_tokens)]
    batch_tokens: usize,
    /// Most tokens of a row
    #[arg(long, default_value_t = TrainAdapterOptions::default().max_tokens)]
    max_tokens: usize,
    /// Peak of the learning rate
    #[arg(long, default_value_t = TrainAdapterOptions::default().learning_rate)]
    learning_rate: f64,
    /// Steps of linear warm-up before the cosine
    #[arg(long, default_value_t = TrainAdapterOptions::default().warmup)]
    warmup: usize,
    /// Seed of initial values and of the rows' order
    #[arg(long, default_value_t = TrainAdapterOptions::default().seed)]
    seed: u64,
    /// Go on from the state of an interrupted run
    #[arg(long)]
    resume: bool,
    /// Threads; all of the machine's if left out
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelOptions,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    match &arguments.command {
        Command::Router(arguments) => router(arguments, config),
        Command::Cost(arguments) => cost(arguments, config),
        Command::Adapter(arguments) => adapter(arguments, config),
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
            rank: arguments.adapter_rank,
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

fn adapter(arguments: &AdapterArguments, config: &ConfigOptions) -> Result<(), Failure> {
    let settings = config.load()?.settings;
    telemetry::start(&settings.telemetry);
    let options = TrainAdapterOptions {
        data: arguments.data.clone(),
        dev: arguments.dev.clone(),
        out: arguments.out.clone(),
        systems: arguments.systems.clone(),
        rank: arguments.rank,
        alpha: arguments.alpha,
        layers: arguments.layers,
        steps: arguments.steps,
        batch_tokens: arguments.batch_tokens,
        max_tokens: arguments.max_tokens,
        learning_rate: arguments.learning_rate,
        warmup: arguments.warmup,
        seed: arguments.seed,
        resume: arguments.resume,
        threads: arguments.threads,
        ..TrainAdapterOptions::default()
    };
    let weights = fetch(&arguments.model.settings(&settings)?.spec)?;
    let (checkpoint, tokenizer) = (Checkpoint::open(&weights)?, Tokenizer::open(&weights)?);
    // The trainer draws its own bar, or logs where there is no terminal.
    let report = train_adapter(&checkpoint, &tokenizer, &options, &mut |_| {})?;
    if arguments.json {
        print_json(&report)
    } else {
        print_report(&options, &report)
    }
}

fn print_report(options: &TrainAdapterOptions, report: &TrainReport) -> Result<(), Failure> {
    let mut out = stdout();
    writeln!(
        out,
        "adapter        {} ({} parameters)",
        options.out.display(),
        report.parameters
    )?;
    writeln!(
        out,
        "steps          {} ({} rows, {} answer tokens)",
        report.steps, report.rows, report.answer_tokens
    )?;
    writeln!(
        out,
        "time           {:.0} s, {:.0} tokens/s",
        report.seconds, report.tokens_per_second
    )?;
    writeln!(
        out,
        "loss           {:.3} to {:.3}",
        report.first_loss, report.last_loss
    )?;
    if let Some(dev) = &report.dev {
        writeln!(
            out,
            "perplexity     {:.2} (base model {:.2}) on {} held-out rows",
            dev.adapter_perplexity, dev.base_perplexity, dev.rows
        )?;
    }
    Ok(())
}
