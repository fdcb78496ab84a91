//! What a run leaves on disk while it goes on: the state to resume from, and the loss curve.

use super::lora::{Lora, tensor, write_safetensors};
use super::{StepRecord, TrainAdapterOptions};
use crate::{LmError, Result};
use candle_core::Device;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Counts of a run so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) steps: usize,
    pub(super) rows: usize,
    pub(super) tokens: usize,
    pub(super) answer_tokens: usize,
    pub(super) seconds: f64,
}

/// The file beside the adapter that holds the state: `NAME.state`.
pub(super) fn state_path(out: &Path) -> PathBuf {
    beside(out, ".state")
}

/// The file beside the adapter that holds the loss curve: `NAME.loss.csv`.
pub(super) fn curve_path(out: &Path) -> PathBuf {
    beside(out, ".loss.csv")
}

fn beside(out: &Path, suffix: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What must be the same for a resumed run to be the run it resumes. The number of steps may change:
/// a run can be made longer or shorter, and its learning rate then follows the new schedule.
fn identity(options: &TrainAdapterOptions, base: &str) -> String {
    let same = TrainAdapterOptions {
        out: PathBuf::new(),
        dev: None,
        dev_rows: 0,
        steps: 0,
        save_every: 0,
        resume: false,
        threads: None,
        ..options.clone()
    };
    format!("{base} {}", serde_json::to_string(&same).unwrap_or_default())
}

/// Saves parameters, moments and counts.
pub(super) fn save(options: &TrainAdapterOptions, base: &str, lora: &Lora, counts: Counts) -> Result<()> {
    let path = state_path(&options.out);
    let mut tensors = BTreeMap::new();
    for parameter in &lora.parameters {
        let parts = [
            ("value", &parameter.values),
            ("mean", &parameter.mean),
            ("square", &parameter.square),
        ];
        for (part, values) in parts {
            tensors.insert(
                format!("{}.{part}", parameter.name),
                tensor(values, parameter.shape)?,
            );
        }
    }
    let counts = serde_json::to_string(&counts).map_err(|error| LmError::Io {
        path: path.clone(),
        source: error.into(),
    })?;
    let metadata = HashMap::from([
        ("identity".to_owned(), identity(options, base)),
        ("counts".to_owned(), counts),
    ]);
    write_safetensors(&path, tensors, metadata)
}

/// Restores what [`save`] wrote into `lora`. `None` if there is no state file.
///
/// # Errors
/// [`LmError::Invalid`] if it is of a run with other options; [`LmError::BadFile`] if it is corrupt.
pub(super) fn restore(options: &TrainAdapterOptions, base: &str, lora: &mut Lora) -> Result<Option<Counts>> {
    let path = state_path(&options.out);
    let bad = |detail: String| LmError::BadFile {
        path: path.clone(),
        what: "a training state",
        detail,
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LmError::Io { path, source }),
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| bad(error.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    if metadata.get("identity") != Some(&identity(options, base)) {
        return Err(LmError::Invalid {
            field: "resume",
            value: path.display().to_string(),
            fix: "it is of a run with other options: repeat those, or train without resuming".into(),
        });
    }
    let counts = metadata
        .get("counts")
        .and_then(|counts| serde_json::from_str(counts).ok())
        .ok_or_else(|| bad("it holds no counts".into()))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|error| bad(error.to_string()))?;
    for parameter in &mut lora.parameters {
        let name = &parameter.name;
        let parts = [
            ("value", &mut parameter.values),
            ("mean", &mut parameter.mean),
            ("square", &mut parameter.square),
        ];
        for (part, values) in parts {
            let tensor = tensors
                .get(&format!("{name}.{part}"))
                .filter(|tensor| tensor.dims() == [parameter.shape.0, parameter.shape.1])
                .ok_or_else(|| bad(format!("{name}.{part} is missing or of another shape")))?;
            *values = tensor.flatten_all()?.to_vec1()?;
        }
    }
    Ok(Some(counts))
}

/// The loss curve, one CSV line a step.
pub(super) struct Curve {
    path: PathBuf,
    file: std::fs::File,
}

impl Curve {
    /// Opens the curve and keeps its first `steps` steps, so that steps trained again after a
    /// resume are not there twice.
    pub(super) fn open(out: &Path, steps: usize) -> Result<Self> {
        let path = curve_path(out);
        let io = |source| LmError::Io {
            path: path.clone(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let mut text = String::from("step,tokens,answer_tokens,loss,learning_rate,gradient_norm,seconds\n");
        if steps > 0 {
            let old = std::fs::read_to_string(&path).map_err(io)?;
            old.lines().skip(1).take(steps).for_each(|line| {
                text.push_str(line);
                text.push('\n');
            });
        }
        let mut file = std::fs::File::create(&path).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        Ok(Self { path, file })
    }

    pub(super) fn push(&mut self, record: &StepRecord) -> Result<()> {
        writeln!(
            self.file,
            "{},{},{},{:.6},{:.3e},{:.4},{:.1}",
            record.step,
            record.tokens,
            record.answer_tokens,
            record.loss,
            record.learning_rate,
            record.gradient_norm,
            record.seconds
        )
        .map_err(|source| LmError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// Losses of all steps, from the file.
    pub(super) fn losses(&self) -> Result<Vec<f64>> {
        let text = std::fs::read_to_string(&self.path).map_err(|source| LmError::Io {
            path: self.path.clone(),
            source,
        })?;
        Ok(text
            .lines()
            .skip(1)
            .filter_map(|line| line.split(',').nth(3)?.parse().ok())
            .collect())
    }
}
