//! The closed word lists that [`super::facts`] knows: units, numbers as words, negations, sides, drugs.

use std::collections::HashSet;
use std::sync::LazyLock;

/// Names of drugs and drug classes, one a line; written for this project.
static DRUGS: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("../../data/reformat/drugs.txt").lines().collect());

/// Endings of international nonproprietary names, for those that the list lacks.
const DRUG_ENDINGS: [&str; 43] = [
    "olol",
    "pril",
    "prilat",
    "sartan",
    "statin",
    "dipine",
    "azole",
    "mycin",
    "micin",
    "cillin",
    "cycline",
    "floxacin",
    "prazole",
    "triptan",
    "setron",
    "gliptin",
    "gliflozin",
    "glutide",
    "mab",
    "tinib",
    "parin",
    "xaban",
    "gatran",
    "caine",
    "barbital",
    "azepam",
    "oxetine",
    "triptyline",
    "coxib",
    "thiazide",
    "semide",
    "lukast",
    "phylline",
    "solone",
    "dronate",
    "platin",
    "rubicin",
    "taxel",
    "ciclib",
    "fibrate",
    "glitazone",
    "penem",
    "ciclovir",
];

/// Whether a lower-case word names a drug or a class of drugs. Some words that do not are taken for one (they must then
/// survive as well, which does no harm); a drug that neither the list nor an ending knows is missed.
pub(super) fn is_drug(word: &str) -> bool {
    let has_ending = || word.len() >= 6 && DRUG_ENDINGS.iter().any(|ending| word.ends_with(ending));
    DRUGS.contains(word) || has_ending()
}

/// The unit that a lower-case word stands for.
pub(super) fn unit(word: &str) -> Option<&'static str> {
    Some(match word {
        "mg" | "mgs" | "milligram" | "milligrams" => "mg",
        "mcg" | "µg" | "μg" | "ug" | "microgram" | "micrograms" | "mcgs" => "mcg",
        "ng" | "nanogram" | "nanograms" => "ng",
        "g" | "gram" | "grams" | "gm" => "g",
        "kg" | "kgs" | "kilo" | "kilos" | "kilogram" | "kilograms" => "kg",
        "ml" | "mls" | "millilitre" | "millilitres" | "milliliter" | "milliliters" => "ml",
        "l" | "litre" | "litres" | "liter" | "liters" => "l",
        "dl" => "dl",
        "mmol" | "mmols" | "millimole" | "millimoles" => "mmol",
        "micromol" | "umol" | "µmol" | "μmol" => "umol",
        "iu" | "unit" | "units" | "u" => "unit",
        "meq" => "meq",
        "%" | "percent" => "%",
        "mmhg" => "mmhg",
        "mm" | "millimetre" | "millimetres" | "millimeter" | "millimeters" => "mm",
        "cm" | "cms" | "centimetre" | "centimetres" | "centimeter" | "centimeters" => "cm",
        "bpm" => "bpm",
        "°c" | "c" | "celsius" => "celsius",
        "f" | "°f" | "fahrenheit" => "fahrenheit",
        "sec" | "secs" | "second" | "seconds" => "second",
        "min" | "mins" | "minute" | "minutes" => "minute",
        "h" | "hr" | "hrs" | "hour" | "hours" | "hourly" => "hour",
        "d" | "day" | "days" => "day",
        "wk" | "wks" | "week" | "weeks" => "week",
        "mo" | "mos" | "mth" | "mths" | "month" | "months" => "month",
        "y" | "yr" | "yrs" | "year" | "years" | "yo" | "y/o" => "year",
        "tab" | "tabs" | "tablet" | "tablets" => "tablet",
        "puff" | "puffs" => "puff",
        "drop" | "drops" | "gtt" => "drop",
        _ => return None,
    })
}

/// The digits of a number written as a word. "One" is left out: it is a pronoun more often than a number.
pub(super) fn number(word: &str) -> Option<&'static str> {
    Some(match word {
        "two" => "2",
        "three" => "3",
        "four" => "4",
        "five" => "5",
        "six" => "6",
        "seven" => "7",
        "eight" => "8",
        "nine" => "9",
        "ten" => "10",
        "eleven" => "11",
        "twelve" => "12",
        "twenty" => "20",
        "thirty" => "30",
        "half" => "half",
        "twice" | "bd" | "bid" => "twice",
        "thrice" | "tds" | "tid" => "thrice",
        "qds" | "qid" => "four times",
        _ => return None,
    })
}

/// How often, in words that stand for themselves.
pub(super) fn frequency(word: &str) -> Option<&'static str> {
    Some(match word {
        "daily" | "nocte" => "daily",
        "weekly" | "wkly" => "weekly",
        "monthly" => "monthly",
        "alternate" | "qod" => "alternate",
        _ => return None,
    })
}

/// Left, right or both. A piece in its own letters, because one capital is a side and a small letter is not.
pub(super) fn side(piece: &str, word: &str) -> Option<&'static str> {
    Some(match (piece, word) {
        ("L" | "Lt" | "LT", _) | (_, "left" | "left-sided") => "left",
        ("R" | "Rt" | "RT", _) | (_, "right" | "right-sided") => "right",
        (_, "bilateral" | "bilaterally" | "both") => "both",
        _ => return None,
    })
}

/// Signs of "less" (`<`) and "more" (`>`) in a text, in their order; words for them count before a number.
pub(super) fn comparisons(text: &str) -> Vec<char> {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split_whitespace().collect();
    let is_number = |place: usize| {
        words
            .get(place)
            .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut found = Vec::new();
    for (place, word) in words.iter().enumerate() {
        found.extend(word.chars().filter_map(|c| match c {
            '<' | '≤' => Some('<'),
            '>' | '≥' => Some('>'),
            _ => None,
        }));
        let compares =
            is_number(place + 1) || (words.get(place + 1) == Some(&"than") && is_number(place + 2));
        match *word {
            "less" | "under" | "below" | "fewer" if compares => found.push('<'),
            "more" | "over" | "above" | "greater" | "exceeding" if compares => found.push('>'),
            _ => {}
        }
    }
    found
}

/// Whether a lower-case word negates what follows.
pub(super) fn is_negation(word: &str) -> bool {
    const WORDS: [&str; 24] = [
        "no", "not", "never", "without", "none", "nil", "denies", "denied", "denying", "deny", "negative",
        "neg", "neither", "nor", "cannot", "cant", "wont", "dont", "doesnt", "didnt", "isnt", "unable",
        "nobody", "nothing",
    ];
    WORDS.contains(&word) || word.ends_with("n't") || word.ends_with("n’t")
}

/// Abbreviations that hold a negation, whose expansions say it.
pub(super) fn is_hidden_negation(word: &str) -> bool {
    const WORDS: [&str; 9] = [
        "nkda", "nka", "nbm", "npo", "afebrile", "dnr", "dnacpr", "dnar", "nad",
    ];
    WORDS.contains(&word)
}

/// Words between a negation and what it negates.
pub(super) fn is_filler(word: &str) -> bool {
    const WORDS: [&str; 34] = [
        "a", "an", "the", "any", "had", "have", "has", "having", "been", "is", "be", "are", "was", "were",
        "to", "of", "on", "in", "at", "for", "with", "and", "or", "known", "sign", "signs", "evidence",
        "history", "hx", "previous", "other", "more", "my", "yet",
    ];
    WORDS.contains(&word)
}
