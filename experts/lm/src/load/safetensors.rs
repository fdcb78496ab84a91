//! Hugging Face directories: `config.json` and one or several `*.safetensors` files.
//!
//! Headers are read once; tensors on demand by seeking, since mapping files into memory needs
//! `unsafe`, which is kept to the kernels.

use super::checkpoint::ModelConfig;
use crate::{LmError, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const WHAT: &str = "a Hugging Face model directory";
/// The format's own bound of its header, in bytes.
const LARGEST_HEADER: u64 = 100_000_000;

/// Where a tensor lies.
#[derive(Debug)]
struct Entry {
    file: PathBuf,
    dtype: DType,
    shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

/// An opened directory.
#[derive(Debug)]
pub(crate) struct SafetensorsDirectory {
    path: PathBuf,
    entries: HashMap<String, Entry>,
}

impl SafetensorsDirectory {
    /// Reads the headers of every `*.safetensors` file, of whatever architecture.
    pub(crate) fn tensors(path: &Path) -> Result<Self> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(|source| LmError::Io {
                path: path.to_owned(),
                source,
            })?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|file| {
                file.extension()
                    .is_some_and(|extension| extension == "safetensors")
            })
            .collect();
        files.sort();
        if files.is_empty() {
            return Err(bad(path, "it holds no *.safetensors file".into()));
        }
        let mut entries = HashMap::new();
        for file in &files {
            read_header(file, &mut entries)?;
        }
        Ok(Self {
            path: path.to_owned(),
            entries,
        })
    }

    /// Reads `config.json` and the headers of every `*.safetensors` file.
    pub(super) fn open(path: &Path) -> Result<(Self, ModelConfig)> {
        let files = Self::tensors(path)?;
        let config_path = path.join("config.json");
        let text = std::fs::read_to_string(&config_path).map_err(|source| LmError::Io {
            path: config_path.clone(),
            source,
        })?;
        let raw: HuggingFaceConfig =
            serde_json::from_str(&text).map_err(|error| bad(&config_path, error.to_string()))?;
        let config = raw.into_config(path, files.entries.contains_key("lm_head.weight"))?;
        Ok((files, config))
    }

    /// Names of the tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(super) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.entries.get(name).map(|entry| entry.shape.clone())
    }

    /// Reads a tensor and widens it to f32.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| bad(&self.path, format!("tensor {name} is missing")))?;
        let io = |source| LmError::Io {
            path: entry.file.clone(),
            source,
        };
        let mut file = File::open(&entry.file).map_err(io)?;
        file.seek(SeekFrom::Start(entry.start)).map_err(io)?;
        let mut bytes = vec![0; entry.bytes];
        file.read_exact(&mut bytes).map_err(io)?;
        let tensor = Tensor::from_raw_buffer(&bytes, entry.dtype, &entry.shape, &Device::Cpu)?;
        Ok(tensor.to_dtype(DType::F32)?)
    }
}

/// Adds one file's tensors to `entries`, having checked that they lie within the file.
fn read_header(path: &Path, entries: &mut HashMap<String, Entry>) -> Result<()> {
    let io = |source| LmError::Io {
        path: path.to_owned(),
        source,
    };
    let truncated = || bad(path, "it is truncated or corrupt; fetch it again".into());
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut size = [0_u8; 8];
    file.read_exact(&mut size).map_err(|_| truncated())?;
    let size = u64::from_le_bytes(size);
    if size > LARGEST_HEADER || size + 8 > length {
        return Err(truncated());
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header).map_err(io)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| bad(path, format!("its header: {error}")))?;
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            // Tensors of other types (masks, counters) are no weights of this architecture.
            _ => continue,
        };
        let (start, end) = info.data_offsets;
        let expected = info
            .shape
            .iter()
            .try_fold(dtype.size_in_bytes(), |n, &d| n.checked_mul(d));
        if end < start || expected != Some(end - start) || (end as u64).saturating_add(size + 8) > length {
            return Err(bad(
                path,
                format!("tensor {name} lies beyond the end of the file; fetch it again"),
            ));
        }
        let entry = Entry {
            file: path.to_owned(),
            dtype,
            shape: info.shape.clone(),
            start: size + 8 + start as u64,
            bytes: end - start,
        };
        entries.insert(name, entry);
    }
    Ok(())
}

/// The part of `config.json` that matters here.
#[derive(Debug, Deserialize)]
struct HuggingFaceConfig {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f32>,
    rope_scaling: Option<serde_json::Value>,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    #[serde(rename = "_name_or_path")]
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl HuggingFaceConfig {
    fn into_config(self, path: &Path, has_head: bool) -> Result<ModelConfig> {
        if self.model_type != "llama" {
            let detail = format!("model_type is {:?}; only \"llama\" is supported", self.model_type);
            return Err(bad(path, detail));
        }
        if self.attention_bias || self.mlp_bias {
            return Err(bad(
                path,
                "attention_bias or mlp_bias is true, which is not supported".into(),
            ));
        }
        if self.rope_scaling.is_some() {
            return Err(bad(path, "rope_scaling is set, which is not supported".into()));
        }
        let stem = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(ModelConfig {
            name: self
                .name
                .filter(|name| !name.is_empty())
                .or(stem)
                .unwrap_or_default(),
            layers: self.num_hidden_layers,
            width: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: match self.head_dim {
                Some(dim) => dim,
                None => self
                    .hidden_size
                    .checked_div(self.num_attention_heads)
                    .unwrap_or(0),
            },
            ffn_width: self.intermediate_size,
            vocabulary: self.vocab_size,
            context_length: self.max_position_embeddings,
            rms_epsilon: self.rms_norm_eps.unwrap_or(1e-6),
            rope_base: self.rope_theta.unwrap_or(10_000.0),
            tied_embeddings: self.tie_word_embeddings.unwrap_or(!has_head),
            bos: self.bos_token_id,
            eos: match self.eos_token_id {
                None => Vec::new(),
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
            },
        })
    }
}

fn bad(path: &Path, detail: String) -> LmError {
    LmError::BadFile {
        path: path.to_owned(),
        what: WHAT,
        detail,
    }
}
