//! `referral bench lm`: speed, memory and perplexity of the local engine, beside llama.cpp's where it is at hand.
//!
//! All forms of the weights and all of llama.cpp's files are measured in turns, round after round, so that a busy
//! moment of the machine meets them all; what is reported are medians. Both read the same prompts' lengths on the
//! same number of threads, and score the same windows of the same text.

use super::super::failure::Failure;
use super::super::options::ModelOptions;
use super::super::output::{Format, print_json, print_table, stdout};
use super::llama::{Peer, PeerOptions, PeerReport};
use crate::config::Settings;
use clap::{Args, ValueEnum};
use referral_lm::fetch::fetch;
use referral_lm::load::{LoadOptions, Quantization};
use referral_lm::model::{KvCache, Step};
use referral_lm::sample::{Sampler, SamplingParams};
use referral_lm::{LanguageModel, compute_threads, instructions};
use serde::Serialize;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Prompt lengths that are timed.
pub(super) const PROMPTS: [usize; 3] = [32, 128, 512];
/// Tokens that are generated.
pub(super) const GENERATED: usize = 64;
/// Sequences decoded together.
const STREAMS: usize = 8;
/// Tokens of the text that are read together; the second half of each window is scored, as llama.cpp does.
pub(super) const WINDOW: usize = 512;

/// Arguments of `referral bench lm`.
#[derive(Debug, Args)]
pub(super) struct LmOptions {
    #[command(flatten)]
    model: ModelOptions,
    /// Forms of the weights to measure, separated by commas; the default is the model's own setting
    #[arg(long, value_name = "FORM", value_delimiter = ',')]
    quantization: Vec<Form>,
    /// Rounds in which everything is measured once; medians are reported
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Text file whose perplexity is measured
    #[arg(long, value_name = "FILE")]
    perplexity_data: Option<PathBuf>,
    /// Windows of 512 tokens of that text to read at most
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    perplexity_windows: u32,
    #[command(flatten)]
    peer: PeerOptions,
    /// How to print the report
    #[arg(long, default_value = "text")]
    pub(super) format: Format,
}

/// A form that weights can be held in, by its name in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
enum Form {
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    #[serde(rename = "q4_1")]
    Q4_1,
    #[value(name = "q4_k")]
    Q4K,
    F32,
    AsIs,
}

impl Form {
    const ALL: [(Self, Quantization); 6] = [
        (Self::Q8_0, Quantization::Q8_0),
        (Self::Q4_0, Quantization::Q4_0),
        (Self::Q4_1, Quantization::Q4_1),
        (Self::Q4K, Quantization::Q4K),
        (Self::F32, Quantization::F32),
        (Self::AsIs, Quantization::AsIs),
    ];

    fn of(quantization: Quantization) -> Option<Self> {
        let is_it = |(form, q)| (q == quantization).then_some(form);
        Self::ALL.into_iter().find_map(is_it)
    }

