//! Options that several commands share, and the models and routers that they name.

use super::failure::Failure;
use crate::config::{self, Backend, ConfigError, Loaded, ModelSettings, Settings};
use crate::serve::ServeError;
use clap::Args;
use referral_lm::LanguageModel;
use referral_lm::fetch::{ModelSpec, Source, fetch};
use referral_router::cost::GainModel;
use referral_router::dataset::{Fields, LabelMap};
use referral_router::graph::Decider;
use referral_router::{Graph, Router};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigOptions {
    /// Configuration file; it says only what differs from the defaults
    #[arg(long, value_name = "FILE", env = "REFERRAL_CONFIG", global = true)]
    config: Option<PathBuf>,
}

impl ConfigOptions {
    /// The same with another file, if one is given.
    pub(crate) fn with_file(&self, file: Option<PathBuf>) -> Self {
        Self {
            config: file.or_else(|| self.config.clone()),
        }
    }

    /// What to call it.
    pub(crate) fn name(&self) -> String {
        self.config
            .as_ref()
            .map_or_else(|| "defaults".to_owned(), |file| file.display().to_string())
    }

    /// Reads and validates the configuration.
    pub(crate) fn load(&self) -> Result<Loaded, ConfigError> {
        // Variables that are no Unicode cannot be ours.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        config::load(self.config.as_deref(), &variables)
    }
}

/// Which language model a command uses.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelOptions {
    /// Model to use: a name from the configuration, or a file; the default is the router's model
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
}

impl ModelOptions {
    /// The settings of the model that is named.
    pub(crate) fn settings(&self, settings: &Settings) -> Result<ModelSettings, Failure> {
        let name = self.model.as_ref().unwrap_or(&settings.router.model);
        let template = settings.models.get(&settings.router.model);
        match (settings.models.get(name), template) {
            (Some(model), _) => Ok(model.clone()),
            (None, Some(template)) if Path::new(name).exists() => {
                let file = name.strip_prefix("file:").unwrap_or(name);
                let spec = ModelSpec {
                    name: "file".to_owned(),
                    source: Source(format!("file:{file}")),
                    sha256: None,
                };
                Ok(ModelSettings {
                    spec,
                    ..template.clone()
                })
            }
            _ => {
                let known: Vec<&str> = settings.models.keys().map(String::as_str).collect();
                Err(
                    Failure::new(format!("there is neither a model nor a file called {name:?}"))
                        .with_hint(format!("the configuration has: {}", known.join(", "))),
                )
            }
        }
    }

    /// Fetches and loads the model.
    pub(crate) fn load(&self, settings: &Settings) -> Result<LanguageModel, Failure> {
        let model = self.settings(settings)?;
        Ok(LanguageModel::load(&fetch(&model.spec)?, &model.load)?)
    }
}

/// Which router a command uses.
#[derive(Debug, Clone, Args)]
pub(crate) struct RouterOptions {
    /// Directory written by `referral train router`; the default is the configuration's, else the shipped one
    #[arg(long, value_name = "DIR")]
    router: Option<PathBuf>,
    #[command(flatten)]
    model: ModelOptions,
}

impl RouterOptions {
    /// The model that the router reads with.
    pub(crate) fn model(&self) -> &ModelOptions {
        &self.model
    }

    /// Loads the router and its model.
    pub(crate) fn load(&self, settings: &Settings) -> Result<Router, Failure> {
        if self.router.is_none() && settings.router.backend != Backend::Functional {
            let message = "router.backend is octopus_v4, and this command is for functional-token routers";
            return Err(
                Failure::new(message).with_hint("name one with --router; `referral route` knows both kinds")
            );
        }
        self.load_with(settings, self.model.load(settings)?)
    }

    /// Loads the router, and those below it by the configuration.
    pub(crate) fn load_graph(&self, settings: &Settings) -> Result<Graph, Failure> {
        let model = match settings.needs_router_model() || self.router.is_some() {
            true => Some(self.model.load(settings)?),
            false => None,
        };
        let given = || {
            model.clone().ok_or_else(|| {
                ServeError::Loading("the router's model was not loaded, though a router needs it".to_owned())
            })
        };
        let top: Arc<dyn Decider> = match (&self.router, &settings.router.backend) {
            (None, Backend::OctopusV4(octopus)) => Arc::new(crate::serve::octopus_v4(octopus)?),
            _ => Arc::new(self.load_with(settings, given()?)?),
        };
        Ok(crate::serve::graph(settings, top, given)?)
    }

    fn load_with(&self, settings: &Settings, model: LanguageModel) -> Result<Router, Failure> {
        Ok(
            match self.router.as_ref().or(settings.router.directory.as_ref()) {
                Some(directory) => Router::load(directory, model)?,
                None => Router::shipped(model)?,
            },
        )
    }
}

/// Which gain model a command uses.
#[derive(Debug, Clone, Args)]
pub(crate) struct GainOptions {
    /// Directory written by `referral train cost`; the default is the shipped one
    #[arg(long, value_name = "DIR")]
    router: Option<PathBuf>,
    #[command(flatten)]
    model: ModelOptions,
}

impl GainOptions {
    /// Loads the head and its model.
    pub(crate) fn load(&self, settings: &Settings) -> Result<GainModel, Failure> {
        let model = self.model.load(settings)?;
        Ok(match &self.router {
            Some(directory) => GainModel::load(directory, model)?,
            None => GainModel::shipped(model)?,
        })
    }
}

/// Under which name a file holds the query.
#[derive(Debug, Clone, Args)]
pub(crate) struct QueryField {
    /// Field of a row that holds the query
    #[arg(long = "query-field", value_name = "NAME", default_value = "query")]
    name: String,
}

impl QueryField {
    /// The file's names.
    pub(crate) fn fields(&self) -> Fields {
        Fields {
            query: self.name.clone(),
            ..Fields::default()
        }
    }
}

/// Under which names a file holds query and label.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabelFields {
    #[command(flatten)]
    query: QueryField,
    /// Field of a row that holds the label
    #[arg(long = "label-field", value_name = "NAME", default_value = "expert")]
    label: String,
    /// JSON file that names the expert of each label: {"labels": {label: expert}}
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
}

impl LabelFields {
    /// The file's names; reads the mapping.
    pub(crate) fn fields(&self) -> Result<Fields, Failure> {
        let labels = self.labels.as_deref().map(LabelMap::open).transpose()?;
        Ok(Fields {
            label: self.label.clone(),
            labels,
            ..self.query.fields()
        })
    }
}
