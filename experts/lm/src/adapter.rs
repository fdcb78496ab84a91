//! Low-rank adapters: `W' = W + scale * (alpha / rank) * B A` (Hu et al. 2021, LoRA).
//!
//! An adapter file is safetensors with the tensors `blk.{i}.{projection}.lora_a` (`rank × inputs`) and
//! `.lora_b` (`outputs × rank`) in f16 or f32 for any subset of layers and projections; its metadata are
//! `format`, `rank`, `alpha`, `base`, `base_width` and `base_layers`. Rows of `lora_b` follow the rows of
//! the base model's matrix as its file holds them.
//!
//! The base weights stay untouched, so one batch can mix adapters and scales row by row.

use crate::kernels::{self, Columns, Level, add_low_rank};
use crate::load::checkpoint::{LayerTensor, TensorName};
use crate::load::linear::with_values;
use crate::model::LanguageModel;
use crate::{LmError, Result};
use candle_core::{DType, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

/// The `format` entry of an adapter file's metadata.
pub const FORMAT: &str = "referral-adapter/1";

const WHAT: &str = "a low-rank adapter";

/// A matrix of a decoder layer that an adapter can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Queries.
    AttnQ,
    /// Keys.
    AttnK,
    /// Values.
    AttnV,
    /// Attention output.
    AttnOutput,
    /// Feed-forward gate.
    FfnGate,
    /// Feed-forward up.
    FfnUp,
    /// Feed-forward down.
    FfnDown,
}

impl Projection {
    /// All of them, in the order of the forward pass.
    pub const ALL: [Self; 7] = [
        Self::AttnQ,
        Self::AttnK,
        Self::AttnV,
        Self::AttnOutput,
        Self::FfnGate,
        Self::FfnUp,
        Self::FfnDown,
    ];

    /// Its name in tensor names, as in GGUF files.
    pub fn name(self) -> &'static str {
        self.tensor().name()
    }

    /// The base model's matrix.
    pub fn tensor(self) -> LayerTensor {
        match self {
            Self::AttnQ => LayerTensor::AttentionQ,
            Self::AttnK => LayerTensor::AttentionK,
            Self::AttnV => LayerTensor::AttentionV,
            Self::AttnOutput => LayerTensor::AttentionOutput,
            Self::FfnGate => LayerTensor::FfnGate,
            Self::FfnUp => LayerTensor::FfnUp,
            Self::FfnDown => LayerTensor::FfnDown,
        }
    }
}

/// The two factors for one matrix, transposed and in f32, ready to multiply rows of activations.
struct Factors {
    /// `inputs × rank`.
    a: Tensor,
    /// `rank × outputs`.
    b: Tensor,
}

/// A low-rank adapter of one base model, on that model's device.
pub struct Adapter {
    rank: usize,
    alpha: f32,
    base: String,
    factors: HashMap<(usize, Projection), Factors>,
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter")
            .field("rank", &self.rank)
            .field("alpha", &self.alpha)
            .field("base", &self.base)
            .field("matrices", &self.factors.len())
            .finish()
    }
}

