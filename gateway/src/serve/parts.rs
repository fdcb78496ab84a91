//! From settings to the parts of a pipeline: models, engines, router, experts, log. Blocking.

use super::{ServeError, tokens};
use crate::compute::reformatter::{self, EngineReformatter};
use crate::config::{
    AdapterSource, Backend, ExpertSettings, LocalSettings, OctopusSettings, OpenAiSettings, PairSettings,
    PairThreshold, Provider, ReformatMode, Settings,
};
use crate::log::DecisionLog;
use crate::metrics::Metrics;
use crate::pipeline::{PairPart, Parts, Reformatter, RouterCard};
use referral_experts::local::{LocalDefaults, LocalExpert};
use referral_experts::openai::{self, OpenAiExpert};
use referral_experts::{Card, Expert, shipped};
use referral_lm::adapter::Adapter;
use referral_lm::engine::Engine;
use referral_lm::{LanguageModel, LmError, fetch};
use referral_router::cost::GainModel;
use referral_router::graph::{Decider, Node};
use referral_router::octopus_v4::OctopusV4;
use referral_router::policy::pair::Pair;
use referral_router::{Graph, Router, RouterError};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// Loads everything that `settings` names. The log comes first: it is quick, and a mistake in its
/// setting should not wait for models.
pub(super) fn load(settings: &Settings, metrics: Metrics) -> Result<Parts, ServeError> {
    let log = DecisionLog::open(&settings.log)?;
    let models = models(settings)?;
    let router_model = || known(&models, &settings.router.model).cloned();
    let top: Arc<dyn Decider> = match &settings.router.backend {
        Backend::OctopusV4(octopus) => Arc::new(octopus_v4(octopus)?),
        Backend::Functional => {
            let router = match &settings.router.directory {
                Some(directory) => Router::load(directory, router_model()?),
                None => Router::shipped(router_model()?),
            };
            Arc::new(router.map_err(|error| ServeError::Router(Box::new(error)))?)
        }
    };
    let graph = graph(settings, top, router_model)?;
    tokens::check(settings, &graph)?;
    let pairs = settings
        .pairs
        .iter()
        .map(|pair| pair_part(pair, router_model()?).map_err(|error| ServeError::Router(Box::new(error))));
    let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
    let mut workshop = Workshop {
        settings,
        models,
        engines: BTreeMap::new(),
        adapters: HashMap::new(),
        metrics: &metrics,
    };
    let mut experts = Vec::with_capacity(settings.experts.len());
    let mut nodes = Vec::new();
    for expert in &settings.experts {
        match graph.node(expert.id.as_str()) {
            Some(node) => nodes.push(RouterCard {
                id: expert.id.clone(),
                kind: expert.kind,
                card: Card {
                    model: format!("router: {}", node.decider.experts().join(", ")),
                    ..expert.card.clone()
                },
            }),
            None => experts.extend(workshop.expert(expert)?),
        }
    }
    let reformatter = match settings.router.reformat.mode {
        ReformatMode::Never => None,
        _ => Some(workshop.reformatter()?),
    };
    Ok(Parts {
        experts,
        graph,
        nodes,
        pairs,
        reformatter,
        log,
        metrics,
    })
}

/// The models that the router or an expert uses, each loaded once.
fn models(settings: &Settings) -> Result<BTreeMap<String, LanguageModel>, ServeError> {
    let router = settings
        .needs_router_model()
        .then_some(settings.router.model.as_str());
    let mut wanted: Vec<&str> = router.into_iter().collect();
    wanted.extend(
        settings
            .experts
            .iter()
            .filter_map(|expert| match &expert.provider {
                Provider::Local(local) => Some(local.model.as_str()),
                Provider::OpenAi(_) | Provider::Router(_) => None,
            }),
    );
    wanted.sort_unstable();
    wanted.dedup();
    let mut models = BTreeMap::new();
    for name in wanted {
        let Some(model) = settings.models.get(name) else {
            continue;
        };
        let failed = |source| ServeError::Model {
            name: name.to_owned(),
            source: Box::new(source),
        };
        let path = fetch::fetch(&model.spec).map_err(failed)?;
        let started = Instant::now();
        let loaded = LanguageModel::load(&path, &model.load).map_err(failed)?;
        let megabytes = loaded.info().weight_bytes / 1_000_000;
        tracing::info!(model = name, megabytes, took = ?started.elapsed(), "model loaded");
        models.insert(name.to_owned(), loaded);
    }
    Ok(models)
}

