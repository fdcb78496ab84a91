//! Configuration: layers of YAML and environment to one validated, immutable [`Settings`].
//!
//! [`load`] merges the embedded defaults, a file and `REFERRAL__…` variables (`layers`), checks the
//! tree against the schema so that all mistakes are reported at once (`check`), and turns it into
//! typed settings (`validate`). It runs before any port is bound and opens nothing but the file.

mod check;
mod error;
mod layers;
mod raw;
mod schema;
mod secret;
mod settings;
mod validate;

pub use error::{ConfigError, Problem, Problems};
pub use layers::{DEFAULTS, Variables};
pub use raw::ReformatMode;
pub use schema::schema;
pub use secret::Secret;
pub use settings::{
    AdapterSource, Backend, ExpertSettings, LocalSettings, LogSettings, ModelSettings, NodeSettings,
    OctopusSettings, OpenAiSettings, PairSettings, PairThreshold, Provider, RouterSettings, ServerSettings,
    Settings, TelemetrySettings,
};

use std::path::Path;

/// A configuration that was found good.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it says.
    pub settings: Settings,
    /// All its layers as one tree, secrets redacted.
    pub shown: serde_json::Value,
}

/// Reads the layers: defaults, then `file`, then the `REFERRAL__…` among `variables`, which also fill `${NAME}`.
pub fn load(file: Option<&Path>, variables: &Variables) -> Result<Loaded, ConfigError> {
    let mut merged = layers::Merged::read(file, variables)?;
    let mut tree = std::mem::take(&mut merged.tree);
    let mut checker = check::Checker::new(&merged.textual);
    checker.check(&schema::complete(), &mut tree);
    let raise = |found: Vec<(Vec<String>, String)>| {
        let problem = |(path, message): (Vec<String>, String)| {
            let origin = merged.origin(&path);
            Problem {
                path: path.join("."),
                message,
                origin,
            }
        };
        ConfigError::Invalid(Problems(found.into_iter().map(problem).collect()))
    };
    let mut problems = merged.problems.clone();
    problems.append(&mut checker.problems);
    if !problems.is_empty() {
        return Err(raise(problems));
    }
    let raw: raw::RawSettings = serde_path_to_error::deserialize(tree)
        .map_err(|e| layers::invalid(&e.path().to_string(), &e.inner().to_string(), None))?;
    let shown =
        serde_json::to_value(&raw).map_err(|e| layers::invalid("configuration", &e.to_string(), None))?;
    let settings = validate::validate(raw, &shown, variables).map_err(raise)?;
    Ok(Loaded { settings, shown })
}

#[cfg(test)]
mod tests;
