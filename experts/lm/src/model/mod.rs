//! The decoder: weights in memory and the batched forward pass.
//!
//! candle's own llama models run one sequence, return the last position's logits only and hide their
//! layers. Serving needs ragged batches with a cache for each sequence, shared prompt heads, hidden states
//! of any layer and adapters that differ by row, hence a pass of our own on candle's operators.

mod attention;
mod cache;
mod forward;
mod kernels;
mod packed;
mod rotary;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tiny;
mod weights;

pub use cache::{KvCache, Prefix};

use crate::adapter::Adapter;
use crate::load::LoadOptions;
use crate::load::checkpoint::{Checkpoint, ModelConfig};
use crate::tokenize::{ChatMessage, Tokenizer};
use crate::{LmError, Result};
use cache::CacheShape;
use candle_core::{Device, Tensor};
use forward::Row;
use std::path::Path;
use std::sync::Arc;
use weights::{Layer, Weights};

/// Positions whose logits are computed together where many are wanted.
const LOGITS_CHUNK: usize = 64;

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
    inner: Arc<Weights>,
    tokenizer: Tokenizer,
}

/// New tokens of one sequence in a batch: the next piece of its prompt or its last sampled token.
pub struct Step<'a> {
    /// The sequence's cache; the tokens are appended to it.
    pub cache: &'a mut KvCache,
    /// The new tokens, at least one.
    pub tokens: &'a [u32],
    /// An adapter and its scale: 0 is the base model and costs nothing, 1 the adapter as trained.
    pub adapter: Option<(&'a Adapter, f32)>,
    /// Whether the next token's logits are wanted; the pieces of a long prompt before its last need none.
    pub wants_logits: bool,
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
    ///
    /// # Errors
    /// [`LmError::Io`] and [`LmError::BadFile`] for the files, [`LmError::Invalid`] for a device that this
    /// build or machine lacks.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self> {
        let device = options.device.open()?;
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = match checkpoint.gguf() {
            Some(content) => Tokenizer::from_gguf(content, path)?,
            None => Tokenizer::from_directory(path)?,
        };
        let weights = Weights::load(&checkpoint, options.quantization, device)?;
        Ok(Self {
            inner: Arc::new(weights),
            tokenizer,
        })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Shape and constants of the decoder.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// Where its arithmetic runs.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// The tokenizer and chat template that came with the weights.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Text to token ids; special tokens such as `<|im_start|>` in the text are recognised only if asked.
    pub fn encode(&self, text: &str, recognise_special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, recognise_special)
    }

    /// Token ids to text, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens)
    }

    /// The chat as the model's template writes it, as token ids; text of messages can never become a special token.
    pub fn encode_chat(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode_chat(messages, add_generation_prompt)
    }

    /// A cache for one sequence with room for `capacity` tokens (it grows when that is not enough), which
    /// starts behind `prefix`.
    ///
    /// # Errors
    /// [`LmError::Invalid`] if the prefix was computed through some layers only.
    pub fn new_cache(&self, prefix: Option<&Prefix>, capacity: usize) -> Result<KvCache> {
        self.cache(self.inner.layers.len(), prefix, capacity)
    }

    /// Bytes that keys and values of a sequence of `tokens` tokens take in memory.
    pub fn kv_bytes(&self, tokens: usize) -> usize {
        self.inner.layers.len() * self.cache_shape().bytes(tokens)
    }

    /// Runs one batch: appends each step's tokens to its cache and returns, for those that want them, the
    /// logits over the vocabulary at its last token. Steps may have any number of tokens each.
    ///
    /// # Errors
    /// [`LmError::Invalid`] for no steps, a step without tokens, or a token beyond the vocabulary;
    /// [`LmError::TooLong`] if a sequence outgrows the model's context. No cache has changed then.
    pub fn forward(&self, steps: &mut [Step<'_>]) -> Result<Vec<Option<Vec<f32>>>> {
        let weights = &*self.inner;
        let mut lasts = Vec::new();
        let mut end = 0;
        for step in steps.iter() {
            end += step.tokens.len();
            if step.wants_logits && end > 0 {
                lasts.push(end as u32 - 1);
            }
        }
        let mut rows: Vec<Row<'_>> = steps
            .iter_mut()
            .map(|s| Row {
                cache: &mut *s.cache,
                tokens: s.tokens,
                adapter: s.adapter,
            })
            .collect();
        let x = weights.run(&mut rows, weights.layers.len(), &[], |_, _| Ok(()))?;
        let mut logits = if lasts.is_empty() {
            Vec::new()
        } else {
            let count = lasts.len();
            let x = x.index_select(&Tensor::from_vec(lasts, count, &weights.device)?, 0)?;
            weights.logits(&x)?.to_vec2::<f32>()?
        }
        .into_iter();
        Ok(steps
            .iter()
            .map(|s| if s.wants_logits { logits.next() } else { None })
            .collect())
    }

    /// Computes the KV cache of a prompt head through the first `layers` layers (all if `None`).
    ///
    /// # Errors
    /// As [`Self::forward`]; [`LmError::Invalid`] for more layers than there are, or none.
    pub fn prefix(
        &self,
        tokens: &[u32],
        layers: Option<usize>,
        adapter: Option<(&Adapter, f32)>,
    ) -> Result<Prefix> {
        let depth = layers.unwrap_or(self.inner.layers.len());
        self.check_layer("prefix layers", depth)?;
        let mut cache = self.cache(depth, None, tokens.len())?;
        let row = Row {
            cache: &mut cache,
            tokens,
            adapter,
        };
        self.inner.run(&mut [row], depth, &[], |_, _| Ok(()))?;
        cache.to_prefix(tokens)
    }

    /// Hidden states after each of the layers `after` (1-based: 1 is after the first layer), for
    /// every row of a ragged batch, read after `prefix` (which should have been computed with the same adapter). Stops after the deepest layer asked for.
    ///
    /// They are the residual stream as the next layer receives it, before any norm; those after the last
    /// layer have not gone through the final norm either.
    ///
    /// # Errors
    /// As [`Self::forward`]; [`LmError::Invalid`] for a layer that is not there, or a prefix that was not
    /// computed that deep.
    pub fn hidden_states(
        &self,
        prefix: Option<&Prefix>,
        rows: &[&[u32]],
        after: &[usize],
        adapter: Option<(&Adapter, f32)>,
    ) -> Result<Vec<HiddenStates>> {
        for &layer in after {
            self.check_layer("layer", layer)?;
        }
        let depth = after.iter().copied().max().unwrap_or(0);
        self.check_layer("layer", depth)?;
        let past = prefix.map_or(0, |p| p.tokens().len());
        let mut caches = rows
            .iter()
            .map(|tokens| self.cache(depth, prefix, past + tokens.len()))
            .collect::<Result<Vec<_>>>()?;
        let mut batch: Vec<Row<'_>> = caches
            .iter_mut()
            .zip(rows)
            .map(|(cache, tokens)| Row {
                cache,
                tokens,
                adapter,
            })
            .collect();
        let mut states: Vec<HiddenStates> = rows
            .iter()
            .map(|r| HiddenStates {
                tokens: r.len(),
                layers: vec![Vec::new(); after.len()],
            })
            .collect();
        self.inner.run(&mut batch, depth, after, |layer, x| {
            for (slot, _) in after.iter().enumerate().filter(|&(_, &wanted)| wanted == layer) {
                let flat = x.flatten_all()?.to_vec1::<f32>()?;
                let mut rest = flat.as_slice();
                for row in &mut states {
                    let (head, tail) = rest.split_at(row.tokens * self.inner.config.width);
                    rest = tail;
                    if let Some(place) = row.layers.get_mut(slot) {
                        *place = head.to_vec();
                    }
                }
            }
            Ok(())
        })?;
        Ok(states)
    }

    /// Natural-log probability of each token of `continuation` after `prompt` and those before it. Their
    /// negated mean is the logarithm of the perplexity.
    ///
    /// # Errors
    /// As [`Self::forward`]; both parts must have at least one token.
    pub fn log_probabilities(
        &self,
        prompt: &[u32],
        continuation: &[u32],
        adapter: Option<(&Adapter, f32)>,
    ) -> Result<Vec<f32>> {
        let (Some(_), Some((_, given))) = (prompt.last(), continuation.split_last()) else {
            return Err(LmError::Invalid {
                field: "tokens",
                value: format!(
                    "{} of prompt, {} of continuation",
                    prompt.len(),
                    continuation.len()
                ),
                fix: "give at least one of each".to_owned(),
            });
        };
        if let Some(token) = continuation
            .iter()
            .find(|&&t| t as usize >= self.inner.config.vocabulary)
        {
            let fix = format!(
                "token ids are below the vocabulary's {}",
                self.inner.config.vocabulary
            );
            return Err(LmError::Invalid {
                field: "token",
                value: token.to_string(),
                fix,
            });
        }
        let tokens = [prompt, given].concat();
        let mut cache = self.new_cache(None, tokens.len())?;
        let row = Row {
            cache: &mut cache,
            tokens: &tokens,
            adapter,
        };
        let x = self
            .inner
            .run(&mut [row], self.inner.layers.len(), &[], |_, _| Ok(()))?;
        let mut result = Vec::with_capacity(continuation.len());
        for (chunk, targets) in continuation.chunks(LOGITS_CHUNK).enumerate() {
            let start = prompt.len() - 1 + chunk * LOGITS_CHUNK;
            let logits = self.inner.logits(&x.narrow(0, start, targets.len())?)?;
            let log_probabilities = candle_nn::ops::log_softmax(&logits, 1)?;
            let targets = Tensor::new(targets, &self.inner.device)?.unsqueeze(1)?;
            result.extend(
                log_probabilities
                    .gather(&targets, 1)?
                    .flatten_all()?
                    .to_vec1::<f32>()?,
            );
        }
        Ok(result)
    }

    fn cache(&self, layers: usize, prefix: Option<&Prefix>, capacity: usize) -> Result<KvCache> {
        KvCache::new(self.cache_shape(), layers, prefix, capacity)
    }

    fn cache_shape(&self) -> CacheShape {
        let config = &self.inner.config;
        CacheShape {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            context_length: config.context_length,
            device: self.inner.device.clone(),
            is_paged: matches!(self.inner.layers.first(), Some(Layer::Packed(_))),
        }
    }

    fn check_layer(&self, field: &'static str, layer: usize) -> Result<()> {
        let layers = self.inner.layers.len();
        if (1..=layers).contains(&layer) {
            return Ok(());
        }
        Err(LmError::Invalid {
            field,
            value: layer.to_string(),
            fix: format!("between 1 and {layers}"),
        })
    }
}
