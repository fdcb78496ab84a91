//! What a training run leaves behind besides the head: a report and a card.

use super::{Choices, Report};
use crate::RouterError;
use crate::functional::ModelIdentity;
use crate::train::{SourceFile, write_json};
use std::fmt;
use std::path::Path;

impl Report {
    /// Writes `report.json` and `README.md`.
    pub(super) fn save(&self, directory: &Path, model: &ModelIdentity) -> Result<(), RouterError> {
        write_json(&directory.join("report.json"), self)?;
        let mut card = format!(
            "# Cost head card\n\nPredicts what a strong model gains over a weak one, over {} (width {}, {} layers).\n\n\
             | data | split | rows | sha256 |\n|---|---|---|---|\n",
            model.name, model.width, model.layers
        );
        for source in &self.sources {
            let SourceFile {
                name,
                split,
                sha256,
                rows,
            } = source;
            card += &format!("| {name} | {split} | {rows} | `{sha256}` |\n");
        }
        let name = |place: usize| self.sources.get(place).map_or("", |source| source.name.as_str());
        card += &format!(
            "\nTrained with\n\n```\nreferral train cost --data {} --dev {} --layer {} --seed {} --out DIR\n```\n\n\
             Choices were made by cross-validation on the training rows; the dev rows chose nothing.\n\n```\n{self}```\n",
            name(0),
            name(1),
            self.layer,
            self.seed
        );
        let path = directory.join("README.md");
        std::fs::write(&path, card).map_err(|source| RouterError::Io { path, source })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choices {
            l2,
            group_l2,
            group_share,
            apgr,
        } = self.choices;
        writeln!(f, "l2 {l2}, groups' l2 {group_l2}, groups' share {group_share}")?;
        writeln!(
            f,
            "APGR {apgr:.3} out of fold on the training rows\n\non the dev rows:"
        )?;
        write!(f, "{}", self.dev)
    }
}
