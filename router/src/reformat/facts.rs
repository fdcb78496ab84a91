//! The facts that a new wording must keep: numbers with their units, drug names, negations, sides.
//!
//! The comparison errs on the side of refusing. It knows words, not meaning: a finding in plain words that is dropped goes
//! unnoticed as long as enough of the query's long words remain.

use super::Outcome;
use super::words::{self, is_drug, is_filler, is_hidden_negation, is_negation};
use std::collections::{BTreeMap, BTreeSet};

/// Letters by which two forms of a word are taken for one.
const STEM: usize = 5;
/// Words before a word among which a negation counts for it.
const NEGATION_REACH: usize = 8;
/// Words of this many letters or more are a query's content.
const LONG_WORD: usize = 7;
/// Share of those that must remain. Lay words give way to a specialist's, typing errors to the right spelling.
const LEAST_REMAINING: f64 = 0.25;

/// The first fact in which two wordings differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// A number is in one only.
    #[error("number {0:?} is lost or new")]
    Number(String),
    /// A number has another unit.
    #[error("number {0:?} has another unit")]
    Unit(String),
    /// A drug is in one only.
    #[error("drug {0:?} is lost or new")]
    Drug(String),
    /// A negation is in one only, or negates something else.
    #[error("the negation of {0:?} is lost or new")]
    Negation(String),
    /// Left, right or both is in one only.
    #[error("side {0:?} is lost or new")]
    Side(&'static str),
    /// Too few of the words remain.
    #[error("it speaks of something else")]
    Content,
}

impl Difference {
    /// What it makes of the attempt.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Number(_) => Outcome::Number,
            Self::Unit(_) => Outcome::Unit,
            Self::Drug(_) => Outcome::Drug,
            Self::Negation(_) => Outcome::Negation,
            Self::Side(_) => Outcome::Side,
            Self::Content => Outcome::Content,
        }
    }
}

/// Holds a new wording against the original.
///
/// # Errors
/// The first fact that is not the same in both.
pub fn compare(original: &str, wording: &str) -> Result<(), Difference> {
    let (before, after) = (Facts::of(original), Facts::of(wording));
    for (number, units) in &before.numbers {
        let Some(now) = after.numbers.get(number) else {
            return Err(Difference::Number(number.clone()));
        };
        if now != units {
            return Err(Difference::Unit(number.clone()));
        }
    }
    let is_new = |number: &&String| !before.numbers.contains_key(*number);
    if let Some(number) = after.numbers.keys().find(is_new) {
        return Err(Difference::Number(number.clone()));
    }
    if let Some(drug) = before.drugs.symmetric_difference(&after.drugs).next() {
        return Err(Difference::Drug(drug.clone()));
    }
    if let Some(side) = before.sides.symmetric_difference(&after.sides).next() {
        return Err(Difference::Side(side));
    }
    before.negations(&after)?;
    before.content(&after)
}

/// What is known of one wording.
#[derive(Default)]
struct Facts {
    /// Lower case, without the marks around them.
    words: Vec<String>,
    /// Number to its units, as often as it stands there with one.
    numbers: BTreeMap<String, BTreeSet<String>>,
    drugs: BTreeSet<String>,
    sides: BTreeSet<&'static str>,
    /// Places of negations in `words`.
    negated: Vec<usize>,
    /// Negations inside abbreviations.
    hidden_negations: usize,
}

