//! `referral bench`: what things cost on this machine.

mod llama;
mod lm;

use super::failure::Failure;
use super::options::{ConfigOptions, ModelOptions, RouterOptions};
use super::output::{Format, print_json, print_table, stdout};
use crate::config::Settings;
use crate::pipeline::cached_lookup;
use clap::{Args, Subcommand};
use referral_lm::LanguageModel;
use referral_lm::fetch::fetch;
use referral_lm::load::{LoadOptions, Quantization};
use referral_lm::model::Step;
use referral_lm::tokenize::{ChatMessage, Role};
use referral_router::Router;
use referral_router::functional::PROMPT;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Arguments of `referral bench`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the local engine: prefill, decoding, streams, memory, perplexity; beside llama.cpp if given
    Lm(Box<lm::LmOptions>),
    /// Time decisions: by query length, alone and in company, cached, and beside a full-depth f32 pass
    Router {
        #[command(flatten)]
        router: RouterOptions,
        /// Repetitions of each measurement
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(3..=10_000))]
        repeat: u32,
        /// How to print the report
        #[arg(long, default_value = "text")]
        format: Format,
    },
}

/// Query lengths that are timed, in tokens.
const LENGTHS: [usize; 6] = [8, 16, 32, 64, 128, 512];
/// Tokens of the queries of the throughput measurement: a short query.
const SHORT: usize = 16;
/// Queries that are routed together.
const TOGETHER: usize = 16;
/// Tokens of the query that the full-depth pass reads.
const FULL_DEPTH: usize = 32;
/// Full-depth passes; each takes a good part of a second.
const FULL_DEPTH_REPEAT: u32 = 5;
/// Cached lookups that are timed.
const LOOKUPS: usize = 20_000;

/// What was measured; times in microseconds.
#[derive(Debug, Serialize)]
struct Report {
    router_version: String,
    model: String,
    cores: usize,
    /// One decision at a time, by length.
    decisions: Vec<Timed>,
    /// Sixteen short queries, one at a time and in one pass, in queries a second.
    one_at_a_time_per_second: f64,
    together_per_second: f64,
    together_ratio: f64,
    /// A decision found in the cache: normalisation, key and lookup.
    cached: Timed,
    /// The prompt of Octopus v4 and a query of 32 tokens through all layers in f32 without a prompt cache, as the
    /// paper's router computes a decision.
    full_depth_f32: Timed,
    /// That, divided by this router's decision for the same query.
    full_depth_f32_ratio: f64,
}

#[derive(Debug, Clone, Serialize)]
struct Timed {
    tokens: usize,
    n: usize,
    p50_us: f64,
    p95_us: f64,
}

