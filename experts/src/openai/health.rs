//! Whether a server can be asked: what was last seen of it, else a look at `/models`.

use crate::expert::Health;
use http::StatusCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an observation counts.
const FRESH: Duration = Duration::from_secs(5);
/// Longest wait for `/models`.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The last observation, and a door that lets one probe through at a time.
#[derive(Default)]
pub(super) struct Observed {
    last: Mutex<Option<(Instant, Health)>>,
    probing: tokio::sync::Mutex<()>,
}

impl Observed {
    /// Remembers what a request has just shown.
    pub(super) fn note(&self, health: Health) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), health));
    }

    fn fresh(&self) -> Option<Health> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref()
            .filter(|(at, _)| at.elapsed() < FRESH)
            .map(|(_, health)| health.clone())
    }

    /// The health now; callers that come while a probe runs share its result.
    pub(super) async fn health(&self, probe: impl Future<Output = Health>) -> Health {
        if let Some(health) = self.fresh() {
            return health;
        }
        let _one_at_a_time = self.probing.lock().await;
        if let Some(health) = self.fresh() {
            return health;
        }
        let health = probe.await;
        self.note(health.clone());
        health
    }
}

/// Asks for the list of models. `words` turns a transport error into text.
pub(super) async fn probe(
    request: reqwest::RequestBuilder,
    words: impl Fn(reqwest::Error) -> String,
) -> Health {
    match request.timeout(PROBE_TIMEOUT).send().await {
        Ok(response) => match response.status() {
            status if status.is_success() => Health::Ready,
            // It serves, if not this list; or it serves too much just now.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::TOO_MANY_REQUESTS => {
                Health::Ready
            }
            status => Health::Unavailable(format!("HTTP {status} from /models")),
        },
        Err(error) => Health::Unavailable(words(error)),
    }
}
