//! Keys and values of one sequence.
//!
//! For the CPU's own kernels each layer has pages of [`PAGE`] tokens in f16, taken one at a time as the sequence
//! grows. A prompt head is shared by its pages: sequences behind one head copy no more than its last page.
//! Elsewhere each layer has one preallocated block for keys and one for values (`kv_heads × capacity × head_dim`,
//! f32) that new tokens are written into; a full block is doubled. Either way a step copies only what is new,
//! where appending by concatenation copies the whole history at every token.

use crate::kernels::{PAGE, PageShape, Pages};
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
    /// Whether keys and values are held in pages, for the CPU's own kernels.
    pub(super) is_paged: bool,
}

/// Keys and values of the tokens that a sequence has seen. Made by
/// [`LanguageModel::new_cache`](super::LanguageModel::new_cache); good for that model only.
pub struct KvCache {
    shape: CacheShape,
    layers: Vec<KeysValues>,
    capacity: usize,
    len: usize,
}

/// Those of one layer; clones share them.
#[derive(Clone)]
enum KeysValues {
    Blocks { keys: Tensor, values: Tensor },
    Pages(Pages),
}

/// The KV cache of a prompt head, computed once and shared by many sequences; clones are cheap.
#[derive(Clone)]
pub struct Prefix {
    tokens: Arc<[u32]>,
    layers: Arc<[KeysValues]>,
    bytes: usize,
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
        self.bytes
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
        let capacity = if shape.is_paged {
            len.next_multiple_of(PAGE)
        } else {
            capacity.clamp(len.max(1), shape.context_length.max(len).max(1))
        };
        let mut blocks = Vec::with_capacity(layers);
        for layer in 0..layers {
            let head = prefix.and_then(|p| p.layers.get(layer));
            blocks.push(match head {
                Some(KeysValues::Pages(pages)) => KeysValues::Pages(pages.clone()),
                _ if shape.is_paged => KeysValues::Pages(Pages::new()),
                _ => {
                    let (keys, values) = (shape.block(capacity)?, shape.block(capacity)?);
                    if let Some(KeysValues::Blocks { keys: k, values: v }) = head {
                        keys.slice_set(k, 1, 0)?;
                        values.slice_set(v, 1, 0)?;
                    }
                    KeysValues::Blocks { keys, values }
                }
            });
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

    /// Tokens that fit before more memory is taken.
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
                Ok(match l {
                    KeysValues::Blocks { keys, values } => KeysValues::Blocks {
                        keys: head(keys)?,
                        values: head(values)?,
                    },
                    KeysValues::Pages(pages) => {
                        KeysValues::Pages(pages.iter().take(tokens.len().div_ceil(PAGE)).cloned().collect())
                    }
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Prefix {
            tokens: tokens.into(),
            bytes: layers.len() * self.shape.bytes(tokens.len()),
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
        let capacity = if self.shape.is_paged {
            needed.next_multiple_of(PAGE)
        } else {
            needed.max((2 * self.capacity).min(self.shape.context_length))
        };
        let shape = &self.shape;
        for layer in &mut self.layers {
            match layer {
                KeysValues::Pages(pages) => {
                    pages.resize_with(capacity / PAGE, || Arc::new(shape.pages().page()));
                }
                KeysValues::Blocks { keys, values } => {
                    for block in [keys, values] {
                        let larger = shape.block(capacity)?;
                        if self.len > 0 {
                            larger.slice_set(&block.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                        }
                        *block = larger;
                    }
                }
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Writes keys and values (`new × kv_heads × head_dim`) behind the tokens held, and returns all
    /// (`kv_heads × (len + new) × head_dim`). They count as held only after [`Self::advance`].
    pub(super) fn write(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let Some(KeysValues::Blocks {
            keys: held_keys,
            values: held_values,
        }) = self.layers.get(layer)
        else {
            return Err(foreign(self.layers.len()));
        };
        let seen = self.len + keys.dim(0)?;
        let put = |block: &Tensor, new: &Tensor| {
            block.slice_set(&new.transpose(0, 1)?.contiguous()?, 1, self.len)?;
            block.narrow(1, 0, seen)
        };
        Ok((put(held_keys, keys)?, put(held_values, values)?))
    }

    /// The pages of a layer, to be read and written by the CPU's own kernels.
    pub(super) fn pages(&mut self, layer: usize) -> Result<&mut Pages> {
        let layers = self.layers.len();
        match self.layers.get_mut(layer) {
            Some(KeysValues::Pages(pages)) => Ok(pages),
            _ => Err(foreign(layers)),
        }
    }

    /// Counts `new` written tokens as held.
    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
    }
}

impl CacheShape {
    pub(super) fn pages(&self) -> PageShape {
        PageShape {
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Bytes of one layer's keys and values of `tokens` tokens.
    pub(super) fn bytes(&self, tokens: usize) -> usize {
        if self.is_paged {
            tokens.div_ceil(PAGE) * self.pages().bytes()
        } else {
            2 * self.kv_heads * tokens * self.head_dim * size_of::<f32>()
        }
    }

    fn block(&self, capacity: usize) -> candle_core::Result<Tensor> {
        Tensor::zeros((self.kv_heads, capacity, self.head_dim), DType::F32, &self.device)
    }
}

fn foreign(layers: usize) -> LmError {
    LmError::Invalid {
        field: "cache",
        value: format!("{layers} layers"),
        fix: "use a cache made by this model's new_cache".to_owned(),
    }
}
