//! The facts that a new wording must keep: numbers with their units, drug names, negations, sides.
//!
//! The comparison errs on the side of refusing. It knows words, not meaning: a finding in plain words that is dropped goes
//! unnoticed as long as enough of the query's long words remain.

use super::Outcome;
use super::numbers::{canonical, following_unit, is_age, joined_unit, number_end, parts, signed};
use super::words::{self, is_drug, is_filler, is_hidden_negation, is_negation};
use std::collections::{BTreeMap, BTreeSet};

/// Letters by which two forms of a word are taken for one.
const STEM: usize = 5;
/// Words before a word among which a negation counts for it.
const NEGATION_REACH: usize = 8;
/// Words behind a side among which is what it is a side of.
const SIDE_REACH: usize = 3;
/// Words of this many letters or more are a query's content.
const LONG_WORD: usize = 7;
/// Share of those that must remain. Lay words give way to a specialist's, typing errors to the right spelling.
const LEAST_REMAINING: f64 = 0.4;

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
    before.numbers(&after)?;
    if let Some(drug) = before.drugs.symmetric_difference(&after.drugs).next() {
        return Err(Difference::Drug(drug.clone()));
    }
    // A dose that went to another drug, or a value to another test: nothing is lost, everything is wrong.
    if before.order != after.order {
        return Err(Difference::Number("the order of numbers and drugs".to_owned()));
    }
    before.sides(&after)?;
    before.negations(&after)?;
    after.negations(&before)?;
    before.abbreviations(&after)?;
    before.content(&after)
}

