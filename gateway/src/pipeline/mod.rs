//! One query's way: admission, deadline, validation, cache, router, policy, expert, record.
//!
//! Each accepted query runs in a task of its own, so that its place, its deadline and its record do
//! not depend on the client reading: a client that stops reading loses its query at the deadline, one
//! that goes away frees the expert at once. The task talks to the port through a bounded channel
//! whose last slot is reserved for the verdict: an answer never ends silently. Knows gRPC's messages
//! and codes as vocabulary, but no connection; [`crate::grpc`] and [`crate::http`] bring the ports.

mod admission;
mod answering;
mod cache;
mod cascade;
mod deadline;
mod deciding;
mod decision;
mod error;
mod parts;
mod query;
mod record;
mod reformat;
mod roster;
mod run;
#[cfg(test)]
mod tests;
mod trace;

pub(crate) use cache::cached_lookup;

pub use answering::{Answering, Envelope, Event, Whole};
pub use deadline::parse_grpc_timeout;
pub use decision::{AnswerEnd, Decision, FailedAttempt};
pub use error::GatewayError;
pub use parts::{PairPart, Parts, RouterCard};
pub use reformat::{ReformatSettings, Reformatted, Reformatter};

use crate::compute::{RouterLimits, RouterThread};
use crate::config::{ServerSettings, Settings};
use crate::log::{DecisionLog, Feedback, LogError};
use crate::metrics::{Method, Metrics};
use admission::Admission;
use cache::RoutingCache;
use deadline::Deadline;
use parts::SettledPair;
use query::{ValidComparison, ValidQuery};
use referral_experts::{Expert, ExpertId, Health};
use referral_proto::v1;
use referral_router::policy::PolicySettings;
use roster::Roster;
use run::{Call, Run, Task};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Pieces of an answer that may wait for the client to read.
const UNREAD: usize = 32;
/// Queries routed in one forward pass.
const ROUTER_BATCH: usize = 16;

/// The gateway behind its ports.
pub struct Pipeline {
    server: ServerSettings,
    policy: PolicySettings,
    max_fallbacks: usize,
    reformat: ReformatSettings,
    reformatter: Option<Arc<dyn Reformatter>>,
    config_version: String,
    admission: Admission,
    router: RouterThread,
    nodes: Vec<RouterCard>,
    routable: BTreeSet<String>,
    pairs: Vec<SettledPair>,
    cache: RoutingCache,
    roster: Roster,
    log: DecisionLog,
    metrics: Metrics,
    tasks: TaskTracker,
    cut_off: CancellationToken,
}

impl Pipeline {
    /// Puts the parts together and asks every expert for its health once.
    ///
    /// # Errors
    /// If the operating system gives no thread for the router.
    pub async fn start(settings: &Settings, parts: Parts) -> std::io::Result<Arc<Self>> {
        let Parts {
            experts,
            graph,
            nodes,
            pairs,
            reformatter,
            log,
            metrics,
        } = parts;
        metrics.expect_depth(settings.max_depth);
        let routable = graph.reached().into_keys().collect();
        let mut gains = Vec::with_capacity(pairs.len());
        let mut settled = Vec::with_capacity(pairs.len());
        for PairPart {
            pair,
            gains: head,
            cascade,
        } in pairs
        {
            metrics.expect_pair(&pair.weak);
            gains.push(head);
            settled.push(SettledPair { pair, cascade });
        }
        let limits = RouterLimits {
            queue_capacity: settings.router.queue_capacity,
            max_batch: ROUTER_BATCH,
        };
        let router = RouterThread::start(
            Arc::new(graph),
            gains,
            limits,
            metrics.router_queue.clone(),
            metrics.router_batch.clone(),
        )?;
        let cache = RoutingCache::new(
            settings.router.cache_capacity,
            settings.router.cache_ttl,
            router.graph().version(),
            &settings.version,
            metrics.clone(),
        );
        let limit = settings.server.max_concurrent_requests;
        metrics
            .admission_limit
            .set(i64::try_from(limit).unwrap_or(i64::MAX));
        let pipeline = Self {
            server: settings.server.clone(),
            policy: settings.policy.clone(),
            max_fallbacks: settings.max_fallbacks,
            reformat: settings.router.reformat.clone(),
            reformatter,
            config_version: settings.version.clone(),
            admission: Admission::new(limit, metrics.in_flight.clone()),
            router,
            nodes,
            routable,
            pairs: settled,
            cache,
            roster: Roster::new(experts),
            log,
            metrics,
            tasks: TaskTracker::new(),
            cut_off: CancellationToken::new(),
        };
        pipeline.refresh_health().await;
        Ok(Arc::new(pipeline))
    }

