//! The router's backend: the published Octopus v4, whose functions are all mapped to experts that are there.

use super::super::check::suggestion;
use super::super::raw::{RawBackend, RawExpert, RawOctopus};
use super::super::settings::{Backend, OctopusSettings};
use super::{Problems, device, source};
use referral_router::octopus_v4::FUNCTIONS;
use std::collections::BTreeMap;

const PATH: [&str; 2] = ["router", "octopus"];

pub(super) fn backend(
    backend: RawBackend,
    octopus: Option<RawOctopus>,
    experts: &BTreeMap<String, RawExpert>,
    problems: &mut Problems,
) -> Backend {
    match (backend, octopus) {
        (RawBackend::OctopusV4, Some(raw)) => Backend::OctopusV4(settings(raw, experts, problems)),
        (RawBackend::OctopusV4, None) => {
            problems.add(
                &PATH,
                "is missing: the backend octopus_v4 needs its source and experts".to_owned(),
            );
            Backend::Functional
        }
        (RawBackend::Functional, Some(_)) => {
            problems.add(
                &PATH,
                "is not used: say router.backend: octopus_v4, or leave it out".to_owned(),
            );
            Backend::Functional
        }
        (RawBackend::Functional, None) => Backend::Functional,
    }
}

fn settings(
    raw: RawOctopus,
    experts: &BTreeMap<String, RawExpert>,
    problems: &mut Problems,
) -> OctopusSettings {
    let known: Vec<&str> = experts.keys().map(String::as_str).collect();
    let mut check = |path: &[&str], name: &str| {
        if !known.contains(&name) {
            problems.add(
                path,
                format!("no expert is called {name:?}: {}", suggestion(name, &known)),
            );
        }
    };
    for (function, name) in &raw.experts {
        check(&["router", "octopus", "experts", function], name);
    }
    if let Some(name) = &raw.otherwise {
        check(&["router", "octopus", "otherwise"], name);
    }
    for function in raw.experts.keys() {
        if !FUNCTIONS.contains(&function.as_str()) {
            let message = format!(
                "is no function of Octopus v4: {}",
                suggestion(function, &FUNCTIONS)
            );
            problems.add(&["router", "octopus", "experts", function], message);
        }
    }
    let missing: Vec<&str> = FUNCTIONS
        .into_iter()
        .filter(|function| !raw.experts.contains_key(*function))
        .collect();
    if raw.otherwise.is_none() && !missing.is_empty() {
        let message = format!(
            "has nobody for {}: map them, or give `otherwise`",
            missing.join(", ")
        );
        problems.add(&["router", "octopus", "experts"], message);
    }
    let expert = |function: &str| {
        let mapped = raw.experts.get(function).or(raw.otherwise.as_ref());
        mapped.cloned().unwrap_or_default()
    };
    OctopusSettings {
        experts: FUNCTIONS.map(expert),
        device: device(&PATH, &raw.device, problems),
        spec: source(&PATH, "octopus-v4", raw.source, raw.sha256, problems),
    }
}