/// What is known of one wording.
#[derive(Default)]
struct Facts {
    /// Lower case, without the marks around them.
    words: Vec<String>,
    /// As they were written.
    pieces: Vec<String>,
    /// Number to its units, one for each time it stands there (empty: without one), sorted.
    numbers: BTreeMap<String, Vec<String>>,
    drugs: BTreeSet<String>,
    /// In the order in which they stand there: where there are several drugs, these and the numbers with a unit; else the
    /// numbers without one.
    order: Vec<String>,
    /// Signs of "less" and "more", in their order.
    comparisons: Vec<char>,
    /// Places of sides in `words`.
    sides: Vec<(usize, &'static str)>,
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
            if let Some(side) = words::side(piece, &word) {
                facts.sides.push((index, side));
            }
            facts.numbers_of(piece, pieces.get(index + 1..).unwrap_or_default());
            if is_negation(&word) {
                facts.negated.push(index);
            }
            facts.hidden_negations += usize::from(is_hidden_negation(&word));
            if let Some(frequency) = words::frequency(&word) {
                facts.number(frequency, None);
            }
            if is_drug(&word) {
                facts.drugs.insert(word.clone());
                facts.order.push(word.clone());
            }
            facts.words.push(word);
            facts.pieces.push((*piece).to_owned());
        }
        let drugs = &facts.drugs;
        facts.order.retain(|entry| {
            let is_plain = !drugs.contains(entry) && !entry.contains(' ');
            is_plain == (drugs.len() < 2)
        });
        facts.numbers.values_mut().for_each(|units| units.sort_unstable());
        facts.comparisons = words::comparisons(text);
        facts
    }

    /// Each number as often as before, with the same units; the same "less than" and "more than".
    fn numbers(&self, after: &Self) -> Result<(), Difference> {
        for (number, units) in &self.numbers {
            match after.numbers.get(number) {
                Some(now) if now == units => {}
                Some(now) if now.len() == units.len() => return Err(Difference::Unit(number.clone())),
                _ => return Err(Difference::Number(number.clone())),
            }
        }
        let is_new = |number: &&String| !self.numbers.contains_key(*number);
        if let Some(number) = after.numbers.keys().find(is_new) {
            return Err(Difference::Number(number.clone()));
        }
        if self.comparisons != after.comparisons {
            return Err(Difference::Number("a comparison".to_owned()));
        }
        Ok(())
    }

    /// The same sides, and where there are several kinds of them, each before the same word.
    fn sides(&self, after: &Self) -> Result<(), Difference> {
        let kinds = |facts: &Self| facts.sides.iter().map(|(_, side)| *side).collect::<BTreeSet<_>>();
        let (before, now) = (kinds(self), kinds(after));
        if let Some(side) = before.symmetric_difference(&now).next() {
            return Err(Difference::Side(side));
        }
        if before.len() < 2 {
            return Ok(());
        }
        let follows = |place: usize, target: &str| {
            let behind = after.words.iter().skip(place + 1).take(SIDE_REACH);
            behind.into_iter().any(|word| same_stem(word, target))
        };
        let keeps = |(place, side): &&(usize, &'static str)| {
            self.target(*place).is_some_and(|target| {
                let mut same = after.sides.iter().filter(|(_, other)| other == side);
                same.any(|(now, _)| follows(*now, target))
            })
        };
        match self.sides.iter().find(|side| !keeps(side)) {
            Some((_, side)) => Err(Difference::Side(side)),
            None => Ok(()),
        }
    }

    /// The numbers in a piece, with the unit right behind them or as the next word.
    fn numbers_of(&mut self, piece: &str, next: &[&str]) {
        let word = piece.to_lowercase();
        if let Some(number) = words::number(&word) {
            self.number(number, following_unit(next));
            return;
        }
        // Fractions and digits of other scripts stand for themselves.
        for sign in piece.chars().filter(|c| c.is_numeric() && !c.is_ascii_digit()) {
            self.number(&sign.to_string(), None);
        }
        let mut rest = piece;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, tail) = rest.split_at(start);
            let end = number_end(tail);
            let (number, behind) = tail.split_at(end);
            let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
            let suffix = behind.get(..letters).unwrap_or_default();
            let is_last = letters == behind.len();
            let number = signed(before, number);
            let unit = match (before.to_lowercase().as_str(), suffix) {
                // Every so many hours.
                ("q", "h" | "H" | "hrly") => Some("hour".to_owned()),
                ("x", "") if is_last => following_unit(next),
                // Vitamins, chromosomes, scores: their digits have no unit.
                (name, _) if name.ends_with(|c: char| c.is_alphabetic()) => None,
                // An age with the sex behind it.
                (_, "M" | "F") if is_age(&number) => Some("year".to_owned()),
                (_, "") if is_last && is_age(&number) && matches!(next.first(), Some(&("M" | "F"))) => {
                    Some("year".to_owned())
                }
                (_, "") if is_last => following_unit(next),
                (_, suffix) => joined_unit(suffix.trim_start_matches('-')),
            };
            self.number(&number, unit);
            rest = behind.get(letters..).unwrap_or_default();
        }
    }

    fn number(&mut self, number: &str, unit: Option<String>) {
        let plain = canonical(number);
        let unit = unit.unwrap_or_default();
        // With a unit it is a dose or a time, without one a value: see `order`.
        self.order.push(match unit.is_empty() {
            true => plain.clone(),
            false => format!("{plain} {unit}"),
        });
        self.numbers.entry(plain).or_default().push(unit);
    }

    /// As many negations as before; and what was negated is not there without its negation.
    fn negations(&self, after: &Self) -> Result<(), Difference> {
        let count = |facts: &Self| facts.negated.len() + facts.hidden_negations;
        let lost = self.negated.iter().find_map(|place| {
            let target = self.target(*place)?;
            (after.mentions(target) && !after.negates(target)).then(|| target.to_owned())
        });
        if lost.is_some() || count(self) != count(after) {
            return Err(Difference::Negation(lost.unwrap_or_default()));
        }
        Ok(())
    }

    fn mentions(&self, target: &str) -> bool {
        self.words.iter().any(|word| same_stem(word, target))
    }

    /// Abbreviations in capitals remain, or become the words whose initials they are; none is new.
    fn abbreviations(&self, after: &Self) -> Result<(), Difference> {
        let loses = |from: &Self, to: &Self| {
            let capitals: Vec<&String> = from
                .pieces
                .iter()
                .filter(|piece| is_abbreviation(piece))
                .collect();
            // All in capitals is shouting, not abbreviating.
            let is_shouted = capitals.len() * 2 > from.pieces.len();
            !is_shouted
                && capitals.iter().any(|piece| {
                    let piece = piece.to_lowercase();
                    !to.words.contains(&piece) && !to.spells(&piece)
                })
        };
        match loses(self, after) || loses(after, self) {
            true => Err(Difference::Content),
            false => Ok(()),
        }
    }

    /// Whether words in a row have these initials.
    fn spells(&self, letters: &str) -> bool {
        let parts = self.words.iter().flat_map(|word| word.split('-'));
        let initials: String = parts.filter_map(|word| word.chars().next()).collect();
        initials.contains(letters)
    }

    /// The word that the negation at `place` is about.
    fn target(&self, place: usize) -> Option<&str> {
        let behind = self.words.get(place + 1..)?;
        behind.iter().map(String::as_str).find(|word| !is_filler(word))
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

/// Two to six capitals.
fn is_abbreviation(piece: &str) -> bool {
    (2..=6).contains(&piece.len()) && piece.chars().all(|c| c.is_ascii_uppercase())
}

fn same_stem(one: &str, other: &str) -> bool {
    let stem = |word: &str| word.chars().take(STEM).collect::<String>();
    stem(one) == stem(other)
}

#[cfg(test)]
mod tests;
