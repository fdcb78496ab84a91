//! Experts: exactly one provider each, and what its model, adapter, address and headers must be.

use super::super::check::suggestion;
use super::super::raw::{
    RawCard, RawExpert, RawKind, RawLocal, RawModality, RawNode, RawOpenAi, RawResidency,
};
use super::super::settings::{
    AdapterSource, ExpertSettings, LocalSettings, NodeSettings, OpenAiSettings, Provider,
};
use super::{HOUR, Problems};
use referral_experts::{Card, ExpertId, ExpertKind, Modality, Residency, shipped};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `models` are the longest sequences of the engines, by the models' names.
pub(super) fn expert(
    name: &str,
    raw: RawExpert,
    models: &BTreeMap<String, usize>,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<ExpertSettings> {
    let id = ExpertId::try_from(name).map_err(|error| problems.add(&["experts", name], error.to_string()));
    let (provider, model_name, default_residency) = match (raw.local, raw.openai, raw.router) {
        (Some(raw), None, None) => {
            let model = raw.model.clone();
            (
                Provider::Local(local(name, raw, models, problems)),
                model,
                Residency::OnPremises,
            )
        }
        (None, Some(raw), None) => {
            let model = raw.model.clone();
            (
                Provider::OpenAi(openai(name, raw, problems, warnings)),
                model,
                Residency::External,
            )
        }
        (None, None, Some(raw)) => (
            Provider::Router(node(raw)),
            "router".to_owned(),
            Residency::OnPremises,
        ),
        (None, None, None) => {
            problems.add(
                &["experts", name],
                "has no provider: give it `local:`, `openai:` or `router:`".to_owned(),
            );
            return None;
        }
        _ => {
            problems.add(
                &["experts", name],
                "has several providers: keep one of local, openai and router".to_owned(),
            );
            return None;
        }
    };
    let kind = match raw.kind {
        RawKind::Specialist => ExpertKind::Specialist,
        RawKind::Generalist => ExpertKind::Generalist,
        RawKind::Domain => ExpertKind::Domain,
    };
    Some(ExpertSettings {
        id: id.ok()?,
        kind,
        card: card(raw.card, model_name, default_residency),
        provider,
    })
}

fn node(raw: RawNode) -> NodeSettings {
    NodeSettings {
        directory: PathBuf::from(raw.directory),
        otherwise: raw.otherwise,
        min_confidence: raw.min_confidence,
    }
}

/// Who stands in for a router is there and answers.
pub(super) fn stand_ins(experts: &[ExpertSettings], problems: &mut Problems) {
    let workers: Vec<&str> = experts
        .iter()
        .filter(|expert| expert.is_worker())
        .map(|expert| expert.id.as_str())
        .collect();
    for expert in experts {
        let Provider::Router(node) = &expert.provider else {
            continue;
        };
        if !workers.contains(&node.otherwise.as_str()) {
            let message = format!(
                "no expert that answers is called {:?}: {}",
                node.otherwise,
                suggestion(&node.otherwise, &workers)
            );
            problems.add(&["experts", expert.id.as_str(), "router", "otherwise"], message);
        }
    }
}

fn card(raw: RawCard, model: String, residency: Residency) -> Card {
    Card {
        model: raw.model.unwrap_or(model),
        licence: raw.licence,
        description: raw.description,
        languages: raw.languages,
        modality: match raw.modality {
            RawModality::Text => Modality::Text,
            RawModality::Image => Modality::Image,
        },
        price_per_million_input: raw.price_per_million_input,
        price_per_million_output: raw.price_per_million_output,
        residency: match raw.residency {
            Some(RawResidency::OnPremises) => Residency::OnPremises,
            Some(RawResidency::External) => Residency::External,
            None => residency,
        },
    }
}

fn local(
    name: &str,
    raw: RawLocal,
    models: &BTreeMap<String, usize>,
    problems: &mut Problems,
) -> LocalSettings {
    let path = |key| ["experts", name, "local", key];
    let names: Vec<String> = models.keys().cloned().collect();
    problems.model_exists(&path("model"), &raw.model, &names);
    if let Some(limit) = models
        .get(&raw.model)
        .filter(|limit| raw.max_tokens as usize >= **limit)
    {
        let message = format!(
            "{} leaves no room for a prompt: stay under models.{}.engine.max_sequence_tokens, {limit}",
            raw.max_tokens, raw.model
        );
        problems.add(&path("max_tokens"), message);
    }
    let adapter = raw.adapter.map(|adapter| match adapter.strip_prefix("shipped:") {
        Some(name) => {
            let known: Vec<&str> = shipped::adapter_names().collect();
            if !known.contains(&name) {
                let hint = suggestion(name, &known);
                problems.add(
                    &path("adapter"),
                    format!("no adapter called {name:?} is shipped: {hint}"),
                );
            }
            AdapterSource::Shipped(name.to_owned())
        }
        None => AdapterSource::File(PathBuf::from(adapter)),
    });
    LocalSettings {
        model: raw.model,
        adapter,
        adapter_scale: raw.adapter_scale,
        system_prompt: raw.system_prompt,
        max_tokens: raw.max_tokens,
        temperature: raw.temperature,
        top_p: raw.top_p,
    }
}

fn openai(name: &str, raw: RawOpenAi, problems: &mut Problems, warnings: &mut Vec<String>) -> OpenAiSettings {
    let path = |key| ["experts", name, "openai", key];
    match raw.base_url.parse::<http::Uri>() {
        // Not quoted: it holds a password.
        Ok(url) if url.authority().is_some_and(|a| a.as_str().contains('@')) => problems.add(
            &path("base_url"),
            "holds user information: put credentials into api_key or headers".to_owned(),
        ),
        Ok(url) if matches!(url.scheme_str(), Some("http" | "https")) && url.query().is_none() => {
            let is_loopback = matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
            if url.scheme_str() == Some("http") && raw.api_key.is_some() && !is_loopback {
                warnings.push(format!(
                    "expert {name}: its api_key crosses the network unencrypted: use https"
                ));
            }
        }
        _ => problems.add(
            &path("base_url"),
            format!(
                "{:?} is no base URL: write e.g. http://gpu1:8000/v1",
                raw.base_url
            ),
        ),
    }
    if raw
        .api_key
        .as_ref()
        .is_some_and(|key| http::HeaderValue::from_str(key.reveal()).is_err())
    {
        problems.add(
            &path("api_key"),
            "cannot be sent in a header: use visible ASCII".to_owned(),
        );
    }
    let mut headers = Vec::new();
    for (header, value) in raw.headers {
        let path = ["experts", name, "openai", "headers", &header];
        if http::HeaderValue::from_str(value.reveal()).is_err() {
            problems.add(&path, "cannot be sent in a header: use visible ASCII".to_owned());
        }
        match http::HeaderName::try_from(header.as_str()) {
            Ok(name) => headers.push((name, value)),
            Err(_) => problems.add(&path, "is no header name: use letters, digits and -".to_owned()),
        }
    }
    OpenAiSettings {
        timeout: problems.duration(&path("timeout"), &raw.timeout, Duration::from_millis(10), HOUR),
        base_url: raw.base_url.trim_end_matches('/').to_owned(),
        model: raw.model,
        api_key: raw.api_key,
        headers,
        stream: raw.stream,
        system_prompt: raw.system_prompt,
        max_tokens: raw.max_tokens,
        temperature: raw.temperature,
        top_p: raw.top_p,
    }
}
