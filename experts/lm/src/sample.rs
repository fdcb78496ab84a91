//! Choosing the next token.
//!
//! Order as in Hugging Face transformers and vLLM: temperature, then top-k, then top-p over what is
//! left. The random stream is ChaCha8, which gives the same numbers on every machine for a seed.

use crate::kernels::{Level, summarise};
use crate::{LmError, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[cfg(test)]
mod tests;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep only the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens with this mass; 1 keeps all.
    pub top_p: f32,
    /// Seed of the random stream.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Highest temperature allowed, as in the OpenAI API.
    pub const MAX_TEMPERATURE: f32 = 2.0;

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`LmError::Invalid`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let invalid = |field, value: f32, fix: &str| {
            Err(LmError::Invalid {
                field,
                value: value.to_string(),
                fix: fix.to_owned(),
            })
        };
        if !(0.0..=Self::MAX_TEMPERATURE).contains(&self.temperature) {
            return invalid("temperature", self.temperature, "use 0 (greedy) to 2");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return invalid(
                "top_p",
                self.top_p,
                "use more than 0 and at most 1 (1 keeps all tokens)",
            );
        }
        Ok(())
    }
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability under the model's own distribution (temperature 1, no
    /// token left out).
    pub log_probability: f32,
}

/// Chooses the tokens of one answer.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    random: ChaCha8Rng,
}

/// Candidates sorted at first when the nucleus is looked for; eight times as many at each further try.
const FIRST_CANDIDATES: usize = 256;

impl Sampler {
    /// A sampler at the start of its random stream.
    ///
    /// # Errors
    /// [`LmError::Invalid`] for parameters out of range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        Ok(Self {
            params,
            random: ChaCha8Rng::seed_from_u64(params.seed),
        })
    }

    /// Chooses a token given the logits over the vocabulary. Ties go to the lower id.
    ///
    /// # Errors
    /// [`LmError::Invalid`] if a logit is NaN or +∞, or none is finite: the model is broken.
    pub fn choose(&mut self, logits: &[f32]) -> Result<Choice> {
        let broken = |value: &str| LmError::Invalid {
            field: "logits",
            value: value.to_owned(),
            fix: "the model's arithmetic overflowed or its weights are damaged: fetch them again".to_owned(),
        };
        let summary = summarise(Level::best(), logits);
        if summary.is_broken {
            let bad = logits
                .iter()
                .find(|logit| logit.is_nan() || **logit == f32::INFINITY);
            return Err(broken(&bad.map_or_else(String::new, f32::to_string)));
        }
        let max = summary.largest;
        if max == f32::NEG_INFINITY {
            return Err(broken("no finite value"));
        }
        let likeliest = logits.iter().position(|logit| *logit == max).unwrap_or(0);
        let log_total = f64::from(summary.total).ln();
        let token = if self.params.temperature == 0.0 {
            likeliest
        } else {
            self.draw(logits, max)
        };
        let logit = logits.get(token).copied().unwrap_or(max);
        Ok(Choice {
            token: token as u32,
            log_probability: (f64::from(logit - max) - log_total) as f32,
        })
    }

    fn draw(&mut self, logits: &[f32], max: f32) -> usize {
        let temperature = f64::from(self.params.temperature);
        let weight = |&logit: &f32| (f64::from(logit - max) / temperature).exp();
        let weighted = logits.iter().map(weight).enumerate();
        // One number a token, whatever the parameters, keeps streams comparable between them.
        let point: f64 = self.random.random();
        let keeps_all_k = self.params.top_k == 0 || self.params.top_k >= logits.len();
        if keeps_all_k && self.params.top_p >= 1.0 {
            let kept: Vec<(usize, f64)> = weighted.collect();
            return pick(&kept, point);
        }
        let mut kept: Vec<(usize, f64)> = weighted.filter(|(_, weight)| *weight > 0.0).collect();
        if !keeps_all_k && self.params.top_k < kept.len() {
            kept.select_nth_unstable_by(self.params.top_k - 1, likelier);
            kept.truncate(self.params.top_k);
        }
        let size = nucleus(&mut kept, f64::from(self.params.top_p));
        kept.truncate(size);
        pick(&kept, point)
    }
}

/// Likelier first, then the lower id.
fn likelier(a: &(usize, f64), b: &(usize, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Sorts the head of `kept` and returns how many of it make up at least `top_p` of the whole mass.
/// Sorting a whole vocabulary for each token would cost more than a layer of a small model.
fn nucleus(kept: &mut [(usize, f64)], top_p: f64) -> usize {
    let wanted = top_p * kept.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut candidates = FIRST_CANDIDATES.min(kept.len());
    loop {
        if candidates < kept.len() {
            kept.select_nth_unstable_by(candidates, likelier);
        }
        let (head, _) = kept.split_at_mut(candidates);
        head.sort_unstable_by(likelier);
        let mut mass = 0.0;
        for (index, (_, weight)) in head.iter().enumerate() {
            mass += weight;
            if mass >= wanted {
                return index + 1;
            }
        }
        if candidates == kept.len() {
            return candidates;
        }
        candidates = (candidates * 8).min(kept.len());
    }
}

/// The token under `point` (0 to 1) of the mass of `kept`.
fn pick(kept: &[(usize, f64)], point: f64) -> usize {
    let mut left = point * kept.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut chosen = 0;
    for (token, weight) in kept.iter().filter(|(_, weight)| *weight > 0.0) {
        chosen = *token;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    chosen
}
