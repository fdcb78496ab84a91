//! One accepted query's task: from the routing to the record.

use super::admission::Place;
use super::deadline::Deadline;
use super::{AnswerEnd, Decision, Event, FailedAttempt, GatewayError, Pipeline, ValidQuery};
use crate::compute::RouteError;
use crate::metrics::{ErrorKind, Method};
use futures::StreamExt as _;
use referral_experts::{Chunk, ExpertError, ExpertErrorKind, Finish};
use referral_router::Routing;
use referral_router::policy::{self, Reason};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

/// What a task is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Decide and answer.
    Answer,
    /// Decide.
    Route,
    /// Answer by the named expert or nobody.
    Compare,
}

/// What was accepted, beside the query.
pub(super) struct Call {
    pub(super) id: Uuid,
    pub(super) method: Method,
    pub(super) received: SystemTime,
    pub(super) accepted: Instant,
    pub(super) deadline: Deadline,
    pub(super) trace_id: String,
}

type Events = mpsc::Sender<Result<Event, GatewayError>>;

/// Adds up time that the gateway spends waiting for others; a wait that is cut off counts as well.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) total: Duration,
    since: Option<Instant>,
}

impl Waiting {
    fn begin(&mut self) {
        self.since = Some(Instant::now());
    }
    fn end(&mut self) {
        self.total += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }
}

/// A query's task.
pub(super) struct Run {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) call: Call,
    pub(super) query: ValidQuery,
    pub(super) task: Task,
    events: Events,
    /// The channel's last slot, so that the verdict never waits for the client.
    verdict: Option<mpsc::OwnedPermit<Result<Event, GatewayError>>>,
    /// Given back with the verdict.
    place: Arc<Place>,
    pub(super) decision: Decision,
    /// Whether the router gave probabilities.
    pub(super) is_routed: bool,
    /// Fallbacks told to the client with the last decision sent.
    announced: Option<usize>,
    asked: Option<Instant>,
    pub(super) first_text: Option<Duration>,
    pub(super) waiting: Waiting,
}

impl Run {
    pub(super) fn new(
        pipeline: Arc<Pipeline>,
        call: Call,
        place: Arc<Place>,
        query: ValidQuery,
        task: Task,
        events: Events,
    ) -> Self {
        let decision = Decision {
            id: call.id,
            expert: String::new(),
            confidence: 0.0,
            in_scope: None,
            probabilities: Vec::new(),
            abstained: false,
            reasons: Vec::new(),
            fallbacks: Vec::new(),
            router_version: pipeline.router.version().to_owned(),
            router_latency: Duration::ZERO,
            trace_id: call.trace_id.clone(),
            reformatted: None,
        };
        let query = ValidQuery {
            ask: referral_experts::Query {
                trace_id: call.trace_id.clone(),
                ..query.ask
            },
            ..query
        };
        let verdict = events.clone().try_reserve_owned().ok();
        Self {
            pipeline,
            call,
            query,
            task,
            events,
            verdict,
            place,
            decision,
            is_routed: false,
            announced: None,
            asked: None,
            first_text: None,
            waiting: Waiting::default(),
        }
    }

    /// Runs until there is a verdict: an end, a failure, the deadline, a client that left, a drain that is over.
    pub(super) async fn run_until_verdict(mut self) {
        let (deadline, gone, cut_off) = (
            self.call.deadline,
            self.events.clone(),
            self.pipeline.cut_off.clone(),
        );
        let outcome = tokio::select! {
            biased;
            outcome = self.drive() => outcome,
            () = gone.closed() => Err(GatewayError::Cancelled),
            () = tokio::time::sleep_until(deadline.at()) => Err(deadline.exceeded()),
            () = cut_off.cancelled() => Err(GatewayError::Draining),
        };
        drop(gone);
        self.conclude(outcome).await;
    }

    async fn drive(&mut self) -> Result<Option<AnswerEnd>, GatewayError> {
        let order = self.decide().await?;
        self.waiting.begin();
        self.reformat(order.first()).await;
        self.waiting.end();
        match self.task {
            Task::Route => {
                order
                    .into_iter()
                    .next()
                    .ok_or(GatewayError::NobodyAvailable)?
                    .clone_into(&mut self.decision.expert);
                Ok(None)
            }
            Task::Compare => {
                let named = self
                    .query
                    .expert
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                if order.first() != Some(&named) {
                    return Err(GatewayError::Expert(self.failure(
                        &named,
                        ExpertErrorKind::Unavailable,
                        "is not ready",
                    )?));
                }
                self.answer(vec![named]).await.map(Some)
            }
            Task::Answer => self.answer(order).await.map(Some),
        }
    }