impl Adapter {
    /// Reads an adapter (safetensors) and checks it against the model's shapes.
    ///
    /// # Errors
    /// [`LmError::Io`] if the file cannot be read, [`LmError::BadFile`] naming the metadata entry or tensor
    /// that is wrong.
    pub fn load(path: &Path, model: &LanguageModel) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| LmError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes, model).map_err(|e| match e {
            // What is wrong with a file's contents is the file's fault.
            LmError::Invalid { field, value, fix } => {
                bad(path, format!("{field} {value} does not fit: {fix}"))
            }
            LmError::Candle(e) => bad(path, e.to_string()),
            e => e,
        })
    }

    /// The same from an adapter file's bytes, for adapters that are built into a binary.
    ///
    /// # Errors
    /// [`LmError::Invalid`] naming the metadata entry or tensor that is wrong.
    pub fn from_bytes(bytes: &[u8], model: &LanguageModel) -> Result<Self> {
        let unreadable = |e: safetensors::SafeTensorError| LmError::Invalid {
            field: "file",
            value: format!("of {} bytes", bytes.len()),
            fix: format!("it must be a whole safetensors file ({e})"),
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
        let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |field: &'static str| {
            metadata.get(field).map(String::as_str).ok_or_else(|| LmError::Invalid {
                field,
                value: "(missing)".to_owned(),
                fix: format!("an adapter file's metadata must have format={FORMAT:?}, rank, alpha, base, base_width and base_layers"),
            })
        };
        let format = entry("format")?;
        if format != FORMAT {
            return Err(mismatch("format", format, FORMAT));
        }
        let base_config = model.config();
        let rank: usize = number("rank", entry("rank")?)?;
        let alpha: f32 = number("alpha", entry("alpha")?)?;
        let width: usize = number("base_width", entry("base_width")?)?;
        let layers: usize = number("base_layers", entry("base_layers")?)?;
        if width != base_config.width {
            return Err(mismatch("base_width", width, base_config.width));
        }
        if layers != base_config.layers {
            return Err(mismatch("base_layers", layers, base_config.layers));
        }
        let base = entry("base")?.to_owned();
        let tensors = file
            .iter()
            .map(|(name, view)| Ok((name.to_owned(), dense(name, &view)?)))
            .collect::<Result<HashMap<_, _>>>()?;
        Self::from_tensors(&tensors, rank, alpha, &base, model)
    }

    /// An adapter from tensors named as in a file, checked against the model's shapes.
    ///
    /// # Errors
    /// [`LmError::Invalid`] naming the tensor that is missing, unknown or of another shape.
    pub fn from_tensors(
        tensors: &HashMap<String, Tensor>,
        rank: usize,
        alpha: f32,
        base: &str,
        model: &LanguageModel,
    ) -> Result<Self> {
        if rank == 0 {
            return Err(mismatch("rank", rank, "at least 1"));
        }
        if !alpha.is_finite() {
            return Err(mismatch("alpha", alpha, "a finite number"));
        }
        let device = model.device();
        let mut factors = HashMap::new();
        for layer in 0..model.config().layers {
            for projection in Projection::ALL {
                let name = tensor_name(layer, projection);
                let (name_a, name_b) = (format!("{name}.lora_a"), format!("{name}.lora_b"));
                let (a, b) = match (tensors.get(&name_a), tensors.get(&name_b)) {
                    (None, None) => continue,
                    (Some(a), Some(b)) => (a, b),
                    (Some(_), None) => {
                        return Err(mismatch("tensor", &name_b, "it is missing beside its lora_a"));
                    }
                    (None, Some(_)) => {
                        return Err(mismatch("tensor", &name_a, "it is missing beside its lora_b"));
                    }
                };
                let shape = model
                    .config()
                    .shape(TensorName::Layer(layer, projection.tensor()));
                let [outputs, inputs] = shape.as_slice() else {
                    continue;
                };
                for (name, tensor, shape) in [(&name_a, a, [rank, *inputs]), (&name_b, b, [*outputs, rank])] {
                    if tensor.dims() != shape {
                        let found = format!("{name} of shape {:?}", tensor.dims());
                        return Err(mismatch("tensor", found, format!("shape {shape:?}")));
                    }
                    if !matches!(tensor.dtype(), DType::F32 | DType::F16) {
                        let found = format!("{name} of type {:?}", tensor.dtype());
                        return Err(mismatch("tensor", found, "f16 or f32"));
                    }
                }
                let ready = |t: &Tensor| {
                    t.detach()
                        .to_dtype(DType::F32)?
                        .t()?
                        .contiguous()?
                        .to_device(device)
                };
                factors.insert(
                    (layer, projection),
                    Factors {
                        a: ready(a)?,
                        b: ready(b)?,
                    },
                );
            }
        }
        if factors.is_empty() {
            return Err(mismatch(
                "tensors",
                tensors.len(),
                "at least one pair blk.{i}.{projection}.lora_a and .lora_b",
            ));
        }
        if tensors.len() != 2 * factors.len() {
            let known = |name: &String| {
                factors.keys().any(|&(layer, projection)| {
                    name.strip_prefix(&tensor_name(layer, projection))
                        .is_some_and(|rest| rest == ".lora_a" || rest == ".lora_b")
                })
            };
            if let Some(name) = tensors.keys().filter(|name| !known(name)).min() {
                let fix = format!(
                    "names are blk.{{0..{}}}.{{attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down}}.lora_a and .lora_b",
                    model.config().layers
                );
                return Err(mismatch("tensor", name, fix));
            }
        }
        Ok(Self {
            rank,
            alpha,
            base: base.to_owned(),
            factors,
        })
    }

    /// Rank of the factors.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Numerator of the fixed scale `alpha / rank`.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// Name of the base model that it was trained on.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `W + scale * (alpha / rank) * B A` for one matrix (`outputs × inputs`, f32); `W` itself where the
    /// adapter has no factors for it.
    pub fn materialise(
        &self,
        layer: usize,
        projection: Projection,
        weight: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        let Some(Factors { a, b }) = self.factors.get(&(layer, projection)) else {
            return Ok(weight.clone());
        };
        let update = (a.matmul(b)?.t()? * f64::from(scale * self.unit_scale()))?;
        Ok((weight + update.to_device(weight.device())?)?)
    }

    /// The scale of an adapter used as trained.
    pub(crate) fn unit_scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// `x A^T * scales B^T` for rows `x` (`rows × inputs`) with one factor each (`rows × 1`), which holds
    /// [`Self::unit_scale`] too; `None` where the adapter leaves the matrix alone.
    pub(crate) fn update(
        &self,
        layer: usize,
        projection: Projection,
        x: &Tensor,
        scales: &Tensor,
    ) -> Result<Option<Tensor>> {
        let Some(Factors { a, b }) = self.factors.get(&(layer, projection)) else {
            return Ok(None);
        };
        // Activations may be padded beyond the matrix's inputs.
        let x = x.narrow(1, 0, a.dim(0)?)?.contiguous()?;
        Ok(Some(x.matmul(a)?.broadcast_mul(scales)?.matmul(b)?))
    }

    /// The same on the CPU's own kernels: adds the update to the given rows of `output` at `columns`. `x` are
    /// rows of `width` values; the rows' scales hold [`Self::unit_scale`] too.
    pub(crate) fn add_share(
        &self,
        place: (usize, Projection),
        (x, width): (&[f32], usize),
        (rows, scales): (&[u32], &[f32]),
        output: &mut [f32],
        columns: Columns,
    ) -> Result<()> {
        let Some(Factors { a, b }) = self.factors.get(&place) else {
            return Ok(());
        };
        let rank = self.rank;
        Ok(with_values(a, |a| {
            with_values(b, |b| {
                let factors = kernels::Factors { a, b, rank };
                add_low_rank(
                    Level::best(),
                    factors,
                    (x, width),
                    (rows, scales),
                    output,
                    columns,
                )
            })
        })?)
    }
}

/// `blk.{layer}.{projection}`, the stem of tensor names.
pub fn tensor_name(layer: usize, projection: Projection) -> String {
    format!("blk.{layer}.{}", projection.name())
}

fn dense(name: &str, view: &safetensors::tensor::TensorView<'_>) -> Result<Tensor> {
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::F16 => DType::F16,
        other => {
            return Err(mismatch(
                "tensor",
                format!("{name} of type {other:?}"),
                "f16 or f32",
            ));
        }
    };
    Ok(Tensor::from_raw_buffer(
        view.data(),
        dtype,
        view.shape(),
        &candle_core::Device::Cpu,
    )?)
}

fn number<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| mismatch(field, format!("{text:?}"), "a number"))
}

fn mismatch(field: &'static str, value: impl ToString, expected: impl fmt::Display) -> LmError {
    LmError::Invalid {
        field,
        value: value.to_string(),
        fix: format!("expected {expected}"),
    }
}

fn bad(path: &Path, detail: String) -> LmError {
    LmError::BadFile {
        path: path.to_owned(),
        what: WHAT,
        detail,
    }
}

#[cfg(test)]
mod tests;
