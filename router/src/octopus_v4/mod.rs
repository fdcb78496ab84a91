//! The published Octopus v4 (arXiv 2404.19296) as a router: a Phi-3 whose vocabulary has a token for each of 17 functions.
//!
//! The query goes under the checkpoint's own prompt ([`prompt`]). The function is a single-token softmax: of the logits at the
//! first generated position only those of the functional tokens count, and their probabilities are summed over the
//! functions that the configuration maps to one expert. What the tokens have of the whole vocabulary's
//! probability is `in_scope`; where another token is likelier than each of them, the model would not call a function at
//! all, and the router abstains. The probabilities are the model's own: they are not calibrated.
//!
//! The argument, a reworded query, costs a pass for each token and is written only when it is asked for
//! ([`OctopusV4::call`]): greedily, up to `<nexa_end>` or 200 tokens, and read by [`parse`].

pub mod parse;
pub mod prompt;

use crate::functional::{Routing, Window};
use crate::graph::Decider;
use crate::{RouterError, calibrate, dataset, digest};
use parse::Call;
use referral_lm::load::DeviceSpec;
use referral_lm::phi3::Phi3;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the functional tokens `<nexa_0>` to `<nexa_16>` stand for.
pub const FUNCTIONS: [&str; 17] = [
    "physics",
    "chemistry",
    "biology",
    "computer_science",
    "math",
    "electrical_engineering",
    "history",
    "philosophy",
    "law",
    "politics",
    "culture",
    "economics",
    "geography",
    "psychology",
    "business",
    "health",
    "general",
];
/// The function for everything else.
pub const GENERAL: usize = 16;
/// Ends a call; 32041 in the published checkpoint.
pub const END: &str = "<nexa_end>";
/// Most tokens of a call.
const MOST_GENERATED: usize = 200;
/// Tokens of a long query that are read.
const WINDOW: Window = Window { head: 512, tail: 512 };
/// Room for the prompt's own tokens.
const FRAME: usize = 128;
/// Bytes of each file that tell one checkpoint from another.
const FINGERPRINT: u64 = 1 << 20;
const WHAT: &str = "Octopus v4";

/// A loaded Octopus v4.
pub struct OctopusV4 {
    model: Phi3,
    /// Ids of the functional tokens.
    functions: [u32; 17],
    end: u32,
    /// Begins every sequence, if the vocabulary has it.
    begin: Option<u32>,
    experts: Vec<String>,
    /// The place in `experts` of each function's.
    places: [usize; 17],
    version: String,
}

impl OctopusV4 {
    /// Loads a GGUF file or a Hugging Face directory. `experts` are whom the functions, in the order of [`FUNCTIONS`], are
    /// mapped to; one expert may have several.
    ///
    /// # Errors
    /// [`RouterError::Lm`] and [`RouterError::BadFile`] name a file that is missing, corrupt, no Phi-3 or without the tokens.
    pub fn load(path: &Path, device: DeviceSpec, experts: &[String; 17]) -> Result<Self, RouterError> {
        let model = Phi3::load(path, device, FRAME + WINDOW.head + WINDOW.tail + MOST_GENERATED)?;
        let id = |token: &str| {
            model.tokenizer().token_id(token).ok_or_else(|| RouterError::BadFile {
                path: path.to_owned(),
                what: WHAT,
                detail: format!("its vocabulary has no token {token}: give the weights and the tokenizer of Octopus v4"),
            })
        };
        let mut functions = [0; 17];
        for (function, slot) in functions.iter_mut().enumerate() {
            *slot = id(&format!("<nexa_{function}>"))?;
        }
        let mut known: Vec<String> = experts.to_vec();
        known.sort();
        known.dedup();
        let place = |name: &String| known.iter().position(|other| other == name).unwrap_or_default();
        Ok(Self {
            functions,
            end: id(END)?,
            begin: model.tokenizer().token_id("<s>"),
            places: experts.each_ref().map(place),
            version: version(path, experts)?,
            experts: known,
            model,
        })
    }

    /// The function that the model calls, and the query as it would put it to the expert. Greedy; as many passes as tokens.
    /// What cannot be read as a call is one of the function `general`. Blocking compute.
    ///
    /// # Errors
    /// If the arithmetic fails.
    pub fn call(&self, query: &str) -> Result<Call, RouterError> {
        let (tokens, _) = self.tokens(&dataset::normalise(query))?;
        let mut decoding = self.model.start(&tokens)?;
        let mut written = Vec::new();
        while written.len() < MOST_GENERATED {
            let next = likeliest(decoding.logits())?;
            written.push(next);
            if next == self.end {
                break;
            }
            decoding.read(&[next])?;
        }
        let text = self.model.tokenizer().decode_whole(&written)?;
        Ok(parse::parse(&text).unwrap_or_else(Call::general))
    }

