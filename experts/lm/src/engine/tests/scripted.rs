//! A model that answers by rule, in single bytes.
//!
//! The prompt `abc:` is answered `abc` and the end of the turn. With `*` in front it is repeated for
//! ever, with `%` every token is as likely as any other. `!` fails a step, `?` panics in it, `~`
//! gives NaN.

use super::super::scheduler::{Backend, Row};
use super::super::{GenerateRequest, SamplingParams};
use crate::tokenize::Tokenizer;
use crate::tokenize::tests::TINY;
use crate::{LmError, Result};
use std::sync::{Arc, Mutex};

/// What the model was asked for.
#[derive(Clone, Default)]
pub(super) struct Log {
    steps: Arc<Mutex<Vec<Vec<usize>>>>,
}

impl Log {
    /// For each step the tokens of each row.
    pub(super) fn steps(&self) -> Vec<Vec<usize>> {
        self.steps.lock().unwrap().clone()
    }
}

pub(super) struct Scripted {
    log: Log,
}

impl Scripted {
    pub(super) fn new(log: &Log) -> Self {
        Self { log: log.clone() }
    }
}

/// A greedy request for at most 64 tokens.
pub(super) fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: TINY.encode(prompt, false).unwrap(),
        shared_prefix: 0,
        max_new_tokens: 64,
        sampling: SamplingParams::default(),
        stop: Vec::new(),
        adapter: None,
        deadline: None,
    }
}

impl Backend for Scripted {
    type Cache = Vec<u32>;
    type Prefix = Vec<u32>;

    fn tokenizer(&self) -> &Tokenizer {
        &TINY
    }

    fn kv_bytes(&self, tokens: usize) -> usize {
        tokens
    }

    fn new_cache(&self, prefix: Option<&Vec<u32>>, _capacity: usize) -> Result<Vec<u32>> {
        Ok(prefix.cloned().unwrap_or_default())
    }

    fn to_prefix(&self, cache: &Vec<u32>, tokens: &[u32]) -> Result<Vec<u32>> {
        assert_eq!(&cache[..tokens.len()], tokens);
        Ok(tokens.to_vec())
    }

    fn forward(&self, rows: Vec<Row<'_, Vec<u32>>>) -> Result<Vec<Option<Vec<f32>>>> {
        self.log
            .steps
            .lock()
            .unwrap()
            .push(rows.iter().map(|row| row.tokens.len()).collect());
        let mut answers = Vec::new();
        for row in rows {
            let text = TINY.decode(row.tokens).unwrap();
            if text.contains('!') {
                return Err(LmError::Tokenizer("scripted failure".to_owned()));
            }
            assert!(!text.contains('?'), "scripted panic");
            row.cache.extend_from_slice(row.tokens);
            answers.push(row.wants_logits.then(|| logits(row.cache)));
        }
        Ok(answers)
    }
}

fn logits(cache: &[u32]) -> Vec<f32> {
    let letter = |text: &str| TINY.token_id(text).unwrap();
    let colon = cache.iter().position(|token| *token == letter(":")).unwrap();
    let (question, answered) = (&cache[..colon], cache.len() - colon - 1);
    let mut logits = vec![0.0; TINY.vocabulary()];
    if question.first() == Some(&letter("%")) {
        return logits;
    }
    if question.contains(&letter("~")) {
        return vec![f32::NAN; TINY.vocabulary()];
    }
    let next = match question.split_first() {
        Some((star, rest)) if *star == letter("*") => rest.get(answered % rest.len()),
        _ => question.get(answered),
    };
    logits[next.map_or(1, |token| *token as usize)] = 12.0;
    logits
}
