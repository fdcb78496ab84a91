//! A router's files: `router.json` (what is read, who the experts are, calibration) and `tokens.safetensors` (the
//! functional tokens). Everything is checked when they are read, so that routing itself cannot meet a surprise.

use super::ReadOutSpec;
use super::tensors::{TensorFile, halved, whole};
use crate::RouterError;
use crate::calibrate::Temperature;
use crate::lexical::Lexical;
use crate::scope::{Scope, Scored};
use crate::train::Head;
use referral_lm::LanguageModel;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::Path;

/// The settings' file name.
pub(crate) const SETTINGS: &str = "router.json";
/// The tokens' file name.
pub(crate) const TOKENS: &str = "tokens.safetensors";
/// The adapter's file name.
pub(crate) const ADAPTER: &str = "adapter.safetensors";
/// Version of the two files' format.
pub(crate) const FORMAT: u32 = 1;
const WHAT: &str = "a router";
/// Most tokens that a window may keep.
const MOST_WINDOW: usize = 1 << 16;

/// The model that a router was trained on, as far as its features depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelIdentity {
    pub(crate) name: String,
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) vocabulary: usize,
}

impl ModelIdentity {
    pub(crate) fn of(model: &LanguageModel) -> Self {
        let info = model.info();
        Self {
            name: info.name.clone(),
            layers: info.layers,
            width: info.width,
            vocabulary: info.vocabulary,
        }
    }
}

/// `router.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) format: u32,
    pub(crate) model: ModelIdentity,
    pub(crate) read_out: ReadOutSpec,
    /// In token order; `<expert_end>` follows the last.
    pub(crate) experts: Vec<String>,
    /// At distance 0; see [`crate::calibrate::Temperature`].
    pub(crate) temperature: f32,
    #[serde(default)]
    pub(crate) temperature_slope: f32,
    pub(crate) threshold: f32,
    /// Weight of the n-gram model's logits beside those of the functional tokens; 0 without one.
    #[serde(default)]
    pub(crate) lexical_weight: f32,
    /// Missing where the dev files had too few rows without an expert to fit it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<Scope>,
    /// Hex SHA-256 of the adapter that everything is read through, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) adapter_sha256: Option<String>,
}

impl Settings {
    /// The temperature as a whole.
    pub(crate) fn temperature(&self) -> Temperature {
        Temperature {
            base: self.temperature,
            slope: self.temperature_slope,
        }
    }

    /// Settings that leave logits as they are and never abstain.
    pub(crate) fn untrained(experts: &[String]) -> Self {
        Self {
            format: FORMAT,
            model: ModelIdentity {
                name: String::new(),
                layers: 0,
                width: 0,
                vocabulary: 0,
            },
            read_out: ReadOutSpec {
                prompt: String::new(),
                window: super::Window::default(),
                features: Vec::new(),
            },
            experts: experts.to_vec(),
            temperature: 1.0,
            temperature_slope: 0.0,
            threshold: 0.0,
            lexical_weight: 0.0,
            scope: None,
            adapter_sha256: None,
        }
    }
}

/// Both files in memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RouterFile {
    pub(crate) settings: Settings,
    /// One row per expert and one for `<expert_end>`, over standardised features.
    pub(crate) head: Head,
    pub(crate) mean: Vec<f32>,
    pub(crate) scale: Vec<f32>,
    /// Evidence of the words, added to the logits with the settings' weight.
    pub(crate) lexical: Option<Lexical>,
}

impl RouterFile {
    /// Features to mean 0 and variance 1 of the training set, in place.
    pub(crate) fn standardise(&self, features: &mut [f32]) {
        for ((x, mean), scale) in features.iter_mut().zip(&self.mean).zip(&self.scale) {
            *x = (*x - mean) / scale;
        }
    }

    /// What standardised features and the words of the normalised query say.
    pub(crate) fn score(&self, features: &[f32], query: &str) -> Scored {
        let mut logits = self.head.logits(features);
        if let Some(lexical) = &self.lexical {
            let words = lexical.logits(query);
            logits
                .iter_mut()
                .zip(words)
                .for_each(|(z, w)| *z += self.settings.lexical_weight * w);
        }
        Scored::new(logits, features, self.settings.read_out.features.len())
    }

