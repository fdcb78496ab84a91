//! The router on a thread of its own.
//!
//! Routing is a forward pass: blocking arithmetic that no async worker may do. Queries wait in a
//! bounded queue; the thread takes what waits, up to a batch, and routes it in one pass. A full queue
//! refuses at once: waiting longer than the queue is deep helps nobody. Callers that went away are
//! skipped. [`Decider`](referral_router::graph::Decider) is the seam: tests script it, the real one is
//! [`referral_router::Router`]; a [`Graph`] of them is what the thread runs.
//!
//! What the strong expert of a pair would gain ([`Gains`]) is predicted on the same thread, by a pass of its own: the
//! head reads deeper than the router does and without its adapter, so that there is nothing to share, and it is asked
//! only about the queries that fell on a pair.

pub(crate) mod reformatter;
#[cfg(test)]
mod tests;

use prometheus::{Histogram, IntGauge};
use referral_router::cost::GainModel;
use referral_router::graph::Descent;
use referral_router::{Graph, RouterError};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Whoever predicts what the strong expert of a pair gains over the weak one, blocking.
pub trait Gains: Send + Sync + 'static {
    /// `P(strong right) - P(weak right)`, -1 to 1; as many as queries.
    fn gains(&self, queries: &[&str]) -> Result<Vec<f32>, RouterError>;
}

impl Gains for GainModel {
    fn gains(&self, queries: &[&str]) -> Result<Vec<f32>, RouterError> {
        self.gains(queries)
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

type Reply<T> = oneshot::Sender<Result<T, RouteError>>;

/// What is asked about a text, and who waits for it.
enum Ask {
    Routing(Reply<Descent>),
    /// Of the pair with this number.
    Gain(usize, Reply<f32>),
}

struct Job {
    text: String,
    ask: Ask,
}

impl Job {
    fn is_abandoned(&self) -> bool {
        match &self.ask {
            Ask::Routing(reply) => reply.is_closed(),
            Ask::Gain(_, reply) => reply.is_closed(),
        }
    }
}

/// The thread's handle. Dropping it ends the thread after the pass in hand.
pub struct RouterThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    graph: Arc<Graph>,
    waiting: IntGauge,
    capacity: usize,
}

impl RouterThread {
    /// Starts the thread; `gains` are those of the pairs, in order; `waiting` shows the queue's depth and `batches` how
    /// many queries are routed in a pass.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn start(
        graph: Arc<Graph>,
        gains: Vec<Arc<dyn Gains>>,
        limits: RouterLimits,
        waiting: IntGauge,
        batches: Histogram,
    ) -> std::io::Result<Self> {
        let capacity = limits.queue_capacity.max(1);
        let (jobs, inbox) = mpsc::channel(capacity);
        let worker = Worker {
            graph: Arc::clone(&graph),
            gains,
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
            graph,
            waiting,
            capacity,
        })
    }

    /// The routers that it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Routes one query; dropping the future takes the query out of the queue.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub async fn route(&self, text: String) -> Result<Descent, RouteError> {
        self.ask(text, Ask::Routing).await
    }

    /// Predicts the gain of pair `pair` on one query.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub async fn gain(&self, pair: usize, text: String) -> Result<f32, RouteError> {
        self.ask(text, |reply| Ask::Gain(pair, reply)).await
    }

    async fn ask<T>(&self, text: String, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, RouteError> {
        let (reply, answer) = oneshot::channel();
        let ask = ask(reply);
        let stopped = || RouteError::Failed("its thread has ended".to_owned());
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        self.waiting.inc();
        jobs.try_send(Job { text, ask }).map_err(|error| {
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
    graph: Arc<Graph>,
    gains: Vec<Arc<dyn Gains>>,
    inbox: mpsc::Receiver<Job>,
    waiting: IntGauge,
    batches: Histogram,
}

impl Worker {
    fn run(mut self, max_batch: usize) {
        let mut batch = Vec::with_capacity(max_batch);
        while self.inbox.blocking_recv_many(&mut batch, max_batch) > 0 {
            self.waiting.sub(i64::try_from(batch.len()).unwrap_or(i64::MAX));
            batch.retain(|job| !job.is_abandoned());
            let mut routings = Vec::new();
            let mut gains: Vec<Vec<_>> = self.gains.iter().map(|_| Vec::new()).collect();
            for Job { text, ask } in batch.drain(..) {
                match ask {
                    Ask::Routing(reply) => routings.push((text, reply)),
                    Ask::Gain(pair, reply) => match gains.get_mut(pair) {
                        Some(of_pair) => of_pair.push((text, reply)),
                        None => give(reply, Err(RouteError::Failed(format!("there is no pair {pair}")))),
                    },
                }
            }
            if !routings.is_empty() {
                self.batches.observe(routings.len() as f64);
            }
            answer(routings, |texts| self.graph.route(texts));
            for (asked, head) in gains.into_iter().zip(&self.gains) {
                answer(asked, |texts| head.gains(texts));
            }
        }
    }
}

fn give<T>(reply: Reply<T>, result: Result<T, RouteError>) {
    // A caller that went away meanwhile does not want its result.
    let _gone = reply.send(result);
}

/// One pass; if a batch fails, each query alone, so that one bad query cannot fail its neighbours.
fn answer<T>(asked: Vec<(String, Reply<T>)>, compute: impl Fn(&[&str]) -> Result<Vec<T>, RouterError>) {
    if asked.is_empty() {
        return;
    }
    let texts: Vec<&str> = asked.iter().map(|(text, _)| text.as_str()).collect();
    let results: Vec<Result<T, RouteError>> = match pass(&texts, &compute) {
        Ok(results) => results.into_iter().map(Ok).collect(),
        Err(error) if texts.len() == 1 => vec![Err(error)],
        Err(_) => texts
            .iter()
            .map(|text| {
                let alone = pass(&[text], &compute)?;
                alone
                    .into_iter()
                    .next()
                    .ok_or_else(|| RouteError::Failed("it returned nothing".to_owned()))
            })
            .collect(),
    };
    for ((_, reply), result) in asked.into_iter().zip(results) {
        give(reply, result);
    }
}

fn pass<T>(
    texts: &[&str],
    compute: impl Fn(&[&str]) -> Result<Vec<T>, RouterError>,
) -> Result<Vec<T>, RouteError> {
    // The thread serves everybody: a panic in the arithmetic costs one batch, not the router.
    let results = std::panic::catch_unwind(AssertUnwindSafe(|| compute(texts)))
        .map_err(|_| RouteError::Failed("it panicked".to_owned()))?
        .map_err(|error| RouteError::Failed(error.to_string()))?;
    if results.len() == texts.len() {
        Ok(results)
    } else {
        Err(RouteError::Failed(format!(
            "it returned {} results for {} queries",
            results.len(),
            texts.len()
        )))
    }
}
