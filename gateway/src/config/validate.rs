//! From the configuration as written to [`Settings`]: addresses, durations, names and what refers to what.
//!
//! Ranges and closed sets were checked against the schema before; here is what a schema cannot say.
//! All mistakes are collected, so that one run of `referral config check` shows them all.

mod experts;
mod octopus;
mod pairs;

use super::check::suggestion;
use super::layers::{KeyPath, Variables};
use super::raw::{
    RawEngine, RawKind, RawLog, RawLogFormat, RawModel, RawQuantization, RawServer, RawSettings,
};
use super::settings::{
    ExpertSettings, LogSettings, ModelSettings, RouterSettings, ServerSettings, Settings, TelemetrySettings,
};
use crate::pipeline::ReformatSettings;
use experts::expert;
use referral_experts::Residency;
use referral_lm::engine::EngineOptions;
use referral_lm::fetch::{ModelSpec, Source};
use referral_lm::load::{DeviceSpec, LoadOptions, Quantization};
use referral_router::policy::PolicySettings;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// `shown` is `raw` as a tree with secrets redacted: the settings' version is its digest.
pub(super) fn validate(
    raw: RawSettings,
    shown: &serde_json::Value,
    variables: &Variables,
) -> Result<Settings, Vec<(KeyPath, String)>> {
    let mut problems = Problems(Vec::new());
    let mut warnings = Vec::new();
    let models: BTreeMap<_, _> = raw
        .models
        .into_iter()
        .filter_map(|(name, m)| Some((name, m?)))
        .collect();
    let names: Vec<String> = models.keys().cloned().collect();
    let experts: BTreeMap<_, _> = raw
        .experts
        .into_iter()
        .filter_map(|(id, e)| Some((id, e?)))
        .collect();

    let server = server(&raw.server, &mut problems);
    problems.model_exists(&["router", "model"], &raw.router.model, &names);
    let router = RouterSettings {
        backend: octopus::backend(raw.router.backend, raw.router.octopus, &experts, &mut problems),
        model: raw.router.model,
        directory: raw.router.directory.map(PathBuf::from),
        allow_unmatched: raw.router.allow_unmatched,
        queue_capacity: raw.router.queue_capacity,
        cache_capacity: raw.router.cache.capacity,
        cache_ttl: problems.duration(
            &["router", "cache", "ttl"],
            &raw.router.cache.ttl,
            SECOND,
            30 * DAY,
        ),
        reformat: ReformatSettings {
            mode: raw.router.reformat.mode,
            min_confidence: raw.router.reformat.min_confidence,
            time_limit: problems.duration(
                &["router", "reformat", "time_limit"],
                &raw.router.reformat.time_limit,
                Duration::from_millis(1),
                HOUR,
            ),
        },
        reformat_adapter: raw.router.reformat.adapter.map(PathBuf::from),
    };
    let generalist = &raw.policy.generalist;
    match experts.get(generalist) {
        Some(expert) if expert.router.is_some() => problems.add(
            &["policy", "generalist"],
            format!("expert {generalist} is a router: name one that answers"),
        ),
        Some(expert) if matches!(expert.kind, RawKind::Generalist) => {}
        Some(_) => problems.add(
            &["policy", "generalist"],
            format!("expert {generalist} is no generalist: give it `kind: generalist` or name another"),
        ),
        None => {
            let known: Vec<&str> = experts.keys().map(String::as_str).collect();
            let hint = suggestion(generalist, &known);
            problems.add(
                &["policy", "generalist"],
                format!("no expert is called {generalist:?}: {hint}"),
            );
        }
    }
    let engines: BTreeMap<String, usize> = models
        .iter()
        .map(|(name, model)| (name.clone(), model.engine.max_sequence_tokens))
        .collect();
    let models = models
        .into_iter()
        .map(|(name, m)| (name.clone(), model(&name, m, &mut problems)))
        .collect();
    let experts: Vec<ExpertSettings> = experts
        .into_iter()
        .filter_map(|(id, raw)| expert(&id, raw, &engines, &mut problems, &mut warnings))
        .collect();
    for expert in &experts {
        if expert.card.residency == Residency::External && !raw.policy.allow_external {
            warnings.push(format!(
                "expert {} is external and policy.allow_external is false: it is never chosen. If it runs within \
                 the organisation, say experts.{0}.card.residency: on_premises",
                expert.id
            ));
        }
    }
    experts::stand_ins(&experts, &mut problems);
    let pairs = pairs::pairs(raw.policy.pairs, &experts, &mut problems);
    let log = log(raw.log, variables, &mut problems);
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&raw.telemetry.log_filter) {
        let message = format!(
            "{:?} is no log filter ({error}): use e.g. info",
            raw.telemetry.log_filter
        );
        problems.add(&["telemetry", "log_filter"], message);
    }
    if !problems.0.is_empty() {
        return Err(problems.0);
    }
    let digest = blake3::hash(shown.to_string().as_bytes()).to_hex();
    Ok(Settings {
        server,
        models,
        router,
        policy: PolicySettings {
            generalist: raw.policy.generalist,
            min_confidence: raw.router.min_confidence,
            allow_external: raw.policy.allow_external,
        },
        max_fallbacks: raw.policy.max_fallbacks,
        max_depth: raw.policy.max_depth,
        pairs,
        experts,
        log,
        telemetry: TelemetrySettings {
            json: matches!(raw.telemetry.log_format, RawLogFormat::Json),
            filter: raw.telemetry.log_filter,
        },
        version: digest.chars().take(16).collect(),
        warnings,
    })
}

