//! A/B experiments between experts: who gets which arm, and what may be concluded from it.
//!
//! Two halves. [`assign`] gives a unit (a query, session, user or encounter) its arm; it needs no shared
//! state, so that every replica gives the same one. The other rooms draw conclusions from outcomes that
//! are kept as small, mergeable sums ([`moments`]): [`sequential`] for intervals that hold however often
//! one looks, [`ratio`] for broken assignment, [`cuped`] for smaller variance, [`effect`] for sizes at a
//! fixed sample, [`bootstrap`] for offline comparison, [`multiple`] for many segments, and [`report`] for
//! what to do. A p-value never decides alone.
//!
//! Everything here is a pure function of its arguments and, where chance is needed, of a seed: no clock,
//! no files, no network. Storage, configuration and traffic are the gateway's. Bad input is an [`Error`]
//! that names the field, the value and the fix; nothing panics.

pub mod assign;
pub mod bootstrap;
pub mod cuped;
pub mod effect;
mod error;
pub mod moments;
pub mod multiple;
mod random;
pub mod ratio;
pub mod report;
pub mod sequential;
mod special;

pub use error::Error;

/// A closed interval; an end is infinite where nothing is known on that side yet.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Interval {
    /// Its lower end, in the unit of what it encloses.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// The interval that excludes nothing.
    pub const EVERYTHING: Self = Self {
        low: f64::NEG_INFINITY,
        high: f64::INFINITY,
    };

    /// `centre` ± `radius`.
    fn around(centre: f64, radius: f64) -> Self {
        Self {
            low: centre - radius,
            high: centre + radius,
        }
    }

    /// Whether it encloses `value`.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// The same for the negated quantity.
    #[must_use]
    pub fn negated(&self) -> Self {
        Self {
            low: -self.high,
            high: -self.low,
        }
    }

    /// Cut to what the quantity can be; an interval wholly outside becomes the nearer end.
    fn within(self, low: f64, high: f64) -> Self {
        Self {
            low: self.low.clamp(low, high),
            high: self.high.clamp(low, high),
        }
    }
}
