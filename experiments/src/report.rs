//! What to do with an experiment, and why.
//!
//! A recommendation rests on intervals, guardrails, the ratio of units and the sample, in a fixed order;
//! never on a p-value alone:
//!
//! 1. Units do not follow the weights: stop and look for the cause; nothing else is believed.
//! 2. A guardrail's interval lies beyond its margin: stop. This may precede the minimum sample, because
//!    always-valid intervals may be acted on at any time and harm should not wait.
//! 3. The minimum sample is not reached: keep running.
//! 4. The primary outcome's interval lies below zero gain: stop, the treatment is worse.
//! 5. It lies above zero gain: ship, if every guardrail's interval also lies within its margin; while one
//!    does not, keep running.
//! 6. Its upper end is below the least gain worth having, or the largest sample is reached: stop for
//!    futility.
//! 7. Else keep running.
//!
//! The intervals must be always-valid ones ([`crate::sequential`]) if this is asked more than once.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{at_least, finite, open_unit, probability};
use crate::{Error, Interval};

/// Which way an outcome is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// More is better: score, agreement.
    Higher,
    /// Less is better: latency, cost, errors.
    Lower,
}

impl Direction {
    /// The interval of the gain: of the difference, or of the negated difference where less is better.
    fn gain(self, difference: Interval) -> Interval {
        match self {
            Self::Higher => difference,
            Self::Lower => difference.negated(),
        }
    }
}

/// An outcome that must not suffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Guardrail {
    /// Its name.
    pub name: String,
    /// Which way it is good. A latency's p95 is kept as the rate of answers slower than a limit, lower.
    pub direction: Direction,
    /// Treatment less control, always-valid, in the outcome's unit.
    pub difference: Interval,
    /// The loss that is borne, ≥ 0, in the outcome's unit.
    pub margin: f64,
}

/// All that a recommendation rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// Treatment less control on the primary outcome, always-valid, in its unit.
    pub primary: Interval,
    /// Which way it is good.
    pub direction: Direction,
    /// The least gain worth having, ≥ 0, in its unit: less than this is futile.
    pub least_gain: f64,
    /// Outcomes that must not suffer.
    pub guardrails: Vec<Guardrail>,
    /// The always-valid p-value of the ratio of units ([`crate::ratio`]); none where assignment has no ratio
    /// (paired mode).
    pub ratio_p_value: Option<f64>,
    /// The level of that, in (0, 1); 0.001 is common, because a mismatch voids everything.
    pub ratio_error: f64,
    /// Units with an outcome in the smaller arm.
    pub sample: u64,
    /// The sample below which nothing is shipped or given up.
    pub minimum: u64,
    /// The sample at which patience ends, ≥ `minimum`.
    pub maximum: u64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Wait for more units.
    KeepRunning,
    /// Give everybody the treatment.
    Ship,
    /// Give everybody the control.
    Stop,
    /// Assignment or logging is broken: repair it and start anew.
    Repair,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Units do not follow the weights.
    RatioMismatch {
        /// The always-valid p-value of the ratio.
        p_value: f64,
    },
    /// A guardrail suffers beyond its margin.
    GuardrailHarmed {
        /// Its name.
        name: String,
        /// Its difference.
        difference: Interval,
    },
    /// The minimum sample is not reached.
    BelowMinimum {
        /// Units so far.
        sample: u64,
        /// Units needed.
        minimum: u64,
    },
    /// The treatment is worse.
    Worse {
        /// The primary difference.
        difference: Interval,
    },
    /// The treatment is better, and no guardrail suffers beyond its margin.
    Better {
        /// The primary difference.
        difference: Interval,
    },
    /// The treatment is better, but a guardrail may still suffer beyond its margin.
    GuardrailOpen {
        /// Its name.
        name: String,
        /// Its difference.
        difference: Interval,
    },
    /// A gain worth having is ruled out.
    NoGain {
        /// The primary difference.
        difference: Interval,
        /// The least gain worth having.
        least_gain: f64,
    },
    /// The largest sample was reached without an answer.
    Exhausted {
        /// Units so far.
        sample: u64,
    },
    /// The primary interval still holds both zero and a gain worth having.
    Undecided {
        /// The primary difference.
        difference: Interval,
    },
}

/// What to do and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recommendation {
    /// What.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// The recommendation, by the order in the module's head.
