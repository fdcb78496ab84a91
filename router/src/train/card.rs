//! What a training run leaves behind besides the router: a report for machines, one for readers, and the card.

use super::AdapterTraining;
use crate::calibrate::Temperature;
use crate::dataset::DataFile;
use crate::functional::{Feature, ModelIdentity};
use crate::scope::Scope;
use crate::{Evaluation, RouterError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// A data file, as named on the card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceFile {
    /// File name without its directory.
    pub name: String,
    /// `train` or `dev`.
    pub split: &'static str,
    /// Hex SHA-256 of the file.
    pub sha256: String,
    /// Rows in it.
    pub rows: usize,
}

impl SourceFile {
    pub(super) fn of(data: &[DataFile], dev: &[DataFile]) -> Vec<Self> {
        let files = data
            .iter()
            .map(|file| ("train", file))
            .chain(dev.iter().map(|file| ("dev", file)));
        files
            .map(|(split, file)| Self {
                name: Self::name(&file.path),
                split,
                sha256: file.sha256.clone(),
                rows: file.rows.len(),
            })
            .collect()
    }

    /// A file of which only the number of rows is known yet.
    pub(crate) fn named(path: &Path, split: &'static str, rows: usize) -> Result<Self, RouterError> {
        Ok(Self {
            name: Self::name(path),
            split,
            sha256: crate::digest::file_sha256(path)?,
            rows,
        })
    }

    pub(super) fn name(path: &Path) -> String {
        path.file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned()
    }
}

/// What was chosen on dev, or tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choices {
    /// The read-out.
    pub features: Vec<Feature>,
    /// Strength of the regulariser.
    pub l2: f32,
    /// β: a row weighs `n_class^-β` within its file.
    pub class_balance: f64,
    /// γ: a file weighs `n_file^γ`.
    pub source_exponent: f64,
    /// Mean over the dev files of accuracy and macro-F1.
    pub objective: f64,
}

/// The result of a training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// In token order.
    pub experts: Vec<String>,
    /// The data.
    pub sources: Vec<SourceFile>,
    /// The seed.
    pub seed: u64,
    /// The cap on rows of one expert in one file.
    pub max_per_expert: Option<usize>,
    /// The target that set the threshold.
    pub max_error: f64,
    /// Training rows left out because their query is in a dev file too.
    pub dropped_rows: usize,
    /// Training rows after that and the cap.
    pub trained_rows: usize,
    /// What was chosen.
    pub choices: Choices,
    /// The temperature.
    pub temperature: Temperature,
    /// The confidence below which the router abstains.
    pub threshold: f32,
    /// The scope's regression, if the dev files had enough rows labelled `<expert_end>`.
    pub(crate) scope: Option<Scope>,
    /// Weight of the n-gram model's logits; 0: it did not help and is left out.
    pub lexical_weight: f32,
    /// Features of the n-gram model.
    pub lexical_features: usize,
    /// How the adapter was trained, if one was.
    pub adapter: Option<AdapterTraining>,
    /// The adapter that was taken over instead, by name.
    pub adapter_from: Option<String>,
    /// Hex SHA-256 of the adapter in use.
    pub adapter_sha256: Option<String>,
    /// What its file says of its training.
    pub adapter_card: Option<serde_json::Value>,
    /// The field of the files that held the query.
    pub query_field: String,
    /// The field that held the label.
    pub label_field: String,
    /// Whether labels went through a mapping.
    pub is_mapped: bool,
    /// All that was tried.
    pub grid: Vec<Choices>,
    /// Figures on each dev file (`<expert_end>` rows left out). Choices were made on them: they flatter a little.
    pub dev: BTreeMap<String, Evaluation>,
    /// Dev rows labelled `<expert_end>`.
    pub unanswerable: usize,
    /// Those on which the router abstains.
    pub unanswerable_abstained: usize,
}

