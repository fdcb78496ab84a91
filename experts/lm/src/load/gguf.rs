//! GGUF files: header to [`ModelConfig`], tensors by name.
//!
//! candle reads the header and bounds lengths by the file's size. What it leaves unchecked (a zero
//! alignment, products of dimensions beyond 64 bits) is checked here, so that a corrupt file is an
//! error and never a panic or an absurd allocation.

use super::checkpoint::ModelConfig;
use crate::{LmError, Result};
use candle_core::Device;
use candle_core::quantized::{QTensor, gguf_file};
use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const WHAT: &str = "a GGUF model";

/// An opened GGUF file. Tensors are read on demand, each through a handle of its own, so reading
/// needs no lock.
#[derive(Debug)]
pub(super) struct GgufFile {
    path: PathBuf,
    content: gguf_file::Content,
}

impl GgufFile {
    /// Reads the header and its llama configuration.
    pub(super) fn open(path: &Path) -> Result<(Self, ModelConfig)> {
        let content = header(path)?;
        let config = Metadata {
            path,
            content: &content,
        }
        .config()?;
        Ok((
            Self {
                path: path.to_owned(),
                content,
            },
            config,
        ))
    }

    pub(super) fn content(&self) -> &gguf_file::Content {
        &self.content
    }

    pub(super) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.content
            .tensor_infos
            .get(name)
            .map(|info| info.shape.dims().to_vec())
    }

    pub(super) fn read(&self, name: &str) -> Result<QTensor> {
        let info = self
            .content
            .tensor_infos
            .get(name)
            .ok_or_else(|| bad(&self.path, format!("tensor {name} is missing")))?;
        let mut file = open(&self.path)?;
        info.read(&mut file, self.content.tensor_data_offset, &Device::Cpu)
            .map_err(|error| bad(&self.path, format!("tensor {name}: {error}")))
    }
}

/// Reads a GGUF file's header, of whatever architecture, and checks that the tensors lie within the file.
pub(crate) fn header(path: &Path) -> Result<gguf_file::Content> {
    let mut reader = BufReader::new(open(path)?);
    let length = reader
        .get_ref()
        .metadata()
        .map_err(|source| LmError::Io {
            path: path.to_owned(),
            source,
        })?
        .len();
    // candle divides by the file's own alignment value, which may be zero in a corrupt file.
    let content = catch_unwind(AssertUnwindSafe(|| gguf_file::Content::read(&mut reader)))
        .map_err(|_| bad(path, "its header is corrupt; fetch the file again".into()))?
        .map_err(|error| bad(path, format!("{error}; fetch the file again if it should be one")))?;
    for (name, info) in &content.tensor_infos {
        let elements = info
            .shape
            .dims()
            .iter()
            .try_fold(1_u64, |n, &d| n.checked_mul(d as u64));
        let (block, bytes) = (
            info.ggml_dtype.block_size() as u64,
            info.ggml_dtype.type_size() as u64,
        );
        let end = elements
            .and_then(|n| (n / block).checked_mul(bytes))
            .and_then(|size| size.checked_add(info.offset))
            .and_then(|end| end.checked_add(content.tensor_data_offset));
        if end.is_none_or(|end| end > length) {
            let detail =
                format!("tensor {name} lies beyond the end of the file, which is truncated or corrupt");
            return Err(bad(path, detail));
        }
    }
    Ok(content)
}

/// The header's key-value pairs, read with names in the errors.
struct Metadata<'a> {
    path: &'a Path,
    content: &'a gguf_file::Content,
}

impl Metadata<'_> {
    fn config(&self) -> Result<ModelConfig> {
        let architecture = self.text("general.architecture").unwrap_or_default();
        if architecture != "llama" {
            let detail = format!("its architecture is {architecture:?}; only \"llama\" is supported");
            return Err(bad(self.path, detail));
        }
        if self.content.tensor_infos.contains_key("rope_freqs.weight") {
            return Err(bad(
                self.path,
                "it scales rotary frequencies, which is not supported".into(),
            ));
        }
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let vocabulary = embedding
            .and_then(|info| info.shape.dims().first().copied())
            .ok_or_else(|| bad(self.path, "tensor token_embd.weight is missing".into()))?;
        let width = self.required("llama.embedding_length")?;
        let heads = self.required("llama.attention.head_count")?;
        let head_dim = match self.number("llama.attention.key_length") {
            Some(length) => length,
            None => width.checked_div(heads).unwrap_or(0),
        };
        let rotated = self.number("llama.rope.dimension_count").unwrap_or(head_dim);
        if rotated != head_dim {
            let detail =
                format!("rotary embeddings on {rotated} of {head_dim} values of a head are not supported");
            return Err(bad(self.path, detail));
        }
        let stem = self
            .path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        Ok(ModelConfig {
            name: self
                .text("general.name")
                .map(str::to_owned)
                .or(stem)
                .unwrap_or_default(),
            layers: self.required("llama.block_count")?,
            width,
            heads,
            kv_heads: self.number("llama.attention.head_count_kv").unwrap_or(heads),
            head_dim,
            ffn_width: self.required("llama.feed_forward_length")?,
            vocabulary,
            context_length: self.required("llama.context_length")?,
            rms_epsilon: self
                .value("llama.attention.layer_norm_rms_epsilon")
                .and_then(|value| value.to_f32().ok())
                .map_or(1e-5, f64::from),
            rope_base: self
                .value("llama.rope.freq_base")
                .and_then(|value| value.to_f32().ok())
                .unwrap_or(10_000.0),
            tied_embeddings: !self.content.tensor_infos.contains_key("output.weight"),
            bos: self.token("tokenizer.ggml.bos_token_id"),
            eos: self.token("tokenizer.ggml.eos_token_id").into_iter().collect(),
        })
    }

    fn value(&self, key: &str) -> Option<&gguf_file::Value> {
        self.content.metadata.get(key)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.value(key)?.to_string().ok().map(String::as_str)
    }

    fn number(&self, key: &str) -> Option<usize> {
        self.value(key)?
            .to_u64()
            .ok()
            .and_then(|number| usize::try_from(number).ok())
    }

    fn token(&self, key: &str) -> Option<u32> {
        self.number(key).and_then(|id| u32::try_from(id).ok())
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.number(key).ok_or_else(|| {
            bad(
                self.path,
                format!("header entry {key} is missing or not a number"),
            )
        })
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| LmError::Io {
        path: path.to_owned(),
        source,
    })
}

fn bad(path: &Path, detail: String) -> LmError {
    LmError::BadFile {
        path: path.to_owned(),
        what: WHAT,
        detail,
    }
}
