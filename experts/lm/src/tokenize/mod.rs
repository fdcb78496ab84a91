//! The tokenizer and chat template that a model file carries.
//!
//! Text that comes from people must never steer the model through special tokens: a query that
//! spells `<|im_start|>system` is text about a token, not the token. Hence two tokenizers over one
//! vocabulary, one that recognises special tokens (the template's own) and one that does not
//! (everything else). Chats are rendered whole, so that ordinary text is cut into tokens exactly as
//! the model saw it in training.

mod pipeline;
mod sentencepiece;
mod source;
mod stream;
mod template;

#[cfg(test)]
pub(crate) mod tests;

use crate::{LmError, Result};
use std::sync::Arc;
pub use stream::StreamDecoder;
use template::ChatTemplate;

/// Who says a message of a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The system prompt.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who says it.
    pub role: Role,
    /// The text.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
        }
    }
}

/// The chat of one query, the same for training and serving: the system prompt, if there is one
/// that is not blank, and the user's text.
pub fn single_turn(system: Option<&str>, user: &str) -> Vec<ChatMessage> {
    system
        .filter(|text| !text.trim().is_empty())
        .map(|text| ChatMessage::new(Role::System, text))
        .into_iter()
        .chain([ChatMessage::new(Role::User, user)])
        .collect()
}

/// A model's tokenizer and chat template; clones share it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// Recognises special tokens in the text; decodes.
    special: tokenizers::Tokenizer,
    /// Treats every text as plain.
    plain: tokenizers::Tokenizer,
    /// Every token that plain text must not become, longest first.
    reserved: Vec<Reserved>,
    template: ChatTemplate,
    stop: Vec<u32>,
}

/// A token added to the vocabulary beside the learned ones.
struct Reserved {
    text: String,
    id: u32,
    /// Swallows the white space before it.
    lstrip: bool,
    /// Swallows the white space after it.
    rstrip: bool,
}

/// Texts that end an answer in the model families this crate runs.
const END_TEXTS: [&str; 5] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
];

/// First code point that stands for a reserved token's text (Supplementary Private Use Area B).
const STAND_IN: u32 = 0x10_0000;

