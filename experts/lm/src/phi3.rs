//! Phi-3, which is no llama: fused projections (`qkv_proj`, `gate_up_proj`) and a rotary embedding of its own.
//!
//! The engine's forward does not run it. candle-transformers does, in f32 from a Hugging Face directory (`phi3`) and
//! quantised from a GGUF file (`quantized_phi3`); this room checks the files, corrects what those two leave out, and gives
//! both one door: prompt in, logits out, token by token. One sequence at a time, which is what a router needs.
//!
//! Left out by candle-transformers and put right or refused here:
//! - The long rotary embedding (`rope_scaling` of type `su` or `longrope`) scales attention by
//!   `√(1 + ln(max/original) / ln(original))` squared. The projections of queries and keys are scaled instead, which
//!   is the same, for rotation is linear. Only its short factors are used: prompts stay below the original length.
//! - In GGUF files rotary factors and another base than 10,000 are not read: such files are refused.
//! - Caches and masks stay behind in the model. A decoding works on a clone, which shares the weights.

use crate::load::{DeviceSpec, SafetensorsDirectory, gguf_header};
use crate::tokenize::Tokenizer;
use crate::{LmError, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{phi3, quantized_phi3};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

const WHAT: &str = "a Phi-3 model";

/// A loaded Phi-3.
pub struct Phi3 {
    weights: Weights,
    tokenizer: Tokenizer,
    device: Device,
    context: usize,
}

/// Clones share the tensors.
#[derive(Clone)]
enum Weights {
    Whole(Box<phi3::Model>),
    Quantised(Box<quantized_phi3::ModelWeights>),
}

/// A sequence on its way.
pub struct Decoding {
    weights: Weights,
    device: Device,
    context: usize,
    position: usize,
    logits: Vec<f32>,
}

impl Phi3 {
    /// Loads a `.gguf` file or a Hugging Face directory for sequences of at most `context` tokens (or the model's own limit,
    /// if that is less).
    ///
    /// # Errors
    /// [`LmError::BadFile`] names the file that is missing, corrupt or of another architecture.
    pub fn load(path: &Path, device: DeviceSpec, context: usize) -> Result<Self> {
        let device = device.open()?;
        if path.is_dir() {
            Self::from_directory(path, device, context)
        } else {
            Self::from_gguf(path, device, context)
        }
    }

    fn from_directory(path: &Path, device: Device, context: usize) -> Result<Self> {
        let (config, scale) = config(&path.join("config.json"), context)?;
        let tokenizer = Tokenizer::from_directory(path)?;
        let files = SafetensorsDirectory::tensors(path)?;
        let rotated = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim();
        let mut tensors = HashMap::new();
        for name in files.names() {
            let mut tensor = files.read(name)?.to_device(&device)?;
            if scale != 1.0 && name.ends_with("qkv_proj.weight") {
                tensor = scale_rows(&tensor, rotated, scale)?;
            }
            tensors.insert(name.to_owned(), tensor);
        }
        let builder = VarBuilder::from_tensors(tensors, DType::F32, &device);
        let model = phi3::Model::new(&config, builder).map_err(|error| bad(path, error.to_string()))?;
        Ok(Self {
            weights: Weights::Whole(Box::new(model)),
            tokenizer,
            device,
            context: config.max_position_embeddings,
        })
    }

    fn from_gguf(path: &Path, device: Device, context: usize) -> Result<Self> {
        let mut content = gguf_header(path)?;
        let tokenizer = Tokenizer::from_gguf(&content, path)?;
        let context = gguf_context(path, &content, context)?;
        let cap = u32::try_from(context).unwrap_or(u32::MAX);
        let key = "phi3.context_length".to_owned();
        content
            .metadata
            .insert(key, candle_core::quantized::gguf_file::Value::U32(cap));
        let file = std::fs::File::open(path).map_err(|source| LmError::Io {
            path: path.to_owned(),
            source,
        })?;
        let mut reader = std::io::BufReader::new(file);
        let model = quantized_phi3::ModelWeights::from_gguf(false, content, &mut reader, &device)
            .map_err(|error| bad(path, error.to_string()))?;
        Ok(Self {
            weights: Weights::Quantised(Box::new(model)),
            tokenizer,
            device,
            context,
        })
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Longest sequence in tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Reads a prompt. Blocking compute.
    ///
    /// # Errors
    /// [`LmError::TooLong`] beyond [`Self::context`], [`LmError::Invalid`] for no token at all.
    pub fn start(&self, prompt: &[u32]) -> Result<Decoding> {
        let mut decoding = Decoding {
            weights: self.weights.clone(),
            device: self.device.clone(),
            context: self.context,
            position: 0,
            logits: Vec::new(),
        };
        decoding.read(prompt)?;
        Ok(decoding)
    }
}

impl Decoding {
    /// Logits of the next token, one for each of the vocabulary.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Appends tokens and computes the logits behind them. Blocking compute.
    ///
    /// # Errors
    /// As [`Phi3::start`].
    pub fn read(&mut self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(LmError::Invalid {
                field: "tokens",
                value: "none".to_owned(),
                fix: "give at least one".to_owned(),
            });
        }
        if self.position + tokens.len() > self.context {
            return Err(LmError::TooLong {
                prompt: self.position,
                new: tokens.len(),
                limit: self.context,
            });
        }
        let input = Tensor::new(tokens, &self.device)?.unsqueeze(0)?;
        let logits = match &mut self.weights {
            Weights::Whole(model) => model.forward(&input, self.position),
            Weights::Quantised(model) => model.forward(&input, self.position),
        }?;
        self.position += tokens.len();
        self.logits = logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        Ok(())
    }
}

/// `config.json` as candle reads it, and by what queries and keys are to be scaled.
fn config(path: &Path, context: usize) -> Result<(phi3::Config, f64)> {
    let text = std::fs::read_to_string(path).map_err(|source| LmError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut json: Value = serde_json::from_str(&text).map_err(|error| bad(path, error.to_string()))?;
    if json["model_type"] != "phi3" {
        let found = &json["model_type"];
        return Err(bad(
            path,
            format!("model_type is {found}; only \"phi3\" is supported here"),
        ));
    }
    if json["rope_scaling"]["type"] == "su" {
        // The first name of the same thing.
        json["rope_scaling"]["type"] = "longrope".into();
    }
    let mut config: phi3::Config =
        serde_json::from_value(json).map_err(|error| bad(path, error.to_string()))?;
    let heads = (config.num_attention_heads, config.num_key_value_heads);
    let fits = |whole: usize, part: usize| whole.checked_rem(part) == Some(0);
    if !fits(config.hidden_size, heads.0) || !fits(heads.0, heads.1) || !fits(config.head_dim(), 2) {
        let detail = format!(
            "{} heads ({} of keys) do not share a width of {}",
            heads.0, heads.1, config.hidden_size
        );
        return Err(bad(path, detail));
    }
    let mut scale = 1.0;
    let longest = config.max_position_embeddings;
    let mut limit = longest;
    if let Some(long) = &config.rope_scaling {
        let pairs = config.head_dim() / 2;
        if long.short_factor.len() != pairs || config.partial_rotary_factor.is_some_and(|part| part != 1.0) {
            let detail = "rope_scaling: short_factor must have a number for each pair of a head's values";
            return Err(bad(path, detail.to_owned()));
        }
        let original = config.original_max_position_embeddings.unwrap_or(longest);
        if longest > original && original > 1 {
            let (longest, original) = (longest as f64, original as f64);
            scale = (1.0 + (longest / original).ln() / original.ln()).sqrt();
        }
        limit = original.min(longest);
    }
    // Without it candle uses the short factors throughout.
    config.original_max_position_embeddings = None;
    config.max_position_embeddings = limit.min(context).max(1);
    Ok((config, scale))
}

/// The first `rows` of a matrix times `scale`.
fn scale_rows(matrix: &Tensor, rows: usize, scale: f64) -> Result<Tensor> {
    let all = matrix.dim(0)?;
    let scaled = (matrix.narrow(0, 0, rows.min(all))? * scale)?;
    let rest = matrix.narrow(0, rows.min(all), all - rows.min(all))?;
    Ok(Tensor::cat(&[&scaled, &rest], 0)?)
}

/// How long sequences may be, having checked what candle would misread or divide by.
fn gguf_context(
    path: &Path,
    content: &candle_core::quantized::gguf_file::Content,
    context: usize,
) -> Result<usize> {
    let value = |key: &str| content.metadata.get(key);
    let architecture = value("general.architecture").and_then(|value| value.to_string().ok());
    if architecture.is_none_or(|name| name != "phi3") {
        let name = architecture.map_or("", String::as_str);
        return Err(bad(
            path,
            format!("its architecture is {name:?}; only \"phi3\" is supported here"),
        ));
    }
    let number = |key: &str| {
        let number = value(key).and_then(|value| value.to_u32().ok());
        let number = number
            .filter(|number| *number > 0)
            .and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| bad(path, format!("header entry {key} is missing, zero or no number")))
    };
    let (width, heads) = (
        number("phi3.embedding_length")?,
        number("phi3.attention.head_count")?,
    );
    let keys = number("phi3.attention.head_count_kv")?;
    if width % heads != 0 || heads % keys != 0 || number("phi3.rope.dimension_count")? != width / heads {
        let detail =
            format!("{heads} heads ({keys} of keys) do not share a width of {width}, all of it rotated");
        return Err(bad(path, detail));
    }
    let base = value("phi3.rope.freq_base").and_then(|value| value.to_f32().ok());
    let factors = ["rope_factors_short.weight", "rope_factors_long.weight"];
    if base.is_some_and(|base| base != 10_000.0)
        || factors
            .iter()
            .any(|name| content.tensor_infos.contains_key(*name))
    {
        let detail = "its rotary embedding has factors or a base of its own, which is read from Hugging Face \
                      directories only: give the safetensors";
        return Err(bad(path, detail.to_owned()));
    }
    Ok(number("phi3.context_length")?.min(context).max(1))
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
#[cfg(test)]
mod tiny;
