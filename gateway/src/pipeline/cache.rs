//! Routings of queries seen before.
//!
//! Kept are probabilities and predicted gains, not decisions: health, residency and fallbacks are judged anew each time.
//! The key is a digest, so that no query's text stays in memory, of the normalised query, the router's
//! version and the policy's: a new router or policy never meets an old entry.

use crate::metrics::Metrics;
use referral_router::Routing;
use referral_router::dataset::normalise;
use referral_router::graph::Descent;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What is known of a query.
pub(super) struct Known {
    /// The routers' word, from the top down.
    pub(super) descent: Descent,
    /// The gain of each pair, once it was asked for.
    pub(super) gains: Box<[OnceLock<f32>]>,
}

impl Known {
    /// A descent, with no gain of `pairs` pairs known yet.
    pub(super) fn new(descent: Descent, pairs: usize) -> Self {
        Self {
            descent,
            gains: (0..pairs).map(|_| OnceLock::new()).collect(),
        }
    }
}

/// The cache.
pub(super) struct RoutingCache {
    entries: moka::future::Cache<[u8; 32], Arc<Known>>,
    versions: [String; 2],
    metrics: Metrics,
}

/// One query's place in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheKey([u8; 32]);

impl RoutingCache {
    /// At most `capacity` entries (0: none), each for `time_to_live`.
    pub(super) fn new(
        capacity: u64,
        time_to_live: Duration,
        router: &str,
        policy: &str,
        metrics: Metrics,
    ) -> Self {
        let entries = moka::future::Cache::builder()
            .max_capacity(capacity)
            .time_to_live(time_to_live)
            .build();
        Self {
            entries,
            versions: [router.to_owned(), policy.to_owned()],
            metrics,
        }
    }

    /// Where the routing of a [normalised](referral_router::dataset::normalise) query is kept.
    pub(super) fn key(&self, normalised: &str) -> CacheKey {
        let mut hasher = blake3::Hasher::new();
        for part in [normalised, &self.versions[0], &self.versions[1]] {
            hasher
                .update(&(part.len() as u64).to_le_bytes())
                .update(part.as_bytes());
        }
        CacheKey(*hasher.finalize().as_bytes())
    }

    /// What is kept there.
    pub(super) async fn get(&self, key: CacheKey) -> Option<Arc<Known>> {
        let found = self.entries.get(&key.0).await;
        self.metrics.cache(found.is_some());
        found
    }

    /// Keeps what is known; gains may still be added to it.
    pub(super) async fn put(&self, key: CacheKey, known: Arc<Known>) {
        self.entries.insert(key.0, known).await;
    }
}

/// Times of `count` lookups of a query whose routing is kept: normalisation, key, lookup; what `referral bench` shows.
///
/// # Errors
/// If the operating system gives no runtime.
pub(crate) fn cached_lookup(
    router: &str,
    query: &str,
    routing: Routing,
    count: usize,
) -> std::io::Result<Vec<Duration>> {
    let metrics = Metrics::register(&prometheus::Registry::new(), &[]).map_err(std::io::Error::other)?;
    let cache = RoutingCache::new(1000, Duration::from_secs(600), router, "bench", metrics);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let known = Arc::new(Known::new(routing.into(), 0));
        cache.put(cache.key(&normalise(query)), known).await;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            let found = cache.get(cache.key(&normalise(query))).await;
            times.push(start.elapsed());
            if found.is_none() {
                return Err(std::io::Error::other("the cache lost its entry"));
            }
        }
        Ok(times)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_knows_query_router_and_policy() {
        let metrics = Metrics::register(&prometheus::Registry::new(), &[]).unwrap();
        let cache =
            |router, policy| RoutingCache::new(9, Duration::from_secs(1), router, policy, metrics.clone());
        let key = cache("r1", "p1").key("q");
        assert_eq!(key, cache("r1", "p1").key("q"));
        for other in [
            cache("r1", "p1").key("Q"),
            cache("r2", "p1").key("q"),
            cache("r1", "p2").key("q"),
            cache("1p", "1").key("qr"),
        ] {
            assert_ne!(key, other);
        }
    }
}
