//! Whom to ask: the router's word or the cache's, the policy, and the gain where the choice fell on a pair.

use super::GatewayError;
use super::cache::Known;
use super::run::Run;
use crate::compute::RouteError;
use crate::metrics::ErrorKind;
use referral_router::policy::{Candidate, Choice, Reason, pair};
use std::sync::Arc;
use tokio::time::Instant;

/// Whom to ask, and how.
pub(super) struct Plan {
    /// In this order.
    pub(super) order: Vec<String>,
    /// The first is the weak one of a pair and the second the strong one: the mean log-probability below which the first
    /// one's answer is not given.
    pub(super) cascade: Option<f32>,
}

impl Plan {
    /// This expert or nobody.
    pub(super) fn only(name: String) -> Self {
        Self {
            order: vec![name],
            cascade: None,
        }
    }
}

impl Run {
    /// Fills in the decision and returns whom to ask.
    pub(super) async fn decide(&mut self) -> Result<Plan, GatewayError> {
        let requested = self.query.expert.clone();
        let (known, remark) = if requested.is_some() {
            (None, None)
        } else {
            self.routing().await?
        };
        let pipeline = Arc::clone(&self.pipeline);
        let candidates = pipeline.roster.candidates();
        let referral = pipeline.router.graph().decide(
            known.as_deref().map(|known| &known.descent),
            requested.as_ref().map(|name| name.as_str()),
            &candidates,
            &pipeline.policy,
        )?;
        let choice = referral.choice.clone();
        let choice = match known.as_deref() {
            Some(known) => self.settle(choice, known, &candidates).await?,
            None => choice,
        };
        self.referral = requested.is_none().then_some(referral);
        let decision = &mut self.decision;
        decision.abstained = choice.abstained;
        decision.reasons = choice.reasons;
        match remark {
            Some(Reason::RouterFailed) => {
                // Nobody abstained: there was no opinion to be unsure of.
                decision.abstained = false;
                decision.reasons.retain(|reason| *reason != Reason::Abstained);
                decision.reasons.insert(0, Reason::RouterFailed);
            }
            more => decision.reasons.extend(more),
        }
        if let Some(known) = known {
            self.is_routed = true;
            let descent = &known.descent;
            pipeline.metrics.descent(descent.depth(), decision.abstained);
            decision.confidence = descent.confidence();
            decision.in_scope = Some(descent.routing.in_scope);
            decision.probabilities.clone_from(&descent.routing.probabilities);
        }
        if let Some(first) = choice.order.first() {
            self.name(first.clone());
        }
        Ok(Plan {
            cascade: self.least_log_probability(&choice.order),
            order: choice.order,
        })
    }

    /// Puts an expert into the decision, and the way to it.
    pub(super) fn name(&mut self, expert: String) {
        let referral = self.referral.as_ref();
        self.decision.path = referral
            .map(|referral| referral.path(&expert))
            .unwrap_or_default();
        self.decision.expert = expert;
    }

    /// What is known of the query, from the cache or from the router, and what is to be remarked about it.
    async fn routing(&mut self) -> Result<(Option<Arc<Known>>, Option<Reason>), GatewayError> {
        let started = Instant::now();
        let pipeline = &self.pipeline;
        let key = pipeline.cache.key(&self.query.normalised);
        if let Some(known) = pipeline.cache.get(key).await {
            self.decision.router_latency = started.elapsed();
            return Ok((Some(known), Some(Reason::Cached)));
        }
        let asked = Instant::now();
        let answer = pipeline.router.route(self.query.normalised.clone()).await;
        pipeline.metrics.routed(asked.elapsed());
        self.decision.router_latency = started.elapsed();
        match answer {
            Ok(descent) => {
                let known = Arc::new(Known::new(descent, pipeline.pairs.len()));
                pipeline.cache.put(key, Arc::clone(&known)).await;
                Ok((Some(known), None))
            }
            Err(RouteError::QueueFull { capacity }) => Err(GatewayError::RouterOverloaded { capacity }),
            Err(error @ RouteError::Failed(_)) => {
                tracing::error!(decision = %self.call.id, %error, "the generalist answers without routing");
                pipeline.metrics.error(ErrorKind::RouterFailed);
                Ok((None, Some(Reason::RouterFailed)))
            }
        }
    }

    /// Settles a choice that fell on a pair. Where the gain cannot be predicted it stays as it is.
    async fn settle(
        &mut self,
        choice: Choice,
        known: &Known,
        candidates: &[Candidate],
    ) -> Result<Choice, GatewayError> {
        let pipeline = Arc::clone(&self.pipeline);
        let mut pairs = pipeline.pairs.iter().zip(&known.gains).enumerate();
        let fell_on = pairs.find(|(_, (settled, _))| pair::concerns(&choice, &settled.pair));
        let Some((index, (settled, kept))) = fell_on else {
            return Ok(choice);
        };
        let gain = match kept.get() {
            Some(gain) => *gain,
            None => {
                let started = Instant::now();
                let predicted = pipeline.router.gain(index, self.query.normalised.clone()).await;
                self.decision.router_latency += started.elapsed();
                match predicted {
                    Ok(gain) => *kept.get_or_init(|| gain),
                    Err(RouteError::QueueFull { capacity }) => {
                        return Err(GatewayError::RouterOverloaded { capacity });
                    }
                    Err(error @ RouteError::Failed(_)) => {
                        let weak = &settled.pair.weak;
                        tracing::error!(decision = %self.call.id, %error, weak, "the router's choice stands: no gain");
                        pipeline.metrics.error(ErrorKind::RouterFailed);
                        return Ok(choice);
                    }
                }
            }
        };
        pipeline.metrics.predicted_gain(&settled.pair.weak, gain);
        self.pair = Some(index);
        self.decision.gain = Some(gain);
        Ok(pair::settle(
            choice,
            gain,
            &settled.pair,
            candidates,
            &pipeline.policy,
        ))
    }

    /// The pair's bound, if its weak expert is to answer first and the strong one stands behind it.
    fn least_log_probability(&self, order: &[String]) -> Option<f32> {
        let settled = self.pipeline.pairs.get(self.pair?)?;
        match order {
            [first, second, ..] if *first == settled.pair.weak && *second == settled.pair.strong => {
                settled.cascade
            }
            _ => None,
        }
    }
}
