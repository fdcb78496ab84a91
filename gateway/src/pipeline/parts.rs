//! What a pipeline is made of.

use super::Reformatter;
use crate::compute::Gains;
use crate::log::DecisionLog;
use crate::metrics::Metrics;
use referral_experts::{Card, Expert, ExpertId, ExpertKind};
use referral_router::Graph;
use referral_router::policy::pair::Pair;
use std::sync::Arc;

/// What a pipeline is made of.
pub struct Parts {
    /// Who can answer.
    pub experts: Vec<Arc<dyn Expert>>,
    /// Who decides.
    pub graph: Graph,
    /// The experts that are routers of their own, in the graph.
    pub nodes: Vec<RouterCard>,
    /// Pairs of a strong and a weak expert; no expert is in two.
    pub pairs: Vec<PairPart>,
    /// Who puts queries in better words, if anybody does.
    pub reformatter: Option<Arc<dyn Reformatter>>,
    /// Where decisions are kept.
    pub log: DecisionLog,
    /// What is measured.
    pub metrics: Metrics,
}

/// What a platform team wants to know of an expert that is a router.
pub struct RouterCard {
    /// Its name.
    pub id: ExpertId,
    /// Its part.
    pub kind: ExpertKind,
    /// The rest; its model names the experts that it refers to.
    pub card: Card,
}

/// A strong and a weak expert, and how one of them is chosen.
pub struct PairPart {
    /// Who, and from which gain on the strong one.
    pub pair: Pair,
    /// Predicts the gain.
    pub gains: Arc<dyn Gains>,
    /// The mean log-probability below which the weak one's answer is not given, and the strong one asked.
    pub cascade: Option<f32>,
}

/// A pair without its head, which the router's thread has.
pub(super) struct SettledPair {
    pub(super) pair: Pair,
    pub(super) cascade: Option<f32>,
}
