//! Layers, mistakes and secrets, through the public door.

mod graph;
mod octopus;
mod pairs;

use super::*;
use referral_experts::{ExpertKind, Residency};
use std::time::Duration;

fn variables(pairs: &[(&str, &str)]) -> Variables {
    let home = [("XDG_STATE_HOME", "/state")];
    pairs
        .iter()
        .chain(&home)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Loads a file with this text over the defaults.
fn load_text(text: &str, pairs: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("referral.yaml");
    std::fs::write(&path, text).unwrap();
    load(Some(&path), &variables(pairs))
}

fn good(text: &str, pairs: &[(&str, &str)]) -> Settings {
    load_text(text, pairs)
        .unwrap_or_else(|error| panic!("{error}"))
        .settings
}

/// The problems of a bad configuration, one line each.
fn problems(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    match load_text(text, pairs) {
        Err(ConfigError::Invalid(Problems(problems))) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

fn expert<'a>(settings: &'a Settings, id: &str) -> &'a ExpertSettings {
    settings
        .experts
        .iter()
        .find(|expert| expert.id.as_str() == id)
        .unwrap()
}

#[test]
fn defaults_alone_are_good() {
    let settings = load(None, &variables(&[])).unwrap().settings;
    assert_eq!(settings.server.grpc_address.to_string(), "127.0.0.1:50051");
    assert_eq!(settings.server.max_query_bytes, 32_768);
    assert_eq!(settings.server.drain_grace, Duration::from_secs(30));
    assert_eq!(settings.log.path, Path::new("/state/referral/decisions.sqlite"));
    assert!(!settings.log.store_text);
    assert_eq!(settings.experts.len(), 12);
    assert_eq!(expert(&settings, "generalist").kind, ExpertKind::Generalist);
    let adapted = settings.experts.iter().filter(|expert| {
        matches!(&expert.provider, Provider::Local(local)
            if local.adapter == Some(AdapterSource::Shipped("medical".to_owned())) && local.system_prompt.is_some())
    });
    assert_eq!(adapted.count(), 10);
    assert_eq!(settings.warnings, Vec::<String>::new());
}

#[test]
fn environment_wins_over_file_wins_over_defaults() {
    let text =
        "version: 1\nserver: { grpc_address: '0.0.0.0:1', max_deadline: 3m }\nrouter:\n  cache: { ttl: 1m }";
    let settings = good(
        text,
        &[
            ("REFERRAL__SERVER__GRPC_ADDRESS", "0.0.0.0:2"),
            ("REFERRAL__SERVER__REFLECTION", "false"),
            ("REFERRAL__ROUTER__MIN_CONFIDENCE", "0.5"),
            ("REFERRAL__MODELS__SMOLLM2_135M_INSTRUCT__ENGINE__MAX_BATCH", "4"),
            ("REFERRAL__EXPERTS__PHARMACY__CARD__LANGUAGES", "[en, de]"),
            ("REFERRAL_CACHE", "not a setting"),
        ],
    );
    assert_eq!(settings.server.grpc_address.port(), 2);
    assert_eq!(settings.server.max_deadline, Duration::from_secs(180));
    assert_eq!(settings.server.default_deadline, Duration::from_secs(60));
    assert_eq!(settings.router.cache_ttl, Duration::from_secs(60));
    assert_eq!(settings.router.cache_capacity, 10_000);
    assert!(!settings.server.reflection);
    assert_eq!(settings.policy.min_confidence, Some(0.5));
    assert_eq!(settings.models["smollm2-135m-instruct"].engine.max_batch, 4);
    assert_eq!(expert(&settings, "pharmacy").card.languages, ["en", "de"]);
}

#[test]
fn empty_variable_unsets_what_may_be_unset() {
    let text = "version: 1\nrouter: { directory: /some/router }";
    assert_eq!(
        good(text, &[]).router.directory.as_deref(),
        Some(Path::new("/some/router"))
    );
    assert_eq!(
        good(text, &[("REFERRAL__ROUTER__DIRECTORY", "")])
            .router
            .directory,
        None
    );
}

#[test]
fn another_provider_replaces_the_whole_expert_and_null_removes_it() {
    let text = "version: 1\nexperts:\n  oncology:\n    openai: { base_url: 'http://gpu1:8000/v1/', model: m }\n  genetics: null";
    let settings = good(text, &[]);
    let oncology = expert(&settings, "oncology");
    assert_eq!(oncology.card.residency, Residency::External);
    assert_eq!(oncology.card.model, "m");
    assert_eq!(oncology.card.description, "");
    assert!(
        matches!(&oncology.provider, Provider::OpenAi(openai) if openai.base_url == "http://gpu1:8000/v1")
    );
    assert_eq!(settings.experts.len(), 11);
    assert!(
        matches!(settings.warnings.as_slice(), [one] if one.contains("oncology is external")),
        "{:?}",
        settings.warnings
    );
}

#[test]
fn same_provider_merges() {
    let text = "version: 1\nexperts: { oncology: { local: { max_tokens: 99 } } }";
    let settings = good(text, &[]);
    let Provider::Local(local) = &expert(&settings, "oncology").provider else {
        panic!("not local")
    };
    assert_eq!(local.max_tokens, 99);
    assert!(local.system_prompt.as_deref().unwrap().contains("oncologist"));
}

#[test]
fn mistakes_name_key_value_place_and_fix_all_at_once() {
    let text = "version: 1\nserver:\n  max_query_byts: 5\n  max_deadline: 5 bananas\nrouter: { min_confidence: 3 }\n";
    let found = problems(text, &[("REFERRAL__LOG__STORE_TEXT", "maybe")]);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("server.max_query_byts: unknown key: did you mean max_query_bytes? (in "));
    assert!(found[0].contains("referral.yaml"));
    assert!(found[1].starts_with("router.min_confidence: 3 is out of range: use 0 to 1"));
    assert_eq!(
        found[2],
        "log.store_text: expected true or false, found text (in environment variable REFERRAL__LOG__STORE_TEXT)"
    );
    let text = "version: 1\nserver: { max_deadline: 5 bananas, grpc_address: localhost }\npolicy: { generalist: oncolgy }";
    let found = problems(text, &[]);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("\"localhost\" is no address: write IP:PORT"));
    assert!(found[1].contains("server.max_deadline: \"5 bananas\" is no duration"));
    assert!(found[2].contains("policy.generalist: no expert is called \"oncolgy\": did you mean oncology?"));
}

