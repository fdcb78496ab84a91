//! The local engine as the one who puts queries in better words.

use crate::pipeline::Reformatter;
use async_trait::async_trait;
use referral_lm::adapter::Adapter;
use referral_lm::engine::{Engine, Event, FinishReason, GenerateRequest};
use referral_lm::sample::SamplingParams;
use referral_lm::{LanguageModel, LmError};
use referral_router::RouterError;
use referral_router::reformat::{MAX_TOKENS, SHIPPED_ADAPTER, prompt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A model with the adapter that was trained for it.
pub(crate) struct EngineReformatter {
    engine: Engine,
    adapter: Arc<Adapter>,
}

impl EngineReformatter {
    /// `adapter` is that of the engine's model: see [`adapter`].
    pub(crate) fn new(engine: Engine, adapter: Adapter) -> Self {
        let adapter = Arc::new(adapter);
        Self { engine, adapter }
    }

    /// Greedy, so that the same query is always put in the same words.
    async fn generate(&self, expert: &str, query: &str, deadline: Instant) -> Result<String, RouterError> {
        let (prompt, shared_prefix) = prompt(self.engine.model(), expert, query)?;
        let mut generation = self.engine.generate(GenerateRequest {
            prompt,
            shared_prefix,
            max_new_tokens: MAX_TOKENS,
            sampling: SamplingParams {
                temperature: 0.0,
                top_k: 0,
                top_p: 1.0,
                seed: 0,
            },
            stop: Vec::new(),
            adapter: Some((Arc::clone(&self.adapter), 1.0)),
            deadline: Some(deadline),
        })?;
        let mut written = String::new();
        while let Some(event) = generation.next().await {
            match event {
                Event::Text { text, .. } => written.push_str(&text),
                // Cut off, it may end in a quotation mark that is not the last.
                Event::Finished {
                    reason: FinishReason::Length,
                    ..
                } => return Ok(String::new()),
                Event::Finished { .. } => break,
                Event::Failed(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }
}

/// The adapter in the file, or the shipped one.
///
/// # Errors
/// What is wrong with the file, or that the shipped one is of another model.
pub(crate) fn adapter(file: Option<&Path>, model: &LanguageModel) -> Result<Adapter, LmError> {
    match file {
        Some(path) => Adapter::load(path, model),
        None => Adapter::from_bytes(SHIPPED_ADAPTER, model),
    }
}

#[async_trait]
impl Reformatter for EngineReformatter {
    async fn write(&self, expert: &str, query: &str, deadline: Instant) -> Option<String> {
        self.generate(expert, query, deadline)
            .await
            .inspect_err(|error| tracing::warn!(%error, "a query could not be put in better words"))
            .ok()
    }
}
