//! The configuration's JSON Schema.

use super::layers::DEFAULTS;
use super::raw::RawSettings;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// JSON Schema (2020-12) of a configuration file. What the defaults give is optional and carries its default.
pub fn schema() -> Value {
    let mut schema = complete();
    let defaults: Value = serde_yaml_ng::from_str(DEFAULTS).unwrap_or_default();
    if let Some(root) = schema.as_object_mut() {
        relax(root, &defaults);
        root.insert("required".to_owned(), vec!["version"].into());
    }
    schema
}

/// The schema of the merged layers, in which nothing may be missing; sub-schemas inlined.
pub(super) fn complete() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings
        .into_generator()
        .into_root_schema_for::<RawSettings>()
        .to_value()
}

fn relax(schema: &mut Map<String, Value>, defaults: &Value) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (name, property) in properties {
        let (Some(property), Some(default)) = (property.as_object_mut(), defaults.get(name)) else {
            continue;
        };
        if default.is_object() {
            relax(property, default);
        } else {
            property.insert("default".to_owned(), default.clone());
        }
    }
    schema.shift_remove("required");
}
