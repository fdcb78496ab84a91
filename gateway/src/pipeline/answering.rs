//! What a port gives to the pipeline and gets from it.

use super::{AnswerEnd, Decision, GatewayError};
use crate::metrics::Method;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

/// What a port knows of a request beside its message.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// What was called.
    pub method: Method,
    /// When it came in.
    pub accepted: Instant,
    /// Its `traceparent` header.
    pub traceparent: Option<String>,
    /// The time the client gives it.
    pub timeout: Option<Duration>,
}

/// A piece of what a query is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Who answers; once more, before the first text, if somebody else had to take over.
    Decision(Box<Decision>),
    /// More text.
    Text(String),
    /// The answer is complete.
    End(AnswerEnd),
}

/// A query on its way. Dropping it cancels the work.
#[derive(Debug)]
pub struct Answering {
    /// The decision's id.
    pub id: Uuid,
    events: mpsc::Receiver<Result<Event, GatewayError>>,
    has_ended: bool,
}

impl Answering {
    pub(super) fn new(id: Uuid, events: mpsc::Receiver<Result<Event, GatewayError>>) -> Self {
        Self {
            id,
            events,
            has_ended: false,
        }
    }

    /// The next event; `None` after [`Event::End`] or an error. A query that was only to be routed ends
    /// after its [`Event::Decision`].
    pub async fn next(&mut self) -> Option<Result<Event, GatewayError>> {
        if self.has_ended {
            return None;
        }
        let event = self.events.recv().await.unwrap_or(Err(GatewayError::Crashed));
        self.has_ended = matches!(event, Ok(Event::End(_)) | Err(_));
        Some(event)
    }

    /// The decision alone, of a query that was only to be routed.
    ///
    /// # Errors
    /// Whatever ended the query.
    pub async fn decision(mut self) -> Result<Decision, GatewayError> {
        match self.next().await {
            Some(Ok(Event::Decision(decision))) => Ok(*decision),
            Some(Err(error)) => Err(error),
            _ => Err(GatewayError::Crashed),
        }
    }

    /// Everything, once it is complete.
    pub async fn whole(mut self) -> Whole {
        let (mut decision, mut text) = (None, String::new());
        loop {
            match self.next().await {
                Some(Ok(Event::Decision(latest))) => decision = Some(*latest),
                Some(Ok(Event::Text(more))) => text.push_str(&more),
                Some(Ok(Event::End(end))) => {
                    return Whole {
                        decision,
                        result: Ok((text, end)),
                    };
                }
                Some(Err(error)) => {
                    return Whole {
                        decision,
                        result: Err(error),
                    };
                }
                None => {
                    return Whole {
                        decision,
                        result: Err(GatewayError::Crashed),
                    };
                }
            }
        }
    }
}

/// A query that has ended.
#[derive(Debug)]
pub struct Whole {
    /// The decision, if it came that far.
    pub decision: Option<Decision>,
    /// The text and its end, or why there is none.
    pub result: Result<(String, AnswerEnd), GatewayError>,
}