struct Problems(Vec<(KeyPath, String)>);

impl Problems {
    fn add(&mut self, path: &[&str], message: String) {
        self.0
            .push((path.iter().map(|&key| key.to_owned()).collect(), message));
    }

    fn duration(&mut self, path: &[&str], text: &str, low: Duration, high: Duration) -> Duration {
        let show = |d| humantime::format_duration(d).to_string();
        match humantime::parse_duration(text) {
            Ok(value) if (low..=high).contains(&value) => return value,
            Ok(_) => {
                self.add(
                    path,
                    format!("{text} is out of range: use {} to {}", show(low), show(high)),
                );
            }
            Err(_) => self.add(
                path,
                format!("{text:?} is no duration: write e.g. 500ms, 30s or 2m"),
            ),
        }
        // The widest value, so that no other setting seems wrong because of this one.
        high
    }

    fn address(&mut self, path: &[&str], text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| {
            self.add(
                path,
                format!("{text:?} is no address: write IP:PORT, e.g. 127.0.0.1:50051 or [::]:50051"),
            );
            (Ipv4Addr::LOCALHOST, 0).into()
        })
    }

    fn model_exists(&mut self, path: &[&str], name: &str, names: &[String]) {
        if !names.iter().any(|known| known == name) {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            self.add(
                path,
                format!("no model is called {name:?}: {}", suggestion(name, &known)),
            );
        }
    }
}

fn server(raw: &RawServer, problems: &mut Problems) -> ServerSettings {
    let grpc_address = problems.address(&["server", "grpc_address"], &raw.grpc_address);
    let http_address = problems.address(&["server", "http_address"], &raw.http_address);
    if grpc_address == http_address && grpc_address.port() != 0 {
        problems.add(
            &["server", "http_address"],
            format!("{http_address} is grpc_address too: use another port"),
        );
    }
    let max_deadline = problems.duration(&["server", "max_deadline"], &raw.max_deadline, SECOND, HOUR);
    ServerSettings {
        grpc_address,
        http_address,
        reflection: raw.reflection,
        max_query_bytes: raw.max_query_bytes,
        max_concurrent_requests: raw.max_concurrent_requests,
        default_deadline: problems.duration(
            &["server", "default_deadline"],
            &raw.default_deadline,
            Duration::from_millis(1),
            max_deadline,
        ),
        max_deadline,
        drain_grace: problems.duration(&["server", "drain_grace"], &raw.drain_grace, Duration::ZERO, HOUR),
    }
}

