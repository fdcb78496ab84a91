//! The demonstration's queries.

use crate::cli::failure::Failure;
use serde::Deserialize;
use std::path::Path;

const SHIPPED: &str = include_str!("../../../data/demo_queries.jsonl");

/// A query, and who should answer it if that is known.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct DemoQuery {
    /// Its name.
    pub(super) id: String,
    /// The text.
    pub(super) query: String,
    /// Experts that a reader would call right; empty if unknown.
    #[serde(default)]
    pub(super) expected: Vec<String>,
}

/// The queries that ship with the gateway.
pub(super) fn shipped() -> Result<Vec<DemoQuery>, Failure> {
    parse(SHIPPED).map_err(|detail| Failure::new(format!("the shipped queries: {detail}")))
}

/// The queries of a file.
pub(super) fn read(path: &Path) -> Result<Vec<DemoQuery>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
    let queries = parse(&text)
        .map_err(|detail| Failure::new(format!("{}: {detail}", path.display())).with_hint(HINT))?;
    if queries.is_empty() {
        return Err(Failure::new(format!("{} holds no queries", path.display())).with_hint(HINT));
    }
    Ok(queries)
}

const HINT: &str = "write a line for each query: {\"id\": \"1\", \"query\": \"…\"}";

fn parse(text: &str) -> Result<Vec<DemoQuery>, String> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_shipped_queries_cover_every_expert() {
        let queries = parse(SHIPPED).unwrap();
        assert!(queries.len() >= 24);
        let ids: HashSet<&str> = queries.iter().map(|query| query.id.as_str()).collect();
        assert_eq!(ids.len(), queries.len(), "ids are not unique");
        let expected: HashSet<&str> = queries
            .iter()
            .flat_map(|query| query.expected.iter().map(String::as_str))
            .collect();
        let settings = crate::config::load(None, &crate::config::Variables::default())
            .unwrap()
            .settings;
        for expert in &settings.experts {
            assert!(
                expected.contains(expert.id.as_str()),
                "no query for {}",
                expert.id
            );
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let said = parse("{\"id\": \"1\", \"query\": \"q\"}\n\n{}\n").unwrap_err();
        assert!(said.contains("line 3") && said.contains("id"), "{said}");
    }
}
