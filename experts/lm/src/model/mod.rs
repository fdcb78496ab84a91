//! The decoder: weights in memory and the batched forward pass.

use crate::load::LoadOptions;
use crate::tokenize::ChatMessage;
use crate::{LmError, Result};
use std::path::Path;
use std::sync::Arc;

/// What a model is.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Name from the file's metadata, or the file's stem.
    pub name: String,
    /// Decoder layers.
    pub layers: usize,
    /// Hidden width.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Vocabulary size.
    pub vocabulary: usize,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// Bytes of weights in memory.
    pub weight_bytes: usize,
}

/// A loaded model; clones share the weights.
#[derive(Clone)]
pub struct LanguageModel {
    inner: Arc<ModelInfo>,
}

/// The KV cache of a prompt head, computed once and shared by many sequences.
#[derive(Clone)]
pub struct Prefix {
    tokens: Arc<[u32]>,
}

/// Hidden states of one row: for each requested layer, `tokens * width` values, row-major.
#[derive(Debug, Clone)]
pub struct HiddenStates {
    /// Tokens of this row (without the prefix).
    pub tokens: usize,
    /// One flat `tokens * width` vector for each requested layer, in the order asked.
    pub layers: Vec<Vec<f32>>,
}

impl LanguageModel {
    /// Loads a GGUF file, or a directory of Hugging Face safetensors.
    pub fn load(_path: &Path, _options: &LoadOptions) -> Result<Self> {
        Err(LmError::Stopped)
    }
    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.inner
    }
    /// Text to token ids; special tokens such as `<|im_start|>` in the text are recognised only if asked.
    pub fn encode(&self, _text: &str, _recognise_special: bool) -> Result<Vec<u32>> {
        Err(LmError::Stopped)
    }
    /// Token ids to text, special tokens left out.
    pub fn decode(&self, _tokens: &[u32]) -> Result<String> {
        Err(LmError::Stopped)
    }
    /// The chat as the model's template writes it, as token ids; text of messages can never become a special token.
    pub fn encode_chat(&self, _messages: &[ChatMessage], _add_generation_prompt: bool) -> Result<Vec<u32>> {
        Err(LmError::Stopped)
    }
    /// Computes the KV cache of a prompt head through the first `layers` layers (all if `None`).
    pub fn prefix(&self, tokens: &[u32], _layers: Option<usize>) -> Result<Prefix> {
        Ok(Prefix { tokens: tokens.into() })
    }
    /// Hidden states after each of the layers `after` (1-based: 1 is after the first layer), for
    /// every row of a ragged batch, read after `prefix`. Stops after the deepest layer asked for.
    pub fn hidden_states(
        &self,
        _prefix: Option<&Prefix>,
        _rows: &[&[u32]],
        _after: &[usize],
    ) -> Result<Vec<HiddenStates>> {
        Err(LmError::Stopped)
    }
}

impl Prefix {
    /// The tokens it stands for.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}