///
/// # Errors
/// [`Error::NotFinite`] for a NaN end of an interval; [`Error::OutOfRange`] for an interval upside down, a
/// negative margin or gain, a level outside (0, 1) or a p-value outside [0, 1]; [`Error::TooFew`] for a
/// maximum below the minimum or a minimum of 0.
pub fn recommend(evidence: &Evidence) -> Result<Recommendation, Error> {
    check(evidence)?;
    let say = |action, reason| Ok(Recommendation { action, reason });
    if let Some(p_value) = evidence.ratio_p_value
        && p_value <= evidence.ratio_error
    {
        return say(Action::Repair, Reason::RatioMismatch { p_value });
    }
    if let Some(harmed) = evidence
        .guardrails
        .iter()
        .find(|g| g.direction.gain(g.difference).high < -g.margin)
    {
        let (name, difference) = (harmed.name.clone(), harmed.difference);
        return say(Action::Stop, Reason::GuardrailHarmed { name, difference });
    }
    let (sample, minimum) = (evidence.sample, evidence.minimum);
    if sample < minimum {
        return say(Action::KeepRunning, Reason::BelowMinimum { sample, minimum });
    }
    let difference = evidence.primary;
    let gain = evidence.direction.gain(difference);
    let open = evidence
        .guardrails
        .iter()
        .find(|g| g.direction.gain(g.difference).low < -g.margin);
    let is_exhausted = sample >= evidence.maximum;
    if gain.high < 0.0 {
        return say(Action::Stop, Reason::Worse { difference });
    }
    if gain.low > 0.0 {
        return match open {
            None => say(Action::Ship, Reason::Better { difference }),
            Some(_) if is_exhausted => say(Action::Stop, Reason::Exhausted { sample }),
            Some(open) => {
                let (name, difference) = (open.name.clone(), open.difference);
                say(Action::KeepRunning, Reason::GuardrailOpen { name, difference })
            }
        };
    }
    if gain.high < evidence.least_gain {
        return say(
            Action::Stop,
            Reason::NoGain {
                difference,
                least_gain: evidence.least_gain,
            },
        );
    }
    if is_exhausted {
        return say(Action::Stop, Reason::Exhausted { sample });
    }
    say(Action::KeepRunning, Reason::Undecided { difference })
}

fn check(evidence: &Evidence) -> Result<(), Error> {
    upright("primary", evidence.primary)?;
    not_negative("least_gain", evidence.least_gain)?;
    for guardrail in &evidence.guardrails {
        upright("guardrail.difference", guardrail.difference)?;
        not_negative("guardrail.margin", guardrail.margin)?;
    }
    open_unit("ratio_error", evidence.ratio_error)?;
    evidence
        .ratio_p_value
        .map_or(Ok(0.0), |p_value| probability("ratio_p_value", p_value))?;
    at_least("minimum", evidence.minimum, 1)?;
    at_least("maximum", evidence.maximum, evidence.minimum)
}

fn upright(field: &'static str, interval: Interval) -> Result<(), Error> {
    let Interval { low, high } = interval;
    match low <= high {
        true => Ok(()),
        false if low.is_nan() || high.is_nan() => Err(Error::NotFinite {
            field,
            value: f64::NAN,
        }),
        false => Err(Error::OutOfRange {
            field,
            value: low,
            range: "an interval whose low end is not above its high",
        }),
    }
}

fn not_negative(field: &'static str, value: f64) -> Result<(), Error> {
    match finite(field, value)? >= 0.0 {
        true => Ok(()),
        false => Err(Error::OutOfRange {
            field,
            value,
            range: "0 or above",
        }),
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "[{:.4}, {:.4}]", self.low, self.high)
    }
}

impl fmt::Display for Recommendation {
    /// One line: what, and why.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.action {
            Action::KeepRunning => "keep running: ",
            Action::Ship => "ship: ",
            Action::Stop => "stop: ",
            Action::Repair => "repair and start anew: ",
        })?;
        match &self.reason {
            Reason::RatioMismatch { p_value } => {
                write!(
                    formatter,
                    "the arms' units do not follow their weights (always-valid p = {p_value:.2e})"
                )
            }
            Reason::GuardrailHarmed { name, difference } => {
                write!(
                    formatter,
                    "guardrail `{name}` suffers beyond its margin (difference {difference})"
                )
            }
            Reason::BelowMinimum { sample, minimum } => {
                write!(
                    formatter,
                    "{sample} units in the smaller arm of at least {minimum}"
                )
            }
            Reason::Worse { difference } => {
                write!(formatter, "the treatment is worse (difference {difference})")
            }
            Reason::Better { difference } => {
                write!(formatter, "the treatment is better (difference {difference})")
            }
            Reason::GuardrailOpen { name, difference } => {
                write!(
                    formatter,
                    "better, but guardrail `{name}` may still suffer (difference {difference})"
                )
            }
            Reason::NoGain {
                difference,
                least_gain,
            } => {
                write!(
                    formatter,
                    "a gain of {least_gain} is ruled out (difference {difference})"
                )
            }
            Reason::Exhausted { sample } => {
                write!(
                    formatter,
                    "{sample} units in the smaller arm, the most planned, gave no answer"
                )
            }
            Reason::Undecided { difference } => write!(formatter, "the difference {difference} says neither"),
        }
    }
}

#[cfg(test)]
mod tests;
