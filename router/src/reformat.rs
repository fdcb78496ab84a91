//! Reformatting: the router goes on decoding the chosen expert's argument, a clearer wording of the query.
//!
//! Octopus v4 (arXiv 2404.19296) writes `<nexa_i>('reformatted query')<nexa_end>`: after the functional token comes its
//! argument. Here the expert is chosen by the read-out (see [`crate::functional`]), so the assistant's turn begins with the
//! chosen token, written out as text, and the model only completes the argument, through a low-rank adapter that was trained
//! on such pairs. [`prompt`] and [`argument`] are the two ends of that; whoever owns an engine generates in between.
//!
//! A better-worded query that lost a dose is worse than a badly worded one, so what the model writes is held against the
//! original by [`facts`]: numbers with their units, drug names, negations and sides must be the same. If one is not, the
//! original goes on unchanged, and the [`Outcome`] says why.

pub mod facts;
mod numbers;
mod words;

use crate::RouterError;
use crate::dataset::{Reader, Record, blank, string_or_integer};
use crate::functional::{EXPERT_END, PROMPT};
use referral_lm::LanguageModel;
use referral_lm::tokenize::single_turn;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Most tokens of an argument.
pub const MAX_TOKENS: usize = 128;

/// Queries longer than this (bytes) are not reformatted: they say enough, and each token costs a step.
pub const MAX_QUERY_BYTES: usize = 600;

/// The adapter that ships in the binary (SmolLM2-135M-Instruct).
pub const SHIPPED_ADAPTER: &[u8] = include_bytes!("../data/reformat/reformat.safetensors");

/// What became of an attempt to reformat: a closed set, for decisions and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The expert gets the new wording beside the original.
    Accepted,
    /// The new wording is the old one.
    Unchanged,
    /// The query is longer than [`MAX_QUERY_BYTES`].
    TooLong,
    /// The model's text is not `('…')`, or it never came to its end.
    Unparsed,
    /// A number is lost or new.
    Number,
    /// A number has another unit.
    Unit,
    /// A drug name is lost or new.
    Drug,
    /// A negation is lost, new, or of something else.
    Negation,
    /// Left or right is lost or new.
    Side,
    /// It speaks of something else.
    Content,
    /// There was no time for it.
    Deadline,
    /// The model failed.
    Failed,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Accepted,
        Self::Unchanged,
        Self::TooLong,
        Self::Unparsed,
        Self::Number,
        Self::Unit,
        Self::Drug,
        Self::Negation,
        Self::Side,
        Self::Content,
        Self::Deadline,
        Self::Failed,
    ];

    /// Its name in decisions, log and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Unchanged => "unchanged",
            Self::TooLong => "too_long",
            Self::Unparsed => "unparsed",
            Self::Number => "number",
            Self::Unit => "unit",
            Self::Drug => "drug",
            Self::Negation => "negation",
            Self::Side => "side",
            Self::Content => "content",
            Self::Deadline => "deadline",
            Self::Failed => "failed",
        }
    }
}

/// A query and the same in better words, for training and measuring.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Pair {
    /// Identifies it within its file.
    #[serde(deserialize_with = "string_or_integer")]
    pub id: String,
    /// Whom the query is for.
    pub expert: String,
    /// As it was written.
    pub query: String,
    /// In better words.
    pub reformatted: String,
}

impl Record for Pair {
    fn fault(&self) -> Option<String> {
        [
            ("id", &self.id),
            ("expert", &self.expert),
            ("query", &self.query),
            ("reformatted", &self.reformatted),
        ]
        .into_iter()
        .find_map(|(field, text)| blank(field, text))
    }
}

impl Pair {
    /// The rows of a file (JSON lines, gzip is recognised).
    ///
    /// # Errors
    /// [`RouterError`] naming the file, and the line of a bad row; a file without rows is refused too.
    pub fn read(path: &Path) -> Result<Vec<Self>, RouterError> {
        let pairs = Reader::<Self>::open(path)?.collect::<Result<Vec<_>, _>>()?;
        if pairs.is_empty() {
            return Err(RouterError::BadFile {
                path: path.to_owned(),
                what: "a file of pairs",
                detail: "it has no rows: write {id, expert, query, reformatted}, one a line".to_owned(),
            });
        }
        Ok(pairs)
    }
}

