//! A model's files behind one interface: configuration, names, shapes and tensors.
//!
//! Canonical names are those of GGUF (`blk.3.attn_q.weight`), the canonical rotary convention is
//! GGUF's too: *interleaved*, a head's values `2i` and `2i + 1` form one rotated pair (candle's
//! `rope_i`). Hugging Face files pair `i` with `i + head_dim / 2`; the rows of their query and key
//! projections are permuted while reading. The other way round would forbid handing out a GGUF
//! file's quantised blocks untouched.
//!
//! Opening reads headers only and checks that every tensor of the architecture is there with the
//! right shape, so whatever is wrong with a file is said at once and by name.

use super::gguf::GgufFile;
use super::safetensors::SafetensorsDirectory;
use crate::{LmError, Result};
use candle_core::quantized::{QTensor, gguf_file};
use candle_core::{Device, Tensor};
use std::fmt;
use std::path::{Path, PathBuf};

/// Shape and constants of a llama-architecture decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Name from the file's metadata, else the file's or directory's stem.
    pub name: String,
    /// Decoder layers.
    pub layers: usize,
    /// Hidden width.
    pub width: usize,
    /// Attention (query) heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values per head; even.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn_width: usize,
    /// Rows of the token embedding.
    pub vocabulary: usize,
    /// Longest sequence, in tokens, that the model was trained for.
    pub context_length: usize,
    /// Epsilon of the root-mean-square norms.
    pub rms_epsilon: f64,
    /// Base of the rotary embedding's frequencies.
    pub rope_base: f32,
    /// Whether the output projection is the token embedding itself.
    pub tied_embeddings: bool,
    /// Token that begins a text, if the file names one.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

impl ModelConfig {
    /// The shape that a tensor of this model must have: `[out, in]` for projections.
    pub fn shape(&self, name: TensorName) -> Vec<usize> {
        let queries = self.heads * self.head_dim;
        let keys = self.kv_heads * self.head_dim;
        match name {
            TensorName::TokenEmbedding | TensorName::Output => vec![self.vocabulary, self.width],
            TensorName::OutputNorm => vec![self.width],
            TensorName::Layer(_, tensor) => match tensor {
                LayerTensor::AttentionNorm | LayerTensor::FfnNorm => vec![self.width],
                LayerTensor::AttentionQ => vec![queries, self.width],
                LayerTensor::AttentionK | LayerTensor::AttentionV => vec![keys, self.width],
                LayerTensor::AttentionOutput => vec![self.width, queries],
                LayerTensor::FfnGate | LayerTensor::FfnUp => vec![self.ffn_width, self.width],
                LayerTensor::FfnDown => vec![self.width, self.ffn_width],
            },
        }
    }