    /// The prompt's tokens, and whether the middle of the query is missing. Normalised query.
    fn tokens(&self, query: &str) -> Result<(Vec<u32>, bool), RouterError> {
        let tokenizer = self.model.tokenizer();
        let (before, after) = (prompt::before(), prompt::AFTER);
        let most = WINDOW.head + WINDOW.tail;
        let mut tokens: Vec<u32> = self.begin.into_iter().collect();
        // A token is at least one byte.
        let whole = if query.len() > most {
            tokenizer.encode(query, false)?
        } else {
            Vec::new()
        };
        let is_long = whole.len() > most;
        if is_long {
            tokens.extend(tokenizer.encode(&before, true)?);
            tokens.extend(WINDOW.cut(whole));
            tokens.extend(tokenizer.encode(after, true)?);
        } else {
            tokens.extend(tokenizer.encode_within(&before, query, after)?);
        }
        Ok((tokens, is_long))
    }

    /// What the logits behind the prompt say.
    fn routing(&self, logits: &[f32], windowed: bool, started: Instant) -> Result<Routing, RouterError> {
        let next = likeliest(logits)?;
        let index = |id: &u32| usize::try_from(*id).ok().and_then(|id| logits.get(id)).copied();
        let own: Vec<f32> = self
            .functions
            .iter()
            .map(|id| index(id).unwrap_or(f32::NEG_INFINITY))
            .collect();
        let mut probabilities: Vec<(String, f32)> =
            self.experts.iter().map(|name| (name.clone(), 0.0)).collect();
        for (place, p) in self.places.iter().zip(calibrate::softmax(&own, 1.0)) {
            if let Some((_, sum)) = probabilities.get_mut(*place) {
                *sum += p;
            }
        }
        probabilities.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let out_of_scope = !self.functions.contains(&next);
        Ok(Routing {
            confidence: probabilities.first().map_or(0.0, |(_, p)| p.min(1.0)),
            in_scope: share(&own, logits),
            out_of_scope,
            abstained: out_of_scope,
            probabilities,
            windowed,
            latency: started.elapsed(),
        })
    }
}

impl Decider for OctopusV4 {
    fn experts(&self) -> &[String] {
        &self.experts
    }
    fn version(&self) -> &str {
        &self.version
    }
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        let route = |query: &&str| {
            let started = Instant::now();
            let (tokens, windowed) = self.tokens(&dataset::normalise(query))?;
            self.routing(self.model.start(&tokens)?.logits(), windowed, started)
        };
        queries.iter().map(route).collect()
    }
    fn argument(&self, query: &str) -> Result<Option<String>, RouterError> {
        Ok(self.call(query)?.argument)
    }
}

/// The likeliest token.
fn likeliest(logits: &[f32]) -> Result<u32, RouterError> {
    let best = logits.iter().zip(0_u32..).max_by(|(a, _), (b, _)| a.total_cmp(b));
    let best = best.filter(|(logit, _)| logit.is_finite());
    best.map(|(_, id)| id).ok_or_else(|| RouterError::Invalid {
        field: "logits",
        value: "no number".to_owned(),
        fix: "the weights are corrupt: fetch them again".to_owned(),
    })
}

/// The part of the whole softmax's mass that `own` logits have.
fn share(own: &[f32], all: &[f32]) -> f32 {
    let most = all.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass = |logits: &[f32]| {
        logits
            .iter()
            .map(|logit| f64::from(logit - most).exp())
            .sum::<f64>()
    };
    (mass(own) / mass(all)).clamp(0.0, 1.0) as f32
}

/// Tells checkpoints and mappings apart. The files are gigabytes, and verified when they are fetched: here the beginning of
/// each is read.
fn version(path: &Path, experts: &[String; 17]) -> Result<String, RouterError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RouterError::Io { path, source }
    };
    let mut files: Vec<PathBuf> = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(io(path))?;
        files = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| file.is_file())
            .collect();
        files.sort();
    }
    let mut parts: Vec<Vec<u8>> = experts.iter().map(|name| name.clone().into_bytes()).collect();
    for file in files {
        let opened = std::fs::File::open(&file).map_err(io(&file))?;
        parts.push(opened.metadata().map_err(io(&file))?.len().to_le_bytes().to_vec());
        let mut beginning = Vec::new();
        opened
            .take(FINGERPRINT)
            .read_to_end(&mut beginning)
            .map_err(io(&file))?;
        parts.push(beginning);
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    Ok(digest::hex(&digest::parts(&parts)))
}

#[cfg(test)]
mod tests;
