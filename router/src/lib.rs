//! `referral-router`: decides who answers.
//!
//! A functional-token router (Octopus v4, arXiv 2404.19296) over a small language model, calibrated
//! confidence, abstention, and policy. Pure decisions are functions of their arguments: no clock, no
//! network; this crate sees neither tonic nor prost.

mod bank;
pub mod calibrate;
pub mod cost;
pub mod dataset;
mod digest;
pub mod edit;
pub mod error;
pub mod evaluate;
pub mod functional;
pub mod graph;
mod lexical;
pub mod octopus_v4;
pub mod plots;
pub mod policy;
pub mod reformat;
mod scope;
#[cfg(test)]
mod tiny;
pub mod train;

pub use error::RouterError;
pub use evaluate::Evaluation;
pub use functional::{Router, Routing};
pub use graph::Graph;