#[test]
fn every_limit_is_enforced() {
    let cases = [
        ("server", "max_query_bytes", "0"),
        ("server", "max_query_bytes", "4194305"),
        ("server", "max_concurrent_requests", "0"),
        ("server", "max_concurrent_requests", "-1"),
        ("server", "default_deadline", "0s"),
        ("server", "default_deadline", "3m"),
        ("server", "max_deadline", "2h"),
        ("server", "drain_grace", "2h"),
        ("server", "grpc_address", "':50051'"),
        ("server", "http_address", "127.0.0.1:50051"),
        ("router", "min_confidence", "-0.1"),
        ("router", "min_confidence", "1.1"),
        ("router", "queue_capacity", "0"),
        ("router", "queue_capacity", "65537"),
        ("router", "model", "nobody"),
        ("router", "cache", "{ capacity: 10000001 }"),
        ("router", "cache", "{ ttl: 0s }"),
        ("policy", "max_fallbacks", "9"),
        ("policy", "generalist", "oncology"),
        ("log", "queue_capacity", "0"),
        ("log", "retention", "1m"),
        ("log", "hash_key", "short"),
        ("telemetry", "log_format", "xml"),
        ("telemetry", "log_filter", "'=='"),
        ("models", "smollm2-135m-instruct", "{ device: tpu }"),
        ("models", "smollm2-135m-instruct", "{ quantization: q2 }"),
        ("models", "smollm2-135m-instruct", "{ sha256: abc }"),
        ("models", "smollm2-135m-instruct", "{ sha256: null }"),
        ("models", "smollm2-135m-instruct", "{ source: 'ftp:x' }"),
        ("models", "smollm2-135m-instruct", "{ engine: { max_batch: 0 } }"),
        (
            "models",
            "smollm2-135m-instruct",
            "{ engine: { queue_capacity: 0 } }",
        ),
        (
            "models",
            "smollm2-135m-instruct",
            "{ engine: { max_sequence_tokens: 63 } }",
        ),
        (
            "models",
            "smollm2-135m-instruct",
            "{ engine: { prefill_chunk: 0 } }",
        ),
        (
            "models",
            "smollm2-135m-instruct",
            "{ engine: { prefix_cache_entries: 4097 } }",
        ),
        (
            "models",
            "smollm2-135m-instruct",
            "{ engine: { kv_memory_bytes: 1000 } }",
        ),
        ("models", "mine", "{ sha256: null }"),
        ("experts", "oncology", "{ kind: surgeon }"),
        ("experts", "oncology", "{ local: { adapter_scale: 5 } }"),
        ("experts", "oncology", "{ local: { max_tokens: 0 } }"),
        ("experts", "oncology", "{ local: { max_tokens: 2048 } }"),
        ("experts", "oncology", "{ local: { temperature: 2.5 } }"),
        ("experts", "oncology", "{ local: { top_p: 0 } }"),
        ("experts", "oncology", "{ local: { model: nobody } }"),
        ("experts", "oncology", "{ local: { adapter: 'shipped:medicla' } }"),
        (
            "experts",
            "oncology",
            "{ openai: { base_url: 'gpu1:8000', model: m } }",
        ),
        (
            "experts",
            "oncology",
            "{ openai: { base_url: 'http://me:pw@gpu1/v1', model: m } }",
        ),
        ("experts", "oncology", "{ openai: { base_url: 'http://x/v1' } }"),
        (
            "experts",
            "oncology",
            "{ openai: { base_url: 'http://x/v1', model: m, timeout: 0s } }",
        ),
        (
            "experts",
            "oncology",
            "{ openai: { base_url: 'http://x/v1', model: m, headers: { 'a b': c } } }",
        ),
        ("experts", "oncology", "{ card: { price_per_million_input: -1 } }"),
        ("experts", "oncology", "{ card: { residency: moon } }"),
        (
            "experts",
            "Oncology",
            "{ local: { model: smollm2-135m-instruct } }",
        ),
        ("experts", "mine", "{}"),
        ("experts", "generalist", "null"),
    ];
    for (section, key, value) in cases {
        let text = format!("version: 1\n{section}: {{ {key}: {value} }}");
        match load_text(&text, &[]) {
            Err(ConfigError::Invalid(Problems(found))) => {
                let expected = if key == "generalist" { "policy" } else { section };
                assert!(
                    found.iter().all(|p| p.path.starts_with(expected)),
                    "{text}: {found:?}"
                );
            }
            other => panic!("{text} was not refused: {other:?}"),
        }
    }
}

