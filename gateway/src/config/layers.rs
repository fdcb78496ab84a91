//! Layers of configuration: embedded defaults, then the file, then the environment.
//!
//! Each layer is a tree; an upper one wins leaf by leaf. Two rules make the defaults replaceable:
//! `null` removes a default model or expert, and an expert that names another provider replaces the
//! entry below it as a whole, so that nothing of the old one (its residency, say) lingers. The
//! environment arrives as a map, so that tests never touch that of the process.

use super::error::{ConfigError, Problem, Problems};
use config::Source as _;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The shipped configuration: the bottom layer.
pub const DEFAULTS: &str = include_str!("../../../config/referral.yaml");

/// Environment variables by name.
pub type Variables = HashMap<String, String>;

/// Keys from the root to a value.
pub(super) type KeyPath = Vec<String>;

/// The merged layers.
pub(super) struct Merged {
    pub(super) tree: Value,
    /// Values that came as text from the environment and may stand for numbers or flags.
    pub(super) textual: HashSet<KeyPath>,
    /// `${NAME}`s that could not be filled, by path.
    pub(super) problems: Vec<(KeyPath, String)>,
    defaults: Value,
    file: Option<(String, Value)>,
    variables: Vec<(KeyPath, String)>,
}

impl Merged {
    pub(super) fn read(file: Option<&Path>, variables: &Variables) -> Result<Self, ConfigError> {
        let defaults = parse("the built-in defaults", DEFAULTS)?;
        let mut merged = Self {
            tree: defaults.clone(),
            defaults,
            textual: HashSet::new(),
            problems: Vec::new(),
            file: None,
            variables: Vec::new(),
        };
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
            let origin = path.display().to_string();
            let layer = parse(&origin, &text)?;
            if layer.get("version").is_none() {
                return Err(invalid("version", "is missing: write `version: 1`", Some(origin)));
            }
            merge(&mut merged.tree, layer.clone(), 0, false);
            merged.file = Some((origin, layer));
        }
        merged.add_environment(variables)?;
        let mut tree = std::mem::take(&mut merged.tree);
        merged.interpolate(&mut tree, &mut Vec::new(), variables);
        merged.tree = tree;
        Ok(merged)
    }

    /// Which layer says what stands at `path`; for a missing key, which one has its parent.
    pub(super) fn origin(&self, path: &[String]) -> Option<String> {
        if let Some((_, name)) = self.variables.iter().rev().find(|(set, _)| path.starts_with(set)) {
            return Some(format!("environment variable {name}"));
        }
        let (origin, layer) = self.file.as_ref()?;
        let parent = path.len().saturating_sub(1);
        let has =
            |tree: &Value, keys: &[String]| keys.iter().try_fold(tree, |tree, key| tree.get(key)).is_some();
        let is_near = !has(&self.defaults, path) && parent > 0 && has(layer, path.get(..parent)?);
        (has(layer, path) || is_near).then(|| origin.clone())
    }

    fn add_environment(&mut self, variables: &Variables) -> Result<(), ConfigError> {
        let source = config::Environment::with_prefix("REFERRAL")
            .prefix_separator("__")
            .separator("__")
            .source(Some(variables.clone().into_iter().collect()));
        let collected = source.collect().map_err(|e| ConfigError::Syntax {
            origin: "environment".to_owned(),
            detail: e.to_string(),
        })?;
        let mut entries: Vec<_> = collected.into_iter().collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (key, value) in entries {
            let name = format!("REFERRAL__{}", key.replace('.', "__").to_uppercase());
            let text = value.into_string().map_err(|e| ConfigError::Syntax {
                origin: name.clone(),
                detail: e.to_string(),
            })?;
            let mut path: KeyPath = Vec::new();
            let mut layer = Some(&self.tree);
            for part in key.split('.') {
                let known = layer
                    .and_then(Value::as_object)
                    .and_then(|keys| same_name(keys, part));
                path.push(known.unwrap_or_else(|| part.to_owned()));
                layer = layer.and_then(|tree| tree.get(path.last()?));
            }
            let leaf = Value::String(text);
            let layer = path.iter().rev().fold(leaf, |tree, key| {
                Value::Object(Map::from_iter([(key.clone(), tree)]))
            });
            merge(&mut self.tree, layer, 0, false);
            self.textual.insert(path.clone());
            self.variables.push((path, name));
        }
        Ok(())
    }

    fn interpolate(&mut self, node: &mut Value, path: &mut KeyPath, variables: &Variables) {
        match node {
            Value::Object(keys) => {
                for (key, child) in keys {
                    path.push(key.clone());
                    self.interpolate(child, path, variables);
                    path.pop();
                }
            }
            Value::Array(items) => {
                for (index, child) in items.iter_mut().enumerate() {
                    path.push(index.to_string());
                    self.interpolate(child, path, variables);
                    path.pop();
                }
            }
            // What came from the environment is taken as it is: a password may hold `${`.
            Value::String(text) if text.contains("${") && !self.textual.contains(path) => {
                match substitute(text, variables) {
                    Ok(replaced) => {
                        *text = replaced;
                        self.textual.insert(path.clone());
                    }
                    Err(message) => self.problems.push((path.clone(), message)),
                }
            }
            _ => {}
        }
    }
}