/// Fetches and loads the published Octopus v4.
///
/// # Errors
/// [`ServeError::Model`] if it cannot be fetched, [`ServeError::Router`] if it is not what it should be.
pub(crate) fn octopus_v4(settings: &OctopusSettings) -> Result<OctopusV4, ServeError> {
    let path = fetch::fetch(&settings.spec).map_err(|source| ServeError::Model {
        name: settings.spec.name.clone(),
        source: Box::new(source),
    })?;
    let started = Instant::now();
    let octopus = OctopusV4::load(&path, settings.device, &settings.experts)
        .map_err(|error| ServeError::Router(Box::new(error)))?;
    tracing::info!(took = ?started.elapsed(), "Octopus v4 loaded");
    Ok(octopus)
}

/// The router with the routers below it, which read with `model`.
///
/// # Errors
/// [`ServeError::Expert`] for a router that cannot be loaded, [`ServeError::Graph`] for a circle and the like.
pub(crate) fn graph(
    settings: &Settings,
    top: Arc<dyn Decider>,
    model: impl Fn() -> Result<LanguageModel, ServeError>,
) -> Result<Graph, ServeError> {
    let mut nodes = Vec::new();
    for expert in &settings.experts {
        if let Provider::Router(node) = &expert.provider {
            let router = Router::load(&node.directory, model()?).map_err(|error| failed(expert, error))?;
            nodes.push(Node {
                name: expert.id.to_string(),
                decider: Arc::new(router),
                otherwise: node.otherwise.clone(),
                min_confidence: node.min_confidence,
            });
        }
    }
    Ok(Graph::new(
        top,
        settings.policy.min_confidence,
        nodes,
        settings.max_depth,
    )?)
}

/// A pair with its head, which is read by the router's model.
fn pair_part(settings: &PairSettings, model: LanguageModel) -> Result<PairPart, RouterError> {
    let head = match &settings.gain_model {
        Some(directory) => GainModel::load(directory, model),
        None => GainModel::shipped(model),
    }?;
    Ok(PairPart {
        pair: Pair {
            strong: settings.strong.clone(),
            weak: settings.weak.clone(),
            threshold: match settings.threshold {
                PairThreshold::Share(share) => head.threshold_for_share(share),
                PairThreshold::Gain(gain) => gain,
            },
        },
        gains: Arc::new(head),
        cascade: settings.cascade,
    })
}

fn known<'a>(
    models: &'a BTreeMap<String, LanguageModel>,
    name: &str,
) -> Result<&'a LanguageModel, ServeError> {
    // Validation has checked the name; this is for settings made by other means.
    models.get(name).ok_or_else(|| ServeError::Model {
        name: name.to_owned(),
        source: Box::new(LmError::Invalid {
            field: "model",
            value: name.to_owned(),
            fix: "name a key of models".to_owned(),
        }),
    })
}

/// What experts share: an engine for each model, each adapter once.
struct Workshop<'a> {
    settings: &'a Settings,
    models: BTreeMap<String, LanguageModel>,
    engines: BTreeMap<String, Engine>,
    adapters: HashMap<(String, AdapterSource), Arc<Adapter>>,
    metrics: &'a Metrics,
}

