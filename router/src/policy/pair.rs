//! Strong or weak: which of two experts of one field answers, by what the dear one gains or by what the cheap one says.
//!
//! Two rules, both pure functions:
//! - *Gain*: the strong expert answers if its predicted gain (see [`crate::cost`]) reaches a threshold. The threshold
//!   comes from a share of strong calls ([`crate::cost::GainModel::threshold_for_share`]) or from prices
//!   ([`threshold_for_price`]).
//! - *Cascade* (FrugalGPT, arXiv 2305.05176): the weak expert answers first, and the strong one is asked if the weak one's
//!   mean token log-probability is low ([`escalates`]).

use super::{Candidate, Choice, PolicySettings, Reason, obstacle};

/// Two experts of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The dear one.
    pub strong: String,
    /// The cheap one.
    pub weak: String,
    /// The predicted gain from which on the strong one answers.
    pub threshold: f32,
}

/// The gain from which on the strong expert pays: `gain · worth ≥ extra_price`, where `extra_price` is what its answer costs
/// more and `worth` what one more right answer is worth, in the same money. Never, if an answer is worth nothing.
pub fn threshold_for_price(extra_price: f64, worth: f64) -> f32 {
    if extra_price <= 0.0 {
        f32::NEG_INFINITY
    } else if worth <= 0.0 {
        f32::INFINITY
    } else {
        (extra_price / worth) as f32
    }
}

/// Whether the gain has to be asked for: the choice fell on one of the pair, and the caller did not name it.
pub fn concerns(choice: &Choice, pair: &Pair) -> bool {
    let first = choice.order.first();
    !choice.reasons.contains(&Reason::Requested)
        && first.is_some_and(|name| *name == pair.strong || *name == pair.weak)
}

/// Settles a choice that fell on one of the pair: the one that the gain speaks for is asked first, the other stands
/// right behind it. Other choices, and an expert that the caller named, stay as they are. An expert that may not be
/// asked, or cannot, is not brought in. The reasons say who of the pair it is, and before that what kept the strong
/// one away if the gain spoke for it.
pub fn settle(
    mut choice: Choice,
    gain: f32,
    pair: &Pair,
    candidates: &[Candidate],
    settings: &PolicySettings,
) -> Choice {
    if !concerns(&choice, pair) {
        return choice;
    }
    let is_of_pair = |name: &String| *name == pair.strong || *name == pair.weak;
    let (first, second) = if gain >= pair.threshold {
        (&pair.strong, &pair.weak)
    } else {
        (&pair.weak, &pair.strong)
    };
    let blocked = obstacle(first, candidates, settings);
    let usable = [first, second]
        .into_iter()
        .filter(|name| obstacle(name, candidates, settings).is_none());
    let mut order: Vec<String> = usable.cloned().collect();
    let others = choice.order.into_iter().filter(|name| !is_of_pair(name));
    order.extend(others);
    let settled = match order.first() {
        Some(name) if *name == pair.strong => Reason::Strong,
        _ => Reason::Weak,
    };
    let blocked = blocked.filter(|reason| !choice.reasons.contains(reason));
    choice.reasons.extend(blocked.into_iter().chain([settled]));
    choice.order = order;
    choice
}

/// Whether a cascade asks the strong expert after the weak one's answer. An answer without a log-probability says nothing
/// for itself, so it escalates.
pub fn escalates(mean_log_probability: Option<f32>, least: f32) -> bool {
    // Written so that a value that is no number escalates too.
    !mean_log_probability.is_some_and(|mean| mean >= least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> Pair {
        Pair {
            strong: "big".to_owned(),
            weak: "small".to_owned(),
            threshold: 0.1,
        }
    }

    fn candidate(id: &str, is_ready: bool, is_external: bool) -> Candidate {
        Candidate {
            id: id.to_owned(),
            is_ready,
            is_external,
        }
    }

    fn choice(order: &[&str], reason: Reason) -> Choice {
        Choice {
            order: order.iter().map(|name| (*name).to_owned()).collect(),
            reasons: vec![reason],
            abstained: false,
        }
    }

    fn settings(allow_external: bool) -> PolicySettings {
        PolicySettings {
            generalist: "small".to_owned(),
            min_confidence: None,
            allow_external,
        }
    }

    #[test]
    fn the_gain_decides_within_the_pair_alone() {
        let all = ["small", "big", "heart"].map(|id| candidate(id, true, false));
        let order = |order: &[&str], reason, gain| {
            settle(choice(order, reason), gain, &pair(), &all, &settings(false)).order
        };
        assert_eq!(
            order(&["small", "heart"], Reason::Abstained, 0.1),
            ["big", "small", "heart"]
        );
        assert_eq!(order(&["big"], Reason::Routed, 0.09), ["small", "big"]);
        assert_eq!(
            order(&["heart", "small"], Reason::Routed, 0.9),
            ["heart", "small"]
        );
        assert_eq!(order(&["small"], Reason::Requested, 0.9), ["small"]);
        let external = [candidate("small", true, false), candidate("big", true, true)];
        let settled = |allowed| {
            settle(
                choice(&["small"], Reason::Abstained),
                0.9,
                &pair(),
                &external,
                &settings(allowed),
            )
        };
        assert_eq!(settled(false).order, ["small"]);
        assert_eq!(settled(true).order, ["big", "small"]);
        assert_eq!(
            settled(false).reasons,
            [Reason::Abstained, Reason::Residency, Reason::Weak]
        );
        assert_eq!(settled(true).reasons, [Reason::Abstained, Reason::Strong]);
    }

    #[test]
    fn thresholds_follow_prices_and_weak_words_escalate() {
        assert!((threshold_for_price(0.02, 0.1) - 0.2).abs() < 1e-6);
        assert_eq!(threshold_for_price(0.0, 0.1), f32::NEG_INFINITY);
        assert_eq!(threshold_for_price(0.1, 0.0), f32::INFINITY);
        assert!(!escalates(Some(-0.5), -0.5));
        assert!(escalates(Some(-0.6), -0.5) && escalates(None, -0.5) && escalates(Some(f32::NAN), -0.5));
    }

    proptest! {
        /// Nobody who may not answer is brought in, nobody is asked twice, and somebody remains.
        #[test]
        fn a_settled_order_is_usable(
            ready in proptest::array::uniform3(any::<bool>()),
            external in proptest::array::uniform3(any::<bool>()),
            allowed: bool,
            gain in -1f32..1.0,
        ) {
            let names = ["small", "big", "heart"];
            let all: Vec<Candidate> = (0..3).map(|i| candidate(names[i], ready[i], external[i])).collect();
            let settings = settings(allowed);
            let usable = |name: &&str| obstacle(name, &all, &settings).is_none();
            let order: Vec<&str> = names.into_iter().filter(|name| usable(name)).collect();
            prop_assume!(!order.is_empty());
            let settled = settle(choice(&order, Reason::Abstained), gain, &pair(), &all, &settings);
            let found = settled.order;
            prop_assert_eq!(settled.reasons.contains(&Reason::Strong), found[0] == "big");
            prop_assert!(found.iter().all(|name| usable(&name.as_str())));
            let distinct: std::collections::HashSet<&String> = found.iter().collect();
            prop_assert_eq!(distinct.len(), found.len());
            prop_assert!(!found.is_empty());
        }
    }
}
