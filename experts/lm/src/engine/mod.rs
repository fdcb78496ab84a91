//! The scheduler: requests join and leave a running batch; compute stays on its own threads.

use crate::adapter::Adapter;
use crate::sample::SamplingParams;
use crate::{LanguageModel, LmError, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limits of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Sequences decoded together.
    pub max_batch: usize,
    /// Requests that may wait; one more is refused with [`LmError::QueueFull`].
    pub queue_capacity: usize,
    /// Longest prompt plus answer, in tokens.
    pub max_sequence_tokens: usize,
    /// Prompt tokens computed in one step before decoding goes on.
    pub prefill_chunk: usize,
    /// Prompt heads kept in the shared prefix cache.
    pub prefix_cache_entries: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_batch: 8, queue_capacity: 256, max_sequence_tokens: 2048, prefill_chunk: 256, prefix_cache_entries: 16 }
    }
}

/// One generation.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// The prompt's tokens (see [`LanguageModel::encode_chat`]).
    pub prompt: Vec<u32>,
    /// Leading tokens of the prompt that many requests share (0: none), e.g. a system prompt.
    pub shared_prefix: usize,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// A low-rank adapter and its scale (0: the base model, 1: the adapter as trained).
    pub adapter: Option<(Arc<Adapter>, f32)>,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said so, or a stop text came.
    Stop,
    /// `max_new_tokens` reached.
    Length,
}

/// What a generation cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Prompt tokens.
    pub prompt_tokens: usize,
    /// Prompt tokens taken from the prefix cache.
    pub cached_tokens: usize,
    /// Generated tokens.
    pub completion_tokens: usize,
    /// Mean natural-log probability of the generated tokens (`None` if there were none).
    pub mean_log_probability: Option<f32>,
    /// From submission to the first token.
    pub time_to_first_token: Duration,
}

/// What a generation sends.
#[derive(Debug)]
pub enum Event {
    /// More text (whole characters; may stand for several tokens).
    Text {
        /// The text.
        text: String,
        /// Tokens it stands for.
        tokens: usize,
    },
    /// The end; nothing follows.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// The generation failed; nothing follows.
    Failed(LmError),
}

/// A running generation; dropping it cancels the work.
pub struct Generation {
    events: tokio::sync::mpsc::Receiver<Event>,
}

impl Generation {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

/// A model behind a bounded queue, running on its own thread. Clones share it; the thread ends when the last is dropped.
#[derive(Clone)]
pub struct Engine {
    model: LanguageModel,
}

impl Engine {
    /// Starts the thread. Metrics are registered on `registry`, labelled with `name`.
    pub fn start(
        _name: &str,
        model: LanguageModel,
        _options: EngineOptions,
        _registry: &prometheus::Registry,
    ) -> Result<Self> {
        Ok(Self { model })
    }
    /// The model it runs.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }
    /// Queues a generation. Fails at once with [`LmError::QueueFull`], [`LmError::TooLong`], [`LmError::Stopped`] or
    /// [`LmError::Invalid`].
    pub fn generate(&self, _request: GenerateRequest) -> Result<Generation> {
        Err(LmError::Stopped)
    }
    /// Requests waiting and running now.
    pub fn load(&self) -> (usize, usize) {
        (0, 0)
    }
}
