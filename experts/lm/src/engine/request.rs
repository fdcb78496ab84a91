//! A request on its way: the job, the bounded queue between callers and the compute thread, and the
//! caller's end.

use super::memory::Reservation;
use super::metrics::{Metrics, Outcome};
use super::{Event, GenerateRequest};
use crate::{LmError, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc;

/// A request and where its events go.
pub(super) struct Job {
    pub(super) request: GenerateRequest,
    events: mpsc::Sender<Event>,
    pub(super) submitted: Instant,
    /// The memory for its keys and values, once it has been admitted.
    pub(super) memory: Option<Reservation>,
}

impl Job {
    /// A job and the caller's end of it.
    pub(super) fn new(request: GenerateRequest, submitted: Instant) -> (Self, Generation) {
        // A text for each token, the text held back, and the end: sending never has to wait, so a
        // slow reader neither stops the engine nor loses text.
        let (sender, receiver) = mpsc::channel(request.max_new_tokens.saturating_add(2));
        (
            Self {
                request,
                events: sender,
                submitted,
                memory: None,
            },
            Generation {
                events: receiver,
                has_ended: false,
            },
        )
    }

    /// Whether the caller has gone away.
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.request.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Sends an event. The channel has room for all there can be; that the caller has gone away is
    /// noticed by [`Self::is_cancelled`] before the next step.
    pub(super) fn send(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            tracing::error!(?event, "an event channel was too small");
        }
    }

    /// Ends the job without an answer.
    pub(super) fn fail(&self, error: LmError, metrics: &Metrics) {
        let outcome = if self.is_cancelled() {
            Outcome::Cancelled
        } else if matches!(error, LmError::DeadlineExceeded { .. }) {
            Outcome::Deadline
        } else {
            Outcome::Failed
        };
        metrics.ended(outcome);
        self.send(Event::Failed(error));
    }
}

/// A running generation; dropping it cancels the work.
pub struct Generation {
    events: mpsc::Receiver<Event>,
    has_ended: bool,
}

impl Generation {
    /// The next event; `None` after the last. The last is always `Finished` or `Failed`.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.checked(event)
    }

    /// As [`Self::next`], for callers outside of an async runtime.
    ///
    /// # Panics
    /// Within an async runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        let event = self.events.blocking_recv();
        self.checked(event)
    }

    fn checked(&mut self, event: Option<Event>) -> Option<Event> {
        if self.has_ended {
            return None;
        }
        // The sender went away without a last word: the engine's thread died.
        let event = event.unwrap_or(Event::Failed(LmError::Stopped));
        self.has_ended = !matches!(event, Event::Text { .. });
        Some(event)
    }
}

/// Jobs between callers and the compute thread.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
}

struct State {
    waiting: VecDeque<Job>,
    running: usize,
    is_closed: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            running: 0,
            is_closed: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            capacity,
        })
    }

    /// Every change leaves the state whole, so a panic elsewhere doesn't spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, job: Job, metrics: &Metrics) -> Result<()> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(LmError::Stopped);
        }
        if state.waiting.len() >= self.capacity {
            return Err(LmError::QueueFull {
                capacity: self.capacity,
            });
        }
        state.waiting.push_back(job);
        metrics.waiting.set(state.waiting.len() as i64);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Ends the jobs that need not wait longer, and takes those for which there is a free place, in order, until
    /// `admit` refuses one: it waits for memory, and those behind it wait for their turn.
    /// With nothing to run it waits for a job; `None`: the queue is closed.
    pub(super) fn take(
        &self,
        running: usize,
        max_batch: usize,
        clock: impl Fn() -> Instant,
        mut admit: impl FnMut(&mut Job) -> bool,
        metrics: &Metrics,
    ) -> Option<Vec<Job>> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return None;
            }
            let now = clock();
            state.waiting.retain(|job| {
                let is_over = job.is_cancelled() || job.is_late(now);
                if is_over {
                    job.fail(LmError::DeadlineExceeded { generated: 0 }, metrics);
                }
                !is_over
            });
            let places = max_batch.saturating_sub(running);
            let count = state
                .waiting
                .iter_mut()
                .take(places)
                .map(&mut admit)
                .take_while(|fits| *fits)
                .count();
            let taken: Vec<Job> = state.waiting.drain(..count).collect();
            state.running = running + taken.len();
            metrics.waiting.set(state.waiting.len() as i64);
            metrics.running.set(state.running as i64);
            if state.running > 0 {
                return Some(taken);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Requests waiting and running.
    pub(super) fn load(&self) -> (usize, usize) {
        let state = self.lock();
        (state.waiting.len(), state.running)
    }

    /// Refuses further jobs and ends those that wait.
    pub(super) fn close(&self, metrics: &Metrics) {
        let mut state = self.lock();
        state.is_closed = true;
        state.running = 0;
        for job in state.waiting.drain(..) {
            job.fail(LmError::Stopped, metrics);
        }
        metrics.waiting.set(0);
        metrics.running.set(0);
        drop(state);
        self.changed.notify_all();
    }
}
