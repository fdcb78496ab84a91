//! A response body as chunks of an answer.

use super::fault::{Fault, Secrets};
use super::sse::{Event, Parser};
use super::wire::Progress;
use crate::expert::{AnswerStream, Chunk, ExpertError, ExpertId};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long `usage` and `[DONE]` may take after the finish reason; the text is complete by then.
const GRACE: Duration = Duration::from_secs(1);

/// One answer being read. Dropping it drops the body, which closes the connection.
struct Reader {
    expert: ExpertId,
    secrets: Secrets,
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    idle: Duration,
    deadline: Instant,
    parser: Parser,
    progress: Progress,
    ready: VecDeque<Result<Chunk, ExpertError>>,
    has_ended: bool,
}

/// Reads server-sent events from `body` until the answer's end, its deadline, or a silence of `idle`.
pub(super) fn read(
    expert: ExpertId,
    secrets: Secrets,
    body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    idle: Duration,
    deadline: Instant,
) -> AnswerStream {
    let reader = Reader {
        expert,
        secrets,
        body: body.boxed(),
        idle,
        deadline,
        parser: Parser::default(),
        progress: Progress::default(),
        ready: VecDeque::new(),
        has_ended: false,
    };
    stream::unfold(reader, |mut reader| async move {
        reader.next().await.map(|item| (item, reader))
    })
    .boxed()
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Chunk, ExpertError>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            if self.has_ended {
                return None;
            }
            if let Err(fault) = self.read_more().await {
                self.end(Err(fault));
            }
        }
    }

    async fn read_more(&mut self) -> Result<(), Fault> {
        let is_finished = self.progress.is_finished();
        let patience = Instant::now()
            + if is_finished {
                GRACE.min(self.idle)
            } else {
                self.idle
            };
        let mut events = Vec::new();
        let outcome = match timeout_at(patience.min(self.deadline), self.body.next()).await {
            Ok(Some(Ok(bytes))) => {
                let fed = self.parser.feed(&bytes, &mut events);
                fed.map_err(|_| Fault::interrupted("the stream holds an event of more than 1 MiB"))
            }
            // Once the text is complete, nothing that fails later matters.
            Ok(Some(Err(_))) | Err(_) if is_finished => {
                self.has_ended = true;
                Ok(())
            }
            Ok(Some(Err(error))) => Err(Fault::from_transport(error)),
            Ok(None) => {
                self.parser.finish(&mut events);
                self.has_ended = true;
                Ok(())
            }
            Err(_) if Instant::now() >= self.deadline => Err(Fault::timeout("the deadline passed")),
            Err(_) => Err(Fault::timeout(format!(
                "the server was silent for {:?}",
                self.idle
            ))),
        };
        for event in events {
            self.take(&event)?;
            if self.progress.is_done() {
                self.has_ended = true;
                break;
            }
        }
        outcome?;
        if self.has_ended {
            self.end(self.progress.end());
        }
        Ok(())
    }

    fn take(&mut self, event: &Event) -> Result<(), Fault> {
        if let Some(text) = self.progress.event(event, &self.secrets)? {
            self.ready.push_back(Ok(Chunk::Text(text)));
        }
        Ok(())
    }

    fn end(&mut self, last: Result<Chunk, Fault>) {
        self.ready.push_back(last.map_err(|fault| fault.of(&self.expert)));
        self.has_ended = true;
        self.body = stream::empty().boxed();
    }
}
