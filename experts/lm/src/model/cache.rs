//! Keys and values of one sequence.
//!
//! Each layer has one preallocated block for keys and one for values (`kv_heads × capacity × head_dim`,
//! f32) that new tokens are written into; a full block is doubled. So a step copies only what is new,
//! where appending by concatenation copies the whole history at every token.

use crate::{LmError, Result};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// What a cache must know of its model.
#[derive(Debug, Clone)]
pub(super) struct CacheShape {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) context_length: usize,
    pub(super) device: Device,
}

/// Keys and values of the tokens that a sequence has seen. Made by
/// [`LanguageModel::new_cache`](super::LanguageModel::new_cache); good for that model only.
pub struct KvCache {
    shape: CacheShape,
    layers: Vec<KeysValues>,
    capacity: usize,
    len: usize,
}

#[derive(Clone)]
struct KeysValues {
    keys: Tensor,
    values: Tensor,
}

/// The KV cache of a prompt head, computed once and shared by many sequences; clones are cheap.
#[derive(Clone)]
pub struct Prefix {
    tokens: Arc<[u32]>,
    layers: Arc<[KeysValues]>,
}

impl Prefix {
    /// The tokens it stands for.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The layers it has been computed through, counted from the first.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|l| 2 * l.keys.elem_count() * size_of::<f32>())
            .sum()
    }
}

impl KvCache {
    /// An empty cache of `layers` layers, or one that starts with a copy of `prefix`.
    pub(super) fn new(
        shape: CacheShape,
        layers: usize,
        prefix: Option<&Prefix>,
        capacity: usize,
    ) -> Result<Self> {
        let len = prefix.map_or(0, |p| p.tokens.len());
        if let Some(prefix) = prefix
            && prefix.layers() < layers
        {
            return Err(LmError::Invalid {
                field: "prefix",
                value: format!("computed through {} layers", prefix.layers()),
                fix: format!("compute it through at least the {layers} layers it is used for"),
            });
        }
        let capacity = capacity.clamp(len.max(1), shape.context_length.max(len).max(1));
        let mut blocks = Vec::with_capacity(layers);
        for layer in 0..layers {
            let block = KeysValues {
                keys: shape.block(capacity)?,
                values: shape.block(capacity)?,
            };
            if let Some(head) = prefix.and_then(|p| p.layers.get(layer)) {
                block.keys.slice_set(&head.keys, 1, 0)?;
                block.values.slice_set(&head.values, 1, 0)?;
            }
            blocks.push(block);
        }
        Ok(Self {
            shape,
            layers: blocks,
            capacity,
            len,
        })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit before the blocks are doubled.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The head of this cache as a prefix that other sequences can start from. `tokens` are the first
    /// tokens that went into the cache: the caller knows them, the cache holds only keys and values.
    ///
    /// # Errors
    /// [`LmError::Invalid`] if there are none or more than the cache holds.
    pub fn to_prefix(&self, tokens: &[u32]) -> Result<Prefix> {
        if tokens.is_empty() || tokens.len() > self.len {
            return Err(LmError::Invalid {
                field: "prefix tokens",
                value: tokens.len().to_string(),
                fix: format!("between 1 and the {} tokens of the cache", self.len),
            });
        }
        let head = |block: &Tensor| block.narrow(1, 0, tokens.len())?.contiguous();
        let layers = self
            .layers
            .iter()
            .map(|l| {
                Ok(KeysValues {
                    keys: head(&l.keys)?,
                    values: head(&l.values)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Prefix {
            tokens: tokens.into(),
            layers: layers.into(),
        })
    }

    /// Layers it has.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Makes room for `new` tokens more.
    pub(super) fn reserve(&mut self, new: usize) -> Result<()> {
        let needed = self.len + new;
        if needed <= self.capacity {
            return Ok(());
        }
        let capacity = needed.max((2 * self.capacity).min(self.shape.context_length));
        for layer in &mut self.layers {
            for block in [&mut layer.keys, &mut layer.values] {
                let larger = self.shape.block(capacity)?;
                if self.len > 0 {
                    larger.slice_set(&block.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                }
                *block = larger;
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Writes keys and values (`new × kv_heads × head_dim`) behind the tokens held, and returns all
    /// (`kv_heads × (len + new) × head_dim`). They count as held only after [`Self::advance`].
    pub(super) fn write(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let block = self.layers.get(layer).ok_or_else(|| LmError::Invalid {
            field: "cache",
            value: format!("{} layers", self.layers.len()),
            fix: "use a cache made by this model's new_cache".to_owned(),
        })?;
        let seen = self.len + keys.dim(0)?;
        let put = |block: &Tensor, new: &Tensor| {
            block.slice_set(&new.transpose(0, 1)?.contiguous()?, 1, self.len)?;
            block.narrow(1, 0, seen)
        };
        Ok((put(&block.keys, keys)?, put(&block.values, values)?))
    }

    /// Counts `new` written tokens as held.
    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
    }
}

impl CacheShape {
    fn block(&self, capacity: usize) -> candle_core::Result<Tensor> {
        Tensor::zeros((self.kv_heads, capacity, self.head_dim), DType::F32, &self.device)
    }
}