    /// Every tensor of the model, [`TensorName::Output`] only if the embeddings are not tied.
    pub fn tensors(&self) -> impl Iterator<Item = TensorName> + '_ {
        let head = (!self.tied_embeddings).then_some(TensorName::Output);
        [TensorName::TokenEmbedding, TensorName::OutputNorm]
            .into_iter()
            .chain(head)
            .chain((0..self.layers).flat_map(|layer| {
                LayerTensor::ALL
                    .into_iter()
                    .map(move |t| TensorName::Layer(layer, t))
            }))
    }

    /// Rejects values with which no forward pass can work, naming the first.
    fn check(&self) -> Result<(), String> {
        let positive = [
            ("layers", self.layers),
            ("width", self.width),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn_width", self.ffn_width),
            ("vocabulary", self.vocabulary),
            ("context_length", self.context_length),
        ];
        // Bounds far above any real model, low enough that products of two stay within 64 bits.
        const LARGEST: usize = 1 << 30;
        for (field, value) in positive {
            if value == 0 || value > LARGEST {
                return Err(format!("{field} is {value}: expected 1 to {LARGEST}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} attention heads are not a multiple of {} key/value heads",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!(
                "head_dim is {}: rotary embeddings need an even number",
                self.head_dim
            ));
        }
        if !(self.rms_epsilon.is_finite() && self.rms_epsilon >= 0.0) {
            return Err(format!(
                "rms_epsilon is {}: expected a small positive number",
                self.rms_epsilon
            ));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return Err(format!(
                "rope_base is {}: expected a positive number",
                self.rope_base
            ));
        }
        Ok(())
    }
}

/// A tensor of one decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the architecture's own")]
pub enum LayerTensor {
    AttentionNorm,
    AttentionQ,
    AttentionK,
    AttentionV,
    AttentionOutput,
    FfnNorm,
    FfnGate,
    FfnUp,
    FfnDown,
}

impl LayerTensor {
    /// All nine, in the order in which the forward pass uses them.
    pub const ALL: [Self; 9] = [
        Self::AttentionNorm,
        Self::AttentionQ,
        Self::AttentionK,
        Self::AttentionV,
        Self::AttentionOutput,
        Self::FfnNorm,
        Self::FfnGate,
        Self::FfnUp,
        Self::FfnDown,
    ];

    /// The canonical (GGUF) name without `.weight`, e.g. `attn_q`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AttentionNorm => "attn_norm",
            Self::AttentionQ => "attn_q",
            Self::AttentionK => "attn_k",
            Self::AttentionV => "attn_v",
            Self::AttentionOutput => "attn_output",
            Self::FfnNorm => "ffn_norm",
            Self::FfnGate => "ffn_gate",
            Self::FfnUp => "ffn_up",
            Self::FfnDown => "ffn_down",
        }
    }

    fn huggingface(self) -> &'static str {
        match self {
            Self::AttentionNorm => "input_layernorm",
            Self::AttentionQ => "self_attn.q_proj",
            Self::AttentionK => "self_attn.k_proj",
            Self::AttentionV => "self_attn.v_proj",
            Self::AttentionOutput => "self_attn.o_proj",
            Self::FfnNorm => "post_attention_layernorm",
            Self::FfnGate => "mlp.gate_proj",
            Self::FfnUp => "mlp.up_proj",
            Self::FfnDown => "mlp.down_proj",
        }
    }
}

/// Names a tensor; displayed it is the canonical name, e.g. `blk.3.attn_q.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorName {
    /// Token embedding `[vocabulary, width]`.
    TokenEmbedding,
    /// Norm before the output projection.
    OutputNorm,
    /// Output projection `[vocabulary, width]`; of a model with tied embeddings, the token embedding.
    Output,
    /// A tensor of one layer (from 0).
    Layer(usize, LayerTensor),
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TokenEmbedding => f.write_str("token_embd.weight"),
            Self::OutputNorm => f.write_str("output_norm.weight"),
            Self::Output => f.write_str("output.weight"),
            Self::Layer(layer, tensor) => write!(f, "blk.{layer}.{}.weight", tensor.name()),
        }
    }
}

impl TensorName {
    /// The name in Hugging Face files, e.g. `model.layers.3.self_attn.q_proj.weight`.
    pub fn huggingface(self) -> String {
        match self {
            Self::TokenEmbedding => "model.embed_tokens.weight".into(),
            Self::OutputNorm => "model.norm.weight".into(),
            Self::Output => "lm_head.weight".into(),
            Self::Layer(layer, tensor) => format!("model.layers.{layer}.{}.weight", tensor.huggingface()),
        }
    }
}

/// What holds the tensors.
#[derive(Debug)]
enum Files {
    Gguf(GgufFile),
    Safetensors(SafetensorsDirectory),
}

/// An opened model: a GGUF file or a directory of Hugging Face safetensors.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    files: Files,
}

