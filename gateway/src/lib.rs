//! The Referral gateway: configuration, gRPC and HTTP services, decision log, metrics and the command line.
//!
//! | module | what lives there |
//! |---|---|
//! | [`config`] | layers of YAML and environment to one validated [`config::Settings`] |
//! | [`log`] | the decision log: one SQLite row a decision, feedback, readers |
//! | [`metrics`] | what is measured |
//! | [`compute`] | the router on a thread of its own |
//! | [`pipeline`] | one query's way: admission, deadline, validation, cache, policy, expert, record |
//! | [`grpc`], [`http`] | the ports |
//! | [`serve`] | the running gateway: loading, health, drain |
//! | [`cli`] | the `referral` command |

pub mod cli;
pub mod compute;
pub mod config;
pub mod grpc;
pub mod http;
pub mod log;
pub mod metrics;
pub mod pipeline;
pub mod serve;

#[cfg(test)]
mod scripted;
