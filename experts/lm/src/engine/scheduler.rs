//! Continuous batching: one step after another, and who takes part in it.
//!
//! A step is one forward pass. Every sequence that is answering takes part with its last token, so
//! none waits for another's prompt; prompts share `prefill_chunk` tokens a step, so that answers
//! keep flowing while prompts are read. Sequences join and leave between steps.

use super::metrics::{Metrics, Outcome};
use super::prefix::{Key, PrefixCache};
use super::request::{Job, Queue};
use super::stream::AnswerText;
use super::{EngineOptions, Event, FinishReason, Usage};
use crate::adapter::Adapter;
use crate::sample::Sampler;
use crate::tokenize::Tokenizer;
use crate::{LmError, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the scheduler needs of a model; tests script it.
pub(super) trait Backend {
    /// Keys and values of one sequence.
    type Cache: Send;
    /// Keys and values of a prompt head.
    type Prefix: Send;
    fn tokenizer(&self) -> &Tokenizer;
    fn new_cache(&self, prefix: Option<&Self::Prefix>, capacity: usize) -> Result<Self::Cache>;
    /// The first `tokens` of a cache as a prefix.
    fn to_prefix(&self, cache: &Self::Cache, tokens: &[u32]) -> Result<Self::Prefix>;
    /// Logits for each row that wants them.
    fn forward(&self, rows: Vec<Row<'_, Self::Cache>>) -> Result<Vec<Option<Vec<f32>>>>;
}

/// One sequence's part in a step.
pub(super) struct Row<'a, C> {
    pub(super) cache: &'a mut C,
    pub(super) tokens: &'a [u32],
    pub(super) adapter: Option<(&'a Adapter, f32)>,
    pub(super) wants_logits: bool,
}

/// New tokens for which a cache has room at first; it grows for longer answers.
const FIRST_NEW_TOKENS: usize = 256;

struct Sequence<C> {
    job: Job,
    /// `None` until the first tokens of the prompt are computed.
    cache: Option<C>,
    /// The head shared with other requests, while it isn't known to be in the cache.
    prefix: Option<Key<Adapter>>,
    /// Prompt tokens in the KV cache.
    computed: usize,
    cached: usize,
    sampler: Sampler,
    text: AnswerText,
    /// The last token, not computed yet.
    last: Option<u32>,
    generated: usize,
    log_probability: f64,
    time_to_first_token: Duration,
    last_token_at: Instant,
}

pub(super) struct Scheduler<B: Backend> {
    backend: B,
    options: EngineOptions,
    metrics: Arc<Metrics>,
    running: Vec<Sequence<B::Cache>>,
    prefixes: PrefixCache<Adapter, B::Prefix>,
}

impl<B: Backend> Scheduler<B> {
    pub(super) fn new(backend: B, options: EngineOptions, metrics: Arc<Metrics>) -> Self {
        let prefixes = PrefixCache::new(options.prefix_cache_entries);
        Self { backend, options, metrics, running: Vec::new(), prefixes }
    }

    /// Works until the queue is closed; what runs then ends with [`LmError::Stopped`].
    pub(super) fn run(mut self, queue: &Queue) {
        while let Some(jobs) = queue.take(self.running.len(), self.options.max_batch, Instant::now, &self.metrics) {
            self.step(jobs, Instant::now);
        }
        for mut sequence in self.running.drain(..) {
            sequence.fail(LmError::Stopped, &self.metrics);
        }
    }

    /// Sequences in the batch.
    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// One step: lets `jobs` join, and finished, cancelled and late sequences leave.
    pub(super) fn step(&mut self, jobs: Vec<Job>, clock: impl Fn() -> Instant) {
        for job in jobs {
            self.join(job);
        }
        let now = clock();
        let metrics = &self.metrics;
        self.running.retain_mut(|sequence| {
            let is_over = sequence.job.is_cancelled() || sequence.job.is_late(now);
            if is_over {
                let generated = sequence.generated;
                sequence.fail(LmError::DeadlineExceeded { generated }, metrics);
            }
            !is_over
        });
        self.begin();
        let shares = self.shares();
        let rows = shares.iter().filter(|share| **share > 0).count();
        if rows == 0 {
            return;
        }
        self.metrics.batch_size.observe(rows as f64);
        match self.forward(&shares) {
            Ok(logits) => self.advance(&shares, logits, clock()),
            Err(error) => self.fail_rows(&shares, error),
        }
    }

    fn join(&mut self, job: Job) {
        let request = &job.request;
        let sampler = match Sampler::new(request.sampling) {
            Ok(sampler) => sampler,
            Err(error) => return job.fail(error, &self.metrics),
        };
        // At least one token has to be computed to know the next.
        let shared = request.shared_prefix.min(request.prompt.len().saturating_sub(1));
        let prefix = (shared > 0 && self.options.prefix_cache_entries > 0).then(|| Key {
            // At scale 0 an adapter is the base model.
            adapter: request.adapter.clone().filter(|(_, scale)| *scale != 0.0),
            tokens: request.prompt.iter().take(shared).copied().collect(),
        });
        let text = AnswerText::new(self.backend.tokenizer().clone(), request.stop.clone());
        self.running.push(Sequence {
            cache: None,
            prefix,
            computed: 0,
            cached: 0,
            sampler,
            text,
            last: None,
            generated: 0,
            log_probability: 0.0,
            time_to_first_token: Duration::ZERO,
            last_token_at: job.submitted,
            job,
        });
    }

    /// Gives new sequences their caches. One whose prompt head another sequence is just computing
    /// waits for it instead of computing it too.
    fn begin(&mut self) {
        let mut index = 0;
        while let Some((sequence, before)) = self.running.get_mut(..=index).and_then(<[_]>::split_last_mut) {
            let is_computed_now = |key: &Key<Adapter>| {
                !self.prefixes.contains(key) && before.iter().any(|other| other.prefix.as_ref() == Some(key))
            };
            let must_wait = sequence.prefix.as_ref().is_some_and(is_computed_now);
            if sequence.cache.is_some() || must_wait {
                index += 1;
            } else if let Err(error) = sequence.begin(&self.backend, &mut self.prefixes, &self.metrics) {
                sequence.fail(error, &self.metrics);
                self.running.remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// How many tokens each sequence takes into the next step.
    fn shares(&self) -> Vec<usize> {
        let mut shares: Vec<usize> = self.running.iter().map(|sequence| usize::from(sequence.last.is_some())).collect();
        let mut reading: Vec<(usize, usize)> = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, sequence)| sequence.cache.is_some() && sequence.last.is_none())
            .map(|(index, sequence)| (sequence.job.request.prompt.len() - sequence.computed, index))
            .collect();
        // The shortest first, each at most an even part of what is left: short prompts aren't
        // delayed by long ones, and long ones never stand still.
        reading.sort_unstable();
        let mut budget = self.options.prefill_chunk;
        for (place, (left, index)) in reading.iter().enumerate() {
            let part = (budget / (reading.len() - place)).max(1).min(*left);
            budget = budget.saturating_sub(part);
            if let Some(share) = shares.get_mut(*index) {
                *share = part;
            }
        }
        shares
    }

    fn forward(&mut self, shares: &[usize]) -> Result<Vec<Option<Vec<f32>>>> {
        let backend = &self.backend;
        let rows: Vec<_> = self.running.iter_mut().zip(shares).filter_map(|(sequence, share)| sequence.row(*share)).collect();
        let count = rows.len();
        // Whatever a step leaves half done belongs to its own sequences, which end with it.
        let result = catch_unwind(AssertUnwindSafe(|| backend.forward(rows)));
        let logits = result.unwrap_or_else(|panic| Err(failure(&panic_text(panic.as_ref()))))?;
        if logits.len() == count { Ok(logits) } else { Err(failure("the model answered for another number of rows")) }
    }

    /// Takes in what a step computed.
    fn advance(&mut self, shares: &[usize], logits: Vec<Option<Vec<f32>>>, now: Instant) {
        let mut logits = logits.into_iter();
        let mut shares = shares.iter();
        let Self { backend, metrics, running, prefixes, .. } = self;
        running.retain_mut(|sequence| {
            let share = shares.next().copied().unwrap_or(0);
            if share == 0 {
                return true;
            }
            let logits = logits.next().flatten();
            if sequence.last.is_none() {
                sequence.computed += share;
                metrics.prompt_tokens.inc_by(share as u64);
                sequence.share_prefix(backend, prefixes);
            }
            let Some(logits) = logits else { return true };
            let stop_tokens = backend.tokenizer().stop_tokens();
            match sequence.accept(&logits, stop_tokens, now, metrics) {
                Ok(None) => true,
                Ok(Some(reason)) => {
                    sequence.finish(reason, metrics);
                    false
                }
                Err(error) => {
                    sequence.fail(error, metrics);
                    false
                }
            }
        });
    }

    /// Ends the sequences that took part in a failed step.
    fn fail_rows(&mut self, shares: &[usize], error: LmError) {
        tracing::error!(%error, "a step failed");
        let text = error.to_string();
        let mut original = Some(error);
        let mut shares = shares.iter();
        let metrics = &self.metrics;
        self.running.retain_mut(|sequence| {
            let took_part = shares.next().is_some_and(|share| *share > 0);
            if took_part {
                sequence.fail(original.take().unwrap_or_else(|| failure(&text)), metrics);
            }
            !took_part
        });
    }
}

impl<C> Sequence<C> {
    /// Gets a cache, with the shared prefix if it is known.
    fn begin<B: Backend<Cache = C>>(
        &mut self,
        backend: &B,
        prefixes: &mut PrefixCache<Adapter, B::Prefix>,
        metrics: &Metrics,
    ) -> Result<()> {
        let request = &self.job.request;
        let capacity = request.prompt.len() + request.max_new_tokens.min(FIRST_NEW_TOKENS);
        let known = self.prefix.as_ref().and_then(|key| Some((key.tokens.len(), prefixes.get(key)?)));
        self.cache = Some(backend.new_cache(known.map(|(_, prefix)| prefix), capacity)?);
        if let Some((tokens, _)) = known {
            metrics.prefix_hits.inc();
            (self.computed, self.cached) = (tokens, tokens);
            self.prefix = None;
        } else if self.prefix.is_some() {
            metrics.prefix_misses.inc();
        }
        Ok(())
    }

    /// Its part in a step that computes `share` of its tokens.
    fn row(&mut self, share: usize) -> Option<Row<'_, C>> {
        let request = &self.job.request;
        let tokens = match &self.last {
            Some(last) => std::slice::from_ref(last),
            None => request.prompt.get(self.computed..self.computed + share)?,
        };
        if share == 0 {
            return None;
        }
        Some(Row {
            cache: self.cache.as_mut()?,
            tokens,
            adapter: request.adapter.as_ref().map(|(adapter, scale)| (adapter.as_ref(), *scale)),
            wants_logits: self.last.is_some() || self.computed + share == request.prompt.len(),
        })
    }

    /// Puts its prompt head into the prefix cache as soon as it is computed.
    fn share_prefix<B: Backend<Cache = C>>(&mut self, backend: &B, prefixes: &mut PrefixCache<Adapter, B::Prefix>) {
        let Some(key) = self.prefix.take_if(|key| key.tokens.len() <= self.computed) else { return };
        match self.cache.as_ref().map(|cache| backend.to_prefix(cache, &key.tokens)) {
            Some(Ok(prefix)) => prefixes.insert(key, prefix),
            Some(Err(error)) => tracing::warn!(%error, "a prompt prefix could not be shared"),
            None => {}
        }
    }

    /// Chooses the next token. `Some`: the answer is complete.
    fn accept(
        &mut self,
        logits: &[f32],
        stop_tokens: &[u32],
        now: Instant,
        metrics: &Metrics,
    ) -> Result<Option<FinishReason>> {
        let choice = self.sampler.choose(logits)?;
        self.generated += 1;
        self.log_probability += f64::from(choice.log_probability);
        metrics.generated_tokens.inc();
        if self.generated == 1 {
            self.time_to_first_token = now.saturating_duration_since(self.job.submitted);
            metrics.time_to_first_token.observe(self.time_to_first_token.as_secs_f64());
        } else {
            metrics.time_per_output_token.observe(now.saturating_duration_since(self.last_token_at).as_secs_f64());
        }
        self.last_token_at = now;
        self.last = Some(choice.token);
        if stop_tokens.contains(&choice.token) {
            return Ok(Some(FinishReason::Stop));
        }
        let piece = self.text.push(choice.token)?;
        self.send(piece.text, piece.tokens);
        let is_full = self.generated >= self.job.request.max_new_tokens;
        Ok(if piece.stopped { Some(FinishReason::Stop) } else { is_full.then_some(FinishReason::Length) })
    }

    fn send(&self, text: String, tokens: usize) {
        if !text.is_empty() {
            self.job.send(Event::Text { text, tokens });
        }
    }

    /// Sends the text held back; whether a stop text ended it.
    fn flush(&mut self) -> Result<bool> {
        let piece = self.text.finish()?;
        self.send(piece.text, piece.tokens);
        Ok(piece.stopped)
    }

    fn finish(&mut self, reason: FinishReason, metrics: &Metrics) {
        let stopped = match self.flush() {
            Ok(stopped) => stopped,
            Err(error) => return self.job.fail(error, metrics),
        };
        let mean = self.log_probability / self.generated.max(1) as f64;
        metrics.ended(if self.job.is_cancelled() { Outcome::Cancelled } else { Outcome::Completed });
        self.job.send(Event::Finished {
            reason: if stopped { FinishReason::Stop } else { reason },
            usage: Usage {
                prompt_tokens: self.job.request.prompt.len(),
                cached_tokens: self.cached,
                completion_tokens: self.generated,
                mean_log_probability: (self.generated > 0).then_some(mean as f32),
                time_to_first_token: self.time_to_first_token,
            },
        });
    }

    /// Ends it without a whole answer. The text it had is sent first.
    fn fail(&mut self, error: LmError, metrics: &Metrics) {
        let error = self.flush().err().unwrap_or(error);
        self.job.fail(error, metrics);
    }
}

fn failure(text: &str) -> LmError {
    LmError::Candle(candle_core::Error::Msg(text.to_owned()))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the step panicked: {}", text.unwrap_or("no message"))
}
