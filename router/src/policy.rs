//! From routing to decision: pure functions of (routing, snapshot, settings).
//!
//! The rule, in order; an expert is *usable* if it is ready and, where external experts are not
//! allowed, on the premises:
//!
//! 1. An expert that the caller named answers if it is usable; the generalist stands behind it.
//! 2. Where the router abstains (or there is no routing), the generalist answers; the likeliest usable
//!    expert stands behind it.
//! 3. Else the likeliest expert answers if it is usable. Behind it, and in its place if it is not, come
//!    the usable experts at least [`RUNNER_UP_RATIO`] as likely as it, likeliest first, then the
//!    generalist. An unlikely specialist never replaces a likely one: the generalist is the safer guess.
//! 4. If all of these are unusable, the likeliest usable expert answers, else the first usable candidate.
//!
//! The reasons name every departure from the caller's or the router's first choice before the rule that
//! chose. Breakers, budgets and time-outs are the gateway's; here a candidate is ready or not.

pub mod pair;

use crate::Routing;

/// How likely a runner-up must be, relative to the likeliest expert, to answer in its place.
pub const RUNNER_UP_RATIO: f32 = 0.5;

/// Why a decision is as it is: a closed set, used as a metric label and in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The router's likeliest expert.
    Routed,
    /// In scope, but the confidence was below the threshold: the generalist answers, or the router node's stand-in.
    Abstained,
    /// The query is nothing that the experts are for: the generalist answers, or the router node's stand-in.
    OutOfScope,
    /// The caller named the expert.
    Requested,
    /// The likeliest expert is not configured here.
    NotConfigured,
    /// The likeliest expert was unavailable.
    Unhealthy,
    /// The likeliest expert may not see this query (residency).
    Residency,
    /// Taken from the decision cache.
    Cached,
    /// An expert failed before its first token and another was asked.
    Fallback,
    /// The router failed: the generalist answers.
    RouterFailed,
    /// The query is longer than the router's window: the decision rests on its head and its tail.
    Windowed,
    /// Of a pair, the strong expert: its predicted gain is worth it.
    Strong,
    /// Of a pair, the weak expert: the strong one's predicted gain is not worth it, or it may not be asked.
    Weak,
    /// The weak expert of a pair was not sure of its answer: the strong one was asked.
    Escalated,
}

/// What policy may choose from: the state of the experts at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub id: String,
    /// Whether it can be asked.
    pub is_ready: bool,
    /// Whether text sent to it leaves the organisation.
    pub is_external: bool,
}

/// Settings of the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySettings {
    /// Who answers when the router abstains.
    pub generalist: String,
    /// Overrides the router's own threshold of the confidence (0 to 1). An out-of-scope query is the generalist's all the same.
    pub min_confidence: Option<f32>,
    /// Whether external experts may be chosen.
    pub allow_external: bool,
}

/// Who answers, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The experts to ask, in order: the first answers, the others are fallbacks.
    pub order: Vec<String>,
    /// Why, most important first.
    pub reasons: Vec<Reason>,
    /// Whether the router abstained.
    pub abstained: bool,
}

/// No expert may be asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// The caller named an expert that is not configured.
    #[error("expert {0:?} is not configured: ListExperts names those that are")]
    UnknownExpert(String),
    /// Nobody is ready.
    #[error("no expert is available")]
    NobodyAvailable,
}

/// Decides. `requested` is the expert the caller named, if any.
pub fn decide(
    routing: Option<&Routing>,
    requested: Option<&str>,
    candidates: &[Candidate],
    settings: &PolicySettings,
) -> Result<Choice, PolicyError> {
    let generalist = settings.generalist.as_str();
    let probabilities = routing.map_or(&[][..], |routing| routing.probabilities.as_slice());
    let likeliest_usable = || {
        probabilities
            .iter()
            .map(|(name, _)| name.as_str())
            .find(|name| obstacle(name, candidates, settings).is_none())
    };

    let mut abstained = false;
    let (first, rule, mut order) = if let Some(name) = requested {
        if !candidates.iter().any(|candidate| candidate.id == name) {
            return Err(PolicyError::UnknownExpert(name.to_owned()));
        }
        (name, Reason::Requested, vec![name, generalist])
    } else {
        match routing
            .filter(|routing| !abstains(routing, settings.min_confidence))
            .and_then(|routing| routing.probabilities.first())
        {
            None => {
                abstained = true;
                let rule = if routing.is_some_and(|routing| routing.out_of_scope) {
                    Reason::OutOfScope
                } else {
                    Reason::Abstained
                };
                (
                    generalist,
                    rule,
                    [generalist].into_iter().chain(likeliest_usable()).collect(),
                )
            }
            Some((top, likeliest)) => {
                let runners_up = probabilities
                    .iter()
                    .filter(|(_, p)| *p >= RUNNER_UP_RATIO * likeliest);
                let names = runners_up
                    .map(|(name, _)| name.as_str())
                    .filter(|name| *name != generalist);
                // A router may have a token for the generalist itself; then it is a first choice, not only a fallback.
                let own = (top == generalist).then_some(generalist);
                (
                    top.as_str(),
                    Reason::Routed,
                    own.into_iter().chain(names).chain([generalist]).collect(),
                )
            }
        }
    };

    let windowed = routing
        .filter(|routing| routing.windowed && requested.is_none())
        .map(|_| Reason::Windowed);
    let blocked = obstacle(first, candidates, settings);
    order.retain(|name| obstacle(name, candidates, settings).is_none());
    if order.is_empty() {
        let any = candidates.iter().map(|candidate| candidate.id.as_str());
        let any = any
            .into_iter()
            .find(|name| obstacle(name, candidates, settings).is_none());
        order.extend(likeliest_usable().or(any));
    }
    let mut distinct: Vec<String> = Vec::with_capacity(order.len());
    for name in order {
        if !distinct.iter().any(|seen| seen == name) {
            distinct.push(name.to_owned());
        }
    }
    if distinct.is_empty() {
        return Err(PolicyError::NobodyAvailable);
    }
    Ok(Choice {
        order: distinct,
        reasons: blocked.into_iter().chain([rule]).chain(windowed).collect(),
        abstained,
    })
}

/// Whether the router abstains, with its own threshold of the confidence or with `min_confidence` in its place.
pub(crate) fn abstains(routing: &Routing, min_confidence: Option<f32>) -> bool {
    let is_unsure = |least| routing.out_of_scope || routing.confidence < least;
    min_confidence.map_or(routing.abstained, is_unsure)
}

/// Why an expert may not answer; `None` if it may.
fn obstacle(name: &str, candidates: &[Candidate], settings: &PolicySettings) -> Option<Reason> {
    match candidates.iter().find(|candidate| candidate.id == name) {
        None => Some(Reason::NotConfigured),
        Some(candidate) if candidate.is_external && !settings.allow_external => Some(Reason::Residency),
        Some(candidate) if !candidate.is_ready => Some(Reason::Unhealthy),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
