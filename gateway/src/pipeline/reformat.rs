//! Whether the chosen expert gets the query in better words beside its own, and who writes them.
//!
//! The words come from a model ([`Reformatter`]); what may be used of them is `referral_router::reformat`'s to say. No
//! failure here ends a query: the expert then gets the original alone, and the decision says why.

use super::run::{Run, Task};
use crate::config::ReformatMode;
use async_trait::async_trait;
use referral_router::reformat::{self, Outcome};
use std::time::{Duration, Instant};

/// Writes a query anew.
#[async_trait]
pub trait Reformatter: Send + Sync {
    /// What the model writes as the argument of `expert`'s functional token. `None`: it failed, which is logged there.
    async fn write(&self, expert: &str, query: &str, deadline: Instant) -> Option<String>;
}

/// When, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct ReformatSettings {
    /// Which queries.
    pub mode: ReformatMode,
    /// Least confidence of those, where the mode asks for it.
    pub min_confidence: f32,
    /// Longest wait for the words.
    pub time_limit: Duration,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reformatted {
    /// For whom; an expert that takes over gets the original alone.
    pub expert: String,
    /// Whether the words are used, or why not.
    pub outcome: Outcome,
    /// The words, if they are.
    pub text: Option<String>,
    /// How long it took.
    pub latency: Duration,
}

impl Run {
    /// Has the query put in better words for the expert that comes first, if it is to be. Only queries that the router
    /// referred: without its token there is no argument.
    pub(super) async fn reformat(&mut self, expert: Option<&String>) {
        let pipeline = &self.pipeline;
        let settings = &pipeline.reformat;
        let wanted = match settings.mode {
            ReformatMode::Never => false,
            ReformatMode::WhenConfident => self.decision.confidence >= settings.min_confidence,
            ReformatMode::Always => true,
        };
        let (Some(reformatter), Some(expert)) = (&pipeline.reformatter, expert) else {
            return;
        };
        let is_referred = self.is_routed && !self.decision.abstained && pipeline.is_routable(expert);
        if self.task != Task::Answer || !wanted || !is_referred {
            return;
        }
        let started = Instant::now();
        let query = &self.query.ask.text;
        let (outcome, text) = if query.len() > reformat::MAX_QUERY_BYTES {
            (Outcome::TooLong, None)
        } else {
            // Most of the time that is left is the expert's.
            let left = self
                .call
                .deadline
                .at()
                .into_std()
                .saturating_duration_since(started);
            let until = started + settings.time_limit.min(left / 4);
            let written = reformatter.write(expert, query, until);
            match tokio::time::timeout_at(until.into(), written).await {
                Ok(Some(written)) => reformat::judge(query, &written),
                Ok(None) if Instant::now() < until => (Outcome::Failed, None),
                Ok(None) | Err(_) => (Outcome::Deadline, None),
            }
        };
        let latency = started.elapsed();
        pipeline.metrics.reformatted(outcome, latency);
        self.decision.reformatted = Some(Reformatted {
            expert: expert.clone(),
            outcome,
            text,
            latency,
        });
    }

    /// What an expert is asked: the query, with the better words if they were written for this expert.
    pub(super) fn question(&self, expert: &str) -> referral_experts::Query {
        let mut ask = self.query.ask.clone();
        let words = self
            .decision
            .reformatted
            .as_ref()
            .filter(|new| new.expert == expert);
        if let Some(words) = words.and_then(|new| new.text.as_ref()) {
            ask.text = reformat::beside(&ask.text, words);
        }
        ask
    }
}