    fn quantization(self) -> Quantization {
        let is_it = |(form, q)| (form == self).then_some(q);
        Self::ALL.into_iter().find_map(is_it).unwrap_or_default()
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Tokens a second for a prompt of a length.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Prefill {
    pub(super) tokens: usize,
    pub(super) tokens_per_second: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: String,
    file: PathBuf,
    /// Of the engine and of llama.cpp.
    threads: usize,
    /// Vector instructions that the engine's kernels use.
    instructions: &'static str,
    rounds: u32,
    /// Scored tokens of the text, if one was given.
    perplexity_tokens: usize,
    forms: Vec<FormReport>,
    llama_cpp: Vec<PeerReport>,
    /// The fastest form divided by llama.cpp's fastest file.
    ratios: Option<Ratios>,
}

#[derive(Debug, Serialize)]
struct FormReport {
    quantization: Form,
    load_seconds: f64,
    /// Weights in memory.
    weight_bytes: usize,
    /// Keys and values of eight streams of 65 tokens.
    kv_bytes: usize,
    /// What the process grew by when the model was loaded and those streams ran; Linux only.
    resident_bytes: Option<usize>,
    /// That, divided by weights and keys and values.
    memory_ratio: Option<f64>,
    prefill: Vec<Prefill>,
    decode_tokens_per_second: f64,
    /// Eight streams decoded together.
    streams_tokens_per_second: f64,
    /// That, divided by one stream.
    streams_ratio: f64,
    perplexity: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Ratios {
    decode: f64,
    prefill_512: f64,
}

/// A form under measurement.
struct Subject {
    form: Form,
    model: LanguageModel,
    report: FormReport,
    prefill: Vec<Vec<f64>>,
    decode: Vec<f64>,
    streams: Vec<f64>,
}

pub(super) fn measure(options: &LmOptions, settings: &Settings) -> Result<Report, Failure> {
    let chosen = options.model.settings(settings)?;
    let file = fetch(&chosen.spec)?;
    let forms = if options.quantization.is_empty() {
        Form::of(chosen.load.quantization).into_iter().collect()
    } else {
        options.quantization.clone()
    };
    let threads = compute_threads();
    let mut peers = options.peer.open(&file, threads)?;
    let mut subjects = forms
        .into_iter()
        .map(|form| {
            let load = LoadOptions {
                quantization: form.quantization(),
                ..chosen.load.clone()
            };
            Subject::load(form, &file, &load)
        })
        .collect::<Result<Vec<_>, _>>()?;
    for _ in 0..options.rounds {
        subjects.iter_mut().try_for_each(Subject::round)?;
        peers.iter_mut().try_for_each(Peer::round)?;
    }
    let mut perplexity_tokens = 0;
    if let Some(data) = &options.perplexity_data {
        let text = std::fs::read_to_string(data)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", data.display())))?;
        let windows = options.perplexity_windows as usize;
        for subject in &mut subjects {
            let (perplexity, tokens) = perplexity(&subject.model, &text, windows)?;
            (subject.report.perplexity, perplexity_tokens) = (Some(perplexity), tokens);
        }
        for peer in &mut peers {
            peer.perplexity(data, windows)?;
        }
    }
    let model = subjects
        .first()
        .map_or_else(String::new, |s| s.model.info().name.clone());
    let forms: Vec<FormReport> = subjects.into_iter().map(Subject::finish).collect();
    let llama_cpp: Vec<PeerReport> = peers.into_iter().map(Peer::finish).collect();
    Ok(Report {
        model,
        file,
        threads,
        instructions: instructions(),
        rounds: options.rounds,
        perplexity_tokens,
        ratios: ratios(&forms, &llama_cpp),
        forms,
        llama_cpp,
    })
}

fn ratios(forms: &[FormReport], peers: &[PeerReport]) -> Option<Ratios> {
    let most = |rates: &mut dyn Iterator<Item = f64>| rates.reduce(f64::max);
    let longest = |prefill: &[Prefill]| prefill.last().map_or(0.0, |p| p.tokens_per_second);
    let decode = most(&mut forms.iter().map(|f| f.decode_tokens_per_second))?;
    let prefill = most(&mut forms.iter().map(|f| longest(&f.prefill)))?;
    Some(Ratios {
        decode: decode / most(&mut peers.iter().map(|p| p.decode_tokens_per_second))?.max(1e-9),
        prefill_512: prefill / most(&mut peers.iter().map(|p| longest(&p.prefill)))?.max(1e-9),
    })
}

impl Subject {
    fn load(form: Form, file: &Path, load: &LoadOptions) -> Result<Self, Failure> {
        let before = resident_bytes();
        let start = Instant::now();
        let model = LanguageModel::load(file, load)?;
        let load_seconds = start.elapsed().as_secs_f64();
        // Caches are full when memory is looked at; the pass warms up, too.
        let mut caches = (0..STREAMS)
            .map(|_| model.new_cache(None, GENERATED + 1))
            .collect::<Result<Vec<_>, _>>()?;
        decode(&model, &mut caches)?;
        let resident = resident_bytes()
            .zip(before)
            .map(|(now, before)| now.saturating_sub(before));
        let weight_bytes = model.info().weight_bytes;
        let kv_bytes = STREAMS * model.kv_bytes(GENERATED + 1);
        let report = FormReport {
            quantization: form,
            load_seconds,
            weight_bytes,
            kv_bytes,
            resident_bytes: resident,
            memory_ratio: resident.map(|resident| resident as f64 / (weight_bytes + kv_bytes) as f64),
            prefill: Vec::new(),
            decode_tokens_per_second: 0.0,
            streams_tokens_per_second: 0.0,
            streams_ratio: 0.0,
            perplexity: None,
        };
        Ok(Self {
            form,
            model,
            report,
            prefill: vec![Vec::new(); PROMPTS.len()],
            decode: Vec::new(),
            streams: Vec::new(),
        })
    }

    /// Measures everything once.
    fn round(&mut self) -> Result<(), Failure> {
        let vocabulary = self.model.info().vocabulary;
        for (length, rates) in PROMPTS.into_iter().zip(&mut self.prefill) {
            let tokens: Vec<u32> = (0..length)
                .map(|i| ((1000 + 7 * i) % vocabulary) as u32)
                .collect();
            let mut cache = self.model.new_cache(None, length)?;
            let start = Instant::now();
            self.model.forward(&mut [step(&mut cache, &tokens)])?;
            rates.push(length as f64 / start.elapsed().as_secs_f64());
        }
        for (streams, rates) in [(1, &mut self.decode), (STREAMS, &mut self.streams)] {
            let mut caches = (0..streams)
                .map(|_| self.model.new_cache(None, GENERATED + 1))
                .collect::<Result<Vec<_>, _>>()?;
            let start = Instant::now();
            decode(&self.model, &mut caches)?;
            rates.push((streams * GENERATED) as f64 / start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn finish(self) -> FormReport {
        let prefill = PROMPTS.into_iter().zip(self.prefill);
        let decode = median(self.decode);
        let streams = median(self.streams);
        FormReport {
            quantization: self.form,
            prefill: prefill
                .map(|(tokens, rates)| Prefill {
                    tokens,
                    tokens_per_second: median(rates),
                })
                .collect(),
            decode_tokens_per_second: decode,
            streams_tokens_per_second: streams,
            streams_ratio: streams / decode.max(1e-9),
            ..self.report
        }
    }
}

fn step<'a>(cache: &'a mut KvCache, tokens: &'a [u32]) -> Step<'a> {
    Step {
        cache,
        tokens,
        adapter: None,
        wants_logits: true,
    }
}

/// Generates [`GENERATED`] tokens for each cache, greedily, all caches in one pass a token.
fn decode(model: &LanguageModel, caches: &mut [KvCache]) -> Result<(), Failure> {
    let mut sampler = Sampler::new(SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    })?;
    // Streams of their own, as different requests would be.
    let mut last: Vec<u32> = (0..caches.len() as u32).map(|i| 1 + i).collect();
    for _ in 0..GENERATED {
        let rows = caches.iter_mut().zip(&last);
        let mut steps: Vec<Step<'_>> = rows
            .map(|(cache, token)| step(cache, std::slice::from_ref(token)))
            .collect();
        let logits = model.forward(&mut steps)?;
        for (token, logits) in last.iter_mut().zip(logits) {
            *token = sampler.choose(&logits.unwrap_or_default())?.token;
        }
    }
    Ok(())
}

/// Perplexity of the second halves of up to `windows` windows, and how many tokens those are.
fn perplexity(model: &LanguageModel, text: &str, windows: usize) -> Result<(f64, usize), Failure> {
    let tokens = model.encode(text, false)?;
    let (mut total, mut count) = (0.0, 0);
    for window in tokens.chunks_exact(WINDOW).take(windows) {
        let (given, scored) = window.split_at(WINDOW / 2);
        let scores = model.log_probabilities(given, scored, None)?;
        total += scores.iter().map(|p| f64::from(*p)).sum::<f64>();
        count += scores.len();
    }
    if count == 0 {
        let message = format!("the text has {} tokens: perplexity needs {WINDOW}", tokens.len());
        return Err(Failure::new(message));
    }
    Ok(((-total / count as f64).exp(), count))
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Resident memory of this process; `None` where the system doesn't say.
fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

pub(super) fn print(report: &Report, format: Format) -> Result<(), Failure> {
    if matches!(format, Format::Json) {
        return print_json(report);
    }
    let mut out = stdout();
    writeln!(
        out,
        "{}, {} threads, {}, medians of {} rounds, tokens a second\n",
        report.model, report.threads, report.instructions, report.rounds
    )?;
    drop(out);
    let rate = |rate: f64| format!("{rate:.0}");
    let line = |name: String, prefill: &[Prefill], decode: f64, rest: [String; 3]| {
        let prefill = prefill.iter().map(|p| rate(p.tokens_per_second));
        [name]
            .into_iter()
            .chain(prefill)
            .chain([rate(decode)])
            .chain(rest)
            .collect()
    };
    let mebibytes = |bytes: usize| format!("{} MiB", bytes >> 20);
    let perplexity = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |p| format!("{p:.3}"));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for form in &report.forms {
        let streams = format!(
            "{:.0} ({:.2}x)",
            form.streams_tokens_per_second, form.streams_ratio
        );
        let memory = match (form.resident_bytes, form.memory_ratio) {
            (Some(resident), Some(ratio)) => format!("{} ({ratio:.2}x)", mebibytes(resident)),
            _ => mebibytes(form.weight_bytes + form.kv_bytes),
        };
        let rest = [streams, memory, perplexity(form.perplexity)];
        rows.push(line(
            form.quantization.name(),
            &form.prefill,
            form.decode_tokens_per_second,
            rest,
        ));
    }
    for peer in &report.llama_cpp {
        let rest = ["-".to_owned(), "-".to_owned(), perplexity(peer.perplexity)];
        rows.push(line(
            format!("llama.cpp {}", peer.name),
            &peer.prefill,
            peer.decode_tokens_per_second,
            rest,
        ));
    }
    print_table(
        &[
            "weights",
            "prefill 32",
            "128",
            "512",
            "decode",
            "8 streams",
            "memory",
            "perplexity",
        ],
        &rows,
    )?;
    if let Some(ratios) = &report.ratios {
        writeln!(
            stdout(),
            "\nfastest form against llama.cpp's fastest file: decode {:.2} times, prefill of 512 {:.2} times",
            ratios.decode,
            ratios.prefill_512
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ignore_the_outlier() {
        assert_eq!(median(vec![3.0, 1.0, 900.0]), 3.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn every_form_has_its_name_in_the_configuration() {
        for (form, quantization) in Form::ALL {
            assert_eq!(form.quantization(), quantization);
            assert_eq!(Form::of(quantization), Some(form));
            let json = serde_json::to_value(form).unwrap();
            assert_eq!(json, form.name());
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("c.yaml");
            let text = format!(
                "version: 1\nmodels: {{ smollm2-135m-instruct: {{ quantization: {} }} }}",
                form.name()
            );
            std::fs::write(&file, text).unwrap();
            let settings = crate::config::load(Some(&file), &crate::config::Variables::new())
                .unwrap()
                .settings;
            let model = settings.models.values().next().unwrap();
            assert_eq!(model.load.quantization, quantization);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_in_memory() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