    /// Fills in the decision and returns whom to ask, in order.
    async fn decide(&mut self) -> Result<Vec<String>, GatewayError> {
        let requested = self.query.expert.clone();
        let (routing, remark) = if requested.is_some() {
            (None, None)
        } else {
            self.routing().await?
        };
        let pipeline = &self.pipeline;
        let named = requested.as_ref().map(|name| name.as_str());
        let choice = policy::decide(
            routing.as_deref(),
            named,
            &pipeline.roster.candidates(),
            &pipeline.policy,
        )?;
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
        if let Some(routing) = routing {
            self.is_routed = true;
            decision.confidence = routing.confidence;
            decision.in_scope = Some(routing.in_scope);
            decision.probabilities.clone_from(&routing.probabilities);
        }
        if let Some(first) = choice.order.first() {
            decision.expert.clone_from(first);
        }
        Ok(choice.order)
    }

    /// The router's word, or the cache's, and what is to be remarked about it.
    async fn routing(&mut self) -> Result<(Option<Arc<Routing>>, Option<Reason>), GatewayError> {
        let started = Instant::now();
        let pipeline = &self.pipeline;
        let key = pipeline.cache.key(&self.query.normalised);
        if let Some(routing) = pipeline.cache.get(key).await {
            self.decision.router_latency = started.elapsed();
            return Ok((Some(routing), Some(Reason::Cached)));
        }
        let asked = Instant::now();
        let answer = pipeline.router.route(self.query.normalised.clone()).await;
        pipeline.metrics.routed(asked.elapsed());
        self.decision.router_latency = started.elapsed();
        match answer {
            Ok(routing) => {
                let routing = Arc::new(routing);
                pipeline.cache.put(key, Arc::clone(&routing)).await;
                Ok((Some(routing), None))
            }
            Err(RouteError::QueueFull { capacity }) => Err(GatewayError::RouterOverloaded { capacity }),
            Err(error @ RouteError::Failed(_)) => {
                tracing::error!(decision = %self.call.id, %error, "the generalist answers without routing");
                pipeline.metrics.error(ErrorKind::RouterFailed);
                Ok((None, Some(Reason::RouterFailed)))
            }
        }
    }

    /// Asks one after the other until text comes: at most `policy.max_fallbacks` after the first.
    async fn answer(&mut self, order: Vec<String>) -> Result<AnswerEnd, GatewayError> {
        let mut order = order.into_iter().take(1 + self.pipeline.max_fallbacks).peekable();
        while let Some(name) = order.next() {
            match self.attempt(name).await? {
                Ok(end) => return Ok(end),
                Err(error) => {
                    tracing::warn!(decision = %self.call.id, %error, kind = ?error.kind, "no answer from the expert");
                    self.check_deadline()?;
                    if order.peek().is_none() || !error.kind.is_retryable_elsewhere() {
                        return Err(GatewayError::Expert(error));
                    }
                    self.fall_back(error.kind);
                }
            }
        }
        Err(GatewayError::NobodyAvailable)
    }

