//! One accepted query's task: from the routing to the record.

use super::admission::Place;
use super::deadline::Deadline;
use super::deciding::Plan;
use super::{AnswerEnd, Decision, Event, FailedAttempt, GatewayError, Pipeline, ValidQuery};
use crate::metrics::{Method, Setback};
use futures::StreamExt as _;
use referral_experts::{AnswerStream, Chunk, ExpertError, ExpertErrorKind, Finish, TokenUsage};
use referral_router::graph::Referral;
use referral_router::policy::Reason;
use std::collections::VecDeque;
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
    pub(super) fn begin(&mut self) {
        self.since = Some(Instant::now());
    }
    pub(super) fn end(&mut self) {
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
    /// Whom the routers would have asked, and along which of them; `None` if the caller named the expert.
    pub(super) referral: Option<Referral>,
    /// The pair whose gain was predicted, as a place in the pipeline's.
    pub(super) pair: Option<usize>,
    /// Tokens of a weak expert whose answer was not given.
    pub(super) spent: Option<(String, TokenUsage)>,
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
            gain: None,
            path: Vec::new(),
            probabilities: Vec::new(),
            abstained: false,
            reasons: Vec::new(),
            fallbacks: Vec::new(),
            router_version: pipeline.router.graph().version().to_owned(),
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
            referral: None,
            pair: None,
            spent: None,
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
        let plan = self.decide().await?;
        self.waiting.begin();
        self.reformat(plan.order.first()).await;
        self.waiting.end();
        match self.task {
            Task::Route => {
                let first = plan.order.into_iter().next();
                self.name(first.ok_or(GatewayError::NobodyAvailable)?);
                Ok(None)
            }
            Task::Compare => {
                let named = self
                    .query
                    .expert
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                if plan.order.first() != Some(&named) {
                    return Err(GatewayError::Expert(self.failure(
                        &named,
                        ExpertErrorKind::Unavailable,
                        "is not ready",
                    )?));
                }
                self.answer(Plan::only(named)).await.map(Some)
            }
            Task::Answer => self.answer(plan).await.map(Some),
        }
    }

    /// Asks one after the other until text comes: at most `policy.max_fallbacks` after the first.
    async fn answer(&mut self, plan: Plan) -> Result<AnswerEnd, GatewayError> {
        let Plan { order, mut cascade } = plan;
        let mut order = VecDeque::from(order);
        let mut fallbacks = self.pipeline.max_fallbacks;
        while let Some(name) = order.pop_front() {
            let ended = match cascade.take() {
                Some(least) => self.cascade(name, &mut order, least).await?,
                None => self.attempt(name, None).await?,
            };
            match ended {
                Ok(end) => return Ok(end),
                Err(error) => {
                    tracing::warn!(decision = %self.call.id, %error, kind = ?error.kind, "no answer from the expert");
                    self.check_deadline()?;
                    if fallbacks == 0 || order.is_empty() || !error.kind.is_retryable_elsewhere() {
                        return Err(GatewayError::Expert(error));
                    }
                    fallbacks -= 1;
                    self.fall_back(Setback::Failed(error.kind));
                }
            }
        }
        Err(GatewayError::NobodyAvailable)
    }

    /// One expert's answer. The inner error came before any text, so that another expert may be asked. If there is no
    /// text at `give_up`, that is such an error.
    pub(super) async fn attempt(
        &mut self,
        name: String,
        give_up: Option<Instant>,
    ) -> Result<Result<AnswerEnd, ExpertError>, GatewayError> {
        let late =
            |run: &Self, name: &str| run.failure(name, ExpertErrorKind::Timeout, "gave no text in time");
        let Some(started) = before(give_up, self.start(name.clone())).await else {
            self.waiting.end();
            return Ok(Err(late(self, &name)?));
        };
        let mut pieces = match started? {
            Ok(pieces) => pieces,
            Err(error) => return Ok(Err(error)),
        };
        // White space alone is no answer: it is held back until something follows.
        let mut held = String::new();
        let error = loop {
            let limit = give_up.filter(|_| self.first_text.is_none());
            self.waiting.begin();
            let piece = before(limit, pieces.next()).await;
            self.waiting.end();
            match piece {
                Some(Some(Ok(Chunk::Text(text)))) => {
                    held.push_str(&text);
                    if self.first_text.is_none() && held.trim().is_empty() {
                        continue;
                    }
                    self.send_text(std::mem::take(&mut held)).await?;
                }
                Some(Some(Ok(Chunk::End {
                    finish: Finish::Stop, ..
                }))) if self.first_text.is_none() => break self.empty(&name)?,
                Some(Some(Ok(Chunk::End {
                    finish,
                    usage,
                    mean_log_probability,
                }))) => return Ok(Ok(self.ended(finish, usage, mean_log_probability))),
                Some(Some(Err(error))) => break error,
                Some(None) => break self.endless(&name)?,
                None => break late(self, &name)?,
            }
        };
        if self.first_text.is_some() {
            tracing::warn!(decision = %self.call.id, %error, kind = ?error.kind, "the expert's answer broke off");
            self.check_deadline()?;
            return Err(GatewayError::Expert(error));
        }
        Ok(Err(error))
    }

    /// Asks an expert and tells the client so.
    pub(super) async fn start(
        &mut self,
        name: String,
    ) -> Result<Result<AnswerStream, ExpertError>, GatewayError> {
        let expert = self
            .pipeline
            .roster
            .get(&name)
            .cloned()
            .ok_or(GatewayError::NobodyAvailable)?;
        let question = self.question(&name);
        self.name(name);
        self.asked = Some(Instant::now());
        self.waiting.begin();
        let started = expert.answer(question, self.call.deadline.at().into_std()).await;
        self.waiting.end();
        if started.is_ok() {
            self.announce().await?;
        }
        Ok(started)
    }

    /// Sends text of the answer.
    pub(super) async fn send_text(&mut self, text: String) -> Result<(), GatewayError> {
        if self.first_text.is_none() {
            let took = self.call.accepted.elapsed();
            self.first_text = Some(took);
            self.pipeline.metrics.first_token(&self.decision.expert, took);
        }
        self.send(Event::Text(text)).await
    }

    pub(super) fn ended(
        &self,
        finish: Finish,
        usage: TokenUsage,
        mean_log_probability: Option<f32>,
    ) -> AnswerEnd {
        AnswerEnd {
            finish,
            usage,
            mean_log_probability,
            time_to_first_token: self.first_text.unwrap_or_default(),
            total: self.call.accepted.elapsed(),
        }
    }

    pub(super) fn empty(&self, name: &str) -> Result<ExpertError, GatewayError> {
        self.failure(name, ExpertErrorKind::Interrupted, "gave an empty answer")
    }

    pub(super) fn endless(&self, name: &str) -> Result<ExpertError, GatewayError> {
        self.failure(name, ExpertErrorKind::Interrupted, "its stream has no end")
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

    /// Turns from the expert that was asked to another.
    pub(super) fn fall_back(&mut self, setback: Setback) {
        self.end_attempt();
        let from = std::mem::take(&mut self.decision.expert);
        self.pipeline.metrics.fallback(&from, setback);
        self.decision.fallbacks.push(FailedAttempt {
            expert: from,
            setback,
        });
        let reason = match setback {
            Setback::Failed(_) => Reason::Fallback,
            Setback::Unsure => Reason::Escalated,
        };
        if !self.decision.reasons.contains(&reason) {
            self.decision.reasons.push(reason);
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
    pub(super) async fn announce(&mut self) -> Result<(), GatewayError> {
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

/// What `work` gives, unless `limit` comes first.
async fn before<T>(limit: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(at) => tokio::time::timeout_at(at, work).await.ok(),
        None => Some(work.await),
    }
}
