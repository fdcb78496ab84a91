//! Question and answer rows to packed batches of tokens.
//!
//! A row is put as the engine puts a query: [`single_turn`] through the model's chat template, then
//! the answer and the token that ends a turn. Only the answer and that token are learnt. Rows of a
//! batch are packed one after another without padding.

use crate::tokenize::{Tokenizer, single_turn};
use crate::{LmError, Result};
use flate2::read::MultiGzDecoder;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

/// What is read of a line of the data file.
#[derive(Debug, Clone)]
pub(super) struct Row {
    question: String,
    answer: String,
    /// System prompt of this row, instead of the options' ones.
    system: Option<String>,
}

/// Names of a row's fields, and which rows are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RowFields {
    /// Field with the question.
    pub question: String,
    /// Field with the answer.
    pub answer: String,
    /// Only rows whose field of the first name is the second text are read; all of these must hold.
    pub only: Vec<(String, String)>,
}

impl Default for RowFields {
    fn default() -> Self {
        Self {
            question: "question".to_owned(),
            answer: "answer".to_owned(),
            only: Vec::new(),
        }
    }
}

impl RowFields {
    /// The row on a line; `None` for one that is not to be read. The error says what the line lacks.
    fn row(&self, line: &str) -> Result<Option<Row>, String> {
        let line: serde_json::Map<String, Value> =
            serde_json::from_str(line).map_err(|error| error.to_string())?;
        let text = |field: &str| match line.get(field) {
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            None | Some(Value::Null) => Ok(None),
            Some(other) => Err(format!("field `{field}` is {other}, not a text")),
        };
        let needed = |field: &str| text(field)?.ok_or_else(|| format!("missing field `{field}`"));
        for (field, wanted) in &self.only {
            if needed(field)? != wanted {
                return Ok(None);
            }
        }
        Ok(Some(Row {
            question: tidy(needed(&self.question)?),
            answer: tidy(needed(&self.answer)?),
            system: text("system")?.map(str::to_owned),
        }))
    }
}

/// Reads JSON lines (`.gz`: compressed) and tidies white space.
pub(super) fn read_rows(path: &Path, fields: &RowFields) -> Result<Vec<Row>> {
    let io = |source| LmError::Io {
        path: path.to_owned(),
        source,
    };
    let bad = |detail| LmError::BadFile {
        path: path.to_owned(),
        what: "training rows",
        detail,
    };
    let file = File::open(path).map_err(io)?;
    let reader: Box<dyn Read> = match path.extension().is_some_and(|extension| extension == "gz") {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    };
    let mut rows = Vec::new();
    for (index, line) in BufReader::new(reader).lines().enumerate() {
        let line = line.map_err(io)?;
        if line.trim().is_empty() {
            continue;
        }
        let row = fields.row(&line).map_err(|error| {
            bad(format!(
                "line {}: {error}; expected {{\"{}\": .., \"{}\": ..}}",
                index + 1,
                fields.question,
                fields.answer
            ))
        })?;
        rows.extend(row.filter(|row| !row.question.is_empty() && !row.answer.is_empty()));
    }
    if rows.is_empty() {
        let only = fields
            .only
            .iter()
            .map(|(field, wanted)| format!(" where {field} is {wanted:?}"));
        let only = only.collect::<Vec<_>>().join(" and");
        return Err(bad(format!(
            "it holds no row with a question and an answer{only}"
        )));
    }
    Ok(rows)
}

/// Single blanks between words, none before a punctuation mark that ends a word. Line breaks stay.
fn tidy(text: &str) -> String {
    let mut tidied = String::with_capacity(text.len());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !tidied.is_empty() {
            tidied.push('\n');
        }
        for (index, word) in line.split_whitespace().enumerate() {
            let mark = matches!(word, "," | "." | ":" | ";" | "?" | "!" | ")");
            if index > 0 && !mark {
                tidied.push(' ');
            }
            tidied.push_str(word);
        }
    }
    tidied
}

/// One row as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) tokens: Vec<u32>,
    /// Where the answer begins.
    pub(super) answer: usize,
}

/// Turns rows into sequences.
pub(super) struct Encoder<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// System prompts from which each row takes one; empty: no system prompt.
    pub(super) systems: &'a [String],
    pub(super) max_tokens: usize,
}