    /// One expert's answer. The inner error came before any text, so that another expert may be asked.
    async fn attempt(&mut self, name: String) -> Result<Result<AnswerEnd, ExpertError>, GatewayError> {
        let expert = self
            .pipeline
            .roster
            .get(&name)
            .cloned()
            .ok_or(GatewayError::NobodyAvailable)?;
        let question = self.question(&name);
        self.decision.expert = name;
        self.asked = Some(Instant::now());
        self.waiting.begin();
        let started = expert
            .answer(question, self.call.deadline.at().into_std())
            .await;
        self.waiting.end();
        let mut pieces = match started {
            Ok(pieces) => pieces,
            Err(error) => return Ok(Err(error)),
        };
        self.announce().await?;
        // White space alone is no answer: it is held back until something follows.
        let mut held = String::new();
        let error = loop {
            self.waiting.begin();
            let piece = pieces.next().await;
            self.waiting.end();
            match piece {
                Some(Ok(Chunk::Text(text))) => {
                    held.push_str(&text);
                    if self.first_text.is_none() && held.trim().is_empty() {
                        continue;
                    }
                    if self.first_text.is_none() {
                        let took = self.call.accepted.elapsed();
                        self.first_text = Some(took);
                        self.pipeline.metrics.first_token(&self.decision.expert, took);
                    }
                    self.send(Event::Text(std::mem::take(&mut held))).await?;
                }
                Some(Ok(Chunk::End {
                    finish: Finish::Stop, ..
                })) if self.first_text.is_none() => {
                    break self.failure(
                        expert.id().as_str(),
                        ExpertErrorKind::Interrupted,
                        "gave an empty answer",
                    )?;
                }
                Some(Ok(Chunk::End {
                    finish,
                    usage,
                    mean_log_probability,
                })) => {
                    return Ok(Ok(AnswerEnd {
                        finish,
                        usage,
                        mean_log_probability,
                        time_to_first_token: self.first_text.unwrap_or_default(),
                        total: self.call.accepted.elapsed(),
                    }));
                }
                Some(Err(error)) => break error,
                None => {
                    break self.failure(
                        expert.id().as_str(),
                        ExpertErrorKind::Interrupted,
                        "its stream has no end",
                    )?;
                }
            }
        };
        if self.first_text.is_some() {
            tracing::warn!(decision = %self.call.id, %error, kind = ?error.kind, "the expert's answer broke off");
            self.check_deadline()?;
            return Err(GatewayError::Expert(error));
        }
        Ok(Err(error))
    }

    /// An expert that fails because the time is up, as it was told to, is not to blame.
    fn check_deadline(&self) -> Result<(), GatewayError> {
        let deadline = self.call.deadline;
        if Instant::now() < deadline.at() {
            Ok(())
        } else {
            Err(deadline.exceeded())
        }
    }

    fn failure(&self, name: &str, kind: ExpertErrorKind, detail: &str) -> Result<ExpertError, GatewayError> {
        let expert = self
            .pipeline
            .roster
            .get(name)
            .ok_or(GatewayError::NobodyAvailable)?;
        Ok(ExpertError {
            expert: expert.id().clone(),
            kind,
            detail: detail.to_owned(),
        })
    }

    fn fall_back(&mut self, kind: ExpertErrorKind) {
        self.end_attempt();
        let from = std::mem::take(&mut self.decision.expert);
        self.pipeline.metrics.fallback(&from, kind);
        self.decision.fallbacks.push(FailedAttempt { expert: from, kind });
        if !self.decision.reasons.contains(&Reason::Fallback) {
            self.decision.reasons.push(Reason::Fallback);
        }
    }

    pub(super) fn end_attempt(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.pipeline
                .metrics
                .expert_ended(&self.decision.expert, asked.elapsed());
        }
    }

    /// Tells the client the decision, unless it knows it.
    async fn announce(&mut self) -> Result<(), GatewayError> {
        let fallbacks = Some(self.decision.fallbacks.len());
        if self.announced != fallbacks {
            self.announced = fallbacks;
            self.send(Event::Decision(Box::new(self.decision.clone())))
                .await?;
        }
        Ok(())
    }

    async fn send(&mut self, event: Event) -> Result<(), GatewayError> {
        self.waiting.begin();
        let sent = self.events.send(Ok(event)).await;
        self.waiting.end();
        sent.map_err(|_| GatewayError::Cancelled)
    }

    /// Measures, records, and tells the client the verdict. The record goes first, so that feedback sent
    /// on seeing the end finds its decision; only where the log's queue is full it comes after.
    async fn conclude(mut self, outcome: Result<Option<AnswerEnd>, GatewayError>) {
        self.waiting.end();
        let total = self.call.accepted.elapsed();
        self.measure(&outcome, total);
        let late = self.pipeline.log.try_record(self.record(&outcome, total)).err();
        self.pipeline
            .metrics
            .log_queue
            .set(i64::try_from(self.pipeline.log.waiting()).unwrap_or(i64::MAX));
        let last = match outcome {
            Ok(Some(end)) => Ok(Event::End(end)),
            Ok(None) => Ok(Event::Decision(Box::new(self.decision))),
            Err(error) => Err(error),
        };
        drop(self.place);
        if let Some(verdict) = self.verdict {
            drop(verdict.send(last));
        }
        if let Some(record) = late
            && let Err(error) = self.pipeline.log.record(*record).await
        {
            tracing::error!(decision = %self.call.id, %error, "the decision could not be logged");
        }
    }
}
