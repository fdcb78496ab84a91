//! The published Octopus v4 as the router.

use super::*;

fn octopus(section: &str) -> String {
    format!("version: 1\nrouter: {{ backend: octopus_v4, octopus: {section} }}\n")
}

#[test]
fn functions_are_mapped_and_the_rest_goes_otherwise() {
    let text = octopus(
        "{ source: 'file:/models/o.gguf', experts: { health: oncology, math: general }, otherwise: pharmacy }",
    );
    let settings = good(&text, &[]);
    let Backend::OctopusV4(octopus) = &settings.router.backend else {
        panic!("{:?}", settings.router)
    };
    assert_eq!(
        (
            octopus.experts[15].as_str(),
            octopus.experts[4].as_str(),
            octopus.experts[16].as_str()
        ),
        ("oncology", "general", "pharmacy")
    );
    assert_eq!(octopus.spec.source.0, "file:/models/o.gguf");
    assert!(!settings.needs_router_model());
    let by_default = load(None, &variables(&[])).unwrap().settings;
    assert_eq!(by_default.router.backend, Backend::Functional);
    assert!(by_default.needs_router_model());
}

#[test]
fn mistakes_of_the_mapping_are_named() {
    for (section, path, words) in [
        ("null", "router.octopus", "needs its source and experts"),
        (
            "{ source: 'file:o', experts: { healt: general }, otherwise: general }",
            "router.octopus.experts.healt",
            "health",
        ),
        (
            "{ source: 'file:o', experts: { health: pharmcy }, otherwise: general }",
            "router.octopus.experts.health",
            "pharmacy",
        ),
        (
            "{ source: 'file:o', experts: { health: general }, otherwise: nobody_at_all }",
            "router.octopus.otherwise",
            "no expert is called",
        ),
        (
            "{ source: 'file:o', experts: { health: general } }",
            "router.octopus.experts",
            "physics, chemistry",
        ),
        (
            "{ source: 'hf:a/b/c.gguf', experts: {}, otherwise: general }",
            "router.octopus.sha256",
            "missing",
        ),
        (
            "{ source: 'file:o', device: gpu, experts: {}, otherwise: general }",
            "router.octopus.device",
            "cuda:N",
        ),
        (
            "{ experts: {}, otherwise: general }",
            "router.octopus.source",
            "missing",
        ),
    ] {
        let found = problems(&octopus(section), &[]);
        assert!(
            found.len() == 1 && found[0].contains(path) && found[0].contains(words),
            "{section}: {found:?}"
        );
    }
    let text = "version: 1\nrouter: { octopus: { source: 'file:o', experts: {}, otherwise: general } }";
    let found = problems(text, &[]);
    assert!(
        found.len() == 1 && found[0].contains("backend: octopus_v4"),
        "{found:?}"
    );
}
