//! OpenAI-compatible HTTP servers as experts: vLLM, SGLang, TGI, llama.cpp's server, Ollama, hosted
//! models.
//!
//! One request, one answer: no retries here, since whom to ask next is the gateway's decision. The
//! query's deadline bounds the whole request; a silence bounds each wait. Dropping the answer closes
//! the connection, which is how such servers learn that nobody reads any more.

mod fault;
mod health;
mod settings;
mod sse;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use settings::{InvalidSettings, OpenAiSettings};
pub use wire::TokenLimitField;

use crate::expert::{
    AnswerStream, Card, Chunk, Expert, ExpertError, ExpertErrorKind, ExpertId, ExpertKind, Health, Query,
};
use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Secrets};
use futures::{Stream, StreamExt, stream as streams};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::Response;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::pin::pin;
use std::time::Instant;
use tokio::time::timeout_at;

/// Most of an error body that is read.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Most of a whole answer's body that is read.
const MAX_BODY_BYTES: usize = 16 << 20;

/// A model behind an OpenAI-compatible server.
pub struct OpenAiExpert {
    id: ExpertId,
    kind: ExpertKind,
    card: Card,
    settings: OpenAiSettings,
    client: reqwest::Client,
    base: String,
    observed: health::Observed,
}

impl OpenAiExpert {
    /// Checks the settings and sets up the client; connects to nothing yet.
    ///
    /// # Errors
    /// [`InvalidSettings`] for a bad URL, key or header.
    pub fn new(
        id: ExpertId,
        kind: ExpertKind,
        card: Card,
        settings: OpenAiSettings,
    ) -> Result<Self, InvalidSettings> {
        let base = settings::base_url(&settings.base_url)?;
        // Someone else may have installed a provider before; either will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .default_headers(settings::headers(&settings)?)
            .redirect(reqwest::redirect::Policy::none());
        if base.scheme() == "http" {
            // Without TLS the system's certificates, which a small container may lack, are not needed.
            builder = builder.tls_certs_only([]);
        }
        let is_loopback = |host: &str| {
            let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        };
        if base.host_str().is_some_and(is_loopback) {
            // A proxy from the environment never reaches this machine's own servers.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(InvalidSettings::Client)?;
        let base = base.as_str().trim_end_matches('/').to_owned();
        Ok(Self {
            id,
            kind,
            card,
            settings,
            client,
            base,
            observed: health::Observed::default(),
        })
    }

    async fn ask(&self, query: &Query, secrets: Secrets, deadline: Instant) -> Result<AnswerStream, Fault> {
        if Instant::now() >= deadline {
            return Err(Fault::timeout(
                "the deadline had passed before the request was sent",
            ));
        }
        let deadline = tokio::time::Instant::from_std(deadline);
        let sent = self
            .client
            .post(format!("{}/chat/completions", self.base))
            .headers(trace_headers(&query.trace_id))
            .json(&wire::Request::new(&self.settings, query))
            .send();
        let idle = self.settings.idle_timeout;
        let until = if self.settings.stream {
            deadline.min(tokio::time::Instant::now() + idle)
        } else {
            deadline
        };
        let response = match timeout_at(until, sent).await {
            Ok(response) => response.map_err(Fault::from_transport)?,
            Err(_) if until == deadline => return Err(Fault::timeout("the deadline passed")),
            Err(_) => return Err(Fault::timeout(format!("the server did not answer for {idle:?}"))),
        };
        let late = |_| Fault::timeout("the deadline passed while the answer was read");
        if !response.status().is_success() {
            let status = response.status();
            let retry_after = response.headers().get(RETRY_AFTER).cloned();
            let read = read_body(response, MAX_ERROR_BYTES);
            let body = timeout_at(deadline, read)
                .await
                .map_err(late)?
                .unwrap_or_default();
            let retry_after = retry_after.as_ref().and_then(|wait| wait.to_str().ok());
            return Err(Fault::from_status(status, retry_after, &body, &secrets));
        }
        if self.settings.stream && !is_json(&response) {
            let body = response.bytes_stream();
            return Ok(stream::read(self.id.clone(), secrets, body, idle, deadline));
        }
        let body = timeout_at(deadline, read_body(response, MAX_BODY_BYTES))
            .await
            .map_err(late)??;
        let mut progress = wire::Progress::default();
        let text = progress.body(&body, &secrets)?;
        let chunks = text.map(Chunk::Text).into_iter().chain([progress.end()?]);
        Ok(streams::iter(chunks.map(Ok).collect::<Vec<_>>()).boxed())
    }

    /// What a failed request says about the server.
    fn note(&self, fault: &Fault) {
        let is_of_server = matches!(
            fault.kind,
            ExpertErrorKind::Unavailable | ExpertErrorKind::Unauthorized
        );
        if is_of_server {
            self.observed.note(Health::Unavailable(fault.detail.clone()));
        }
    }
}

#[async_trait]
impl Expert for OpenAiExpert {
    fn id(&self) -> &ExpertId {
        &self.id
    }

    fn kind(&self) -> ExpertKind {
        self.kind
    }

    fn card(&self) -> &Card {
        &self.card
    }

    async fn health(&self) -> Health {
        let request = self.client.get(format!("{}/models", self.base));
        self.observed
            .health(health::probe(request, |error| {
                Fault::from_transport(error).detail
            }))
            .await
    }

    async fn answer(&self, query: Query, deadline: Instant) -> Result<AnswerStream, ExpertError> {
        let headers = self.settings.headers.iter().map(|(_, value)| value);
        let keys = headers.chain(&self.settings.api_key).cloned().collect();
        let answer = self.ask(&query, Secrets::new(keys, &query), deadline).await;
        match &answer {
            Ok(_) => self.observed.note(Health::Ready),
            Err(fault) => self.note(fault),
        }
        answer.map_err(|fault| fault.of(&self.id))
    }
}

/// Asked for a stream, some servers (and every mock) answer whole.
fn is_json(response: &Response) -> bool {
    let kind = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| {
        kind.trim_start()
            .to_ascii_lowercase()
            .starts_with("application/json")
    })
}

async fn read_body(response: Response, limit: usize) -> Result<Vec<u8>, Fault> {
    read_limited(response.bytes_stream(), limit).await
}

async fn read_limited(
    body: impl Stream<Item = reqwest::Result<Bytes>>,
    limit: usize,
) -> Result<Vec<u8>, Fault> {
    let (mut body, mut bytes) = (pin!(body), Vec::new());
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.map_err(Fault::from_transport)?);
        if bytes.len() > limit {
            return Err(Fault::interrupted(format!(
                "the server's answer exceeds {limit} bytes"
            )));
        }
    }
    Ok(bytes)
}

/// The query's trace, continued (W3C Trace Context): the span is new, the trace id the query's.
fn trace_headers(trace_id: &str) -> http::HeaderMap {
    let is_hex = trace_id.len() == 32 && trace_id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut headers = http::HeaderMap::new();
    if is_hex && trace_id.bytes().any(|b| b != b'0') {
        // Every `RandomState` has fresh keys; the lowest bit keeps the span from being zero.
        let span = RandomState::new().hash_one(trace_id) | 1;
        if let Ok(value) = http::HeaderValue::from_str(&format!("00-{trace_id}-{span:016x}-01")) {
            headers.insert("traceparent", value);
        }
    }
    headers
}
