//! The router on a thread of its own.
//!
//! Routing is a forward pass: blocking arithmetic that no async worker may do. Queries wait in a
//! bounded queue; the thread takes what waits, up to a batch, and routes it in one pass. A full queue
//! refuses at once: waiting longer than the queue is deep helps nobody. Callers that went away are
//! skipped. [`Decider`] is the seam: tests script it, the real one is [`referral_router::Router`].

mod reformatter;
#[cfg(test)]
mod tests;

pub(crate) use reformatter::EngineReformatter;

use prometheus::{Histogram, IntGauge};
use referral_router::{Router, RouterError, Routing};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Whoever turns queries into routings, blocking.
pub trait Decider: Send + Sync + 'static {
    /// Names of the experts it knows.
    fn experts(&self) -> &[String];
    /// Identifies its trained files.
    fn version(&self) -> &str;
    /// Routes a batch in one go; as many results as queries.
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError>;
}

impl Decider for Router {
    fn experts(&self) -> &[String] {
        self.experts()
    }
    fn version(&self) -> &str {
        self.version()
    }
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        self.route(queries)
    }
}

/// Limits of the thread.
#[derive(Debug, Clone, Copy)]
pub struct RouterLimits {
    /// Queries that may wait.
    pub queue_capacity: usize,
    /// Queries routed in one pass.
    pub max_batch: usize,
}

/// Why there is no routing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The queue is full.
    #[error("the router's queue is full ({capacity} waiting)")]
    QueueFull {
        /// Its bound.
        capacity: usize,
    },
    /// The router failed on this query.
    #[error("the router failed: {0}")]
    Failed(String),
}

struct Job {
    text: String,
    reply: oneshot::Sender<Result<Routing, RouteError>>,
}

/// The thread's handle. Dropping it ends the thread after the pass in hand.
pub struct RouterThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    decider: Arc<dyn Decider>,
    waiting: IntGauge,
    capacity: usize,
}

impl RouterThread {
    /// Starts the thread; `waiting` shows the queue's depth and `batches` the sizes of the passes.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn start(
        decider: Arc<dyn Decider>,
        limits: RouterLimits,
        waiting: IntGauge,
        batches: Histogram,
    ) -> std::io::Result<Self> {
        let capacity = limits.queue_capacity.max(1);
        let (jobs, inbox) = mpsc::channel(capacity);
        let worker = Worker {
            decider: Arc::clone(&decider),
            inbox,
            waiting: waiting.clone(),
            batches,
        };
        let thread = std::thread::Builder::new()
            .name("router".to_owned())
            .spawn(move || worker.run(limits.max_batch.max(1)))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            decider,
            waiting,
            capacity,
        })
    }

    /// Identifies the trained files.
    pub fn version(&self) -> &str {
        self.decider.version()
    }

    /// Names of the experts it can refer to.
    pub fn experts(&self) -> &[String] {
        self.decider.experts()
    }

    /// Routes one query; dropping the future takes the query out of the queue.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub async fn route(&self, text: String) -> Result<Routing, RouteError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || RouteError::Failed("its thread has ended".to_owned());
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        self.waiting.inc();
        jobs.try_send(Job { text, reply }).map_err(|error| {
            self.waiting.dec();
            match error {
                mpsc::error::TrySendError::Full(_) => RouteError::QueueFull {
                    capacity: self.capacity,
                },
                mpsc::error::TrySendError::Closed(_) => stopped(),
            }
        })?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for RouterThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the router's thread panicked");
        }
    }
}

struct Worker {
    decider: Arc<dyn Decider>,
    inbox: mpsc::Receiver<Job>,
    waiting: IntGauge,
    batches: Histogram,
}

impl Worker {
    fn run(mut self, max_batch: usize) {
        let mut batch = Vec::with_capacity(max_batch);
        while self.inbox.blocking_recv_many(&mut batch, max_batch) > 0 {
            self.waiting.sub(i64::try_from(batch.len()).unwrap_or(i64::MAX));
            batch.retain(|job| !job.reply.is_closed());
            if batch.is_empty() {
                continue;
            }
            self.batches.observe(batch.len() as f64);
            let texts: Vec<&str> = batch.iter().map(|job| job.text.as_str()).collect();
            let results = self.route_each(&texts);
            for (job, result) in batch.drain(..).zip(results) {
                // A caller that went away meanwhile does not want its result.
                let _gone = job.reply.send(result);
            }
        }
    }

    /// One pass; if a batch fails, each query alone, so that one bad query cannot fail its neighbours.
    fn route_each(&self, texts: &[&str]) -> Vec<Result<Routing, RouteError>> {
        match self.pass(texts) {
            Ok(routings) => routings.into_iter().map(Ok).collect(),
            Err(error) if texts.len() == 1 => vec![Err(error)],
            Err(_) => texts
                .iter()
                .map(|text| {
                    let alone = self.pass(&[text])?;
                    alone
                        .into_iter()
                        .next()
                        .ok_or_else(|| RouteError::Failed("it returned nothing".to_owned()))
                })
                .collect(),
        }
    }

    fn pass(&self, texts: &[&str]) -> Result<Vec<Routing>, RouteError> {
        // The thread serves everybody: a panic in the arithmetic costs one batch, not the router.
        let routings = std::panic::catch_unwind(AssertUnwindSafe(|| self.decider.route(texts)))
            .map_err(|_| RouteError::Failed("it panicked".to_owned()))?
            .map_err(|error| RouteError::Failed(error.to_string()))?;
        if routings.len() == texts.len() && routings.iter().all(|routing| !routing.probabilities.is_empty()) {
            Ok(routings)
        } else {
            Err(RouteError::Failed(format!(
                "it returned {} routings for {} queries",
                routings.len(),
                texts.len()
            )))
        }
    }
}