#[test]
fn version_is_wanted_and_known() {
    assert!(problems("server: {}", &[])[0].starts_with("version: is missing: write `version: 1`"));
    assert!(problems("", &[])[0].starts_with("version: is missing"));
    assert!(problems("version: 2", &[])[0].starts_with("version: 2 is out of range: use 1"));
}

#[test]
fn broken_yaml_and_missing_files_are_named() {
    let error = load_text("version: 1\nserver: [", &[]).unwrap_err().to_string();
    assert!(
        error.contains("referral.yaml") && error.contains("line"),
        "{error}"
    );
    let error = load_text("version: 1\nlog: {}\nlog: {}", &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("duplicate"), "{error}");
    let error = load_text("- 1", &[]).unwrap_err().to_string();
    assert!(error.contains("no YAML mapping"), "{error}");
    let error = load(Some(Path::new("/no/such/file.yaml")), &variables(&[]))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot read configuration /no/such/file.yaml"),
        "{error}"
    );
}

#[test]
fn environment_fills_texts_and_missing_names_are_reported() {
    let text = "version: 1\nserver: { max_query_bytes: '${LIMIT}' }\ntelemetry: { log_filter: '${FILTER:-warn}' }\n\
                experts: { general: { local: { system_prompt: 'a $${b} ${C}' } } }";
    let settings = good(text, &[("LIMIT", "77"), ("C", "c")]);
    assert_eq!(settings.server.max_query_bytes, 77);
    assert_eq!(settings.telemetry.filter, "warn");
    let Provider::Local(local) = &expert(&settings, "general").provider else {
        panic!("not local")
    };
    assert_eq!(local.system_prompt.as_deref(), Some("a ${b} c"));
    let found = problems(text, &[("LIMIT", "77")]);
    assert!(
        found[0].contains("local.system_prompt: environment variable C is not set"),
        "{found:?}"
    );
    assert!(problems("version: 1\nlog: { path: '${OPEN' }", &[])[0].contains("is not closed"));
}

