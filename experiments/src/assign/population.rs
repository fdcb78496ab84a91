//! Whom an experiment is for: a conjunction of "this attribute has one of these values".
//!
//! No more than that, on purpose: whether two such populations can share a unit is decidable at a glance,
//! for people and for [`super::check_overlaps`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::Error;

/// A unit's attributes: name (such as `expert`, `department`, `language`) to value.
pub type Attributes = BTreeMap<String, String>;

/// Attribute name to the values that are let in. Empty: everybody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Population(pub BTreeMap<String, BTreeSet<String>>);

impl Population {
    /// Whether a unit of these attributes is in it. A unit that lacks a named attribute is not.
    #[must_use]
    pub fn includes(&self, attributes: &Attributes) -> bool {
        self.0
            .iter()
            .all(|(name, values)| attributes.get(name).is_some_and(|value| values.contains(value)))
    }

    /// Whether some unit could be in both: no attribute that both name has all its values apart.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.0
            .iter()
            .all(|(name, values)| other.0.get(name).is_none_or(|others| !values.is_disjoint(others)))
    }

    /// # Errors
    /// [`Error::TooFew`] for an attribute with no values, which would let nobody in.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.0.values().any(BTreeSet::is_empty) {
            true => Err(Error::TooFew {
                field: "experiment.population values",
                got: 0,
                need: 1,
            }),
            false => Ok(()),
        }
    }
}
