//! Continuous batching: one step after another, and who takes part in it.
//!
//! A step is one forward pass. Every sequence that is answering takes part with its last token, so
//! none waits for another's prompt; prompts share `prefill_chunk` tokens a step, so that answers
//! keep flowing while prompts are read. Sequences join and leave between steps.

use super::EngineOptions;
use super::memory::Pool;
use super::metrics::Metrics;
use super::prefix::{Key, PrefixCache};
use super::request::{Job, Queue};
use super::sequence::Sequence;
use crate::adapter::Adapter;
use crate::sample::Sampler;
use crate::tokenize::Tokenizer;
use crate::{LmError, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// What the scheduler needs of a model; tests script it.
pub(super) trait Backend {
    /// Keys and values of one sequence.
    type Cache: Send;
    /// Keys and values of a prompt head.
    type Prefix: Send;
    fn tokenizer(&self) -> &Tokenizer;
    /// Bytes that keys and values of a sequence of `tokens` tokens take.
    fn kv_bytes(&self, tokens: usize) -> usize;
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

pub(super) struct Scheduler<B: Backend> {
    backend: B,
    options: EngineOptions,
    metrics: Arc<Metrics>,
    pool: Arc<Pool>,
    running: Vec<Sequence<B::Cache>>,
    prefixes: PrefixCache<Adapter, B::Prefix>,
}

impl<B: Backend> Scheduler<B> {
    pub(super) fn new(backend: B, options: EngineOptions, metrics: Arc<Metrics>) -> Self {
        let prefixes = PrefixCache::new(options.prefix_cache_entries);
        metrics.kv_capacity.set(options.kv_memory_bytes as i64);
        let pool = Pool::new(options.kv_memory_bytes, metrics.kv_used.clone());
        Self {
            backend,
            pool,
            options,
            metrics,
            running: Vec::new(),
            prefixes,
        }
    }

    /// Works until the queue is closed; what runs then ends with [`LmError::Stopped`].
    pub(super) fn run(mut self, queue: &Queue) {
        let metrics = Arc::clone(&self.metrics);
        let max_batch = self.options.max_batch;
        while let Some(jobs) = queue.take(
            self.running.len(),
            max_batch,
            Instant::now,
            |job| self.admit(job),
            &metrics,
        ) {
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

    /// Reserves the memory that a job can need; prompt heads that nobody has used for long give way. Whether there
    /// is enough.
    pub(super) fn admit(&mut self, job: &mut Job) -> bool {
        let request = &job.request;
        let bytes = self
            .backend
            .kv_bytes(request.prompt.len() + request.max_new_tokens);
        let pool = &self.pool;
        job.memory = self
            .prefixes
            .make_room(pool, bytes)
            .then(|| pool.reserve(bytes))
            .flatten();
        self.metrics.prefix_entries.set(self.prefixes.len() as i64);
        if job.memory.is_none() {
            self.metrics.kv_waits.inc();
        }
        job.memory.is_some()
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
        let sampler = match Sampler::new(job.request.sampling) {
            Ok(sampler) => sampler,
            Err(error) => return job.fail(error, &self.metrics),
        };
        let is_shared = self.options.prefix_cache_entries > 0;
        self.running.push(Sequence::new(
            job,
            sampler,
            self.backend.tokenizer().clone(),
            is_shared,
        ));
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
        let mut shares: Vec<usize> = self
            .running
            .iter()
            .map(|sequence| usize::from(sequence.last.is_some()))
            .collect();
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
        let rows: Vec<_> = self
            .running
            .iter_mut()
            .zip(shares)
            .filter_map(|(sequence, share)| sequence.row(*share))
            .collect();
        let count = rows.len();
        // Whatever a step leaves half done belongs to its own sequences, which end with it.
        let result = catch_unwind(AssertUnwindSafe(|| backend.forward(rows)));
        let logits = result.unwrap_or_else(|panic| Err(failure(&panic_text(panic.as_ref()))))?;
        if logits.len() == count {
            Ok(logits)
        } else {
            Err(failure("the model answered for another number of rows"))
        }
    }

    /// Takes in what a step computed.
    fn advance(&mut self, shares: &[usize], logits: Vec<Option<Vec<f32>>>, now: Instant) {
        let mut logits = logits.into_iter();
        let mut shares = shares.iter();
        let Self {
            backend,
            metrics,
            running,
            prefixes,
            pool,
            ..
        } = self;
        let mut read = 0;
        running.retain_mut(|sequence| {
            let share = shares.next().copied().unwrap_or(0);
            if share == 0 {
                return true;
            }
            let logits = logits.next().flatten();
            if sequence.last.is_none() {
                sequence.computed += share;
                read += share;
                sequence.share_prefix(backend, prefixes, pool);
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
        metrics.prompt_tokens.inc_by(read as u64);
        metrics.prefix_entries.set(prefixes.len() as i64);
        if read > 0 {
            metrics.prefill_tokens.observe(read as f64);
        }
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

fn failure(text: &str) -> LmError {
    LmError::Candle(candle_core::Error::Msg(text.to_owned()))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the step panicked: {}", text.unwrap_or("no message"))
}
