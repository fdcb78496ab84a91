//! The local model as the scheduler sees it.

use super::scheduler::{Backend, Row};
use crate::model::{KvCache, Prefix, Step};
use crate::tokenize::Tokenizer;
use crate::{LanguageModel, Result};

pub(super) struct LocalBackend {
    model: LanguageModel,
}

impl LocalBackend {
    pub(super) fn new(model: LanguageModel) -> Self {
        Self { model }
    }
}

impl Backend for LocalBackend {
    type Cache = KvCache;
    type Prefix = Prefix;

    fn tokenizer(&self) -> &Tokenizer {
        self.model.tokenizer()
    }

    fn kv_bytes(&self, tokens: usize) -> usize {
        self.model.kv_bytes(tokens)
    }

    fn new_cache(&self, prefix: Option<&Prefix>, capacity: usize) -> Result<KvCache> {
        self.model.new_cache(prefix, capacity)
    }

    fn to_prefix(&self, cache: &KvCache, tokens: &[u32]) -> Result<Prefix> {
        cache.to_prefix(tokens)
    }

    fn forward(&self, rows: Vec<Row<'_, KvCache>>) -> Result<Vec<Option<Vec<f32>>>> {
        let mut steps: Vec<Step<'_>> = rows
            .into_iter()
            .map(|row| Step {
                cache: row.cache,
                tokens: row.tokens,
                adapter: row.adapter,
                wants_logits: row.wants_logits,
            })
            .collect();
        self.model.forward(&mut steps)
    }
}