impl Checkpoint {
    /// Opens `path` (a GGUF file, or a directory with `config.json` and `*.safetensors`) and
    /// checks names and shapes of all tensors.
    ///
    /// # Errors
    /// [`LmError::Io`] if it cannot be read; [`LmError::BadFile`] if it is corrupt, truncated, of
    /// another architecture, or lacks a tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| LmError::Io {
            path: path.to_owned(),
            source,
        })?;
        let (files, config) = if metadata.is_dir() {
            let (directory, config) = SafetensorsDirectory::open(path)?;
            (Files::Safetensors(directory), config)
        } else {
            let (file, config) = GgufFile::open(path)?;
            (Files::Gguf(file), config)
        };
        let checkpoint = Self {
            path: path.to_owned(),
            config,
            files,
        };
        checkpoint
            .config
            .check()
            .map_err(|detail| checkpoint.bad(detail))?;
        for name in checkpoint.config.tensors() {
            checkpoint.check_shape(name)?;
        }
        Ok(checkpoint)
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Header of the GGUF file (it carries tokenizer and chat template); `None` for a directory.
    pub fn gguf(&self) -> Option<&gguf_file::Content> {
        match &self.files {
            Files::Gguf(file) => Some(file.content()),
            Files::Safetensors(_) => None,
        }
    }

    /// Reads one tensor as contiguous f32 on the CPU, in the canonical rotary convention.
    /// [`TensorName::Output`] of a model with tied embeddings is its token embedding.
    ///
    /// # Errors
    /// [`LmError::Io`] or [`LmError::BadFile`], naming the tensor.
    pub fn tensor(&self, name: TensorName) -> Result<Tensor> {
        let name = self.resolve(name)?;
        match &self.files {
            Files::Gguf(file) => {
                let quantised = file.read(&name.to_string())?;
                quantised
                    .dequantize(&Device::Cpu)
                    .map_err(|error| self.bad(format!("{name}: {error}")))
            }
            Files::Safetensors(directory) => {
                let tensor = directory.read(&name.huggingface())?;
                match name {
                    TensorName::Layer(_, LayerTensor::AttentionQ) => interleave(&tensor, self.config.heads),
                    TensorName::Layer(_, LayerTensor::AttentionK) => {
                        interleave(&tensor, self.config.kv_heads)
                    }
                    _ => Ok(tensor),
                }
            }
        }
    }

    /// The tensor as a GGUF file holds it, blocks untouched; `None` for safetensors.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn quantised(&self, name: TensorName) -> Result<Option<QTensor>> {
        let name = self.resolve(name)?;
        match &self.files {
            Files::Gguf(file) => file.read(&name.to_string()).map(Some),
            Files::Safetensors(_) => Ok(None),
        }
    }

    /// Replaces a tied output by the embedding and refuses layers that are not there.
    fn resolve(&self, name: TensorName) -> Result<TensorName> {
        match name {
            TensorName::Output if self.config.tied_embeddings => Ok(TensorName::TokenEmbedding),
            TensorName::Layer(layer, _) if layer >= self.config.layers => {
                Err(self.bad(format!("{name}: the model has {} layers", self.config.layers)))
            }
            _ => Ok(name),
        }
    }

    fn check_shape(&self, name: TensorName) -> Result<()> {
        let (found, file_name) = match &self.files {
            Files::Gguf(file) => (file.shape(&name.to_string()), name.to_string()),
            Files::Safetensors(directory) => (directory.shape(&name.huggingface()), name.huggingface()),
        };
        let expected = self.config.shape(name);
        match found {
            None => Err(self.bad(format!("tensor {file_name} is missing"))),
            Some(found) if found != expected => Err(self.bad(format!(
                "tensor {file_name} has shape {found:?}, expected {expected:?}"
            ))),
            Some(_) => Ok(()),
        }
    }

    fn bad(&self, detail: String) -> LmError {
        LmError::BadFile {
            path: self.path.clone(),
            what: "a llama-architecture model",
            detail,
        }
    }
}

/// Permutes the rows of a query or key projection `[heads * head_dim, in]` from the half-split
/// rotary convention to the interleaved one: of each head, row `s * head_dim / 2 + i` becomes row `2i + s`.
fn interleave(weight: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let half = rows / heads / 2;
    Ok(weight
        .reshape((heads, 2, half, columns))?
        .transpose(1, 2)?
        .reshape((rows, columns))?
        .contiguous()?)
}

#[cfg(test)]
pub(crate) mod tests;
