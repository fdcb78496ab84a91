//! The local engine as an expert.
//!
//! Many experts can share one engine: they differ in system prompt, adapter and defaults. The
//! prompt's head is computed once by the engine and found again in its prefix cache.

#[cfg(test)]
mod tests;

use crate::expert::{
    AnswerStream, Card, Chunk, Expert, ExpertError, ExpertErrorKind, ExpertId, ExpertKind, Finish, Health,
    Query, TokenUsage,
};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use referral_lm::adapter::Adapter;
use referral_lm::engine::{Engine, Event, FinishReason, GenerateRequest, Generation};
use referral_lm::sample::SamplingParams;
use referral_lm::tokenize::single_turn;
use referral_lm::{LanguageModel, LmError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a query may leave out.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalDefaults {
    /// System prompt.
    pub system_prompt: Option<String>,
    /// Most tokens to generate; fewer where the prompt leaves less room.
    pub max_tokens: u32,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Nucleus mass.
    pub top_p: f32,
    /// Keep only the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
}

impl Default for LocalDefaults {
    fn default() -> Self {
        Self {
            system_prompt: None,
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
        }
    }
}

/// A model in this process, with or without an adapter.
pub struct LocalExpert {
    id: ExpertId,
    kind: ExpertKind,
    card: Card,
    engine: Engine,
    adapter: Option<(Arc<Adapter>, f32)>,
    defaults: Arc<LocalDefaults>,
    /// Tokens that every prompt with the expert's own system prompt starts with.
    head: Arc<[u32]>,
    has_stopped: AtomicBool,
}

impl LocalExpert {
    /// An expert on `engine`; `adapter` comes with its scale (0: the base model, 1: as trained).
    ///
    /// # Errors
    /// [`LmError::Tokenizer`] if the model's chat template cannot write a prompt.
    pub fn new(
        id: ExpertId,
        kind: ExpertKind,
        card: Card,
        engine: Engine,
        adapter: Option<(Arc<Adapter>, f32)>,
        defaults: LocalDefaults,
    ) -> Result<Self, LmError> {
        // What two prompts have in common is what all share, whatever the template does.
        let prompt = |text| {
            engine
                .model()
                .encode_chat(&single_turn(defaults.system_prompt.as_deref(), text), true)
        };
        let (one, other) = (prompt("a")?, prompt("1")?);
        let head = one[..common(&one, &other)].into();
        let (defaults, has_stopped) = (Arc::new(defaults), AtomicBool::new(false));
        Ok(Self {
            id,
            kind,
            card,
            engine,
            adapter,
            defaults,
            head,
            has_stopped,
        })
    }

    fn start(&self, query: &Query, prompt: Vec<u32>, deadline: Instant) -> Result<Generation, LmError> {
        let shared_prefix = if query.system.is_none() {
            common(&self.head, &prompt)
        } else {
            0
        };
        let request = GenerateRequest {
            prompt,
            shared_prefix,
            max_new_tokens: query.max_tokens.unwrap_or(self.defaults.max_tokens) as usize,
            sampling: SamplingParams {
                temperature: query.temperature.unwrap_or(self.defaults.temperature),
                top_k: self.defaults.top_k,
                top_p: query.top_p.unwrap_or(self.defaults.top_p),
                seed: query.seed.unwrap_or(0),
            },
            stop: query.stop.clone(),
            adapter: self.adapter.clone(),
            deadline: Some(deadline),
        };
        match self.engine.generate(request.clone()) {
            // Nobody asked for that many tokens: take what the prompt leaves.
            Err(LmError::TooLong { prompt, limit, .. }) if query.max_tokens.is_none() && prompt < limit => {
                self.engine.generate(GenerateRequest {
                    max_new_tokens: limit - prompt,
                    ..request
                })
            }
            other => other,
        }
    }

    fn error(&self, error: &LmError) -> ExpertError {
        if matches!(error, LmError::Stopped) {
            self.has_stopped.store(true, Ordering::Relaxed);
        }
        expert_error(&self.id, error)
    }
}

#[async_trait]
impl Expert for LocalExpert {
    fn id(&self) -> &ExpertId {
        &self.id
    }

    fn kind(&self) -> ExpertKind {
        self.kind
    }

    fn card(&self) -> &Card {
        &self.card
    }

    async fn health(&self) -> Health {
        if self.has_stopped.load(Ordering::Relaxed) {
            return Health::Unavailable(LmError::Stopped.to_string());
        }
        Health::Ready
    }

    async fn answer(&self, query: Query, deadline: Instant) -> Result<AnswerStream, ExpertError> {
        let model = self.engine.model().clone();
        let (query, prompt) = self.encode(model, query).await?;
        let generation = self
            .start(&query, prompt, deadline)
            .map_err(|error| self.error(&error))?;
        Ok(chunks(self.id.clone(), generation))
    }
}

impl LocalExpert {
    /// The prompt's tokens, made off the async workers: a long query takes milliseconds.
    async fn encode(&self, model: LanguageModel, query: Query) -> Result<(Query, Vec<u32>), ExpertError> {
        let defaults = self.defaults.clone();
        let encoding = tokio::task::spawn_blocking(move || {
            let system = query.system.as_deref().or(defaults.system_prompt.as_deref());
            let prompt = model.encode_chat(&single_turn(system, &query.text), true);
            (query, prompt)
        });
        let (query, prompt) = encoding.await.map_err(|_| ExpertError {
            expert: self.id.clone(),
            kind: ExpertErrorKind::Internal,
            detail: "the tokenizer failed on this query".to_owned(),
        })?;
        Ok((query, prompt.map_err(|error| self.error(&error))?))
    }
}

/// Leading tokens that both have.
fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// A generation's events as chunks; dropping the stream drops the generation, which cancels it.
fn chunks(expert: ExpertId, generation: Generation) -> AnswerStream {
    stream::unfold((generation, expert), |(mut generation, expert)| async move {
        let item = match generation.next().await? {
            Event::Text { text, .. } => Ok(Chunk::Text(text)),
            Event::Finished { reason, usage } => Ok(Chunk::End {
                finish: match reason {
                    FinishReason::Stop => Finish::Stop,
                    FinishReason::Length => Finish::Length,
                },
                usage: TokenUsage {
                    prompt: u32::try_from(usage.prompt_tokens).unwrap_or(u32::MAX),
                    completion: u32::try_from(usage.completion_tokens).unwrap_or(u32::MAX),
                },
                mean_log_probability: usage.mean_log_probability,
            }),
            Event::Failed(error) => Err(expert_error(&expert, &error)),
        };
        Some((item, (generation, expert)))
    })
    .boxed()
}

fn expert_error(expert: &ExpertId, error: &LmError) -> ExpertError {
    let kind = match error {
        LmError::QueueFull { .. } => ExpertErrorKind::Overloaded,
        LmError::TooLong { .. } | LmError::Invalid { .. } => ExpertErrorKind::InvalidQuery,
        LmError::DeadlineExceeded { .. } => ExpertErrorKind::Timeout,
        LmError::Stopped => ExpertErrorKind::Unavailable,
        _ => ExpertErrorKind::Internal,
    };
    ExpertError {
        expert: expert.clone(),
        kind,
        detail: error.to_string(),
    }
}
