//! `referral ask`.

use super::failure::Failure;
use super::options::ConfigOptions;
use clap::Args;

/// Arguments of `referral ask`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// Runs the command.
pub(crate) fn run(_arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let _loaded = config.load()?;
    Err(Failure::new("not there yet"))
}