impl Timed {
    fn new(tokens: usize, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        Self {
            tokens,
            n: times.len(),
            p50_us: at(0.5),
            p95_us: at(0.95),
        }
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let settings = config.load()?.settings;
    let (router, repeat, format) = match &arguments.command {
        Command::Lm(options) => return lm::print(&lm::measure(options, &settings)?, options.format),
        Command::Router {
            router,
            repeat,
            format,
        } => (router, repeat, format),
    };
    let report = measure(router, &settings, *repeat)?;
    match format {
        Format::Text => print(&report),
        Format::Json => print_json(&report),
    }
}

fn measure(options: &RouterOptions, settings: &Settings, repeat: u32) -> Result<Report, Failure> {
    let router = options.load(settings)?;
    let full = load_f32(options.model(), settings)?;
    let texts = Texts::new(&full)?;
    let mut decisions = Vec::new();
    for tokens in LENGTHS {
        let mut times = Vec::new();
        for repetition in 0..repeat as usize + 1 {
            let query = texts.of(tokens, repetition)?;
            let start = Instant::now();
            router.route(&[&query])?;
            times.push(start.elapsed());
        }
        times.remove(0); // the first pays for cold caches
        decisions.push(Timed::new(tokens, times));
    }
    let queries = (0..TOGETHER)
        .map(|i| texts.of(SHORT, i))
        .collect::<Result<Vec<_>, _>>()?;
    let query = texts.of(SHORT, 0)?;
    let routing = router.route(&[&query])?.pop();
    let routing = routing.ok_or_else(|| Failure::new("the router returned nothing".to_owned()))?;
    let cached = cached_lookup(router.version(), &query, routing, LOOKUPS)?;
    let (alone, together) = throughput(&router, &queries, repeat)?;
    let full_depth_f32 = full_depth(&full, &texts.of(FULL_DEPTH, 0)?)?;
    let own = decisions.iter().find(|timed| timed.tokens == FULL_DEPTH);
    Ok(Report {
        router_version: router.version().to_owned(),
        model: full.info().name.clone(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        full_depth_f32_ratio: own.map_or(0.0, |own| full_depth_f32.p50_us / own.p50_us.max(1e-3)),
        decisions,
        one_at_a_time_per_second: alone,
        together_per_second: together,
        together_ratio: together / alone.max(1e-9),
        cached: Timed::new(SHORT, cached),
        full_depth_f32,
    })
}

fn load_f32(options: &ModelOptions, settings: &Settings) -> Result<LanguageModel, Failure> {
    let model = options.settings(settings)?;
    let load = LoadOptions {
        quantization: Quantization::F32,
        ..model.load.clone()
    };
    Ok(LanguageModel::load(&fetch(&model.spec)?, &load)?)
}

/// Queries a second, one after another and in one pass; medians.
fn throughput(router: &Router, queries: &[String], repeat: u32) -> Result<(f64, f64), Failure> {
    let all: Vec<&str> = queries.iter().map(String::as_str).collect();
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    // Taken in turns, so that a busy moment of the machine meets both.
    for _ in 0..(repeat / 3).max(3) {
        let start = Instant::now();
        for query in &all {
            router.route(&[query])?;
        }
        alone.push(start.elapsed());
        let start = Instant::now();
        router.route(&all)?;
        together.push(start.elapsed());
    }
    let rate = |times| all.len() as f64 / (Timed::new(SHORT, times).p50_us * 1e-6).max(1e-9);
    Ok((rate(alone), rate(together)))
}

/// The paper's way: prompt and query through every layer, then the vocabulary, nothing cached.
fn full_depth(model: &LanguageModel, query: &str) -> Result<Timed, Failure> {
    let message = |role, content: &str| ChatMessage {
        role,
        content: content.to_owned(),
    };
    let tokens = model.encode_chat(&[message(Role::System, PROMPT), message(Role::User, query)], true)?;
    let mut times = Vec::new();
    for _ in 0..=FULL_DEPTH_REPEAT {
        let mut cache = model.new_cache(None, tokens.len())?;
        let start = Instant::now();
        model.forward(&mut [Step {
            cache: &mut cache,
            tokens: &tokens,
            adapter: None,
            wants_logits: true,
        }])?;
        times.push(start.elapsed());
    }
    times.remove(0);
    Ok(Timed::new(FULL_DEPTH, times))
}

/// Queries of any length, cut from the shipped ones laid end to end.
struct Texts<'a> {
    model: &'a LanguageModel,
    tokens: Vec<u32>,
}

impl<'a> Texts<'a> {
    fn new(model: &'a LanguageModel) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Row {
            query: String,
        }
        let mut text = String::new();
        for line in include_str!("../../data/demo_queries.jsonl").lines() {
            let row: Row = serde_json::from_str(line)
                .map_err(|error| Failure::new(format!("the shipped queries: {error}")))?;
            text += &row.query;
            text += " ";
        }
        let tokens = model.encode(&text, false)?;
        Ok(Self { model, tokens })
    }

    /// About `count` tokens; another text for each `index`.
    fn of(&self, count: usize, index: usize) -> Result<String, Failure> {
        let start = index * 37;
        let tokens: Vec<u32> = self
            .tokens
            .iter()
            .cycle()
            .skip(start)
            .take(count)
            .copied()
            .collect();
        Ok(self.model.decode(&tokens)?)
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let milliseconds = |us: f64| format!("{:.2} ms", us / 1e3);
    let rows: Vec<Vec<String>> = report
        .decisions
        .iter()
        .map(|timed| {
            vec![
                timed.tokens.to_string(),
                milliseconds(timed.p50_us),
                milliseconds(timed.p95_us),
            ]
        })
        .collect();
    print_table(&["query tokens", "p50", "p95"], &rows)?;
    let mut out = stdout();
    writeln!(
        out,
        "\ncached decision      p50 {:.1} us, p95 {:.1} us",
        report.cached.p50_us, report.cached.p95_us
    )?;
    writeln!(
        out,
        "throughput           {:.0} queries/s one at a time, {:.0} in passes of {TOGETHER} ({:.2} times)",
        report.one_at_a_time_per_second, report.together_per_second, report.together_ratio
    )?;
    writeln!(
        out,
        "full depth in f32    {} for {FULL_DEPTH} tokens, {:.1} times this router's",
        milliseconds(report.full_depth_f32.p50_us),
        report.full_depth_f32_ratio
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_from_the_sorted_times() {
        let timed = Timed::new(8, (1..=100).rev().map(Duration::from_micros).collect());
        assert_eq!((timed.n, timed.p50_us, timed.p95_us), (100, 50.0, 95.0));
        let one = Timed::new(8, vec![Duration::from_micros(7)]);
        assert_eq!((one.p50_us, one.p95_us), (7.0, 7.0));
    }
}