impl Workshop<'_> {
    /// `None` of a router, which answers nothing.
    fn expert(&mut self, settings: &ExpertSettings) -> Result<Option<Arc<dyn Expert>>, ServeError> {
        match &settings.provider {
            Provider::Local(local) => self.local(settings, local).map(Some),
            Provider::OpenAi(remote) => open_ai(settings, remote).map(Some),
            Provider::Router(_) => Ok(None),
        }
    }

    fn local(
        &mut self,
        settings: &ExpertSettings,
        local: &LocalSettings,
    ) -> Result<Arc<dyn Expert>, ServeError> {
        let engine = self.engine(&local.model)?;
        let adapter = match &local.adapter {
            Some(source) => Some(self.adapter(settings, &local.model, source)?),
            None => None,
        };
        let adapter = adapter.map(|adapter| (adapter, local.adapter_scale));
        let defaults = LocalDefaults {
            system_prompt: local.system_prompt.clone(),
            max_tokens: local.max_tokens,
            temperature: local.temperature,
            top_p: local.top_p,
            ..LocalDefaults::default()
        };
        LocalExpert::new(
            settings.id.clone(),
            settings.kind,
            settings.card.clone(),
            engine,
            adapter,
            defaults,
        )
        .map(|expert| Arc::new(expert) as Arc<dyn Expert>)
        .map_err(|error| failed(settings, error))
    }

    fn reformatter(&mut self) -> Result<Arc<dyn Reformatter>, ServeError> {
        let router = &self.settings.router;
        let base = known(&self.models, &router.model)?;
        let adapter = reformatter::adapter(router.reformat_adapter.as_deref(), base)
            .map_err(|error| ServeError::Reformat(Box::new(error)))?;
        let engine = self.engine(&router.model)?;
        Ok(Arc::new(EngineReformatter::new(engine, adapter)))
    }

    fn engine(&mut self, model: &str) -> Result<Engine, ServeError> {
        if let Some(engine) = self.engines.get(model) {
            return Ok(engine.clone());
        }
        let loaded = known(&self.models, model)?.clone();
        let options = self
            .settings
            .models
            .get(model)
            .map(|model| model.engine.clone())
            .unwrap_or_default();
        let engine = Engine::start(model, loaded, options, self.metrics.registry()).map_err(|source| {
            ServeError::Model {
                name: model.to_owned(),
                source: Box::new(source),
            }
        })?;
        self.engines.insert(model.to_owned(), engine.clone());
        Ok(engine)
    }

    fn adapter(
        &mut self,
        settings: &ExpertSettings,
        model: &str,
        source: &AdapterSource,
    ) -> Result<Arc<Adapter>, ServeError> {
        let key = (model.to_owned(), source.clone());
        if let Some(adapter) = self.adapters.get(&key) {
            return Ok(Arc::clone(adapter));
        }
        let base = known(&self.models, model)?;
        let loaded = match source {
            AdapterSource::File(path) => {
                Adapter::load(path, base).map_err(|error| failed(settings, error))?
            }
            AdapterSource::Shipped(name) => {
                let bytes = shipped::adapter(name).ok_or_else(|| {
                    let known: Vec<&str> = shipped::adapter_names().collect();
                    let fix = format!("name one of: {}", known.join(", "));
                    failed(
                        settings,
                        LmError::Invalid {
                            field: "adapter",
                            value: name.clone(),
                            fix,
                        },
                    )
                })?;
                Adapter::from_bytes(bytes, base).map_err(|error| failed(settings, error))?
            }
        };
        let adapter = Arc::new(loaded);
        self.adapters.insert(key, Arc::clone(&adapter));
        Ok(adapter)
    }
}

fn open_ai(settings: &ExpertSettings, remote: &OpenAiSettings) -> Result<Arc<dyn Expert>, ServeError> {
    let reach = openai::OpenAiSettings {
        api_key: remote.api_key.as_ref().map(|key| key.reveal().to_owned()),
        headers: remote
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.reveal().to_owned()))
            .collect(),
        connect_timeout: remote.timeout,
        idle_timeout: remote.timeout,
        stream: remote.stream,
        system_prompt: remote.system_prompt.clone(),
        max_tokens: remote.max_tokens,
        temperature: remote.temperature,
        top_p: remote.top_p,
        ..openai::OpenAiSettings::new(remote.base_url.clone(), remote.model.clone())
    };
    OpenAiExpert::new(settings.id.clone(), settings.kind, settings.card.clone(), reach)
        .map(|expert| Arc::new(expert) as Arc<dyn Expert>)
        .map_err(|error| failed(settings, error))
}

fn failed(settings: &ExpertSettings, error: impl std::error::Error + Send + Sync + 'static) -> ServeError {
    ServeError::Expert {
        id: settings.id.to_string(),
        source: Box::new(error),
    }
}