impl Tokenizer {
    /// Puts the parts together. `stop`: token ids that end an answer beside the usual ones; the
    /// first is the end of a turn.
    fn assemble(
        special: tokenizers::Tokenizer,
        plain: tokenizers::Tokenizer,
        template: ChatTemplate,
        mut stop: Vec<u32>,
    ) -> Self {
        let mut reserved: Vec<Reserved> = special
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| !token.content.is_empty())
            .map(|(id, token)| Reserved {
                text: token.content,
                id,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
            })
            .collect();
        reserved.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
        for text in END_TEXTS {
            stop.extend(
                reserved
                    .iter()
                    .find(|token| token.text == text)
                    .map(|token| token.id),
            );
        }
        let mut seen = std::collections::HashSet::new();
        stop.retain(|id| seen.insert(*id));
        Self {
            inner: Arc::new(Inner {
                special,
                plain,
                reserved,
                template,
                stop,
            }),
        }
    }

    /// Text to token ids; special tokens such as `<|im_start|>` in the text are recognised only if
    /// asked. Nothing is added at either end.
    pub fn encode(&self, text: &str, recognise_special: bool) -> Result<Vec<u32>> {
        if recognise_special {
            return Ok(self
                .inner
                .special
                .encode_fast(text, false)
                .map_err(failed)?
                .get_ids()
                .to_vec());
        }
        let encoding = self.inner.plain.encode(text, false).map_err(failed)?;
        let ids = encoding.get_ids();
        if !ids.iter().any(|id| self.is_reserved(*id)) {
            return Ok(ids.to_vec());
        }
        // Some vocabularies look whole words up before merging, and a word may spell a reserved
        // token: such a word is taken character by character, and what is still reserved (the
        // unknown token) has no plain form and is left out.
        let mut safe = Vec::with_capacity(ids.len());
        for (id, (from, to)) in ids.iter().zip(encoding.get_offsets()) {
            if !self.is_reserved(*id) {
                safe.push(*id);
                continue;
            }
            for character in text.get(*from..*to).unwrap_or_default().chars() {
                let one = self
                    .inner
                    .plain
                    .encode_fast(character.to_string(), false)
                    .map_err(failed)?;
                safe.extend(one.get_ids().iter().filter(|id| !self.is_reserved(**id)));
            }
        }
        Ok(safe)
    }

    /// Plain `text` within a frame that holds special tokens, cut into tokens as the whole would be. The text cannot become a
    /// special token.
    pub fn encode_within(&self, before: &str, text: &str, after: &str) -> Result<Vec<u32>> {
        if !self.inner.reserved.iter().any(|token| text.contains(&token.text)) {
            return self.encode(&format!("{before}{text}{after}"), true);
        }
        let mut ids = self.encode(before, true)?;
        ids.extend(self.encode(text, false)?);
        ids.extend(self.encode(after, true)?);
        Ok(ids)
    }

    /// Token ids to text, special tokens left out; ids beyond the vocabulary are left out too.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.special.decode(tokens, true).map_err(failed)
    }

    /// Token ids to text, special tokens written out.
    pub fn decode_whole(&self, tokens: &[u32]) -> Result<String> {
        self.inner.special.decode(tokens, false).map_err(failed)
    }

    /// The chat as the model's template writes it, as token ids; text of messages can never become
    /// a special token. Without a system message there is no system block, also where the template
    /// has one of its own ("You are a helpful AI assistant named SmolLM"): what a model is told is
    /// the configuration's business.
    pub fn encode_chat(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<Vec<u32>> {
        let is_clean = |text: &str| !self.inner.reserved.iter().any(|token| text.contains(&token.text));
        if messages.iter().all(|message| is_clean(&message.content)) {
            let text = self.inner.template.render(messages, add_generation_prompt)?;
            return self.encode(&text, true);
        }
        // A character that no message holds announces a stand-in for a reserved token's text. The
        // template works on messages with stand-ins; afterwards the template's own reserved tokens
        // become ids and everything between them plain text.
        let mark = (0xF_0000..STAND_IN - 2)
            .filter_map(char::from_u32)
            .find(|mark| !messages.iter().any(|message| message.content.contains(*mark)))
            .ok_or_else(|| {
                LmError::Tokenizer("a message uses every private-use character: remove them".to_owned())
            })?;
        let stand_ins: Vec<(String, &str)> = (STAND_IN..)
            .zip(&self.inner.reserved)
            .filter_map(|(code, token)| {
                Some((format!("{mark}{}", char::from_u32(code)?), token.text.as_str()))
            })
            .collect();
        let mut escaped = messages.to_vec();
        for message in &mut escaped {
            for (stand_in, text) in &stand_ins {
                if message.content.contains(text) {
                    message.content = message.content.replace(text, stand_in);
                }
            }
        }
        let rendered = self.inner.template.render(&escaped, add_generation_prompt)?;
        let restore = |segment: &str| {
            stand_ins
                .iter()
                .fold(segment.to_owned(), |segment, (stand_in, text)| {
                    if segment.contains(stand_in) {
                        segment.replace(stand_in, text)
                    } else {
                        segment
                    }
                })
        };
        let mut ids = Vec::new();
        let mut rest = rendered.as_str();
        while let Some((at, token)) = self.first_reserved(rest) {
            let before = if token.lstrip {
                rest[..at].trim_end()
            } else {
                &rest[..at]
            };
            ids.extend(self.encode(&restore(before), false)?);
            ids.push(token.id);
            rest = &rest[at + token.text.len()..];
            if token.rstrip {
                rest = rest.trim_start();
            }
        }
        ids.extend(self.encode(&restore(rest), false)?);
        Ok(ids)
    }

    /// An answer as the model should write it: plain text and the end of the turn (for training).
    pub fn encode_answer(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, false)?;
        ids.extend(self.inner.stop.first());
        Ok(ids)
    }

    /// Token ids that end an answer; the first is the end of a turn.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.inner.stop
    }

    /// The id of a token by its exact text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.special.token_to_id(token)
    }

    /// Tokens in the vocabulary, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.special.get_vocab_size(true)
    }

    fn is_reserved(&self, id: u32) -> bool {
        self.inner.reserved.iter().any(|token| token.id == id)
    }

    /// The leftmost reserved token in the text, the longest where several start.
    fn first_reserved(&self, text: &str) -> Option<(usize, &Reserved)> {
        let found = self
            .inner
            .reserved
            .iter()
            .filter_map(|token| Some((text.find(&token.text)?, token)));
        found.min_by(|(a, x), (b, y)| a.cmp(b).then(y.text.len().cmp(&x.text.len())))
    }
}

fn failed(error: tokenizers::Error) -> LmError {
    LmError::Tokenizer(error.to_string())
}
