//! From queries to the numbers that the functional tokens are multiplied with.
//!
//! Octopus v4 reads the hidden state at the position where the functional token would come. A small
//! frozen model says more when the mean over the query's own tokens stands beside it, and when it is read
//! in the middle of the network, so a read-out is a list of (layer, pooling) pairs laid side by side. The
//! head of the prompt is the same for every query: its KV cache is computed once, and only through
//! the layers that are read.

use crate::RouterError;
use referral_lm::LanguageModel;
use referral_lm::adapter::Adapter;
use referral_lm::model::{HiddenStates, Prefix};
use referral_lm::tokenize::{ChatMessage, Role};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// The router prompt, word for word that of Octopus v4 (arXiv 2404.19296), in the model's own chat template.
pub const PROMPT: &str = "You are a router. Below is the query from the users, please call the correct function and generate the parameters to call the function.";

/// How the tokens' hidden states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean over the query's tokens, prompt and template left out.
    Mean,
    /// The last position, where the functional token would be generated.
    Last,
}

/// One vector of the read-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// After which layer, counted from 1.
    pub layer: usize,
    /// Pooled how.
    pub pooling: Pooling,
}

/// Which tokens of a long query are read: its head and its tail, because people put who they are first and what
/// they ask last. A query of at most `head + tail` tokens is read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Tokens kept from the start.
    pub head: usize,
    /// Tokens kept from the end.
    pub tail: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { head: 64, tail: 128 }
    }
}

impl Window {
    /// The tokens that are read.
    pub(crate) fn cut(self, mut tokens: Vec<u32>) -> Vec<u32> {
        if tokens.len() > self.head + self.tail {
            tokens.drain(self.head..tokens.len() - self.tail);
        }
        tokens
    }
}

/// What is read, as written in a router's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadOutSpec {
    /// The system prompt; empty: the query stands alone behind the token that begins a turn, which is what an
    /// adapter is trained on (what the prompt would say is then in the weights).
    pub prompt: String,
    /// Which tokens of a long query are read.
    pub window: Window,
    /// The vectors, side by side in this order.
    pub features: Vec<Feature>,
}

impl ReadOutSpec {
    /// Numbers per query for a model of this hidden width.
    pub fn width(&self, model_width: usize) -> usize {
        self.features.len() * model_width
    }

    fn layers(&self) -> Vec<usize> {
        let mut layers: Vec<usize> = self.features.iter().map(|feature| feature.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    }
}

/// A read-out bound to its model, with the prompt's KV cache.
#[derive(Clone)]
pub struct ReadOut {
    model: LanguageModel,
    spec: ReadOutSpec,
    layers: Vec<usize>,
    adapter: Option<Arc<Adapter>>,
    prefix: Prefix,
    head: Vec<u32>,
    tail: Vec<u32>,
}

impl ReadOut {
    /// Computes the prompt's cache; everything is read through `adapter` if there is one. Fails if a layer is not
    /// in the model.
    pub fn new(
        model: LanguageModel,
        spec: ReadOutSpec,
        adapter: Option<Arc<Adapter>>,
    ) -> Result<Self, RouterError> {
        let layers = spec.layers();
        let depth = model.info().layers;
        let bad = layers.iter().find(|layer| !(1..=depth).contains(*layer));
        if let Some(value) = bad
            .map(ToString::to_string)
            .or_else(|| layers.is_empty().then(|| "none".to_owned()))
        {
            return Err(RouterError::Invalid {
                field: "layer",
                value,
                fix: format!("the model has layers 1 to {depth}"),
            });
        }
        if spec.window.head + spec.window.tail == 0 {
            let fix = "keep at least one token".to_owned();
            return Err(RouterError::Invalid {
                field: "window",
                value: "0".to_owned(),
                fix,
            });
        }
        let (mut head, mut tail) = around_query(&model, &spec.prompt)?;
        if spec.prompt.is_empty() {
            head.truncate(1);
            tail.clear();
        }
        let prefix = model.prefix(
            &head,
            layers.last().copied(),
            adapter.as_deref().map(|adapter| (adapter, 1.0)),
        )?;
        Ok(Self {
            model,
            spec,
            layers,
            adapter,
            prefix,
            head,
            tail,
        })
    }

    /// What is read.
    pub fn spec(&self) -> &ReadOutSpec {
        &self.spec
    }

    /// Numbers per query.
    pub fn width(&self) -> usize {
        self.spec.width(self.model.info().width)
    }

