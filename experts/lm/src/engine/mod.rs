//! The scheduler: requests join and leave a running batch; compute stays on its own thread.
//!
//! Callers put requests into a bounded queue and read events from a channel of their own; the one
//! compute thread owns everything else, so there are no locks around model state and nothing async
//! ever waits for arithmetic.
//!
//! | module | what lives there |
//! |---|---|
//! | `request` | the queue, the caller's end |
//! | `scheduler` | the steps, and who takes part in them |
//! | `sequence` | one request in the batch |
//! | `prefix` | the cache of shared prompt heads |
//! | `memory` | the bound of the memory for keys and values |
//! | `stream` | tokens to text, stop texts |
//! | `metrics` | what is measured |

mod backend;
mod memory;
mod metrics;
mod prefix;
mod request;
mod scheduler;
mod sequence;
mod stream;

#[cfg(test)]
mod tests;

use crate::adapter::Adapter;
use crate::sample::SamplingParams;
use crate::{LanguageModel, LmError, Result};
use memory::longest;
use metrics::{Metrics, Outcome};
use request::{Job, Queue};
use scheduler::{Backend, Scheduler};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use request::Generation;

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
    /// Memory for keys and values of running requests and kept prompt heads, in bytes. A request for which there
    /// is none waits; one that needs more than all is refused with [`LmError::TooLong`].
    pub kv_memory_bytes: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_batch: 8,
            queue_capacity: 256,
            max_sequence_tokens: 2048,
            prefill_chunk: 256,
            prefix_cache_entries: 16,
            kv_memory_bytes: 512 << 20,
        }
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

/// A model behind a bounded queue, running on its own thread. Clones share it; the thread ends when
/// the last is dropped, which waits for the step under way. Generations not complete then fail with
/// [`LmError::Stopped`].
#[derive(Clone)]
pub struct Engine {
    model: LanguageModel,
    worker: Arc<Worker>,
}

impl Engine {
    /// Starts the thread. Metrics are registered on `registry`, labelled with `name`.
    ///
    /// # Errors
    /// [`LmError::Invalid`] for an option out of range or a name that the registry has already.
    pub fn start(
        name: &str,
        model: LanguageModel,
        options: EngineOptions,
        registry: &prometheus::Registry,
    ) -> Result<Self> {
        let info = model.info();
        let most = options.max_sequence_tokens.min(info.context_length);
        let tokens = longest(options.kv_memory_bytes, most, |tokens| model.kv_bytes(tokens));
        if tokens < 2 {
            return Err(LmError::Invalid {
                field: "kv_memory_bytes",
                value: options.kv_memory_bytes.to_string(),
                fix: format!("one sequence of {most} tokens needs {}", model.kv_bytes(most)),
            });
        }
        if tokens < most {
            tracing::warn!(
                engine = name,
                limit = tokens,
                "kv_memory_bytes holds no sequence of max_sequence_tokens: longer requests are refused"
            );
        }
        let limits = Limits {
            tokens,
            vocabulary: info.vocabulary,
        };
        let worker = Worker::start(
            name,
            backend::LocalBackend::new(model.clone()),
            limits,
            options,
            registry,
        )?;
        Ok(Self {
            model,
            worker: Arc::new(worker),
        })
    }

    /// The model it runs.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// Queues a generation. Fails at once with [`LmError::QueueFull`], [`LmError::TooLong`], [`LmError::Stopped`] or
    /// [`LmError::Invalid`].
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation> {
        self.worker.generate(request)
    }

    /// Requests waiting and running now.
    pub fn load(&self) -> (usize, usize) {
        self.worker.queue.load()
    }
}

/// What a request must keep to.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Prompt and answer together.
    tokens: usize,
    vocabulary: usize,
}

impl Limits {
    fn check(&self, request: &GenerateRequest) -> Result<()> {
        let invalid = |field, value: String, fix: &str| {
            Err(LmError::Invalid {
                field,
                value,
                fix: fix.to_owned(),
            })
        };
        let prompt = request.prompt.len();
        request.sampling.validate()?;
        if prompt == 0 {
            return invalid("prompt", "no tokens".to_owned(), "give at least one token");
        }
        if let Some(token) = request
            .prompt
            .iter()
            .find(|token| **token as usize >= self.vocabulary)
        {
            let fix = format!("use token ids below {}", self.vocabulary);
            return invalid("prompt", format!("token {token}"), &fix);
        }
        if request.max_new_tokens == 0 {
            return invalid("max_new_tokens", "0".to_owned(), "ask for at least one token");
        }
        if request.shared_prefix > prompt {
            let fix = format!("use at most the {prompt} tokens of the prompt");
            return invalid("shared_prefix", request.shared_prefix.to_string(), &fix);
        }
        if request.stop.iter().any(String::is_empty) {
            return invalid("stop", "\"\"".to_owned(), "leave empty stop texts out");
        }
        if let Some((_, scale)) = request.adapter.as_ref().filter(|(_, scale)| !scale.is_finite()) {
            return invalid(
                "adapter scale",
                scale.to_string(),
                "use a finite number: 0 is the base model, 1 the adapter",
            );
        }
        if prompt.saturating_add(request.max_new_tokens) > self.tokens {
            return Err(LmError::TooLong {
                prompt,
                new: request.max_new_tokens,
                limit: self.tokens,
            });
        }
        Ok(())
    }
}

impl EngineOptions {
    fn validate(&self) -> Result<()> {
        let least = [
            ("max_batch", self.max_batch, 1),
            ("queue_capacity", self.queue_capacity, 1),
            ("max_sequence_tokens", self.max_sequence_tokens, 2),
            ("prefill_chunk", self.prefill_chunk, 1),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            Some((field, value, least)) => Err(LmError::Invalid {
                field,
                value: value.to_string(),
                fix: format!("use {least} or more"),
            }),
            None => Ok(()),
        }
    }
}

/// The thread and the way to it.
struct Worker {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    limits: Limits,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start<B: Backend + Send + 'static>(
        name: &str,
        backend: B,
        limits: Limits,
        options: EngineOptions,
        registry: &prometheus::Registry,
    ) -> Result<Self> {
        options.validate()?;
        let metrics = Arc::new(Metrics::register(name, registry)?);
        let queue = Queue::new(options.queue_capacity);
        let closing = CloseAtEnd {
            queue: Arc::clone(&queue),
            metrics: Arc::clone(&metrics),
        };
        let scheduler = Scheduler::new(backend, options, Arc::clone(&metrics));
        let thread = std::thread::Builder::new()
            .name(format!("engine-{name}"))
            .spawn(move || scheduler.run(&closing.queue))
            .map_err(|source| LmError::Io {
                path: format!("thread engine-{name}").into(),
                source,
            })?;
        Ok(Self {
            queue,
            metrics,
            limits,
            thread: Some(thread),
        })
    }

    fn generate(&self, request: GenerateRequest) -> Result<Generation> {
        let queued = self.limits.check(&request).and_then(|()| {
            let (job, generation) = Job::new(request, Instant::now());
            self.queue.push(job, &self.metrics).map(|()| generation)
        });
        if queued.is_err() {
            self.metrics.ended(Outcome::Refused);
        }
        queued
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.close(&self.metrics);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("an engine's thread had panicked");
        }
    }
}

/// Closes the queue when the thread ends in whatever way, so that no caller waits for a dead thread.
struct CloseAtEnd {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
}

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.queue.close(&self.metrics);
    }
}
