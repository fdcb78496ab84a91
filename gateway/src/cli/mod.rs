//! The `referral` command: arguments, exit codes, and how errors are shown.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong arguments (clap's), 78 unusable configuration (EX_CONFIG).
//! Only this module and its children print.

mod ask;
mod demo;
mod failure;
mod options;
mod serve;
mod telemetry;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(
    name = "referral",
    version,
    about = "Refers hospital queries to the model that should answer them"
)]
struct Cli {
    #[command(flatten)]
    config: options::ConfigOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the gateway
    Serve(serve::Arguments),
    /// Start a gateway and watch it refer shipped queries
    Demo(demo::Arguments),
    /// Ask a running gateway
    Ask(ask::Arguments),
}

/// Runs the command that the process's arguments name.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(arguments) => serve::run(&arguments, &cli.config),
        Command::Demo(arguments) => demo::run(&arguments, &cli.config),
        Command::Ask(arguments) => ask::run(&arguments, &cli.config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
