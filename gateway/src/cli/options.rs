//! Options that several commands share.

use crate::config::{self, ConfigError, Loaded};
use clap::Args;
use std::path::PathBuf;

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigOptions {
    /// Configuration file; says only what differs from the defaults
    #[arg(long, value_name = "FILE", env = "REFERRAL_CONFIG", global = true)]
    config: Option<PathBuf>,
}

impl ConfigOptions {
    /// Reads and validates the configuration.
    pub(crate) fn load(&self) -> Result<Loaded, ConfigError> {
        // Variables that are no Unicode cannot be ours.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        config::load(self.config.as_deref(), &variables)
    }
}