/// The tokens after which the model writes the argument for `expert`, and how many of them are the same for every query.
///
/// # Errors
/// The tokenizer's.
pub fn prompt(model: &LanguageModel, expert: &str, query: &str) -> Result<(Vec<u32>, usize), RouterError> {
    let mut tokens = model.encode_chat(&single_turn(Some(PROMPT), query), true)?;
    let other = model.encode_chat(&single_turn(Some(PROMPT), "\u{1}"), true)?;
    let shared = tokens.iter().zip(&other).take_while(|(a, b)| a == b).count();
    tokens.extend(model.encode(&call(expert), false)?);
    Ok((tokens, shared))
}

/// What a training row teaches the model to write.
pub fn completion(expert: &str, argument: &str) -> String {
    format!("{}{argument}')", call(expert))
}

fn call(expert: &str) -> String {
    format!("<{expert}>('")
}

/// The argument in what the model wrote behind [`prompt`]: up to the last `')`, apostrophes and line breaks allowed
/// (white space becomes single blanks). `None` if that is missing or empty.
pub fn argument(written: &str) -> Option<String> {
    let written = written.strip_suffix(EXPERT_END).unwrap_or(written);
    let (argument, rest) = written.rsplit_once("')")?;
    let argument = argument.split_whitespace().collect::<Vec<_>>().join(" ");
    // Two calls are no argument.
    let is_one = !argument.contains("')<") && !argument.contains("') <");
    (rest.trim().is_empty() && is_one && !argument.is_empty()).then_some(argument)
}

/// Judges what the model wrote for `original`: the new wording, if it may be used, and what became of it.
pub fn judge(original: &str, written: &str) -> (Outcome, Option<String>) {
    let Some(argument) = argument(written) else {
        return (Outcome::Unparsed, None);
    };
    if argument == original.split_whitespace().collect::<Vec<_>>().join(" ") {
        return (Outcome::Unchanged, None);
    }
    match facts::compare(original, &argument) {
        Ok(()) => (Outcome::Accepted, Some(argument)),
        Err(difference) => (difference.outcome(), None),
    }
}

/// What the expert is asked: always the original, with the new wording beside it.
pub fn beside(original: &str, argument: &str) -> String {
    format!("{original}\n\nIn other words: {argument}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_goes_to_the_last_quote_and_bracket() {
        assert_eq!(
            argument("What is the patient's dose?')").unwrap(),
            "What is the patient's dose?"
        );
        assert_eq!(argument("a ('b')\nc')<expert_end>").unwrap(), "a ('b') c");
        assert_eq!(argument("a')\n").unwrap(), "a");
        for bad in ["", "')", "no end", "ends'", "a') and more", "a')<b>('a')"] {
            assert_eq!(argument(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_taught_completion_is_parsed_back() {
        let taught = completion("oncology", "Is the patient's nodule 4 mm?");
        assert_eq!(taught, "<oncology>('Is the patient's nodule 4 mm?')");
        let written = taught.strip_prefix("<oncology>('").unwrap();
        assert_eq!(argument(written).unwrap(), "Is the patient's nodule 4 mm?");
    }

    #[test]
    fn what_lost_a_fact_is_not_used() {
        let original = "pt on warfarin 5mg, INR 4.2, no bleeding";
        let good =
            "The patient takes warfarin 5 mg and the INR is 4.2 with no bleeding. What should be done?";
        assert_eq!(
            judge(original, &format!("{good}')")),
            (Outcome::Accepted, Some(good.to_owned()))
        );
        assert_eq!(judge(original, &format!("{original}')")).0, Outcome::Unchanged);
        assert_eq!(judge(original, good).0, Outcome::Unparsed);
        let bad = good.replace("5 mg", "50 mg");
        assert_eq!(judge(original, &format!("{bad}')")), (Outcome::Number, None));
    }

    #[test]
    fn outcomes_have_names_of_their_own() {
        let names: std::collections::HashSet<&str> = Outcome::ALL.iter().map(|o| o.as_str()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
    }
}
