//! Whether experiments would disturb each other.
//!
//! Two experiments overlap if some unit could be in both at some moment. That is refused, because the
//! one's arms are then part of the other's traffic by accident. It is allowed in two explicit forms
//! (Tang et al. 2010, "Overlapping Experiment Infrastructure"): slices apart in one layer, so that no unit
//! is in both; or a layer of its own for each, where independent salts make the one's arms equally common
//! in each of the other's.

use std::fmt;

use super::Experiment;
use crate::Error;

/// Why two experiments that reach the same people may not run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clash {
    /// At least one names no layer.
    Unlayered,
    /// One layer, and slices that meet.
    Slices,
    /// One layer, but different units: the same bucket then means different people.
    Units,
    /// One salt: a unit's arm in the one would tell its arm in the other.
    Salt,
    /// One name: their outcomes would be mixed up.
    Name,
}

impl fmt::Display for Clash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unlayered => "they reach the same units, and not both name a layer",
            Self::Slices => "their slices of one layer meet",
            Self::Units => "they slice one layer by different units",
            Self::Salt => "they have the same salt",
            Self::Name => "they have the same name",
        })
    }
}

/// Checks every pair.
///
/// # Errors
/// [`Error::Overlap`] for the first pair that clashes.
pub fn check_overlaps(experiments: &[Experiment]) -> Result<(), Error> {
    for (at, second) in experiments.iter().enumerate() {
        for first in &experiments[..at] {
            if let Some(clash) = clash(first, second) {
                let (first, second) = (first.plan.name.clone(), second.plan.name.clone());
                return Err(Error::Overlap { first, second, clash });
            }
        }
    }
    Ok(())
}

fn clash(first: &Experiment, second: &Experiment) -> Option<Clash> {
    let (a, b) = (&first.plan, &second.plan);
    if a.name == b.name {
        return Some(Clash::Name);
    }
    let starts_before = |start: Option<u64>, end: Option<u64>| match (start, end) {
        (Some(start), Some(end)) => start < end,
        _ => true,
    };
    let is_apart_in_time = !(starts_before(a.start, b.end) && starts_before(b.start, a.end));
    if is_apart_in_time || !a.population.meets(&b.population) {
        return None;
    }
    if a.salt == b.salt {
        return Some(Clash::Salt);
    }
    match (&a.traffic.layer, &b.traffic.layer) {
        (Some(one), Some(other)) if one != other => None,
        (Some(_), Some(_)) if a.unit != b.unit => Some(Clash::Units),
        (Some(_), Some(_)) => {
            let do_meet = a.traffic.from < b.traffic.to && b.traffic.from < a.traffic.to;
            do_meet.then_some(Clash::Slices)
        }
        _ => Some(Clash::Unlayered),
    }
}
