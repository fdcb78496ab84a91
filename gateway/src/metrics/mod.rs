//! What the gateway measures.
//!
//! One struct on a passed [`Registry`]; every series of every closed label set exists from the start,
//! so that a dashboard shows zeros instead of gaps and a rate never misses the first event. Labels are
//! configured expert ids and this crate's enums: nothing that a client sends is ever a label. The
//! engine's own metrics come from `referral-lm` on the same registry.

mod labels;
#[cfg(test)]
mod tests;

pub use labels::{ErrorKind, Method, PairOutcome, Setback, TokenType, expert_error_label, reason_label};

use labels::REASONS;
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use referral_router::policy::Reason;
use referral_router::reformat::Outcome;
use std::time::Duration;
use tonic::Code;

/// Router and overhead: from 100 µs, since a cached decision costs microseconds.
const FINE_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Whole answers: doubling, as OpenTelemetry's `gen_ai.client.operation.duration`.
const ANSWER_SECONDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
/// First token: OpenTelemetry's list for `gen_ai.server.time_to_first_token`, with a longer tail for CPUs.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
];
const GAIN: &[f64] = &[
    -0.2, -0.1, 0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0,
];
/// What became of a query that was routed.
const REFERRED: &str = "referred";
const ABSTAINED: &str = "abstained";
const PROBABILITY: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];

/// The gateway's metrics. Clones share the series.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    decisions: IntCounterVec,
    confidence: HistogramVec,
    router_duration: Histogram,
    expert_duration: HistogramVec,
    first_token: HistogramVec,
    tokens: IntCounterVec,
    overhead: Histogram,
    requests: IntCounterVec,
    errors: IntCounterVec,
    fallbacks: IntCounterVec,
    pairs: IntCounterVec,
    gain: HistogramVec,
    descents: IntCounterVec,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    expert_ready: IntGaugeVec,
    reformats: IntCounterVec,
    reformat_duration: Histogram,
    /// Queries admitted and not yet ended.
    pub in_flight: IntGauge,
    /// How many may be.
    pub admission_limit: IntGauge,
    /// Decisions that wait for the decision log.
    pub log_queue: IntGauge,
    /// Queries that wait for the router's thread.
    pub router_queue: IntGauge,
    /// Queries routed in one forward pass.
    pub router_batch: Histogram,
}