pub(super) fn invalid(path: &str, message: &str, origin: Option<String>) -> ConfigError {
    let problem = Problem {
        path: path.to_owned(),
        message: message.to_owned(),
        origin,
    };
    ConfigError::Invalid(Problems(vec![problem]))
}

fn parse(origin: &str, text: &str) -> Result<Value, ConfigError> {
    let syntax = |detail: String| ConfigError::Syntax {
        origin: origin.to_owned(),
        detail,
    };
    // serde_yaml's own tree refuses keys given twice, which serde_json's would let pass.
    let mut yaml: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(|e| syntax(e.to_string()))?;
    yaml.apply_merge().map_err(|e| syntax(e.to_string()))?;
    match serde_json::to_value(yaml).map_err(|e| syntax(e.to_string()))? {
        tree @ Value::Object(_) => Ok(tree),
        Value::Null => Ok(Value::Object(Map::new())),
        _ => Err(syntax("is no YAML mapping: start with `version: 1`".to_owned())),
    }
}

/// `depth` counts keys from the root; entries of `models` and `experts` (`in_catalogue`) are at depth 2.
fn merge(below: &mut Value, above: Value, depth: usize, in_catalogue: bool) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                let catalogue = if depth == 0 {
                    key == "models" || key == "experts"
                } else {
                    in_catalogue
                };
                if catalogue && depth == 1 && (value.is_null() || changes_provider(below.get(&key), &value)) {
                    below.shift_remove(&key);
                }
                if !(catalogue && depth == 1 && value.is_null()) {
                    merge(
                        below.entry(key).or_insert(Value::Null),
                        value,
                        depth + 1,
                        catalogue,
                    );
                }
            }
        }
        // A section left empty (`server:`) changes nothing.
        (Value::Object(_), Value::Null) => {}
        (below, above) => *below = above,
    }
}

fn changes_provider(below: Option<&Value>, above: &Value) -> bool {
    let provider = |entry: &Value| {
        let is_given = |provider: &&str| entry.get(provider).is_some_and(|value| !value.is_null());
        ["local", "openai", "router"].into_iter().find(is_given)
    };
    let (old, new) = (below.and_then(provider), provider(above));
    old.is_some() && new.is_some() && old != new
}

/// Names of variables cannot hold `-` or `.`: `_` stands for them if that names a key which is there.
fn same_name(keys: &Map<String, Value>, part: &str) -> Option<String> {
    let plain = |key: &str| key.to_lowercase().replace(['-', '.'], "_");
    keys.keys()
        .find(|key| *key == part)
        .or_else(|| keys.keys().find(|key| plain(key) == plain(part)))
        .cloned()
}

/// Replaces `${NAME}` and `${NAME:-default}`; `$${` stands for a literal `${`.
fn substitute(text: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (head, tail) = rest.split_at(at);
        if let Some(head) = head.strip_suffix('$') {
            out.push_str(head);
            out.push_str("${");
            rest = tail.get(2..).unwrap_or_default();
            continue;
        }
        out.push_str(head);
        let (inner, after) = tail
            .get(2..)
            .and_then(|tail| tail.split_once('}'))
            .ok_or("`${` is not closed: write ${NAME}, or $${ for a literal ${")?;
        let (name, default) = inner
            .split_once(":-")
            .map_or((inner, None), |(name, text)| (name, Some(text)));
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!(
                "${{{name}}} names no environment variable: use letters, digits and _"
            ));
        }
        let value = variables
            .get(name)
            .map(String::as_str)
            .or(default)
            .ok_or_else(|| {
                format!("environment variable {name} is not set: set it, or write ${{{name}:-default}}")
            })?;
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}
