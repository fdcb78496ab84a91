//! Which arm a unit gets: sticky, the same on every replica, with no shared state.
//!
//! A unit's id is hashed by blake3 under a key derived from the experiment's salt. Two hashes are kept
//! apart: one says whether the unit is in the experiment's share of traffic, the others which arm it gets,
//! so that a growing share moves nobody between arms.
//!
//! The arm is chosen by weighted rendezvous (Schindelhauer & Schomaker 2005): each arm has its own
//! bucket u in [0, 1) for the unit, and the smallest −ln(1 − u) / weight wins. This is a race of exponential
//! clocks, so an arm wins with the probability of its weight, whatever the arms' order. When weights
//! change, units move only between arms whose weights moved against each other: with two arms, or when one
//! arm grows at the others' even expense, no scheme moves fewer; in every case at most 2d / (1 + d) move,
//! where d is the distance ½ Σ|w − w′|, the least that is possible without remembering the old weights
//! (Bavarian et al. 2020). Cumulative thresholds on one bucket move more: arms in the middle shift.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::{at_least, positive, probability, sums_to_one};

mod overlap;
mod population;
mod thompson;
mod weighting;

pub use overlap::{Clash, check_overlaps};
pub use population::{Attributes, Population};
pub use thompson::{Choice, GaussianPrior, Posterior, Thompson, choose};
pub use weighting::{Weighted, WeightedSettings};

/// The hash's domain. Changing it reassigns every unit of every experiment.
const DOMAIN: &str = "referral-experiments assignment v1";

/// What is assigned; the gateway takes its id from the query or from a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Each query by itself.
    Query,
    /// A conversation.
    Session,
    /// A clinician.
    User,
    /// A patient's stay or visit.
    Encounter,
}

impl fmt::Display for Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Query => "query",
            Self::Session => "session",
            Self::User => "user",
            Self::Encounter => "encounter",
        })
    }
}

/// One of the things compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Its name; part of the hash, so renaming an arm reassigns units.
    pub name: String,
    /// The probability of assignment, in [0, 1]; an experiment's add up to 1.
    pub weight: f64,
}

/// Which traffic an experiment takes: buckets from `from` up to, not including, `to`.
///
/// Without a layer the buckets are the experiment's own, so only the width counts. Experiments of one
/// layer share its buckets, so that slices apart never meet (Tang et al. 2010).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// The layer, if it shares one or must coexist with another experiment.
    #[serde(default)]
    pub layer: Option<String>,
    /// The first bucket, in [0, 1].
    pub from: f64,
    /// The end, above `from`, at most 1.
    pub to: f64,
}

impl Traffic {
    /// The first `share` of an experiment's own buckets; share in (0, 1].
    #[must_use]
    pub fn share(share: f64) -> Self {
        Self {
            layer: None,
            from: 0.0,
            to: share,
        }
    }
}

/// An experiment as it is configured, not yet checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What makes its assignment its own: a new salt reassigns every unit.
    pub salt: String,
    /// What is assigned.
    pub unit: Unit,
    /// Whom it is for.
    #[serde(default)]
    pub population: Population,
    /// How much of them.
    pub traffic: Traffic,
    /// What is compared: two arms or more.
    pub arms: Vec<Arm>,
    /// When it starts, in seconds since 1970 (UTC); none: it has started.
    #[serde(default)]
    pub start: Option<u64>,
    /// When it has ended, in seconds since 1970 (UTC), itself not included; none: open.
    #[serde(default)]
    pub end: Option<u64>,
}

/// A checked [`Plan`], ready to assign.
#[derive(Debug, Clone)]
pub struct Experiment {
    plan: Plan,
    traffic_key: [u8; 32],
    /// One for each arm.
    arm_keys: Vec<[u8; 32]>,
}

/// What a unit got, to be logged with its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Assignment<'e> {
    /// The arm's position in the plan.
    pub index: usize,
    /// The arm's name.
    pub arm: &'e str,
    /// The probability with which a unit of the experiment gets this arm.
    pub propensity: f64,
}

impl TryFrom<Plan> for Experiment {
    type Error = Error;