fn model(name: &str, raw: RawModel, problems: &mut Problems) -> ModelSettings {
    let path = ["models", name];
    let spec = source(&path, name, raw.source, raw.sha256, problems);
    let device = device(&path, &raw.device, problems);
    let quantization = match raw.quantization {
        RawQuantization::Q8_0 => Quantization::Q8_0,
        RawQuantization::Q4_0 => Quantization::Q4_0,
        RawQuantization::Q4_1 => Quantization::Q4_1,
        RawQuantization::Q4K => Quantization::Q4K,
        RawQuantization::F32 => Quantization::F32,
        RawQuantization::AsIs => Quantization::AsIs,
    };
    let RawEngine {
        max_batch,
        queue_capacity,
        max_sequence_tokens,
        prefill_chunk,
        prefix_cache_entries,
        kv_memory_bytes,
    } = raw.engine;
    ModelSettings {
        spec,
        load: LoadOptions { device, quantization },
        engine: EngineOptions {
            max_batch,
            queue_capacity,
            max_sequence_tokens,
            prefill_chunk,
            prefix_cache_entries,
            kv_memory_bytes,
        },
    }
}

/// What is fetched under `name`; `path` is the section's that says from where.
fn source(
    path: &[&str],
    name: &str,
    source: String,
    sha256: Option<String>,
    problems: &mut Problems,
) -> ModelSpec {
    let at = |key| [path, &[key]].concat();
    let is_file = source.starts_with("file:");
    if !is_file && !source.starts_with("pypi:") && !source.starts_with("hf:") {
        let message = format!("{source:?} is no source: start with pypi:, hf: or file:");
        problems.add(&at("source"), message);
    }
    match &sha256 {
        Some(digest) if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) => {}
        Some(digest) => problems.add(
            &at("sha256"),
            format!("{digest:?} is no SHA-256: write its 64 hex digits"),
        ),
        None if is_file => {}
        None => problems.add(
            &at("sha256"),
            "is missing: what is downloaded needs its SHA-256".to_owned(),
        ),
    }
    ModelSpec {
        name: name.to_owned(),
        source: Source(source),
        sha256: sha256.map(|digest| digest.to_lowercase()),
    }
}

fn device(path: &[&str], text: &str, problems: &mut Problems) -> DeviceSpec {
    let device = match text {
        "auto" => Some(DeviceSpec::Auto),
        "cpu" => Some(DeviceSpec::Cpu),
        "metal" => Some(DeviceSpec::Metal),
        other => other
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .map(DeviceSpec::Cuda),
    };
    device.unwrap_or_else(|| {
        problems.add(
            &[path, &["device"]].concat(),
            format!("{text:?} is no device: use auto, cpu, cuda:N or metal"),
        );
        DeviceSpec::Auto
    })
}

fn log(raw: RawLog, variables: &Variables, problems: &mut Problems) -> LogSettings {
    if raw.hash_key.as_ref().is_some_and(|key| key.reveal().len() < 16) {
        problems.add(
            &["log", "hash_key"],
            "is too short: use at least 16 characters, or null".to_owned(),
        );
    }
    LogSettings {
        path: raw
            .path
            .map(PathBuf::from)
            .or_else(|| default_log_path(variables))
            .unwrap_or_else(|| {
                problems.add(
                    &["log", "path"],
                    "is missing and there is no home directory: give a path".to_owned(),
                );
                PathBuf::new()
            }),
        store_text: raw.store_text,
        hash_key: raw.hash_key,
        queue_capacity: raw.queue_capacity,
        retention: raw
            .retention
            .map(|text| problems.duration(&["log", "retention"], &text, HOUR, 36_500 * DAY)),
    }
}

fn default_log_path(variables: &Variables) -> Option<PathBuf> {
    let stated = variables
        .get("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let directory = stated.or_else(dirs::state_dir).or_else(dirs::data_local_dir)?;
    Some(directory.join(Path::new("referral/decisions.sqlite")))
}
