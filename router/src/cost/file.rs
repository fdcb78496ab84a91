//! The files of a gain model: `cost.json` (what is read, groups, mixture) and `cost.safetensors` (the two heads
//! and the read-out's mean and scale). Everything is checked when they are read.

use super::{group_gain, outcome_gain};
use crate::RouterError;
use crate::functional::{ModelIdentity, ReadOutSpec, TensorFile, halved, whole};
use crate::train::{Head, write_json};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The settings' file name.
pub(super) const SETTINGS: &str = "cost.json";
/// The tensors' file name.
pub(super) const TENSORS: &str = "cost.safetensors";
/// Version of the two files' format.
pub(super) const FORMAT: u32 = 1;
/// Both wrong, only weak right, only strong right, both right.
pub(super) const OUTCOMES: usize = 4;
const WHAT: &str = "a cost head";

/// `cost.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    pub(super) format: u32,
    pub(super) model: ModelIdentity,
    pub(super) read_out: ReadOutSpec,
    /// Part of the groups in the predicted gain.
    pub(super) group_share: f32,
    /// Groups that the training data named; may be none.
    pub(super) groups: Vec<String>,
    /// Mean gain of each.
    pub(super) group_gains: Vec<f32>,
    /// Quantiles of the predicted gain on the dev rows, at equal steps from 0 to 1.
    pub(super) gain_quantiles: Vec<f32>,
}

/// Both files in memory.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GainFile {
    pub(super) settings: Settings,
    /// One row per outcome.
    pub(super) outcomes: Head,
    /// One row per group.
    pub(super) groups: Head,
    /// Of the read-out.
    pub(super) mean: Vec<f32>,
    pub(super) scale: Vec<f32>,
}

impl GainFile {
    /// What the heads are multiplied with.
    pub(super) fn standardise(&self, read: &[f32]) -> Vec<f32> {
        let columns = read.iter().zip(&self.mean).zip(&self.scale);
        columns.map(|((x, mean), scale)| (x - mean) / scale).collect()
    }

    /// Predicted gain.
    pub(super) fn gain(&self, inputs: &[f32]) -> f32 {
        let share = self.settings.group_share;
        let own = outcome_gain(&self.outcomes.logits(inputs));
        if share == 0.0 {
            return own;
        }
        (1.0 - share) * own + share * group_gain(&self.groups.logits(inputs), &self.settings.group_gains)
    }

    /// Reads and checks both files; `path` is for messages only.
    pub(super) fn parse(
        path: &Path,
        settings: &[u8],
        tensors: &[u8],
        model: &ModelIdentity,
    ) -> Result<Self, RouterError> {
        let bad = |detail: String| RouterError::BadFile {
            path: path.to_owned(),
            what: WHAT,
            detail,
        };
        let settings: Settings =
            serde_json::from_slice(settings).map_err(|error| bad(format!("{SETTINGS}: {error}")))?;
        if let Some(fault) = fault(&settings, model) {
            return Err(bad(format!("{SETTINGS}: {fault}")));
        }
        let tensors = TensorFile::open(tensors, TENSORS, SETTINGS, "train the head again").map_err(bad)?;
        let read = |name: &str, shape: &[usize]| tensors.read(name, shape).map_err(bad);
        let width = settings.read_out.width(model.width);
        let groups = settings.groups.len();
        Ok(Self {
            outcomes: Head {
                rows: read("outcome_rows", &[OUTCOMES, width])?,
                bias: read("outcome_bias", &[OUTCOMES])?,
            },
            groups: match groups {
                0 => Head {
                    rows: Vec::new(),
                    bias: Vec::new(),
                },
                _ => Head {
                    rows: read("group_rows", &[groups, width])?,
                    bias: read("group_bias", &[groups])?,
                },
            },
            mean: read("mean", &[width])?,
            scale: tensors.read_positive("scale", &[width]).map_err(bad)?,
            settings,
        })
    }

    /// Writes both files into a directory that exists; rows are halved to f16.
    pub(super) fn save(&self, directory: &Path) -> Result<(), RouterError> {
        let path = directory.join(TENSORS);
        let groups = self.groups.bias.len();
        let width = self.mean.len();
        let mut parts = vec![
            (
                "outcome_rows",
                Dtype::F16,
                vec![OUTCOMES, width],
                halved(&self.outcomes.rows),
            ),
            (
                "outcome_bias",
                Dtype::F32,
                vec![OUTCOMES],
                whole(&self.outcomes.bias),
            ),
            ("mean", Dtype::F32, vec![width], whole(&self.mean)),
            ("scale", Dtype::F32, vec![width], whole(&self.scale)),
        ];
        if groups > 0 {
            parts.push((
                "group_rows",
                Dtype::F16,
                vec![groups, width],
                halved(&self.groups.rows),
            ));
            parts.push(("group_bias", Dtype::F32, vec![groups], whole(&self.groups.bias)));
        }
        let bad = |error: safetensors::SafeTensorError| RouterError::BadFile {
            path: path.clone(),
            what: WHAT,
            detail: error.to_string(),
        };
        let views = parts
            .iter()
            .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)));
        let views = views.collect::<Result<Vec<_>, _>>().map_err(bad)?;
        let bytes = safetensors::serialize(views, None).map_err(bad)?;
        std::fs::write(&path, bytes).map_err(|source| RouterError::Io {
            path: path.clone(),
            source,
        })?;
        write_json(&directory.join(SETTINGS), &self.settings)
    }
}

/// What is wrong with the settings, if anything.
fn fault(settings: &Settings, model: &ModelIdentity) -> Option<String> {
    if settings.format != FORMAT {
        return Some(format!(
            "format {} is not supported: this version reads format {FORMAT}",
            settings.format
        ));
    }
    if settings.model != *model {
        return Some(format!(
            "the head was trained on {:?}, the model is {model:?}: train one for it",
            settings.model
        ));
    }
    if settings.group_gains.len() != settings.groups.len() {
        return Some("group_gains: one number for each of groups is wanted".to_owned());
    }
    if !(0.0..=1.0).contains(&settings.group_share)
        || (settings.group_share > 0.0 && settings.groups.is_empty())
    {
        return Some(format!(
            "group_share: {} is not between 0 and 1, or there are no groups",
            settings.group_share
        ));
    }
    settings
        .gain_quantiles
        .is_empty()
        .then(|| "gain_quantiles is empty".to_owned())
}