impl Encoder<'_> {
    /// The row's tokens, at most `max_tokens`. A longer answer is cut after the last sentence that
    /// fits, so that the model learns to end; if not one fits, it is cut anywhere and has no end.
    /// `None` if the question leaves less than a quarter of the tokens to the answer.
    pub(super) fn encode(&self, row: &Row, random: &mut ChaCha8Rng) -> Result<Option<Sequence>> {
        let system = match (&row.system, self.systems) {
            (Some(system), _) => Some(system.as_str()),
            (None, []) => None,
            (None, systems) => Some(systems[random.random_range(0..systems.len())].as_str()),
        };
        let mut tokens = self
            .tokenizer
            .encode_chat(&single_turn(system, &row.question), true)?;
        if tokens.is_empty() || tokens.len() > self.max_tokens * 3 / 4 {
            return Ok(None);
        }
        let answer = tokens.len();
        let room = self.max_tokens - answer;
        let mut text = row.answer.as_str();
        loop {
            let encoded = self.tokenizer.encode_answer(text)?;
            if encoded.len() <= room {
                tokens.extend(encoded);
                break;
            }
            // A guess of what fits, from the tokens that this text took.
            let bytes = text.len() * room / encoded.len();
            let Some(shorter) = whole_sentences(text, bytes) else {
                tokens.extend(&encoded[..room]);
                break;
            };
            text = shorter;
        }
        Ok(Some(Sequence { tokens, answer }))
    }
}

/// The longest prefix of at most `bytes` that ends a sentence and is shorter than the text.
fn whole_sentences(text: &str, bytes: usize) -> Option<&str> {
    let ends = text
        .char_indices()
        .zip(text.chars().skip(1))
        .filter_map(|((at, mark), next)| {
            (matches!(mark, '.' | '?' | '!') && next.is_whitespace()).then_some(at + 1)
        });
    ends.take_while(|&end| end <= bytes)
        .last()
        .map(|end| &text[..end])
}

/// Sequences packed together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    /// Position of each token within its row.
    pub(super) positions: Vec<usize>,
    /// Tokens of each row.
    pub(super) rows: Vec<Range<usize>>,
    /// Tokens to predict.
    pub(super) targets: Vec<u32>,
    /// The token after which each target comes.
    pub(super) predicted_from: Vec<u32>,
    sequences: Vec<Sequence>,
}

impl Batch {
    pub(super) fn push(&mut self, sequence: Sequence) {
        let start = self.tokens.len();
        self.tokens.extend(&sequence.tokens);
        self.positions.extend(0..sequence.tokens.len());
        self.rows.push(start..self.tokens.len());
        for at in sequence.answer..sequence.tokens.len() {
            self.targets.push(sequence.tokens[at]);
            self.predicted_from.push((start + at - 1) as u32);
        }
        self.sequences.push(sequence);
    }

    /// Splits the rows into at most `parts` batches of about as many tokens: the longest row first,
    /// each to the part with the fewest so far.
    pub(super) fn split(&self, parts: usize) -> Vec<Self> {
        let mut order: Vec<&Sequence> = self.sequences.iter().collect();
        order.sort_by_key(|sequence| std::cmp::Reverse(sequence.tokens.len()));
        let mut split = vec![Self::default(); parts.min(order.len())];
        for sequence in order {
            if let Some(part) = split.iter_mut().min_by_key(|part| part.tokens.len()) {
                part.push(sequence.clone());
            }
        }
        split
    }
}

/// An endless stream of batches: pass after pass over the rows, each in an order drawn from the
/// seed. The same arguments give the same stream, so a run resumes by skipping what it has seen.
pub(super) struct Feed<'a> {
    rows: &'a [Row],
    encoder: Encoder<'a>,
    random: ChaCha8Rng,
    order: Vec<usize>,
    /// A row that did not fit the last batch.
    held: Option<Sequence>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(rows: &'a [Row], encoder: Encoder<'a>, seed: u64) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self {
            rows,
            encoder,
            random,
            order: Vec::new(),
            held: None,
        }
    }

    /// The next rows whose tokens are at most `batch_tokens` together (or a single longer row).
    pub(super) fn batch(&mut self, batch_tokens: usize) -> Result<Batch> {
        let mut batch = Batch::default();
        loop {
            let sequence = match self.held.take() {
                Some(sequence) => sequence,
                None => self.sequence()?,
            };
            if !batch.rows.is_empty() && batch.tokens.len() + sequence.tokens.len() > batch_tokens {
                self.held = Some(sequence);
                return Ok(batch);
            }
            batch.push(sequence);
        }
    }

    fn sequence(&mut self) -> Result<Sequence> {
        let mut refused = 0;
        loop {
            if self.order.is_empty() {
                self.order = (0..self.rows.len()).collect();
                self.order.shuffle(&mut self.random);
            }
            let row = self.order.pop().and_then(|index| self.rows.get(index));
            if let Some(row) = row
                && let Some(sequence) = self.encoder.encode(row, &mut self.random)?
            {
                return Ok(sequence);
            }
            refused += 1;
            if refused > 2 * self.rows.len() {
                return Err(LmError::Invalid {
                    field: "max_tokens",
                    value: self.encoder.max_tokens.to_string(),
                    fix: "no row's question leaves a quarter of it to the answer: raise it".into(),
                });
            }
        }
    }
}

