//! Variations of training queries: the noise of hurried typing, and disease or drug names put into frames that
//! all experts share.
//!
//! Public questions are templates, one set per institute, so a classifier learns the template instead of
//! what is asked about. The same frame around every expert's names breaks that link (data augmentation; the
//! measurements are in the crate's README). Everything is drawn from the caller's generator.

use crate::dataset::Row;
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use std::sync::LazyLock;

/// Frames for a name, one a line, `{}` where it goes.
const TEXT: &str = include_str!("../../data/frames.txt");

/// The frames.
static FRAMES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    TEXT.lines()
        .map(str::trim)
        .filter(|line| line.contains("{}"))
        .collect()
});

/// The name as people write it: without what stands in brackets or behind a colon, often in lower case.
fn spoken(focus: &str, random: &mut ChaCha8Rng) -> String {
    let short = focus.split(['(', ':']).next().unwrap_or(focus).trim();
    let name = if short.len() >= 3 { short } else { focus };
    if random.random_bool(0.6) {
        name.to_lowercase()
    } else {
        name.to_owned()
    }
}

/// A query about the row's focus in a frame that any expert's could stand in; `None` if the row has no focus.
pub(super) fn framed(row: &Row, random: &mut ChaCha8Rng) -> Option<String> {
    let focus = row.focus.as_deref()?;
    let frame = *FRAMES.choose(random)?;
    Some(frame.replace("{}", &spoken(focus, random)))
}

/// The query with one or two of: lower case, capitals, no punctuation, typing errors.
pub(super) fn noisy(query: &str, random: &mut ChaCha8Rng) -> String {
    let mut text = query.to_owned();
    for _ in 0..random.random_range(1..=2) {
        text = match random.random_range(0..8) {
            0..=2 => text.to_lowercase(),
            3 => text.to_uppercase(),
            4 => text
                .chars()
                .filter(|c| !matches!(c, '.' | ',' | '?' | '!' | '\'' | ';'))
                .collect(),
            _ => typing_errors(&text, random),
        };
    }
    match text.trim().is_empty() {
        true => query.to_owned(),
        false => text,
    }
}

/// One letter in about forty is left out, doubled or swapped with the next.
fn typing_errors(text: &str, random: &mut ChaCha8Rng) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut typed = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&letter) = letters.get(at) {
        at += 1;
        if !letter.is_ascii_alphabetic() || !random.random_bool(0.025) {
            typed.push(letter);
            continue;
        }
        match (random.random_range(0..3), letters.get(at)) {
            (0, _) => {}
            (1, Some(&next)) if next.is_ascii_alphabetic() => {
                typed.extend([next, letter]);
                at += 1;
            }
            _ => typed.extend([letter, letter]),
        }
    }
    typed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    fn row(focus: Option<&str>) -> Row {
        Row {
            id: "1".into(),
            query: "What are the symptoms of Proteus syndrome ?".into(),
            expert: "genetics".into(),
            second: None,
            focus: focus.map(str::to_owned),
            scenario: None,
        }
    }

    #[test]
    fn frames_hold_the_name_once() {
        let all = &*FRAMES;
        assert!(all.len() >= 60, "{} frames", all.len());
        for frame in all {
            assert_eq!(frame.matches("{}").count(), 1, "{frame}");
        }
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..50 {
            let text = framed(&row(Some("Proteus syndrome")), &mut random).unwrap();
            assert!(text.to_lowercase().contains("proteus syndrome"), "{text}");
        }
        assert_eq!(framed(&row(None), &mut random), None);
    }

    #[test]
    fn brackets_are_left_out() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let text = spoken("Alkhurma Hemorrhagic Fever (AHF)", &mut random).to_lowercase();
        assert_eq!(text, "alkhurma hemorrhagic fever");
    }

    proptest! {
        #[test]
        fn noise_leaves_something_and_repeats(query in ".{1,80}", seed: u64) {
            prop_assume!(!query.trim().is_empty());
            let vary = || noisy(&query, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert!(!vary().trim().is_empty());
            prop_assert_eq!(vary(), vary());
        }
    }
}
