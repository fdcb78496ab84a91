//! How a text is cut into words, and how numbers and units are read from them: one spelling for what means the same, and two
//! for what does not (`.5` and `5`, `1,5` and `15`, `-8` and `8`).

use super::words;

/// A word without the marks around it (a number keeps its sign and its point); both halves of a word that a slash or a plus
/// joins, unless it holds digits or is a unit.
pub(super) fn parts(word: &str) -> impl Iterator<Item = &str> {
    let is_mark = |c: char| !(c.is_alphanumeric() || matches!(c, '%' | '°' | 'µ' | 'μ'));
    let is_whole =
        word.contains(|c: char| c.is_ascii_digit()) || joined_unit(word.trim_matches(is_mark)).is_some();
    word.split(move |c: char| !is_whole && matches!(c, '/' | '+' | '(' | ')' | ';' | '—' | '–'))
        .map(move |part| {
            let bare = part
                .trim_end_matches(is_mark)
                .trim_start_matches(|c| is_mark(c) && !is_sign(c));
            match bare
                .trim_start_matches(is_sign)
                .starts_with(|c: char| c.is_ascii_digit())
            {
                true => bare,
                false => bare.trim_start_matches(is_mark),
            }
        })
        .filter(|part| !part.is_empty())
}

/// What may stand before a number and belong to it.
fn is_sign(c: char) -> bool {
    matches!(c, '-' | '−' | '.')
}

/// A number with the point and the sign that stand right before it.
pub(super) fn signed(before: &str, number: &str) -> String {
    let (head, point) = match before.strip_suffix('.') {
        Some(head) => (head, "0."),
        None => (before, ""),
    };
    // Behind another number it is a range.
    let minus = if matches!(head, "-" | "−") { "-" } else { "" };
    format!("{minus}{point}{number}")
}

/// One spelling for one number: without the commas of thousands, zeros before it, and zeros behind its point.
pub(super) fn canonical(number: &str) -> String {
    let groups: Vec<&str> = number.split(',').collect();
    let are_thousands = groups.len() > 1 && groups.iter().skip(1).all(|group| group.len() == 3);
    let plain = if are_thousands {
        groups.concat()
    } else {
        number.to_owned()
    };
    plain.parse::<f64>().map_or(plain, |value| value.to_string())
}

/// Where the number at the start of `text` ends: points, commas, slashes and colons belong to it between digits.
pub(super) fn number_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is_digit = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_digit);
    let mut end = 0;
    while is_digit(end) || (bytes.get(end).is_some_and(|b| b".,/:".contains(b)) && is_digit(end + 1)) {
        end += 1;
    }
    end
}

/// Whether a number before "M" or "F" is an age; higher ones are degrees Fahrenheit.
pub(super) fn is_age(number: &str) -> bool {
    number.parse::<u8>().is_ok_and(|age| age < 95)
}

/// The unit that the words behind a number say: "mg", "mg per day", "year-old".
pub(super) fn following_unit(next: &[&str]) -> Option<String> {
    // A heart rate and magnesium come next, not hours and milligrams.
    if matches!(next.first(), Some(&("HR" | "Mg"))) {
        return None;
    }
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
pub(super) fn joined_unit(word: &str) -> Option<String> {
    let word = word.to_lowercase();
    if let Some(unit) = words::unit(&word) {
        return Some(unit.to_owned());
    }
    let word = word.strip_suffix("-old").unwrap_or(&word);
    let units: Option<Vec<&str>> = word.split('/').map(words::unit).collect();
    units.map(|units| units.join("/"))
}