impl Metrics {
    /// Registers everything, with the series of `experts` and of all enums at zero.
    ///
    /// # Errors
    /// If a name is registered already.
    pub fn register(registry: &Registry, experts: &[&str]) -> Result<Self, prometheus::Error> {
        let on = Registering(registry);
        let metrics = Self {
            registry: registry.clone(),
            decisions: on.counters("decisions_total", "Decisions by answering expert and first reason", &["expert", "reason"])?,
            confidence: on.histograms(
                "decision_confidence",
                "Calibrated probability of the router's likeliest expert, by answering expert",
                PROBABILITY,
                &["expert"],
            )?,
            router_duration: on.histogram(
                "router_duration_seconds",
                "From asking the router's queue to its answer; cache hits are not in it",
                FINE_SECONDS,
            )?,
            expert_duration: on.histograms(
                "expert_duration_seconds",
                "From asking an expert to the end of its answer or its failure",
                ANSWER_SECONDS,
                &["expert"],
            )?,
            first_token: on.histograms(
                "time_to_first_token_seconds",
                "From accepting a query to the first text of its answer",
                FIRST_TOKEN_SECONDS,
                &["expert"],
            )?,
            tokens: on.counters("tokens_total", "Tokens read (prompt) and written (completion)", &["expert", "type"])?,
            overhead: on.histogram(
                "gateway_overhead_seconds",
                "From accepting a query to its end, less the time spent waiting for experts and for the client to read",
                FINE_SECONDS,
            )?,
            requests: on.counters("requests_total", "Requests ended, by method and gRPC code", &["method", "code"])?,
            errors: on.counters("errors_total", "Requests that ended badly, by kind", &["kind"])?,
            fallbacks: on.counters(
                "fallbacks_total",
                "Experts that gave no text (failed before their first token, or unsure) and were replaced",
                &["from", "error_kind"],
            )?,
            pairs: on.counters(
                "pair_answers_total",
                "Answers of a strong or a weak expert, by the pair's weak one and by which of them answered",
                &["weak", "outcome"],
            )?,
            gain: on.histograms(
                "predicted_gain",
                "Predicted P(strong right) - P(weak right) of queries that fell on a pair, by its weak expert",
                GAIN,
                &["weak"],
            )?,
            descents: on.counters(
                "descents_total",
                "Routed queries, by how many routers read them and by whether the last one referred or abstained",
                &["depth", "outcome"],
            )?,
            cache_hits: on.counter("cache_hits_total", "Queries whose routing was in the decision cache")?,
            cache_misses: on.counter("cache_misses_total", "Queries whose routing was not")?,
            expert_ready: on.gauges("expert_ready", "1 if the expert could be asked at the last check", &["expert"])?,
            reformats: on.counters(
                "reformats_total",
                "Queries that were to be put in better words, by what became of it",
                &["outcome"],
            )?,
            reformat_duration: on.histogram(
                "reformat_duration_seconds",
                "Time for putting a query in better words",
                FINE_SECONDS,
            )?,
            in_flight: on.gauge("in_flight", "Queries admitted and not yet ended")?,
            admission_limit: on.gauge("admission_limit", "Queries that may be in flight")?,
            log_queue: on.gauge("decision_log_queue", "Decisions waiting to be written to the decision log")?,
            router_queue: on.gauge("router_queue_depth", "Queries waiting for the router's thread")?,
            router_batch: on.histogram("router_batch_size", "Queries routed in one forward pass", &[1.0, 2.0, 4.0, 8.0, 16.0])?,
        };
        let build = Gauge::with_opts(
            Opts::new("referral_build_info", "1; the labels say what runs")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1.0);
        registry.register(Box::new(build))?;
        metrics.initialise(experts);
        Ok(metrics)
    }

    fn initialise(&self, experts: &[&str]) {
        for expert in experts {
            for reason in REASONS {
                self.decisions.with_label_values(&[expert, reason_label(reason)]);
            }
            for token_type in TokenType::ALL {
                self.tokens.with_label_values(&[expert, token_type.as_str()]);
            }
            for setback in Setback::all() {
                self.fallbacks.with_label_values(&[expert, setback.as_str()]);
            }
            self.confidence.with_label_values(&[expert]);
            self.expert_duration.with_label_values(&[expert]);
            self.first_token.with_label_values(&[expert]);
            self.expert_ready.with_label_values(&[expert]);
        }
        for method in Method::ALL {
            for code in labels::CODES {
                self.requests
                    .with_label_values(&[method.as_str(), labels::code_label(code)]);
            }
        }
        for outcome in Outcome::ALL {
            self.reformats.with_label_values(&[outcome.as_str()]);
        }
        for kind in ErrorKind::ALL {
            self.errors.with_label_values(&[kind.as_str()]);
        }
    }

    /// Puts the series of queries that at most `most` routers read at zero.
    pub fn expect_depth(&self, most: usize) {
        for depth in 1..=most {
            for outcome in [REFERRED, ABSTAINED] {
                self.descents.with_label_values(&[&depth.to_string(), outcome]);
            }
        }
    }

    /// Puts the series of a pair at zero, named by its weak expert.
    pub fn expect_pair(&self, weak: &str) {
        for outcome in PairOutcome::ALL {
            self.pairs.with_label_values(&[weak, outcome.as_str()]);
        }
        self.gain.with_label_values(&[weak]);
    }

    /// The registry, for whoever measures beside this crate (the engine, the decision log).
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything on the registry in Prometheus' text format.
    ///
    /// # Errors
    /// If a metric family cannot be written.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }

