//! `referral router`: who a trained router knows, and changing that without training it again.

use super::failure::Failure;
use super::options::{ConfigOptions, ModelOptions};
use super::output::{print_json, print_table, stdout, warn};
use clap::{Args, Subcommand};
use referral_router::edit::{AddReport, MOST_LOST, NewExpert, RouterDirectory, read_examples};
use std::io::Write as _;
use std::path::PathBuf;

const ADD_EXAMPLES: &str = "\
About 20 examples are enough for a start; without any, the description alone makes one. The other experts' tokens
stay as they are. Scope and threshold stay too, though with one more expert more queries pass for in scope: measure the
result with `referral eval routing`. Of 8 examples or more every fourth is not taught but measured on.

Example:
  referral router add-expert --name dermatology --description \"Skin, hair and nails: rashes, eczema, moles\" \\
    --examples dermatology.jsonl --out my-router
then, in the configuration:
  router: { directory: my-router }
  experts: { dermatology: { local: {} } }";

/// Arguments of `referral router`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the experts that the router knows
    List {
        #[command(flatten)]
        router: Which,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Add an expert: one new functional token, from a few examples or a description
    #[command(after_help = ADD_EXAMPLES)]
    AddExpert {
        /// Its name: the key under `experts` in the configuration
        #[arg(long)]
        name: String,
        /// What it is for; each clause is an example too
        #[arg(long, default_value = "")]
        description: String,
        /// Rows {id, query} for it: JSON lines, .gz is read too
        #[arg(long, value_name = "FILE")]
        examples: Option<PathBuf>,
        #[command(flatten)]
        router: Which,
        /// Directory to write
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        model: ModelOptions,
    },
    /// Take an expert out
    RemoveExpert {
        /// Its name
        #[arg(long)]
        name: String,
        #[command(flatten)]
        router: Which,
        /// Directory to write
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Give an expert another name
    Rename {
        /// Its name now
        #[arg(long)]
        from: String,
        /// Its new name
        #[arg(long)]
        to: String,
        #[command(flatten)]
        router: Which,
        /// Directory to write
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Which router is read.
#[derive(Debug, Args)]
struct Which {
    /// Directory written by `referral train router`; the default is the configuration's, else the shipped one
    #[arg(long, value_name = "DIR")]
    router: Option<PathBuf>,
}

impl Which {
    fn open(&self, config: &ConfigOptions) -> Result<RouterDirectory, Failure> {
        let configured = config.load()?.settings.router.directory;
        let directory = self.router.as_ref().or(configured.as_ref());
        Ok(RouterDirectory::open(directory.map(PathBuf::as_path))?)
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    match &arguments.command {
        Command::List { router, json } => {
            let known = router.open(config)?.experts()?;
            if *json {
                return print_json(&known);
            }
            let row = |expert: &referral_router::edit::Known| {
                let numbers = [expert.bank_rows, expert.held_rows].map(|n| n.to_string());
                [vec![expert.name.clone()], numbers.to_vec()].concat()
            };
            let rows: Vec<Vec<String>> = known.iter().map(row).collect();
            print_table(&["EXPERT", "BANK ROWS", "HELD OUT"], &rows)
        }
        Command::AddExpert {
            name,
            description,
            examples,
            router,
            out,
            json,
            model,
        } => {
            // The files are read before the model is loaded: a typo is told at once.
            let directory = router.open(config)?;
            let examples = match examples {
                Some(path) => read_examples(path, name)?,
                None => Vec::new(),
            };
            let expert = NewExpert {
                name: name.clone(),
                description: description.clone(),
                examples,
            };
            let report = directory.add(&model.load(&config.load()?.settings)?, &expert, out)?;
            if report.costs_too_much() {
                warn(&format!(
                    "the old experts lose more than {:.1} points: the examples are too much like theirs",
                    100.0 * MOST_LOST
                ));
            }
            if *json {
                print_json(&report)
            } else {
                print(&report)
            }
        }
        Command::RemoveExpert { name, router, out } => Ok(router.open(config)?.remove(name, out)?),
        Command::Rename {
            from,
            to,
            router,
            out,
        } => Ok(router.open(config)?.rename(from, to, out)?),
    }
}

fn print(report: &AddReport) -> Result<(), Failure> {
    let mut out = stdout();
    let lines = [
        ("expert", report.name.clone()),
        (
            "taught with",
            format!(
                "{} queries, {} clauses of its name and description",
                report.examples, report.clauses
            ),
        ),
        (
            "old experts",
            format!(
                "accuracy {:.4} before, {:.4} after, on {} held-out rows of the bank",
                report.before, report.after, report.held_rows
            ),
        ),
        ("referred to it", referred_to_it(report)),
        ("abstains from", abstains_from(report)),
        ("bias lowered by", format!("{:.1}", report.bias_lowered)),
        (
            "time",
            format!(
                "{:.2} s reading, {:.2} s fitting",
                report.reading.as_secs_f64(),
                report.fitting.as_secs_f64()
            ),
        ),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<16}{value}")?;
    }
    Ok(())
}

/// Which share of the new expert's own queries the changed router refers to it.
fn referred_to_it(report: &AddReport) -> String {
    let what = if report.examples == 0 {
        "clauses"
    } else {
        "examples"
    };
    let taught = format!("{:.0}% of the {what} taught", 100.0 * report.taught_won);
    match report.held_won {
        Some(share) => format!(
            "{taught}, {:.0}% of the {} held-out examples",
            100.0 * share,
            report.held_examples
        ),
        None => taught,
    }
}

/// What the change does to queries that call for nobody.
fn abstains_from(report: &AddReport) -> String {
    match (report.end_abstained_before, report.end_abstained_after) {
        (Some(before), Some(after)) => format!(
            "{:.0}% before, {:.0}% after, of {} held-out rows that call for no expert",
            100.0 * before,
            100.0 * after,
            report.end_rows
        ),
        _ => "the bank has no held-out rows that call for no expert".to_owned(),
    }
}
