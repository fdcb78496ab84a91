//! A cascade: the weak expert of a pair answers first, and the strong one is asked if the weak one was not sure
//! (FrugalGPT, arXiv 2305.05176; the measure is the answer's mean log-probability).
//!
//! The weak one's text is held back until its end, because text that has left cannot be taken back. If the strong one
//! then gives no text, or none in time, the weak one's answer is given after all: unsure is better than nothing.

use super::run::Run;
use super::{AnswerEnd, GatewayError};
use crate::metrics::{PairOutcome, Setback};
use futures::StreamExt as _;
use referral_experts::{Chunk, ExpertError, Finish, TokenUsage};
use referral_router::policy::{Reason, pair};
use std::collections::VecDeque;

/// Bytes of an answer that are held back. A longer answer is dropped, and the strong expert asked.
const MOST_HELD: usize = 256 * 1024;

/// A complete answer that has not left.
struct Held {
    text: String,
    finish: Finish,
    usage: TokenUsage,
    mean_log_probability: Option<f32>,
}

impl Run {
    /// The weak expert's answer if it is sure of it, else that of the strong one, which is the first of `order` and is
    /// taken out of it when it is asked. The inner error came before any text left.
    pub(super) async fn cascade(
        &mut self,
        weak: String,
        order: &mut VecDeque<String>,
        least: f32,
    ) -> Result<Result<AnswerEnd, ExpertError>, GatewayError> {
        let held = match self.hold(&weak).await? {
            Ok(Some(held)) if !pair::escalates(held.mean_log_probability, least) => {
                return self.release(held).await.map(Ok);
            }
            Ok(held) => held,
            Err(error) => return Ok(Err(error)),
        };
        let strong = order.pop_front().ok_or(GatewayError::NobodyAvailable)?;
        self.spent = held.as_ref().map(|held| (weak.clone(), held.usage));
        self.fall_back(Setback::Unsure);
        let give_up = held.is_some().then(|| self.call.deadline.nearly());
        match (self.attempt(strong, give_up).await?, held) {
            (Err(error), Some(held)) => {
                tracing::warn!(decision = %self.call.id, %error, kind = ?error.kind, "the weak expert's answer stands");
                self.fall_back(Setback::Failed(error.kind));
                self.name(weak);
                self.spent = None;
                self.announce().await?;
                self.release(held).await.map(Ok)
            }
            (ended, _) => Ok(ended),
        }
    }

    /// An expert's whole answer, unsent; `None` if it is too long to be held.
    async fn hold(&mut self, name: &str) -> Result<Result<Option<Held>, ExpertError>, GatewayError> {
        let mut pieces = match self.start(name.to_owned()).await? {
            Ok(pieces) => pieces,
            Err(error) => return Ok(Err(error)),
        };
        let mut text = String::new();
        loop {
            self.waiting.begin();
            let piece = pieces.next().await;
            self.waiting.end();
            let error = match piece {
                Some(Ok(Chunk::Text(more))) if text.len() + more.len() > MOST_HELD => return Ok(Ok(None)),
                Some(Ok(Chunk::Text(more))) => {
                    text.push_str(&more);
                    continue;
                }
                Some(Ok(Chunk::End {
                    finish: Finish::Stop, ..
                })) if text.trim().is_empty() => self.empty(name)?,
                Some(Ok(Chunk::End {
                    finish,
                    usage,
                    mean_log_probability,
                })) => {
                    return Ok(Ok(Some(Held {
                        text,
                        finish,
                        usage,
                        mean_log_probability,
                    })));
                }
                Some(Err(error)) => error,
                None => self.endless(name)?,
            };
            return Ok(Err(error));
        }
    }

    /// Gives an answer that was held back.
    async fn release(&mut self, held: Held) -> Result<AnswerEnd, GatewayError> {
        if !held.text.trim().is_empty() {
            self.send_text(held.text).await?;
        }
        Ok(self.ended(held.finish, held.usage, held.mean_log_probability))
    }

    /// Who of the pair gave the answer that is now complete, and the pair's weak expert; `None` if neither did.
    pub(super) fn pair_outcome(&self) -> Option<(&str, PairOutcome)> {
        let pair = &self.pipeline.pairs.get(self.pair?)?.pair;
        let is_escalated = self.decision.reasons.contains(&Reason::Escalated);
        let outcome = match (self.decision.expert == pair.strong, is_escalated) {
            (true, true) => PairOutcome::Escalated,
            (true, false) => PairOutcome::Strong,
            (false, _) if self.decision.expert != pair.weak => return None,
            (false, true) => PairOutcome::Kept,
            (false, false) => PairOutcome::Weak,
        };
        Some((&pair.weak, outcome))
    }
}