    /// Reads and checks both files; `path` is for messages only.
    pub(crate) fn parse(
        path: &Path,
        settings: &[u8],
        tokens: &[u8],
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
        let tensors = TensorFile::open(tokens, TOKENS, SETTINGS, "train the router again").map_err(bad)?;
        let width = settings.read_out.width(model.width);
        let classes = settings.experts.len() + 1;
        let file = Self {
            head: Head {
                rows: tensors.read("rows", &[classes, width]).map_err(bad)?,
                bias: tensors.read("bias", &[classes]).map_err(bad)?,
            },
            mean: tensors.read("mean", &[width]).map_err(bad)?,
            scale: tensors.read_positive("scale", &[width]).map_err(bad)?,
            lexical: Lexical::read(&tensors.tensors, classes)
                .map_err(|detail| bad(format!("{TOKENS}: {detail}")))?,
            settings,
        };
        if file.lexical.is_none() && file.settings.lexical_weight != 0.0 {
            return Err(bad(format!(
                "{TOKENS}: the n-gram model is missing: copy both files from one place, or train the router again"
            )));
        }
        Ok(file)
    }

    /// Writes both files into a directory that exists. Rows are halved to f16: their logits stay within a thousandth.
    pub(crate) fn save(&self, directory: &Path) -> Result<(), RouterError> {
        let rows = halved(&self.head.rows);
        let (bias, mean, scale) = (whole(&self.head.bias), whole(&self.mean), whole(&self.scale));
        let (classes, width) = (self.head.bias.len(), self.mean.len());
        let path = directory.join(TOKENS);
        let view = |dtype, shape, data| {
            TensorView::new(dtype, shape, data).map_err(|error| RouterError::BadFile {
                path: path.clone(),
                what: WHAT,
                detail: error.to_string(),
            })
        };
        let lexical = self.lexical.as_ref().map(Lexical::bytes);
        let mut tensors = vec![
            ("rows", view(Dtype::F16, vec![classes, width], &rows)?),
            ("bias", view(Dtype::F32, vec![classes], &bias)?),
            ("mean", view(Dtype::F32, vec![width], &mean)?),
            ("scale", view(Dtype::F32, vec![width], &scale)?),
        ];
        if let Some(lexical) = &lexical {
            tensors.extend(lexical.views().map_err(|error| RouterError::BadFile {
                path: path.clone(),
                what: WHAT,
                detail: error.to_string(),
            })?);
        }
        let tensors = safetensors::serialize(tensors, None).map_err(|error| RouterError::BadFile {
            path: path.clone(),
            what: WHAT,
            detail: error.to_string(),
        })?;
        std::fs::write(&path, tensors).map_err(|source| RouterError::Io { path, source })?;
        crate::train::write_json(&directory.join(SETTINGS), &self.settings)
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
        let (theirs, ours) = (&settings.model, model);
        return Some(format!(
            "the router was trained on {theirs:?}, the model is {ours:?}: train a router for it"
        ));
    }
    let mut seen = HashSet::new();
    if settings.experts.len() < 2
        || settings
            .experts
            .iter()
            .any(|name| name.is_empty() || !seen.insert(name))
    {
        return Some("experts: name at least two, each once".to_owned());
    }
    if !(settings.temperature.is_finite() && settings.temperature > 0.0) {
        return Some(format!("temperature: {} is not positive", settings.temperature));
    }
    if !settings.temperature_slope.is_finite() {
        return Some(format!(
            "temperature_slope: {} is not finite",
            settings.temperature_slope
        ));
    }
    if settings.scope.as_ref().is_some_and(|scope| !scope.is_sound()) {
        return Some("scope: weights must be finite and the threshold between 0 and 1".to_owned());
    }
    if !(settings.lexical_weight.is_finite() && settings.lexical_weight >= 0.0) {
        return Some(format!(
            "lexical_weight: {} is negative or not a number",
            settings.lexical_weight
        ));
    }
    if !(0.0..=1.0).contains(&settings.threshold) {
        return Some(format!(
            "threshold: {} is not between 0 and 1",
            settings.threshold
        ));
    }
    let window = settings.read_out.window;
    if !(1..=MOST_WINDOW).contains(&window.head.saturating_add(window.tail)) {
        return Some(format!(
            "read_out.window: {} and {} tokens: keep 1 to {MOST_WINDOW} together",
            window.head, window.tail
        ));
    }
    settings
        .read_out
        .features
        .is_empty()
        .then(|| "read_out: features is empty".to_owned())
}
