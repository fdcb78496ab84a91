//! `referral config`: checks, describes and shows the configuration.

use super::failure::Failure;
use super::options::ConfigOptions;
use super::output::{GOOD, print_json, stdout, warn};
use crate::config;
use clap::{Args, Subcommand, ValueEnum};
use std::io::Write as _;
use std::path::PathBuf;

/// Arguments of `referral config`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration; exit code 78 if it cannot be used
    Check {
        /// File to check instead of --config
        file: Option<PathBuf>,
    },
    /// Print the JSON Schema of configuration files, e.g. for an editor
    Schema,
    /// Print what is in force: defaults, file and environment merged, secrets redacted
    Show {
        /// How to print it
        #[arg(long, default_value = "yaml")]
        format: Format,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Yaml,
    Json,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, options: &ConfigOptions) -> Result<(), Failure> {
    match &arguments.command {
        Command::Check { file } => {
            let options = options.with_file(file.clone());
            let settings = options.load()?.settings;
            for warning in &settings.warnings {
                warn(warning);
            }
            writeln!(
                stdout(),
                "{GOOD}good{GOOD:#}: {}, {} experts, {} models, version {}",
                options.name(),
                settings.experts.len(),
                settings.models.len(),
                settings.version
            )?;
            Ok(())
        }
        Command::Schema => print_json(&config::schema()),
        Command::Show { format: Format::Json } => print_json(&options.load()?.shown),
        Command::Show { format: Format::Yaml } => Ok(write!(
            stdout(),
            "{}",
            serde_yaml_ng::to_string(&options.load()?.shown)?
        )?),
    }
}
