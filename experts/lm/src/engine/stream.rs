//! The text of one answer: whole characters, cut at stop texts.
//!
//! A stop text may be spread over tokens. What could be its beginning is held back until it is
//! clear whether it is one, so that no part of a stop text ever reaches the caller.

use crate::Result;
use crate::tokenize::{StreamDecoder, Tokenizer};

/// Decodes an answer and watches for stop texts.
pub(super) struct AnswerText {
    decoder: StreamDecoder,
    stop: Vec<String>,
    /// Decoded, but perhaps the beginning of a stop text.
    held: String,
    /// Tokens behind `held` and the decoder's incomplete character.
    tokens: usize,
    has_stopped: bool,
}

/// Text that can be sent, and the tokens it stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) tokens: usize,
    /// A stop text followed: this is the end.
    pub(super) stopped: bool,
}

impl AnswerText {
    pub(super) fn new(tokenizer: Tokenizer, stop: Vec<String>) -> Self {
        Self {
            decoder: StreamDecoder::new(tokenizer),
            stop,
            held: String::new(),
            tokens: 0,
            has_stopped: false,
        }
    }

    /// Takes the next token.
    pub(super) fn push(&mut self, token: u32) -> Result<Piece> {
        self.tokens += 1;
        self.held.push_str(&self.decoder.push(token)?);
        Ok(self.release(false))
    }

    /// The rest of the text; nothing once a stop text came.
    pub(super) fn finish(&mut self) -> Result<Piece> {
        if self.has_stopped {
            return Ok(Piece {
                text: String::new(),
                tokens: 0,
                stopped: true,
            });
        }
        self.held.push_str(&self.decoder.finish()?);
        Ok(self.release(true))
    }

    fn release(&mut self, all: bool) -> Piece {
        if let Some(at) = self
            .stop
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            self.held.truncate(at);
            let text = std::mem::take(&mut self.held);
            self.has_stopped = true;
            return Piece {
                text,
                tokens: std::mem::take(&mut self.tokens),
                stopped: true,
            };
        }
        let keep = if all {
            0
        } else {
            self.stop
                .iter()
                .map(|stop| overlap(&self.held, stop))
                .max()
                .unwrap_or(0)
        };
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, rest);
        let tokens = if text.is_empty() {
            0
        } else {
            std::mem::take(&mut self.tokens)
        };
        Piece {
            text,
            tokens,
            stopped: false,
        }
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(at, _)| at).skip(1);
    starts
        .filter(|length| text.ends_with(&stop[..*length]))
        .last()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenize::tests::TINY;
    use proptest::prelude::*;

    /// Pushes the text byte by byte (every byte is a token), and returns the pieces.
    fn pieces(text: &str, stop: &[&str]) -> (Vec<String>, bool, usize) {
        let mut answer = AnswerText::new(TINY.clone(), stop.iter().map(|&s| s.to_owned()).collect());
        let (mut texts, mut tokens) = (Vec::new(), 0);
        for byte in TINY.encode(text, false).unwrap() {
            let piece = answer.push(byte).unwrap();
            tokens += piece.tokens;
            texts.push(piece.text);
            if piece.stopped {
                return (texts, true, tokens);
            }
        }
        let piece = answer.finish().unwrap();
        texts.push(piece.text);
        (texts, piece.stopped, tokens + piece.tokens)
    }

    #[test]
    fn a_possible_beginning_is_held_back() {
        assert_eq!(pieces("ab\n\nc", &["\n\nd"]).0, ["a", "b", "", "", "\n\nc", ""]);
        assert_eq!(
            pieces("ab\n\nc", &["\n\n"]),
            (vec!["a".into(), "b".into(), "".into(), "".into()], true, 4)
        );
        assert_eq!(
            pieces("x<", &["</end>"]),
            (vec!["x".into(), "".into(), "<".into()], false, 2)
        );
    }

    #[test]
    fn the_earliest_of_several_stops_counts() {
        assert_eq!(pieces("one STOP two", &["two", "STOP", "S"]).0.concat(), "one ");
        assert_eq!(pieces("aaab", &["aab"]).0.concat(), "a");
    }

    proptest! {
        #[test]
        fn text_is_whole_or_cut_right_before_the_first_stop(text in "[ab]{0,12}é?[ab€]{0,12}", stop in proptest::collection::vec("[ab€]{1,4}", 0..3)) {
            let stops: Vec<&str> = stop.iter().map(String::as_str).collect();
            let (texts, stopped, tokens) = pieces(&text, &stops);
            // The stop text that is complete first ends the answer, and of several then complete the earliest.
            let end = stops.iter().filter_map(|s| text.find(s).map(|at| at + s.len())).min();
            let expected = end.map_or(text.len(), |end| stops.iter().filter_map(|s| text[..end].find(s)).min().unwrap());
            prop_assert_eq!(texts.concat(), &text[..expected]);
            prop_assert_eq!(stopped, end.is_some());
            prop_assert_eq!(tokens, end.unwrap_or(text.len()));
        }
    }
}