impl Facts {
    fn of(text: &str) -> Self {
        let mut facts = Self::default();
        let pieces: Vec<&str> = text.split_whitespace().flat_map(parts).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let word = piece.to_lowercase();
            facts.side(piece, &word);
            facts.numbers_of(piece, pieces.get(index + 1..).unwrap_or_default());
            if is_negation(&word) {
                facts.negated.push(index);
            }
            facts.hidden_negations += usize::from(is_hidden_negation(&word));
            if is_drug(&word) {
                facts.drugs.insert(word.clone());
            }
            facts.words.push(word);
        }
        facts
    }

    fn side(&mut self, piece: &str, word: &str) {
        let side = match (piece, word) {
            ("L" | "Lt" | "LT", _) | (_, "left") => "left",
            ("R" | "Rt" | "RT", _) | (_, "right") => "right",
            (_, "bilateral" | "bilaterally" | "both") => "both",
            _ => return,
        };
        self.sides.insert(side);
    }

    /// The numbers in a piece, with the unit right behind them or as the next word.
    fn numbers_of(&mut self, piece: &str, next: &[&str]) {
        let word = piece.to_lowercase();
        if let Some(number) = words::number(&word) {
            self.number(number, following_unit(next));
            return;
        }
        let mut rest = piece;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, tail) = rest.split_at(start);
            let end = number_end(tail);
            let (number, behind) = tail.split_at(end);
            let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
            let suffix = behind.get(..letters).unwrap_or_default();
            let is_last = letters == behind.len();
            let unit = match (before.to_lowercase().as_str(), suffix) {
                // Every so many hours.
                ("q", "h" | "H" | "hrly") => Some("hour".to_owned()),
                // Vitamins, chromosomes, scores: their digits have no unit.
                (name, _) if name.ends_with(|c: char| c.is_alphabetic()) => None,
                // An age with the sex behind it.
                (_, "M" | "F") if is_age(number) => Some("year".to_owned()),
                (_, "") if is_last && is_age(number) && matches!(next.first(), Some(&("M" | "F"))) => {
                    Some("year".to_owned())
                }
                (_, "") if is_last => following_unit(next),
                (_, suffix) => joined_unit(suffix.trim_start_matches('-')),
            };
            self.number(number, unit);
            rest = behind.get(letters..).unwrap_or_default();
        }
    }

    fn number(&mut self, number: &str, unit: Option<String>) {
        let plain: String = number.chars().filter(|c| *c != ',').collect();
        self.numbers.entry(plain).or_default().extend(unit);
    }

    /// Each negation must stand before the same word again, or at least be one of as many.
    fn negations(&self, after: &Self) -> Result<(), Difference> {
        let count = |facts: &Self| facts.negated.len() + facts.hidden_negations;
        let (before, now) = (count(self), count(after));
        let lost = self.negated.iter().find_map(|place| {
            let target = self.target(*place)?;
            (!after.negates(target)).then(|| target.to_owned())
        });
        match lost {
            Some(target) if now < before => Err(Difference::Negation(target)),
            _ if now > before || (now == 0 && before > 0) => Err(Difference::Negation(
                after
                    .negated
                    .last()
                    .and_then(|place| after.target(*place))
                    .unwrap_or_default()
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// The word that the negation at `place` is about.
    fn target(&self, place: usize) -> Option<&str> {
        let behind = self.words.get(place + 1..)?;
        behind
            .iter()
            .map(String::as_str)
            .find(|word| !is_filler(word) && !word.is_empty())
    }

    /// Whether a negation reaches a form of this word.
    fn negates(&self, target: &str) -> bool {
        self.words
            .iter()
            .enumerate()
            .filter(|(_, word)| same_stem(word, target))
            .any(|(place, _)| {
                self.negated
                    .iter()
                    .any(|negation| *negation < place && place - negation <= NEGATION_REACH)
            })
    }

    /// Enough of the long words must remain.
    fn content(&self, after: &Self) -> Result<(), Difference> {
        let long: BTreeSet<&String> = self
            .words
            .iter()
            .filter(|word| word.chars().count() >= LONG_WORD)
            .collect();
        let remaining = long
            .iter()
            .filter(|word| after.words.iter().any(|other| same_stem(other, word)))
            .count();
        match long.len() {
            // One or two may well all be put into other words.
            0..=2 => Ok(()),
            count if remaining as f64 >= LEAST_REMAINING * count as f64 => Ok(()),
            _ => Err(Difference::Content),
        }
    }
}

/// A word without the marks around it; both halves of a word that a slash or a plus joins, unless it holds digits.
fn parts(word: &str) -> impl Iterator<Item = &str> {
    let is_mark = |c: char| !(c.is_alphanumeric() || matches!(c, '%' | '°' | 'µ' | 'μ'));
    let has_digit = word.contains(|c: char| c.is_ascii_digit());
    word.split(move |c: char| !has_digit && matches!(c, '/' | '+' | '(' | ')' | ';' | '—' | '–'))
        .map(move |part| part.trim_matches(is_mark))
        .filter(|part| !part.is_empty())
}

/// Where the number at the start of `text` ends: points, commas, slashes and colons belong to it between digits.
fn number_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is_digit = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_digit);
    let mut end = 0;
    while is_digit(end) || (bytes.get(end).is_some_and(|b| b".,/:".contains(b)) && is_digit(end + 1)) {
        end += 1;
    }
    end
}

/// Whether a number before "M" or "F" is an age; higher ones are degrees Fahrenheit.
fn is_age(number: &str) -> bool {
    number.parse::<u8>().is_ok_and(|age| age < 95)
}

/// The unit that the words behind a number say: "mg", "mg per day", "year-old".
fn following_unit(next: &[&str]) -> Option<String> {
    let mut unit = joined_unit(next.first()?)?;
    if next.get(1).is_some_and(|word| word.eq_ignore_ascii_case("per"))
        && let Some(more) = next.get(2).and_then(|word| joined_unit(word))
    {
        unit.push('/');
        unit.push_str(&more);
    }
    Some(unit)
}

/// A unit, or several with slashes between them, in one word; `None` if that is no unit.
fn joined_unit(word: &str) -> Option<String> {
    let word = word.to_lowercase();
    if let Some(unit) = words::unit(&word) {
        return Some(unit.to_owned());
    }
    let word = word.strip_suffix("-old").unwrap_or(&word);
    let units: Option<Vec<&str>> = word.split('/').map(words::unit).collect();
    units.map(|units| units.join("/"))
}

fn same_stem(one: &str, other: &str) -> bool {
    let stem = |word: &str| word.chars().take(STEM).collect::<String>();
    stem(one) == stem(other)
}

#[cfg(test)]
mod tests;
