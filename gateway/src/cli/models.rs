//! `referral models`: fetches the weights that the configuration names, and lists them.

use super::failure::Failure;
use super::options::ConfigOptions;
use super::output::{print_json, print_table, stdout};
use clap::{Args, Subcommand};
use referral_lm::fetch::{self, ModelSpec, ModelStatus};
use std::io::Write as _;

/// Arguments of `referral models`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch models into the cache and print where they are; what is there already is not fetched again
    Fetch {
        /// Names from the configuration; all of them if left out
        names: Vec<String>,
    },
    /// List the configuration's models and whether they are in the cache
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let settings = config.load()?.settings;
    let specs: Vec<ModelSpec> = settings.models.into_values().map(|model| model.spec).collect();
    match &arguments.command {
        Command::Fetch { names } => {
            for spec in chosen(&specs, names)? {
                let path = fetch::fetch(spec)?;
                writeln!(stdout(), "{}  {}", spec.name, path.display())?;
            }
            Ok(())
        }
        Command::List { json } => list(&fetch::list(&specs)?, *json),
    }
}

fn chosen<'a>(specs: &'a [ModelSpec], names: &[String]) -> Result<Vec<&'a ModelSpec>, Failure> {
    if names.is_empty() {
        return Ok(specs.iter().collect());
    }
    let find = |name: &String| {
        specs.iter().find(|spec| spec.name == *name).ok_or_else(|| {
            let known: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            Failure::new(format!("the configuration has no model called {name:?}"))
                .with_hint(format!("it has: {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

fn list(found: &[ModelStatus], json: bool) -> Result<(), Failure> {
    if json {
        let rows = found.iter().map(|model| {
            serde_json::json!({
                "name": model.name,
                "source": model.source.0,
                "path": model.path,
                "bytes": model.bytes,
                "verified": model.verified,
            })
        });
        return print_json(&rows.collect::<Vec<_>>());
    }
    let row = |model: &ModelStatus| {
        let state = match (&model.path, model.verified) {
            (None, _) => "not fetched",
            (Some(_), true) => "verified",
            (Some(_), false) => "unverified",
        };
        let size = model
            .bytes
            .map_or_else(|| "-".to_owned(), |bytes| format!("{} MB", bytes / 1_000_000));
        vec![model.name.clone(), state.to_owned(), size, model.source.0.clone()]
    };
    print_table(
        &["MODEL", "STATE", "SIZE", "SOURCE"],
        &found.iter().map(row).collect::<Vec<_>>(),
    )
}
