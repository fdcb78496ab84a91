//! Checks a tree against the schema: unknown keys with a suggestion, types, ranges, missing keys.
//!
//! serde would stop at the first mistake and knows nothing of ranges. The schema knows all, so it is
//! walked beside the tree and every mistake is reported at once. Text from environment variables is
//! turned into what the schema wants on the way. Covers what schemars writes for our structs.

use super::layers::KeyPath;
use serde_json::Value;
use std::collections::HashSet;

/// The walk's state.
pub(super) struct Checker<'a> {
    textual: &'a HashSet<KeyPath>,
    path: KeyPath,
    /// What is wrong, by path.
    pub(super) problems: Vec<(KeyPath, String)>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(textual: &'a HashSet<KeyPath>) -> Self {
        Self {
            textual,
            path: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Checks `value` against `schema`, whose sub-schemas are inlined.
    pub(super) fn check(&mut self, schema: &Value, value: &mut Value) {
        let is_textual = self.textual.contains(&self.path);
        let types = types_of(schema);
        let nullable = types.contains(&"null") || alternatives(schema).any(|s| types_of(s) == ["null"]);
        if nullable && is_textual && value.as_str() == Some("") {
            *value = Value::Null;
        }
        if value.is_null() {
            if !nullable {
                self.problem("must not be null: leave the key out or give it a value".to_owned());
            }
            return;
        }
        if let Some(inner) = alternatives(schema).find(|s| types_of(s) != ["null"]) {
            return self.check(inner, value);
        }
        let names = names(schema);
        if !names.is_empty() {
            return self.check_name(&names, value);
        }
        let Some(kind) = types.iter().find(|kind| **kind != "null").copied() else {
            return;
        };
        if is_textual
            && kind != "string"
            && let Some(parsed) = value.as_str().and_then(|text| serde_yaml_ng::from_str(text).ok())
        {
            *value = parsed;
        }
        match (kind, &mut *value) {
            ("object", Value::Object(_)) => self.check_object(schema, value),
            ("array", Value::Array(items)) => {
                let Some(schema) = schema.get("items") else { return };
                for (index, item) in items.iter_mut().enumerate() {
                    self.path.push(index.to_string());
                    self.check(schema, item);
                    self.path.pop();
                }
            }
            ("string", Value::String(_)) | ("boolean", Value::Bool(_)) => {}
            ("integer", Value::Number(number)) if number.is_u64() || number.is_i64() => {
                self.check_range(schema, number.as_f64());
            }
            ("number", Value::Number(number)) => self.check_range(schema, number.as_f64()),
            // The value is not quoted: it may be a secret given in the wrong place.
            _ => self.problem(format!("expected {}, found {}", expected(kind), found(value))),
        }
    }

    fn problem(&mut self, message: String) {
        self.problems.push((self.path.clone(), message));
    }

    fn check_object(&mut self, schema: &Value, value: &mut Value) {
        let Some(entries) = value.as_object_mut() else {
            return;
        };
        let properties = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties").filter(|s| s.is_object());
        for (key, child) in entries.iter_mut() {
            self.path.push(key.clone());
            match properties.and_then(|keys| keys.get(key)).or(others) {
                Some(schema) => self.check(schema, child),
                None => {
                    let known: Vec<&str> = properties
                        .into_iter()
                        .flat_map(|keys| keys.keys().map(String::as_str))
                        .collect();
                    self.problem(format!("unknown key: {}", suggestion(key, &known)));
                }
            }
            self.path.pop();
        }
        for key in schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            if !entries.contains_key(key) {
                self.path.push(key.to_owned());
                self.problem("is missing: add it".to_owned());
                self.path.pop();
            }
        }
    }

    fn check_name(&mut self, names: &[&str], value: &Value) {
        match value.as_str() {
            Some(name) if names.contains(&name) => {}
            Some(name) => self.problem(format!("{name:?} is not allowed: {}", suggestion(name, names))),
            None => self.problem(format!(
                "expected one of {}, found {}",
                names.join(", "),
                found(value)
            )),
        }
    }

    fn check_range(&mut self, schema: &Value, number: Option<f64>) {
        let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
        let (Some(number), low, high) = (number, bound("minimum"), bound("maximum")) else {
            return;
        };
        if low.is_some_and(|low| number < low) || high.is_some_and(|high| number > high) {
            let allowed = match (low, high) {
                (Some(low), Some(high)) if low == high => format!("use {low}"),
                (Some(low), Some(high)) => format!("use {low} to {high}"),
                (Some(low), None) => format!("use at least {low}"),
                (_, high) => format!("use at most {}", high.unwrap_or_default()),
            };
            self.problem(format!("{number} is out of range: {allowed}"));
        }
    }
}

/// `did you mean x?` or, where nothing is near, what is allowed.
pub(super) fn suggestion(given: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(given, name), *name))
        .filter(|(similarity, _)| *similarity >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((_, name)) => format!("did you mean {name}?"),
        None if known.is_empty() => "none is allowed here".to_owned(),
        None => format!("use one of {}", known.join(", ")),
    }
}

fn types_of(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    schema
        .get("anyOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Values of a closed set: `enum`, or `oneOf` with constants where each value is documented.
fn names(schema: &Value) -> Vec<&str> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let documented = schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    listed
        .chain(documented.filter_map(|one| one.get("const")))
        .filter_map(Value::as_str)
        .collect()
}

fn expected(kind: &str) -> &'static str {
    match kind {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "text (quote it)",
        "boolean" => "true or false",
        "integer" => "a whole number",
        _ => "a number",
    }
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}