#[test]
fn secrets_stay_secret() {
    let text = "version: 1\nlog: { hash_key: '${KEY}' }\nexperts:\n  oncology:\n    openai:\n      \
                base_url: https://x/v1\n      model: m\n      api_key: ${TOKEN}\n      headers: { x-key: '${TOKEN}' }";
    let given = [("KEY", "sesame-sesame-sesame"), ("TOKEN", "sk-sesame")];
    let loaded = load_text(text, &given).unwrap();
    let Provider::OpenAi(openai) = &expert(&loaded.settings, "oncology").provider else {
        panic!("not openai")
    };
    assert_eq!(openai.api_key.as_ref().map(Secret::reveal), Some("sk-sesame"));
    for shown in [
        format!("{loaded:?}"),
        loaded.shown.to_string(),
        format!("{:#?}", loaded.settings),
    ] {
        assert!(
            !shown.contains("sesame") && shown.contains("[redacted]"),
            "{shown}"
        );
    }
    // In the wrong place or of the wrong type, its value is still not quoted.
    let found = problems("version: 1\nlog: { hash_key: 31337 }", &[]);
    assert!(!found[0].contains("31337"), "{found:?}");
}

#[test]
fn version_of_settings_changes_with_them() {
    let base = good("version: 1", &[]).version;
    assert_eq!(base, load(None, &variables(&[])).unwrap().settings.version);
    assert_eq!(base.len(), 16);
    assert_ne!(
        base,
        good("version: 1\nrouter: { min_confidence: 0.5 }", &[]).version
    );
}

#[test]
fn shipped_file_validates_against_the_schema() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let shipped: serde_json::Value = serde_yaml_ng::from_str(DEFAULTS).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&shipped)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert_eq!(errors, Vec::<String>::new());
    assert!(validator.is_valid(&serde_json::json!({ "version": 1, "server": { "reflection": false } })));
    for bad in [
        serde_json::json!({ "version": 1, "sever": {} }),
        serde_json::json!({ "version": 1, "server": { "max_query_bytes": 0 } }),
        serde_json::json!({ "server": {} }),
    ] {
        assert!(!validator.is_valid(&bad), "{bad}");
    }
}

#[test]
fn every_setting_is_described_in_the_schema() {
    fn walk(schema: &serde_json::Value, path: &str, bare: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if property["description"].as_str().is_none_or(str::is_empty) {
                bare.push(path.clone());
            }
            walk(property, &path, bare);
        }
        let nested = schema["anyOf"].as_array().into_iter().flatten();
        for nested in nested.chain(schema.get("additionalProperties")) {
            walk(nested, path, bare);
        }
    }
    let mut bare = Vec::new();
    walk(&schema(), "", &mut bare);
    assert_eq!(bare, Vec::<String>::new());
}
