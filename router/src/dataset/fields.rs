//! Under which names a file holds query and label, and what its labels stand for.
//!
//! Public data rarely says `query` and `expert`. A file with other names is read through [`Fields`], and labels finer than
//! the experts (the 57 subjects of MMLU, say) through a [`LabelMap`].

use crate::RouterError;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Which expert stands for each label of the data: `{"labels": {label: expert}}`; `about` and `notes` are for readers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelMap {
    labels: BTreeMap<String, String>,
    #[serde(default, rename = "about")]
    _about: Option<String>,
    #[serde(default, rename = "notes")]
    _notes: BTreeMap<String, String>,
}

impl LabelMap {
    /// Reads a mapping file.
    ///
    /// # Errors
    /// [`RouterError::BadFile`] if it is not such a file, or empty, or an expert's name is.
    pub fn open(path: &Path) -> Result<Self, RouterError> {
        let bytes = std::fs::read(path).map_err(|source| RouterError::Io {
            path: path.to_owned(),
            source,
        })?;
        let bad = |detail| RouterError::BadFile {
            path: path.to_owned(),
            what: "a mapping of labels",
            detail,
        };
        let map: Self = serde_json::from_slice(&bytes).map_err(|error| {
            bad(format!(
                "{error}; write {{\"labels\": {{\"label\": \"expert\"}}}}"
            ))
        })?;
        if map.labels.is_empty() {
            return Err(bad("labels is empty: name an expert for each label".to_owned()));
        }
        if let Some((label, _)) = map.labels.iter().find(|(_, expert)| expert.trim().is_empty()) {
            return Err(bad(format!("label {label:?} has no expert: name one")));
        }
        Ok(map)
    }

    /// The expert of each label, in the labels' order.
    pub fn experts(&self) -> impl Iterator<Item = &str> {
        self.labels.values().map(String::as_str)
    }
}

/// How the rows of a file become rows of this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// The field that holds the query.
    pub query: String,
    /// The field that holds the label.
    pub label: String,
    /// What the labels stand for; `None` takes them as experts.
    pub labels: Option<LabelMap>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            query: "query".to_owned(),
            label: "expert".to_owned(),
            labels: None,
        }
    }
}

impl Fields {
    /// Gives a row of the file this crate's names. An error says what is wrong with the row.
    pub(super) fn rename(&self, mut row: Map<String, Value>) -> Result<Map<String, Value>, String> {
        let label = row.remove(&self.label);
        let Some(query) = row.remove(&self.query) else {
            let known: Vec<&str> = row.keys().map(String::as_str).collect();
            return Err(format!(
                "has no field {:?} for the query; it has {}",
                self.query,
                known.join(", ")
            ));
        };
        row.insert("query".to_owned(), query);
        row.remove("expert");
        // Rows without a label are fine where only queries are read; else the record itself will say so.
        let Some(label) = label else {
            return Ok(row);
        };
        let expert = match (&self.labels, label) {
            (Some(map), Value::String(label)) => match map.labels.get(&label) {
                Some(expert) => Value::String(expert.clone()),
                None => {
                    return Err(format!(
                        "{} is {label:?}, for which the mapping names no expert: add it",
                        self.label
                    ));
                }
            },
            (_, label) => label,
        };
        row.insert("expert".to_owned(), expert);
        Ok(row)
    }
}