/// Batches of `count` rows chosen by the seed (all of them if there are fewer), for measuring.
pub(super) fn sample(
    rows: &[Row],
    encoder: &Encoder<'_>,
    count: usize,
    batch_tokens: usize,
    seed: u64,
) -> Result<Vec<Batch>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.shuffle(&mut random);
    let mut sequences = Vec::new();
    for index in order {
        if sequences.len() == count {
            break;
        }
        sequences.extend(encoder.encode(&rows[index], &mut random)?);
    }
    let mut batches: Vec<Batch> = Vec::new();
    for sequence in sequences {
        match batches.last_mut() {
            Some(batch) if batch.tokens.len() + sequence.tokens.len() <= batch_tokens => batch.push(sequence),
            _ => {
                let mut batch = Batch::default();
                batch.push(sequence);
                batches.push(batch);
            }
        }
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tidies_white_space_only() {
        assert_eq!(
            tidy("  Signs : fever ,  pain .\n\n dose  .5 mg "),
            "Signs: fever, pain.\ndose .5 mg"
        );
    }

    #[test]
    fn cuts_after_whole_sentences() {
        let text = "One is. Two are? 3.5 mg more. Four.";
        assert_eq!(whole_sentences(text, 100), Some("One is. Two are? 3.5 mg more."));
        assert_eq!(whole_sentences(text, 28), Some("One is. Two are?"));
        assert_eq!(whole_sentences(text, 6), None);
        assert_eq!(whole_sentences("Ærø. Å", 7), Some("Ærø."));
    }

    #[test]
    fn packs_rows_side_by_side() {
        let mut batch = Batch::default();
        batch.push(Sequence {
            tokens: vec![5, 6, 7, 8],
            answer: 2,
        });
        batch.push(Sequence {
            tokens: vec![9, 10],
            answer: 1,
        });
        assert_eq!(batch.rows, [0..4, 4..6]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 0, 1]);
        assert_eq!(batch.targets, [7, 8, 10]);
        assert_eq!(batch.predicted_from, [1, 2, 4]);
    }

    #[test]
    fn splits_rows_evenly_and_loses_none() {
        let mut batch = Batch::default();
        for length in [2, 9, 4, 5, 3] {
            batch.push(Sequence {
                tokens: vec![7; length],
                answer: 1,
            });
        }
        let lengths = |batch: &Batch| batch.rows.iter().map(Range::len).collect::<Vec<_>>();
        let split: Vec<_> = batch.split(2).iter().map(lengths).collect();
        assert_eq!(split, [vec![9, 3], vec![5, 4, 2]]);
        assert_eq!(batch.split(9).len(), 5);
    }

    #[test]
    fn names_the_line_of_a_bad_row() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.jsonl");
        std::fs::write(
            &path,
            "{\"question\": \"a\", \"answer\": \"b\"}\n{\"question\": 3}\n",
        )
        .unwrap();
        let fields = RowFields::default();
        let error = read_rows(&path, &fields).unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("field `question` is 3"),
            "{error}"
        );
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(read_rows(&path, &fields), Err(LmError::BadFile { .. })));
    }

    #[test]
    fn fields_may_have_other_names_and_rows_may_be_left_out() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let rows = [
            r#"{"q": "a", "a": "b", "expert": "x"}"#,
            r#"{"q": "c", "a": "d", "expert": "y"}"#,
        ];
        std::fs::write(&path, rows.join("\n")).unwrap();
        let fields = |wanted: &str| RowFields {
            question: "q".to_owned(),
            answer: "a".to_owned(),
            only: vec![("expert".to_owned(), wanted.to_owned())],
        };
        let read = read_rows(&path, &fields("y")).unwrap();
        assert_eq!(
            read.iter().map(|row| row.answer.as_str()).collect::<Vec<_>>(),
            ["d"]
        );
        let error = read_rows(&path, &fields("z")).unwrap_err().to_string();
        assert!(error.contains("where expert is \"z\""), "{error}");
        std::fs::write(&path, r#"{"q": "a", "a": "b"}"#).unwrap();
        let error = read_rows(&path, &fields("y")).unwrap_err().to_string();
        assert!(error.contains("line 1: missing field `expert`"), "{error}");
    }
}
