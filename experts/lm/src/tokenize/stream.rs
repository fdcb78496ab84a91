//! Text from tokens one by one, in whole characters.
//!
//! A byte-level token may end within a character. Decoding a token alone would show a replacement
//! character; decoding everything anew for each token costs the square of the answer's length. So a
//! short window of tokens is decoded, and of its text only what cannot change is handed out.

use super::Tokenizer;
use crate::Result;

/// Tokens after which the window is cut back, at the next clean end of a character.
const WINDOW: usize = 24;

/// Decodes one answer.
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    window: Vec<u32>,
    /// Bytes of the window's text that have been handed out.
    emitted: usize,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self {
            tokenizer,
            window: Vec::new(),
            emitted: 0,
        }
    }

    /// Takes the next token and returns the text it completes; empty while a character is incomplete.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.window.push(token);
        let text = self.tokenizer.decode(&self.window)?;
        // Of a run of broken bytes only the last mark may still turn into a character.
        let whole = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text);
        let piece = whole.get(self.emitted..).unwrap_or_default().to_owned();
        self.emitted += piece.len();
        if self.window.len() >= WINDOW && self.emitted == text.len() {
            // One token stays: decoders may treat the first of a text in a way of its own.
            self.window.drain(..self.window.len() - 1);
            self.emitted = self.tokenizer.decode(&self.window)?.len();
        }
        Ok(piece)
    }

    /// The rest: an incomplete character as U+FFFD. The decoder is then at the start of a new text.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&std::mem::take(&mut self.window))?;
        Ok(text
            .get(std::mem::take(&mut self.emitted)..)
            .unwrap_or_default()
            .to_owned())
    }
}