impl Report {
    /// Writes `report.json`, `report.txt` and `README.md`.
    pub(super) fn save(&self, directory: &Path, model: &ModelIdentity) -> Result<(), RouterError> {
        write_json(&directory.join("report.json"), self)?;
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).map_err(|source| RouterError::Io { path, source })
        };
        write("report.txt", self.to_string())?;
        write("README.md", self.card(model))
    }

    /// The command that repeats the run, with files named without their directories.
    fn command(&self) -> String {
        let mut command = "referral train router".to_owned();
        for source in &self.sources {
            let flag = if source.split == "train" { "data" } else { "dev" };
            command += &format!(" --{flag} {}", source.name);
        }
        if let Some(layer) = self.choices.features.iter().map(|feature| feature.layer).max() {
            command += &format!(" --layer {layer}");
        }
        if let Some(adapter) = &self.adapter {
            command += &format!(
                " --adapter --adapter-rank {} --adapter-epochs {} --adapter-file-rows {}",
                adapter.rank, adapter.epochs, adapter.file_rows
            );
            if let Some(start) = &adapter.start {
                command += &format!(" --adapter-start {}", SourceFile::name(start));
            }
            if adapter.learning_rate != AdapterTraining::default().learning_rate {
                command += &format!(" --adapter-learning-rate {}", adapter.learning_rate);
            }
        }
        if let Some(adapter) = &self.adapter_from {
            command += &format!(" --adapter-from {adapter}");
        }
        if self.query_field != "query" {
            command += &format!(" --query-field {}", self.query_field);
        }
        if self.label_field != "expert" {
            command += &format!(" --label-field {}", self.label_field);
        }
        if self.is_mapped {
            command += " --labels MAPPING.json";
        }
        if let Some(most) = self.max_per_expert {
            command += &format!(" --max-per-expert {most}");
        }
        command + &format!(" --max-error {} --seed {} --out DIR", self.max_error, self.seed)
    }

    fn card(&self, model: &ModelIdentity) -> String {
        let mut text = format!(
            "# Router card\n\nFunctional tokens over {} (width {}, {} layers); {} experts: {}.\n\n\
             | data | split | rows | sha256 |\n|---|---|---|---|\n",
            model.name,
            model.width,
            model.layers,
            self.experts.len(),
            self.experts.join(", ")
        );
        for source in &self.sources {
            text += &format!(
                "| {} | {} | {} | `{}` |\n",
                source.name, source.split, source.rows, source.sha256
            );
        }
        text += &format!(
            "\nTrained on {} rows with\n\n```\n{}\n```\n\n",
            self.trained_rows,
            self.command()
        );
        if let (Some(sha256), Some(card)) = (&self.adapter_sha256, &self.adapter_card) {
            text += &format!("The adapter (SHA-256 `{sha256}`) says of its own training: `{card}`.\n\n");
        }
        text += "Choices and calibration were made on the dev files, so the figures below flatter a little.\n\n```\n";
        text += &self.to_string();
        text + "```\n"
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choices {
            features,
            l2,
            class_balance,
            source_exponent,
            ..
        } = &self.choices;
        let read: Vec<String> = features
            .iter()
            .map(|feature| format!("{:?}@{}", feature.pooling, feature.layer))
            .collect();
        writeln!(f, "read-out            {}", read.join(" ").to_lowercase())?;
        writeln!(
            f,
            "l2 {l2}, class balance {class_balance}, source exponent {source_exponent}"
        )?;
        let Temperature { base, slope } = self.temperature;
        writeln!(
            f,
            "temperature         {base:.3}, times exp({slope:.2} · distance)"
        )?;
        writeln!(
            f,
            "threshold           {:.3} (at most {} of accepted dev rows wrong)",
            self.threshold, self.max_error
        )?;
        if self.lexical_weight > 0.0 {
            writeln!(
                f,
                "words               {} features, weight {}",
                self.lexical_features, self.lexical_weight
            )?;
        }
        if let Some(Scope {
            weights: [end, energy, distance],
            threshold,
            ..
        }) = &self.scope
        {
            writeln!(
                f,
                "scope               {end:.2} end, {energy:.2} energy, {distance:.2} distance; threshold {threshold:.3}"
            )?;
        }
        if self.unanswerable > 0 {
            writeln!(
                f,
                "abstained on {} of {} dev rows that no expert is called for",
                self.unanswerable_abstained, self.unanswerable
            )?;
        }
        for (name, figures) in &self.dev {
            write!(f, "\n{name}\n{figures}")?;
        }
        Ok(())
    }
}

/// Writes a value as indented JSON with a line break at the end.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RouterError> {
    let io = |source| RouterError::Io {
        path: path.to_owned(),
        source,
    };
    let mut text = serde_json::to_string_pretty(value).map_err(|error| io(error.into()))?;
    text.push('\n');
    std::fs::write(path, text).map_err(io)
}