    /// The tokens of a normalised query that are read.
    pub fn tokens(&self, query: &str) -> Result<Vec<u32>, RouterError> {
        Ok(self.spec.window.cut(self.model.encode(query, false)?))
    }

    /// Whether a normalised query is longer than the window.
    pub fn is_windowed(&self, query: &str) -> Result<bool, RouterError> {
        let most = self.spec.window.head + self.spec.window.tail;
        // A token is at least one byte.
        Ok(query.len() > most && self.model.encode(query, false)?.len() > most)
    }

    /// All tokens of a query's row, the prompt's among them, and which of them means are taken over: what
    /// [`Self::read`] computes behind the prompt's cache.
    pub(crate) fn row(&self, query: &[u32]) -> (Vec<u32>, Range<usize>) {
        let start = self.head.len();
        let body = self.body(query);
        let count = if query.is_empty() { body.len() } else { query.len() };
        ([self.head.as_slice(), &body].concat(), start..start + count)
    }

    /// The tokens behind the prompt's cache; at least one.
    fn body(&self, query: &[u32]) -> Vec<u32> {
        let mut body = [query, &self.tail].concat();
        if body.is_empty() {
            body.extend(self.head.first());
        }
        body
    }

    /// Reads queries, given as their tokens, in one forward pass: one vector of [`Self::width`] numbers each.
    pub fn read(&self, queries: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, RouterError> {
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Vec<u32>> = queries.iter().map(|tokens| self.body(tokens)).collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let states = self.model.hidden_states(
            Some(&self.prefix),
            &rows,
            &self.layers,
            self.adapter.as_deref().map(|adapter| (adapter, 1.0)),
        )?;
        Ok(states
            .iter()
            .zip(queries)
            .map(|(states, tokens)| self.pool(states, tokens.len()))
            .collect())
    }

    fn pool(&self, states: &HiddenStates, query_tokens: usize) -> Vec<f32> {
        let width = self.model.info().width;
        let mut vector = Vec::with_capacity(self.width());
        for feature in &self.spec.features {
            let slot = self.layers.iter().position(|layer| *layer == feature.layer);
            let hidden = slot
                .and_then(|slot| states.layers.get(slot))
                .map_or(&[][..], Vec::as_slice);
            match feature.pooling {
                Pooling::Last => vector.extend_from_slice(&hidden[hidden.len().saturating_sub(width)..]),
                Pooling::Mean => {
                    // A query without a token of its own is read from the template's.
                    let count = if query_tokens == 0 {
                        states.tokens
                    } else {
                        query_tokens
                    };
                    let start = vector.len();
                    vector.resize(start + width, 0.0);
                    let mean = &mut vector[start..];
                    for token in hidden.chunks_exact(width).take(count) {
                        mean.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
                    }
                    mean.iter_mut().for_each(|sum| *sum /= count.max(1) as f32);
                }
            }
        }
        vector
    }
}

/// The tokens that the chat template puts before and after the user's text: what two chats with different texts share.
fn around_query(model: &LanguageModel, prompt: &str) -> Result<(Vec<u32>, Vec<u32>), RouterError> {
    let chat = |text: &str| {
        let message = |role, content: &str| ChatMessage {
            role,
            content: content.to_owned(),
        };
        model.encode_chat(&[message(Role::System, prompt), message(Role::User, text)], true)
    };
    let (a, b) = (chat("a")?, chat("b")?);
    let shared = |pairs: &mut dyn Iterator<Item = (&u32, &u32)>| pairs.take_while(|(x, y)| x == y).count();
    let head = shared(&mut a.iter().zip(&b));
    let tail = shared(&mut a[head..].iter().rev().zip(b[head..].iter().rev()));
    Ok((a[..head].to_vec(), a[a.len() - tail..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_query_keeps_its_head_and_its_tail() {
        let window = Window { head: 2, tail: 3 };
        assert_eq!(window.cut((0..9).collect()), [0, 1, 6, 7, 8]);
        assert_eq!(window.cut((0..5).collect()), [0, 1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn the_window_bounds_any_query(length in 0u32..600, head in 0usize..70, tail in 1usize..70) {
            let tokens: Vec<u32> = (0..length).collect();
            let cut = Window { head, tail }.cut(tokens.clone());
            prop_assert_eq!(cut.len(), tokens.len().min(head + tail));
            prop_assert_eq!(cut.last(), tokens.last());
        }
    }
}