    /// # Errors
    /// [`Error::Empty`] for a name, salt or layer left empty; [`Error::TooFew`] below two arms;
    /// [`Error::Duplicate`] for two arms of one name; [`Error::NotFinite`], [`Error::OutOfRange`] or
    /// [`Error::WeightSum`] for bad weights, traffic or times.
    fn try_from(plan: Plan) -> Result<Self, Error> {
        filled("experiment.name", &plan.name)?;
        filled("experiment.salt", &plan.salt)?;
        plan.population.check()?;
        if let Some(layer) = &plan.traffic.layer {
            filled("experiment.traffic.layer", layer)?;
        }
        probability("experiment.traffic.from", plan.traffic.from)?;
        probability("experiment.traffic.to", plan.traffic.to)?;
        positive(
            "experiment.traffic.to - from",
            plan.traffic.to - plan.traffic.from,
        )?;
        if let (Some(start), Some(end)) = (plan.start, plan.end)
            && end <= start
        {
            return Err(Error::OutOfRange {
                field: "experiment.end",
                value: end as f64,
                range: "after its start",
            });
        }
        at_least("experiment.arms", plan.arms.len() as u64, 2)?;
        let weights: Vec<f64> = plan.arms.iter().map(|arm| arm.weight).collect();
        sums_to_one("experiment.arms.weight", &weights)?;
        for (at, arm) in plan.arms.iter().enumerate() {
            filled("experiment.arms.name", &arm.name)?;
            if plan.arms[..at].iter().any(|earlier| earlier.name == arm.name) {
                return Err(Error::Duplicate {
                    field: "experiment.arms.name",
                    name: arm.name.clone(),
                });
            }
        }
        let traffic_key = match &plan.traffic.layer {
            Some(layer) => key("layer", layer, ""),
            None => key("traffic", &plan.salt, ""),
        };
        let arm_keys = plan
            .arms
            .iter()
            .map(|arm| key("arm", &plan.salt, &arm.name))
            .collect();
        Ok(Self {
            plan,
            traffic_key,
            arm_keys,
        })
    }
}

impl Experiment {
    /// The plan it was made from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The unit's arm at `now` (seconds since 1970), or none if the experiment is not running, is not for
    /// a unit of these attributes, or leaves this unit's bucket out.
    ///
    /// # Errors
    /// [`Error::Empty`] for an empty id, which would give everybody without a header the same arm.
    pub fn assign(
        &self,
        unit: &str,
        attributes: &Attributes,
        now: u64,
    ) -> Result<Option<Assignment<'_>>, Error> {
        filled("unit", unit)?;
        let is_running =
            self.plan.start.is_none_or(|start| start <= now) && self.plan.end.is_none_or(|end| now < end);
        if !is_running || !self.plan.population.includes(attributes) {
            return Ok(None);
        }
        let bucket = bucket(&self.traffic_key, unit);
        if bucket < self.plan.traffic.from || bucket >= self.plan.traffic.to {
            return Ok(None);
        }
        let arms = self.plan.arms.iter().zip(&self.arm_keys).enumerate();
        let winner = arms
            .filter(|(_, (arm, _))| arm.weight > 0.0)
            // libm's logarithm has the same bits on every platform; the compiler's need not.
            .map(|(index, (arm, key))| (index, arm, -libm::log(1.0 - self::bucket(key, unit)) / arm.weight))
            .min_by(|a, b| a.2.total_cmp(&b.2));
        Ok(winner.map(|(index, arm, _)| Assignment {
            index,
            arm: &arm.name,
            propensity: arm.weight,
        }))
    }
}

fn filled(field: &'static str, text: &str) -> Result<(), Error> {
    if text.trim().is_empty() {
        Err(Error::Empty { field })
    } else {
        Ok(())
    }
}

/// The hash key of one use of a salt; lengths stand before the parts, so that no two uses coincide.
fn key(purpose: &str, salt: &str, arm: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(DOMAIN);
    for part in [purpose, salt, arm] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The unit's place in [0, 1) under a key: the hash's first 53 bits, little-endian, as a fraction.
fn bucket(key: &[u8; 32], unit: &str) -> f64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::keyed_hash(key, unit.as_bytes()).as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