    /// A decision was carried out (or only asked for).
    pub fn decision(&self, expert: &str, reason: Reason, confidence: Option<f32>) {
        self.decisions
            .with_label_values(&[expert, reason_label(reason)])
            .inc();
        if let Some(confidence) = confidence {
            self.confidence
                .with_label_values(&[expert])
                .observe(f64::from(confidence));
        }
    }
    /// The router answered or failed.
    pub fn routed(&self, took: Duration) {
        self.router_duration.observe(took.as_secs_f64());
    }
    /// An expert's answer ended, well or badly.
    pub fn expert_ended(&self, expert: &str, took: Duration) {
        self.expert_duration
            .with_label_values(&[expert])
            .observe(took.as_secs_f64());
    }
    /// The first text of an answer left.
    pub fn first_token(&self, expert: &str, since_accepted: Duration) {
        self.first_token
            .with_label_values(&[expert])
            .observe(since_accepted.as_secs_f64());
    }
    /// Tokens of an answer.
    pub fn tokens(&self, expert: &str, token_type: TokenType, count: u32) {
        self.tokens
            .with_label_values(&[expert, token_type.as_str()])
            .inc_by(u64::from(count));
    }
    /// What the gateway itself cost a query.
    pub fn overhead(&self, took: Duration) {
        self.overhead.observe(took.as_secs_f64());
    }
    /// A request ended.
    pub fn request(&self, method: Method, code: Code) {
        self.requests
            .with_label_values(&[method.as_str(), labels::code_label(code)])
            .inc();
    }
    /// Something ended badly.
    pub fn error(&self, kind: ErrorKind) {
        self.errors.with_label_values(&[kind.as_str()]).inc();
    }
    /// An expert was replaced before its first token.
    pub fn fallback(&self, from: &str, setback: Setback) {
        self.fallbacks.with_label_values(&[from, setback.as_str()]).inc();
    }
    /// A query was read by `depth` routers.
    pub fn descent(&self, depth: usize, abstained: bool) {
        let outcome = if abstained { ABSTAINED } else { REFERRED };
        self.descents
            .with_label_values(&[&depth.to_string(), outcome])
            .inc();
    }
    /// A query was to be put in better words.
    pub fn reformatted(&self, outcome: Outcome, took: Duration) {
        self.reformats.with_label_values(&[outcome.as_str()]).inc();
        self.reformat_duration.observe(took.as_secs_f64());
    }
    /// One of a pair, named by its weak expert, answered.
    pub fn pair(&self, weak: &str, outcome: PairOutcome) {
        self.pairs.with_label_values(&[weak, outcome.as_str()]).inc();
    }
    /// The gain of a pair's strong expert was predicted.
    pub fn predicted_gain(&self, weak: &str, gain: f32) {
        self.gain.with_label_values(&[weak]).observe(f64::from(gain));
    }
    /// A look-up in the decision cache.
    pub fn cache(&self, is_hit: bool) {
        if is_hit {
            self.cache_hits.inc()
        } else {
            self.cache_misses.inc()
        }
    }
    /// What the last health check of an expert said.
    pub fn expert_ready(&self, expert: &str, is_ready: bool) {
        self.expert_ready
            .with_label_values(&[expert])
            .set(i64::from(is_ready));
    }
}

/// Makes metrics under the crate's prefix and registers them.
struct Registering<'a>(&'a Registry);

impl Registering<'_> {
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        let metric = IntCounterVec::new(Opts::new(prefixed(name), help), labels)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let metric = IntCounter::with_opts(Opts::new(prefixed(name), help))?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let metric = HistogramVec::new(
            HistogramOpts::new(prefixed(name), help).buckets(buckets.to_vec()),
            labels,
        )?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        let metric =
            Histogram::with_opts(HistogramOpts::new(prefixed(name), help).buckets(buckets.to_vec()))?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        let metric = IntGaugeVec::new(Opts::new(prefixed(name), help), labels)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let metric = IntGauge::with_opts(Opts::new(prefixed(name), help))?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

fn prefixed(name: &str) -> String {
    format!("referral_{name}")
}
