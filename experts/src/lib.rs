//! `referral-experts`: whoever can answer a query.
//!
//! The [`Expert`] trait is dyn-safe; an expert answers as a stream of chunks. One module for each
//! kind of expert. Who is asked, fallback, logging and metrics by decision are the gateway's.

pub mod answer;
pub mod expert;
pub mod local;
pub mod openai;
pub mod shipped;

pub use answer::collect;
pub use expert::{
    Answer, AnswerStream, Card, Chunk, Expert, ExpertError, ExpertErrorKind, ExpertId, ExpertKind, Finish,
    Health, Modality, Query, Residency, TokenUsage,
};
pub use local::{LocalDefaults, LocalExpert};
pub use openai::{OpenAiExpert, OpenAiSettings, TokenLimitField};
