//! How likely the mixture test is to have rejected by a given size: its own boundary, integrated.
//!
//! With W = n θ̂ / √c, where θ̂ has variance c/n, the walk W has independent normal steps of mean δ = effect / √c
//! and variance 1 per unit of n, and the test rejects when |W| reaches √n · [`Sequential::reach`]. The mass
//! of walks that have not rejected yet is carried from look to look on a lattice of an eighth of a step's
//! deviation (Armitage, McPherson & Rowe 1969). No simulation, no asymptotics but the normal step.

use serde::Serialize;

use super::Sequential;
use crate::Error;
use crate::error::{at_least, finite, positive};
use crate::special::normal_tail;

/// Lattice points for each standard deviation of a step.
const FINENESS: f64 = 8.0;

/// More looks than this take seconds.
const MOST_LOOKS: u64 = 5_000;

/// The chance to have rejected by a size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PowerPoint {
    /// Observations per arm.
    pub size: u64,
    /// The probability of a rejection at a look up to this size, in [0, 1].
    pub power: f64,
}

/// The power of looking every `every` observations per arm up to `most`, beginning at the burn-in: one
/// point for each look. `effect` is the true difference and `deviation` = √(σ₁² + σ₂²), both in the outcome's
/// unit; for rates σ² = p(1 − p). For effect 0 it is the chance of a false positive.
///
/// # Errors
/// [`Error::NotFinite`] or [`Error::OutOfRange`] for a bad effect or deviation, no look before `most`, or more
/// than 5,000 looks.
pub fn power_curve(
    test: &Sequential,
    effect: f64,
    deviation: f64,
    every: u64,
    most: u64,
) -> Result<Vec<PowerPoint>, Error> {
    let drift = finite("effect", effect)? / positive("deviation", deviation)?;
    at_least("every", every, 1)?;
    let first = test.settings().burn_in.max(every);
    at_least("most", most, first)?;
    let looks = (most - first) / every + 1;
    if looks > MOST_LOOKS {
        return Err(Error::OutOfRange {
            field: "looks",
            value: looks as f64,
            range: "at most 5000; look less often",
        });
    }
    // A drift of more than a few deviations a step is rejected at once; its kernel would not fit.
    if drift.abs() * (every as f64).sqrt() > 50.0 {
        return Err(Error::OutOfRange {
            field: "effect",
            value: effect,
            range: "at most 50 deviations a look",
        });
    }
    let step = (every as f64).sqrt() / FINENESS;
    let boundary = |size: u64| test.reach(size as f64) * (size as f64).sqrt() / step;
    let kernel = Kernel::new(drift * every as f64 / step);
    let mut walks = start(boundary(first), drift, first as f64, step);
    let mut points = Vec::new();
    for look in 0..looks {
        let size = first + look * every;
        if look > 0 {
            walks = kernel.advance(&walks, boundary(size));
        }
        points.push(PowerPoint {
            size,
            power: (1.0 - walks.iter().sum::<f64>()).clamp(0.0, 1.0),
        });
    }
    Ok(points)
}

/// How much of the lattice cell at `at` lies within ±`bound`, all in steps of the lattice.
fn inside(at: i64, bound: f64) -> f64 {
    (bound - (at as f64).abs() + 0.5).clamp(0.0, 1.0)
}

/// The lattice reaches from −half to +half.
fn half_of(bound: f64) -> i64 {
    (bound + 0.5).ceil() as i64
}

/// The mass in each cell at the first look, W ~ N(drift · size, size).
fn start(bound: f64, drift: f64, size: f64, step: f64) -> Vec<f64> {
    let half = half_of(bound);
    let tail = |edge: f64| normal_tail((edge * step - drift * size) / size.sqrt());
    let mass = |at: i64| tail(at as f64 - 0.5) - tail(at as f64 + 0.5);
    (-half..=half).map(|at| mass(at) * inside(at, bound)).collect()
}

/// One step's distribution on the lattice.
struct Kernel {
    /// The smallest jump.
    from: i64,
    weights: Vec<f64>,
}

impl Kernel {
    fn new(mean: f64) -> Self {
        let width = 7.0 * FINENESS;
        let (from, to) = ((mean - width).floor() as i64, (mean + width).ceil() as i64);
        let weights: Vec<f64> = (from..=to)
            .map(|jump| (-0.5 * ((jump as f64 - mean) / FINENESS).powi(2)).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        Self {
            from,
            weights: weights.into_iter().map(|weight| weight / sum).collect(),
        }
    }

    /// The masses after one more step, those beyond `bound` left out.
    fn advance(&self, walks: &[f64], bound: f64) -> Vec<f64> {
        let (old, new) = ((walks.len() as i64 - 1) / 2, half_of(bound));
        (-new..=new)
            .map(|at| {
                // at = place + jump; the jumps run down as the places run up.
                let low = (at - self.from - self.weights.len() as i64 + 1).max(-old);
                let high = (at - self.from).min(old);
                if low > high {
                    return 0.0;
                }
                let places = &walks[(low + old) as usize..=(high + old) as usize];
                let jumps = &self.weights[(at - high - self.from) as usize..=(at - low - self.from) as usize];
                places
                    .iter()
                    .zip(jumps.iter().rev())
                    .map(|(mass, weight)| mass * weight)
                    .sum::<f64>()
                    * inside(at, bound)
            })
            .collect()
    }
}
