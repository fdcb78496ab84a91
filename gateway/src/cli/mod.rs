//! The `referral` command: arguments, exit codes, and how errors are shown.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong arguments (clap's), 78 unusable configuration (EX_CONFIG).
//! Only this module and its children print.

mod ask;
mod bench;
mod config;
mod decisions;
mod demo;
mod eval;
mod experts;
mod failure;
mod in_process;
mod models;
mod options;
mod output;
mod route;
mod router;
mod serve;
mod telemetry;
mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  referral demo                              watch shipped queries being referred
  referral serve --config hospital.yaml      run the gateway
  referral ask \"Can I take ibuprofen with warfarin?\"
  referral config check hospital.yaml        find every mistake in a configuration
  referral decisions tail --follow           watch decisions as they are made

Settings come from the defaults, then --config, then variables such as
REFERRAL__SERVER__GRPC_ADDRESS. Referral is not a medical device.";

/// Refers hospital queries to the model that should answer them.
#[derive(Debug, Parser)]
#[command(name = "referral", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    config: options::ConfigOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway: gRPC, metrics and health, until SIGTERM or Ctrl-C
    Serve(serve::Arguments),
    /// Start a gateway and watch it refer the shipped queries
    Demo(demo::Arguments),
    /// Ask a running gateway and print the answer as it comes
    Ask(ask::Arguments),
    /// Decide who should answer each query of a file, without a server
    Route(route::Arguments),
    /// Train a router or an adapter
    Train(train::Arguments),
    /// List, add, remove and rename the experts that a router knows
    Router(router::Arguments),
    /// Measure a router on labelled queries
    Eval(eval::Arguments),
    /// Time decisions on this machine
    Bench(bench::Arguments),
    /// Fetch and list model weights
    Models(models::Arguments),
    /// List who can answer
    Experts(experts::Arguments),
    /// Check, describe and show the configuration
    Config(config::Arguments),
    /// Read the decision log
    Decisions(decisions::Arguments),
}

/// Runs the command that the process's arguments name.
pub fn run() -> ExitCode {
    let Cli { config, command } = Cli::parse();
    let done = match &command {
        Command::Serve(arguments) => serve::run(arguments, &config),
        Command::Demo(arguments) => demo::run(arguments, &config),
        Command::Ask(arguments) => ask::run(arguments, &config),
        Command::Route(arguments) => route::run(arguments, &config),
        Command::Train(arguments) => train::run(arguments, &config),
        Command::Router(arguments) => router::run(arguments, &config),
        Command::Eval(arguments) => eval::run(arguments, &config),
        Command::Bench(arguments) => bench::run(arguments, &config),
        Command::Models(arguments) => models::run(arguments, &config),
        Command::Experts(arguments) => experts::run(arguments, &config),
        Command::Config(arguments) => config::run(arguments, &config),
        Command::Decisions(arguments) => decisions::run(arguments, &config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