    /// Decides who answers, and answers.
    ///
    /// # Errors
    /// What is known before the first await: no place, a bad request. Counted here; the rest comes as
    /// the last event and is counted where it happens.
    pub fn answer(
        self: &Arc<Self>,
        envelope: Envelope,
        request: v1::GenerateRequest,
    ) -> Result<Answering, GatewayError> {
        self.start_task(envelope, request, Task::Answer)
    }

    /// Decides only.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn route(
        self: &Arc<Self>,
        envelope: Envelope,
        request: v1::RouteRequest,
    ) -> Result<Answering, GatewayError> {
        let request = v1::GenerateRequest {
            query: request.query,
            ..Default::default()
        };
        self.start_task(envelope, request, Task::Route)
    }

    /// Asks two experts the same, at once, each without fallback.
    ///
    /// # Errors
    /// As [`Self::answer`], and an expert that is not configured.
    pub fn compare(
        self: &Arc<Self>,
        envelope: Envelope,
        request: v1::CompareRequest,
    ) -> Result<[Answering; 2], GatewayError> {
        self.counting(envelope.method, || {
            let place = Arc::new(self.admission.admit(2)?);
            let ValidComparison { query, experts } =
                ValidComparison::new(request, self.server.max_query_bytes)?;
            if let Some(unknown) = experts
                .iter()
                .find(|name| self.roster.get(name.as_str()).is_none())
            {
                return Err(self.unknown(unknown));
            }
            Ok(experts.map(|expert| {
                let query = ValidQuery {
                    expert: Some(expert),
                    ..query.clone()
                };
                self.spawn(self.call(&envelope), Arc::clone(&place), query, Task::Compare)
            }))
        })
    }

    /// Stores feedback; false if its key was known.
    ///
    /// # Errors
    /// A bad request, an unknown decision, or a log that cannot store it.
    pub async fn feedback(
        &self,
        envelope: &Envelope,
        request: v1::SendFeedbackRequest,
    ) -> Result<bool, GatewayError> {
        let deadline = self.call(envelope).deadline;
        let stored = match Feedback::try_from(request) {
            Ok(feedback) => match tokio::time::timeout_at(deadline.at(), self.log.feedback(feedback)).await {
                Ok(Ok(is_new)) => Ok(is_new),
                Ok(Err(LogError::UnknownDecision(id))) => Err(GatewayError::UnknownDecision(id.to_string())),
                Ok(Err(other)) => Err(GatewayError::Log(Box::new(other))),
                Err(_) => Err(deadline.exceeded()),
            },
            Err(error) => Err(error),
        };
        self.count(Method::SendFeedback, stored.as_ref().err());
        stored
    }

    /// Who can answer, each with its last observed health.
    pub fn experts(&self) -> impl Iterator<Item = (&Arc<dyn Expert>, Health)> {
        self.roster.iter()
    }

    /// The experts that are routers of their own, each with its health: that of whom it refers to.
    pub fn routers(&self) -> impl Iterator<Item = (&RouterCard, Health)> {
        self.nodes.iter().map(|node| {
            let below = self.router.graph().workers_below(node.id.as_str());
            let is_ready = self
                .roster
                .iter()
                .any(|(expert, health)| health == Health::Ready && below.contains(expert.id().as_str()));
            let health = match is_ready {
                true => Health::Ready,
                false => Health::Unavailable("none of the experts that it refers to is ready".to_owned()),
            };
            (node, health)
        })
    }

    /// Whether a router can refer to the expert of this name.
    pub fn is_routable(&self, name: &str) -> bool {
        self.routable.contains(name)
    }

    /// Identifies the routers' trained files.
    pub fn router_version(&self) -> &str {
        self.router.graph().version()
    }

    /// What is measured.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Longest query in bytes.
    pub fn max_query_bytes(&self) -> usize {
        self.server.max_query_bytes
    }

    /// Decisions that wait to be written.
    pub fn log_queue(&self) -> usize {
        self.log.waiting()
    }

    /// Asks every expert for its health.
    pub async fn refresh_health(&self) {
        self.roster.refresh().await;
        for (expert, health) in self.roster.iter() {
            self.metrics
                .expert_ready(expert.id().as_str(), health == Health::Ready);
        }
    }

    /// Counts an ended request, with its error if it had one.
    pub fn count(&self, method: Method, error: Option<&GatewayError>) {
        self.metrics
            .request(method, error.map_or(tonic::Code::Ok, GatewayError::code));
        if let Some(error) = error {
            self.metrics.error(error.kind());
        }
    }

    /// Admits nobody any more.
    pub fn close(&self) {
        self.admission.close();
        self.tasks.close();
    }

    /// After [`Self::close`]: lets accepted queries end within `grace`, cuts off the rest with
    /// UNAVAILABLE, and returns when every decision is written. True if nothing had to be cut off.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.close();
        let in_time = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        if !in_time {
            tracing::warn!(
                left = self.tasks.len(),
                ?grace,
                "server.drain_grace is over: cutting off what is left"
            );
            self.cut_off.cancel();
            self.tasks.wait().await;
        }
        if let Err(error) = self.log.flush().await {
            tracing::error!(%error, "the decision log could not be flushed");
        }
        in_time
    }

    fn start_task(
        self: &Arc<Self>,
        envelope: Envelope,
        request: v1::GenerateRequest,
        task: Task,
    ) -> Result<Answering, GatewayError> {
        self.counting(envelope.method, || {
            let place = Arc::new(self.admission.admit(1)?);
            let query = ValidQuery::new(request, self.server.max_query_bytes)?;
            if let Some(unknown) = query
                .expert
                .as_ref()
                .filter(|name| self.roster.get(name.as_str()).is_none())
            {
                return Err(self.unknown(unknown));
            }
            Ok(self.spawn(self.call(&envelope), place, query, task))
        })
    }

    /// The error for a named expert that nobody can ask.
    fn unknown(&self, name: &ExpertId) -> GatewayError {
        match self.router.graph().node(name.as_str()) {
            Some(node) => GatewayError::Invalid {
                field: "expert",
                value: name.to_string(),
                fix: format!(
                    "it is a router, which refers on instead of answering: name one of {}",
                    node.decider.experts().join(", ")
                ),
            },
            None => GatewayError::UnknownExpert(name.to_string()),
        }
    }

    /// Counts a request that is refused before it has a task.
    fn counting<T>(
        &self,
        method: Method,
        accept: impl FnOnce() -> Result<T, GatewayError>,
    ) -> Result<T, GatewayError> {
        accept().inspect_err(|error| self.count(method, Some(error)))
    }

    fn call(&self, envelope: &Envelope) -> Call {
        let server = &self.server;
        Call {
            id: Uuid::now_v7(),
            method: envelope.method,
            received: SystemTime::now(),
            accepted: envelope.accepted,
            deadline: Deadline::new(
                envelope.accepted,
                envelope.timeout,
                server.default_deadline,
                server.max_deadline,
            ),
            trace_id: envelope
                .traceparent
                .as_deref()
                .and_then(trace::parse_traceparent)
                .unwrap_or_else(trace::new_trace_id),
        }
    }

    fn spawn(
        self: &Arc<Self>,
        call: Call,
        place: Arc<admission::Place>,
        query: ValidQuery,
        task: Task,
    ) -> Answering {
        let (sender, events) = mpsc::channel(UNREAD + 1);
        let id = call.id;
        let run = Run::new(Arc::clone(self), call, place, query, task, sender);
        self.tasks.spawn(run.run_until_verdict());
        Answering::new(id, events)
    }
}
