//! Low-rank adapters under training: `W' = W + (alpha / rank) * B * A` (Hu et al. 2022, LoRA,
//! equation 3), and the file they are saved in.

use super::optimiser::Parameter;
use crate::adapter::{self, Projection};
use crate::load::{ModelConfig, TensorName};
use crate::{LmError, Result};
use candle_core::{DType, Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Places of one projection's two matrices among the parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    a: usize,
    b: usize,
}

/// An adapter under training. Parameters are named as in the file, `blk.3.attn_q.lora_a`.
#[derive(Debug)]
pub(super) struct Lora {
    /// First layer that carries adapters.
    pub(super) first_layer: usize,
    /// For each layer from `first_layer`, for each of [`Projection::ALL`].
    pub(super) pairs: Vec<[Option<Pair>; 7]>,
    pub(super) parameters: Vec<Parameter>,
    rank: usize,
    alpha: f32,
}

impl Lora {
    /// `A` uniform in `+-sqrt(3 / in)` (variance `1 / in`), `B` zero, so that training starts at the base model.
    pub(super) fn new(
        config: &ModelConfig,
        layers: usize,
        targets: &[Projection],
        rank: usize,
        alpha: f32,
        seed: u64,
    ) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let first_layer = config.layers - layers;
        let mut parameters = Vec::new();
        let mut pairs = Vec::new();
        for layer in first_layer..config.layers {
            pairs.push(Projection::ALL.map(|target| {
                if !targets.contains(&target) {
                    return None;
                }
                let shape = config.shape(TensorName::Layer(layer, target.tensor()));
                let (rows, columns) = (shape[0], shape[1]);
                let name = adapter::tensor_name(layer, target);
                let bound = (3.0 / columns as f32).sqrt();
                let a = (0..rank * columns)
                    .map(|_| bound * (2.0 * random.random::<f32>() - 1.0))
                    .collect();
                parameters.push(Parameter::new(format!("{name}.lora_a"), (rank, columns), a));
                parameters.push(Parameter::new(
                    format!("{name}.lora_b"),
                    (rows, rank),
                    vec![0.0; rows * rank],
                ));
                Some(Pair {
                    a: parameters.len() - 2,
                    b: parameters.len() - 1,
                })
            }));
        }
        Self {
            first_layer,
            pairs,
            parameters,
            rank,
            alpha,
        }
    }

    /// Takes over the values of an adapter that was trained before with the same layers, targets and rank.
    ///
    /// # Errors
    /// [`LmError::Io`], and [`LmError::BadFile`] naming the tensor that is missing or of another shape.
    pub(super) fn start_from(&mut self, path: &Path) -> Result<()> {
        let bad = |detail: String| LmError::BadFile {
            path: path.to_owned(),
            what: "an adapter to start from",
            detail,
        };
        let bytes = std::fs::read(path).map_err(|source| LmError::Io {
            path: path.to_owned(),
            source,
        })?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|error| bad(error.to_string()))?;
        for parameter in &mut self.parameters {
            let tensor = tensors
                .get(&parameter.name)
                .filter(|tensor| tensor.dims() == [parameter.shape.0, parameter.shape.1])
                .ok_or_else(|| {
                    let (name, shape) = (&parameter.name, parameter.shape);
                    bad(format!(
                        "{name} is missing or not of shape {shape:?}: give the same rank and layer"
                    ))
                })?;
            parameter.values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        }
        Ok(())
    }

    fn scale(&self) -> f64 {
        f64::from(self.alpha) / self.rank as f64
    }

    /// A pair's `A`, `B` and `alpha / rank`.
    pub(super) fn factors(&self, pair: Pair) -> Result<(Tensor, Tensor, f64)> {
        let (a, b) = (&self.parameters[pair.a], &self.parameters[pair.b]);
        Ok((a.tensor()?, b.tensor()?, self.scale()))
    }

    /// Gradients of a pair for `y = x W'^T`: with `s = alpha / rank`, `dB = s dy^T (x A^T)` and
    /// `dA = s (dy B)^T x`, put into `gradients`.
    pub(super) fn gradients(
        &self,
        pair: Pair,
        x: &Tensor,
        dy: &Tensor,
        gradients: &mut [Option<Tensor>],
    ) -> Result<()> {
        let (a, b) = (
            self.parameters[pair.a].tensor()?,
            self.parameters[pair.b].tensor()?,
        );
        gradients[pair.b] = Some((dy.t()?.matmul(&x.matmul(&a.t()?)?)? * self.scale())?);
        gradients[pair.a] = Some((dy.matmul(&b)?.t()?.matmul(x)? * self.scale())?);
        Ok(())
    }

    /// Writes the adapter as f16 safetensors. `card` is free JSON for the file's reader.
    pub(super) fn save(&self, path: &Path, config: &ModelConfig, card: &serde_json::Value) -> Result<()> {
        let metadata = HashMap::from([
            ("format".to_owned(), adapter::FORMAT.to_owned()),
            ("rank".to_owned(), self.rank.to_string()),
            ("alpha".to_owned(), self.alpha.to_string()),
            ("base".to_owned(), config.name.clone()),
            ("base_width".to_owned(), config.width.to_string()),
            ("base_layers".to_owned(), config.layers.to_string()),
            ("rope".to_owned(), "interleaved".to_owned()),
            ("card".to_owned(), card.to_string()),
        ]);
        let tensors = self
            .parameters
            .iter()
            .map(|parameter| Ok((parameter.name.clone(), parameter.tensor()?.to_dtype(DType::F16)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        write_safetensors(path, tensors, metadata)
    }
}

/// Writes tensors to a temporary neighbour of `path` and renames it, so that a crash leaves the old file.
pub(super) fn write_safetensors(
    path: &Path,
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let io = |source| LmError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    safetensors::serialize_to_file(&tensors, Some(metadata), Path::new(&temporary))
        .map_err(|error| io(std::io::Error::other(error)))?;
    std::fs::rename(&temporary, path).map_err(io)
}

/// Rebuilds a tensor on the CPU from values.
pub(super) fn tensor(values: &[f32], shape: (usize, usize)) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, shape, &Device::Cpu)?)
}
