//! Metrics of one engine. Names begin with `referral_engine_`; the constant label `engine` is its name.

use crate::{LmError, Result};
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With an answer.
    Completed,
    /// The caller went away.
    Cancelled,
    /// The model or the engine failed, or was shut down.
    Failed,
    /// The deadline passed.
    Deadline,
    /// It never ran: queue full, too long, not allowed, stopped.
    Refused,
}

impl Outcome {
    const ALL: [Self; 5] = [
        Self::Completed,
        Self::Cancelled,
        Self::Failed,
        Self::Deadline,
        Self::Refused,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Deadline => "deadline",
            Self::Refused => "refused",
        }
    }
}

/// Seconds, from a decode step on a fast device to a long prompt on a slow one.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

pub(super) struct Metrics {
    pub(super) waiting: IntGauge,
    pub(super) running: IntGauge,
    pub(super) batch_size: Histogram,
    pub(super) prompt_tokens: IntCounter,
    pub(super) generated_tokens: IntCounter,
    pub(super) prefix_hits: IntCounter,
    pub(super) prefix_misses: IntCounter,
    pub(super) prefix_entries: IntGauge,
    pub(super) prefill_tokens: Histogram,
    pub(super) kv_used: IntGauge,
    pub(super) kv_capacity: IntGauge,
    pub(super) kv_waits: IntCounter,
    pub(super) time_to_first_token: Histogram,
    pub(super) time_per_output_token: Histogram,
    requests: IntCounterVec,
}

impl Metrics {
    /// Registers all metrics, every label value at zero.
    pub(super) fn register(engine: &str, registry: &Registry) -> Result<Self> {
        let opts = |name: &str, help: &str| {
            Opts::new(format!("referral_engine_{name}"), help).const_label("engine", engine)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec()))
        };
        let build = || -> prometheus::Result<Self> {
            Ok(Self {
                waiting: IntGauge::with_opts(opts(
                    "queue_depth",
                    "Requests waiting for a place in the batch.",
                ))?,
                running: IntGauge::with_opts(opts("running", "Requests in the batch."))?,
                batch_size: histogram(
                    "batch_size",
                    "Sequences computed together in one step.",
                    &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0],
                )?,
                prompt_tokens: IntCounter::with_opts(opts("prompt_tokens_total", "Prompt tokens computed."))?,
                generated_tokens: IntCounter::with_opts(opts("generated_tokens_total", "Tokens generated."))?,
                prefix_hits: IntCounter::with_opts(opts(
                    "prefix_cache_hits_total",
                    "Requests whose shared prompt prefix was in the cache.",
                ))?,
                prefix_misses: IntCounter::with_opts(opts(
                    "prefix_cache_misses_total",
                    "Requests whose shared prompt prefix had to be computed.",
                ))?,
                prefix_entries: IntGauge::with_opts(opts(
                    "prefix_cache_entries",
                    "Prompt prefixes in the cache.",
                ))?,
                prefill_tokens: histogram(
                    "prefill_tokens",
                    "Prompt tokens computed in one step, in steps that compute any.",
                    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0],
                )?,
                kv_used: IntGauge::with_opts(opts(
                    "kv_memory_used_bytes",
                    "Memory reserved for keys and values of running requests and kept prefixes.",
                ))?,
                kv_capacity: IntGauge::with_opts(opts(
                    "kv_memory_capacity_bytes",
                    "Memory that may be reserved for keys and values.",
                ))?,
                kv_waits: IntCounter::with_opts(opts(
                    "kv_memory_waits_total",
                    "Times that the next request had a place in the batch but had to wait for memory.",
                ))?,
                time_to_first_token: histogram(
                    "time_to_first_token_seconds",
                    "From submission to the first token.",
                    &SECONDS,
                )?,
                time_per_output_token: histogram(
                    "time_per_output_token_seconds",
                    "From one token of a sequence to its next.",
                    &SECONDS,
                )?,
                requests: IntCounterVec::new(opts("requests_total", "Requests by outcome."), &["outcome"])?,
            })
        };
        let invalid = |error: prometheus::Error| LmError::Invalid {
            field: "engine name",
            value: engine.to_owned(),
            fix: format!("give each engine on a registry a name of its own ({error})"),
        };
        let metrics = build().map_err(invalid)?;
        for outcome in Outcome::ALL {
            metrics.requests.with_label_values(&[outcome.as_str()]).inc_by(0);
        }
        let collectors: [Box<dyn Collector>; 15] = [
            Box::new(metrics.waiting.clone()),
            Box::new(metrics.running.clone()),
            Box::new(metrics.batch_size.clone()),
            Box::new(metrics.prompt_tokens.clone()),
            Box::new(metrics.generated_tokens.clone()),
            Box::new(metrics.prefix_hits.clone()),
            Box::new(metrics.prefix_misses.clone()),
            Box::new(metrics.prefix_entries.clone()),
            Box::new(metrics.prefill_tokens.clone()),
            Box::new(metrics.kv_used.clone()),
            Box::new(metrics.kv_capacity.clone()),
            Box::new(metrics.kv_waits.clone()),
            Box::new(metrics.time_to_first_token.clone()),
            Box::new(metrics.time_per_output_token.clone()),
            Box::new(metrics.requests.clone()),
        ];
        for collector in collectors {
            registry.register(collector).map_err(invalid)?;
        }
        Ok(metrics)
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.requests.with_label_values(&[outcome.as_str()]).inc();
    }

    #[cfg(test)]
    pub(super) fn count(&self, outcome: Outcome) -> u64 {
        self.requests.with_label_values(&[outcome.as_str()]).get()
    }
}
