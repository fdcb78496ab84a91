//! One request in the batch: what of it is computed, chosen and sent.

use super::memory::Pool;
use super::metrics::{Metrics, Outcome};
use super::prefix::{Key, PrefixCache};
use super::request::Job;
use super::scheduler::{Backend, Row};
use super::stream::AnswerText;
use super::{Event, FinishReason, Usage};
use crate::adapter::Adapter;
use crate::sample::Sampler;
use crate::tokenize::Tokenizer;
use crate::{LmError, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// New tokens for which a cache has room at first; it grows for longer answers.
const FIRST_NEW_TOKENS: usize = 256;

/// One request in the batch.
pub(super) struct Sequence<C> {
    pub(super) job: Job,
    /// `None` until the first tokens of the prompt are computed.
    pub(super) cache: Option<C>,
    /// The head shared with other requests, while it isn't known to be in the cache.
    pub(super) prefix: Option<Key<Adapter>>,
    /// Prompt tokens in the KV cache.
    pub(super) computed: usize,
    cached: usize,
    sampler: Sampler,
    text: AnswerText,
    /// The last token, not computed yet.
    pub(super) last: Option<u32>,
    pub(super) generated: usize,
    log_probability: f64,
    time_to_first_token: Duration,
    last_token_at: Instant,
}

impl<C> Sequence<C> {
    /// A sequence of which nothing is computed. `is_shared`: its prompt head may be.
    pub(super) fn new(job: Job, sampler: Sampler, tokenizer: Tokenizer, is_shared: bool) -> Self {
        let request = &job.request;
        // At least one token has to be computed to know the next.
        let shared = request.shared_prefix.min(request.prompt.len().saturating_sub(1));
        let prefix = (shared > 0 && is_shared).then(|| Key {
            // At scale 0 an adapter is the base model.
            adapter: request.adapter.clone().filter(|(_, scale)| *scale != 0.0),
            tokens: request.prompt.iter().take(shared).copied().collect(),
        });
        Self {
            cache: None,
            prefix,
            computed: 0,
            cached: 0,
            sampler,
            text: AnswerText::new(tokenizer, request.stop.clone()),
            last: None,
            generated: 0,
            log_probability: 0.0,
            time_to_first_token: Duration::ZERO,
            last_token_at: job.submitted,
            job,
        }
    }

    /// Gets a cache, with the shared prefix if it is known.
    pub(super) fn begin<B: Backend<Cache = C>>(
        &mut self,
        backend: &B,
        prefixes: &mut PrefixCache<Adapter, B::Prefix>,
        metrics: &Metrics,
    ) -> Result<()> {
        let request = &self.job.request;
        let capacity = request.prompt.len() + request.max_new_tokens.min(FIRST_NEW_TOKENS);
        let known = self
            .prefix
            .as_ref()
            .and_then(|key| Some((key.tokens.len(), prefixes.get(key)?)));
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
    pub(super) fn row(&mut self, share: usize) -> Option<Row<'_, C>> {
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
            adapter: request
                .adapter
                .as_ref()
                .map(|(adapter, scale)| (adapter.as_ref(), *scale)),
            wants_logits: self.last.is_some() || self.computed + share == request.prompt.len(),
        })
    }

    /// Puts its prompt head into the prefix cache as soon as it is computed, if there is memory for it.
    pub(super) fn share_prefix<B: Backend<Cache = C>>(
        &mut self,
        backend: &B,
        prefixes: &mut PrefixCache<Adapter, B::Prefix>,
        pool: &Arc<Pool>,
    ) {
        let Some(key) = self.prefix.take_if(|key| key.tokens.len() <= self.computed) else {
            return;
        };
        let bytes = backend.kv_bytes(key.tokens.len());
        let Some(memory) = prefixes
            .make_room(pool, bytes)
            .then(|| pool.reserve(bytes))
            .flatten()
        else {
            return;
        };
        match self
            .cache
            .as_ref()
            .map(|cache| backend.to_prefix(cache, &key.tokens))
        {
            Some(Ok(prefix)) => prefixes.insert(key, prefix, memory),
            Some(Err(error)) => tracing::warn!(%error, "a prompt prefix could not be shared"),
            None => {}
        }
    }

    /// Chooses the next token. `Some`: the answer is complete.
    pub(super) fn accept(
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
            metrics
                .time_to_first_token
                .observe(self.time_to_first_token.as_secs_f64());
        } else {
            metrics
                .time_per_output_token
                .observe(now.saturating_duration_since(self.last_token_at).as_secs_f64());
        }
        self.last_token_at = now;
        self.last = Some(choice.token);
        if stop_tokens.contains(&choice.token) {
            return Ok(Some(FinishReason::Stop));
        }
        let piece = self.text.push(choice.token)?;
        self.send(piece.text, piece.tokens);
        let is_full = self.generated >= self.job.request.max_new_tokens;
        Ok(if piece.stopped {
            Some(FinishReason::Stop)
        } else {
            is_full.then_some(FinishReason::Length)
        })
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

    pub(super) fn finish(&mut self, reason: FinishReason, metrics: &Metrics) {
        let stopped = match self.flush() {
            Ok(stopped) => stopped,
            Err(error) => return self.job.fail(error, metrics),
        };
        let mean = self.log_probability / self.generated.max(1) as f64;
        metrics.ended(if self.job.is_cancelled() {
            Outcome::Cancelled
        } else {
            Outcome::Completed
        });
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
    pub(super) fn fail(&mut self, error: LmError, metrics: &Metrics) {
        let error = self.flush().err().unwrap_or(error);
        self.job.fail(error, metrics);
    }
}
