//! How a query that has ended is measured and recorded.

use super::run::{Run, Task};
use super::{AnswerEnd, GatewayError};
use crate::log::{DecisionRecord, Endpoint, FallbackRecord, Outcome};
use crate::metrics::{Method, TokenType};
use std::time::Duration;

impl Run {
    pub(super) fn measure(&mut self, outcome: &Result<Option<AnswerEnd>, GatewayError>, total: Duration) {
        self.end_attempt();
        let metrics = &self.pipeline.metrics;
        metrics.overhead(total.saturating_sub(self.waiting.total));
        if let Some(reason) = self.decision.reasons.first() {
            let confidence = self.is_routed.then_some(self.decision.confidence);
            metrics.decision(&self.decision.expert, *reason, confidence);
        }
        if let Ok(Some(end)) = outcome {
            metrics.tokens(&self.decision.expert, TokenType::Prompt, end.usage.prompt);
            metrics.tokens(&self.decision.expert, TokenType::Completion, end.usage.completion);
            if let Some((weak, outcome)) = self.pair_outcome() {
                metrics.pair(weak, outcome);
            }
        }
        if let Some((weak, usage)) = &self.spent {
            metrics.tokens(weak, TokenType::Prompt, usage.prompt);
            metrics.tokens(weak, TokenType::Completion, usage.completion);
        }
        match (outcome, self.task) {
            // A comparison is one request with two sides: its port counts it.
            (Err(error), Task::Compare) => metrics.error(error.kind()),
            (Ok(_), Task::Compare) => {}
            (outcome, _) => self.pipeline.count(self.call.method, outcome.as_ref().err()),
        }
    }

    pub(super) fn record(
        &self,
        outcome: &Result<Option<AnswerEnd>, GatewayError>,
        total: Duration,
    ) -> DecisionRecord {
        let decision = &self.decision;
        let end = outcome.as_ref().ok().copied().flatten();
        DecisionRecord {
            id: decision.id,
            received: self.call.received,
            trace_id: decision.trace_id.clone(),
            endpoint: match self.call.method {
                Method::GenerateStream => Endpoint::GenerateStream,
                Method::Route | Method::HttpRoute => Endpoint::Route,
                Method::Compare => Endpoint::Compare,
                _ => Endpoint::Generate,
            },
            query: self.query.ask.text.clone(),
            labels: self.query.labels.clone(),
            expert: (!decision.expert.is_empty()).then(|| decision.expert.clone()),
            probabilities: decision.probabilities.clone(),
            confidence: self.is_routed.then_some(decision.confidence),
            in_scope: decision.in_scope,
            gain: decision.gain,
            path: decision.path.clone(),
            abstained: decision.abstained,
            reasons: decision.reasons.clone(),
            fallbacks: decision
                .fallbacks
                .iter()
                .map(|failed| FallbackRecord {
                    expert: failed.expert.clone(),
                    error_kind: failed.setback.as_str(),
                })
                .collect(),
            router_version: decision.router_version.clone(),
            config_version: self.pipeline.config_version.clone(),
            router_latency: decision.router_latency,
            time_to_first_token: self.first_text,
            total,
            usage: end.map(|end| end.usage).unwrap_or_default(),
            mean_log_probability: end.and_then(|end| end.mean_log_probability),
            outcome: match outcome {
                Ok(Some(_)) => Outcome::Answered,
                Ok(None) => Outcome::Routed,
                Err(GatewayError::Cancelled) => Outcome::Cancelled,
                Err(GatewayError::DeadlineExceeded { .. }) => Outcome::Deadline,
                Err(
                    GatewayError::NobodyAvailable
                    | GatewayError::RouterOverloaded { .. }
                    | GatewayError::Draining,
                ) => Outcome::Refused,
                Err(_) => Outcome::Failed,
            },
            error_kind: outcome.as_ref().err().map(GatewayError::expert_kind_label),
            finish: end.map(|end| end.finish),
            reformat: decision.reformatted.as_ref().map(|new| new.outcome.as_str()),
            reformatted: decision.reformatted.as_ref().and_then(|new| new.text.clone()),
        }
    }
}
