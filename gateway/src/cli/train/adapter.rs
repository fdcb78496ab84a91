//! `referral train adapter` and `referral train reformat`: low-rank adapters from questions and answers, and from pairs of
//! a query and the same in better words.

use super::super::failure::Failure;
use super::super::options::{ConfigOptions, ModelOptions};
use super::super::output::{print_json, stdout};
use super::super::telemetry;
use clap::Args;
use referral_lm::fetch::fetch;
use referral_lm::load::Checkpoint;
use referral_lm::tokenize::Tokenizer;
use referral_lm::train::{RowFields, TrainAdapterOptions, TrainReport, train_adapter};
use referral_router::functional::PROMPT;
use referral_router::reformat::{Pair, completion};
use serde::Serialize;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What is shown under the help of `train adapter`.
pub(super) const EXAMPLES: &str = "\
Beside FILE, the loss curve (FILE.loss.csv) and the state to resume from (FILE.state) are written.

Example:
  referral train adapter --data answers.jsonl.gz --dev dev.jsonl.gz --out cardiology.safetensors --steps 600
then, in the configuration:
  experts: { cardiopulmonary: { local: { adapter: cardiology.safetensors } } }";

/// What is shown under the help of `train reformat`.
pub(super) const REFORMAT_EXAMPLES: &str = "\
Each row: the query as it was written, the expert it is for, and the same in better words. The files that the trainer
reads (FILE.train.jsonl, FILE.dev.jsonl), the loss curve and the state to resume from are written beside FILE.

Example:
  referral train reformat --data pairs.jsonl --dev more.jsonl --out reformat.safetensors
  REFERRAL__ROUTER__REFORMAT__MODE=always REFERRAL__ROUTER__REFORMAT__ADAPTER=reformat.safetensors referral serve";

/// Arguments of `referral train adapter`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Rows {question, answer}, with an optional system: JSON lines, .gz is read too
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Field of a row that holds the question
    #[arg(long, value_name = "NAME", default_value_t = RowFields::default().question)]
    question_field: String,
    /// Field of a row that holds the answer
    #[arg(long, value_name = "NAME", default_value_t = RowFields::default().answer)]
    answer_field: String,
    /// Read only rows whose field is this text, in both files; give it again for more conditions
    #[arg(long = "where", value_name = "FIELD=TEXT", value_parser = condition)]
    only: Vec<(String, String)>,
    /// System prompt for rows without one; give it again for more, each row draws one
    #[arg(long = "system", value_name = "TEXT")]
    systems: Vec<String>,
    #[command(flatten)]
    run: Run,
}

/// What both runs are told: files, shape and schedule.
#[derive(Debug, Args)]
struct Run {
    /// Held-out rows, for perplexity with and without the adapter
    #[arg(long, value_name = "FILE")]
    dev: Option<PathBuf>,
    /// Adapter to write (safetensors)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
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

/// Arguments of `referral train reformat`.
#[derive(Debug, Args)]
pub(super) struct ReformatArguments {
    /// Rows {id, expert, query, reformatted}: JSON lines, .gz is read too
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    run: Run,
}

impl Run {
    fn options(&self) -> TrainAdapterOptions {
        TrainAdapterOptions {
            dev: self.dev.clone(),
            out: self.out.clone(),
            rank: self.rank,
            alpha: self.alpha,
            layers: self.layers,
            steps: self.steps,
            batch_tokens: self.batch_tokens,
            max_tokens: self.max_tokens,
            learning_rate: self.learning_rate,
            warmup: self.warmup,
            seed: self.seed,
            resume: self.resume,
            threads: self.threads,
            ..TrainAdapterOptions::default()
        }
    }
}

/// Runs `referral train adapter`.
pub(super) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let options = TrainAdapterOptions {
        data: arguments.data.clone(),
        fields: RowFields {
            question: arguments.question_field.clone(),
            answer: arguments.answer_field.clone(),
            only: arguments.only.clone(),
        },
        systems: arguments.systems.clone(),
        ..arguments.run.options()
    };
    train(&options, &arguments.run, config)
}

/// Runs `referral train reformat`.
pub(super) fn reformat(arguments: &ReformatArguments, config: &ConfigOptions) -> Result<(), Failure> {
    let run = &arguments.run;
    let rows = |from: &Path, name: &str| {
        let to = run.out.with_extension(name);
        write_rows(from, &to).map(|()| to)
    };
    let options = TrainAdapterOptions {
        data: rows(&arguments.data, "train.jsonl")?,
        dev: run.dev.as_deref().map(|dev| rows(dev, "dev.jsonl")).transpose()?,
        systems: vec![PROMPT.to_owned()],
        ..run.options()
    };
    train(&options, run, config)
}

/// A row as the trainer reads it.
#[derive(Serialize)]
struct Taught {
    question: String,
    answer: String,
}

/// Pairs as questions and what the model is to write after them.
fn write_rows(from: &Path, to: &Path) -> Result<(), Failure> {
    let pairs = Pair::read(from)?;
    let named = |error| Failure::new(format!("cannot write {}: {error}", to.display()));
    let mut file = std::io::BufWriter::new(std::fs::File::create(to).map_err(named)?);
    for pair in pairs {
        let taught = Taught {
            answer: completion(&pair.expert, &pair.reformatted),
            question: pair.query,
        };
        serde_json::to_writer(&mut file, &taught).map_err(std::io::Error::from)?;
        writeln!(file).map_err(named)?;
    }
    file.flush().map_err(named)
}

fn train(options: &TrainAdapterOptions, run: &Run, config: &ConfigOptions) -> Result<(), Failure> {
    let settings = config.load()?.settings;
    telemetry::start(&settings.telemetry);
    let weights = fetch(&run.model.settings(&settings)?.spec)?;
    let (checkpoint, tokenizer) = (Checkpoint::open(&weights)?, Tokenizer::open(&weights)?);
    // The trainer draws its own bar, or logs where there is no terminal.
    let report = train_adapter(&checkpoint, &tokenizer, options, &mut |_| {})?;
    match run.json {
        true => print_json(&report),
        false => print_report(options, &report),
    }
}

/// `FIELD=TEXT`.
fn condition(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((field, wanted)) if !field.is_empty() => Ok((field.to_owned(), wanted.to_owned())),
        _ => Err("write it as FIELD=TEXT, e.g. expert=oncology".to_owned()),
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
