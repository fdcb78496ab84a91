//! Whether a query is anything that the experts are for.
//!
//! A probability over experts adds up to 1 even for gibberish, so it cannot say "none of these". Three numbers can:
//!
//! - *end*, the log odds of the experts' tokens together against `<expert_end>`, which is trained on rows that call for nobody;
//! - *energy*, the log of the experts' summed exponentials, `T·logsumexp(z / T)` at `T = 1` (Liu et al. 2020, arXiv 2010.03759);
//! - *distance*, how far the features are from those of the training set: the Mahalanobis distance (Lee et al. 2018,
//!   arXiv 1807.03888) to their one mean with a diagonal covariance, which for standardised features is their length. On dev
//!   a full covariance, or a mean for each class, told no more than this and costs a projection.
//!
//! A logistic regression over the three, fitted on dev rows, makes one calibrated probability of them: few numbers,
//! so that a few hundred rows suffice, and so that kinds of nonsense that nobody thought of are caught by the distance.

use serde::{Deserialize, Serialize};

/// Numbers that tell scope.
const SCORES: usize = 3;
/// Strength of the regression's regulariser, against a mean log-likelihood.
const RIDGE: f64 = 1e-3;
/// Newton steps; a convex problem of four unknowns needs fewer.
const STEPS: usize = 30;
/// Share of queries taken to be in scope. A gateway meets far more of them than of others; at even odds the confidence of
/// unusual queries comes out too low, and much above three in four that of nonsense too high (ECE and AUROC on dev).
const IN_SCOPE: f64 = 0.75;
/// Most in-scope dev rows (by weight) that the threshold may turn away.
const MOST_TURNED_AWAY: f64 = 0.05;

/// What a query's logits and features say, before any calibration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scored {
    /// The experts' logits, then that of `<expert_end>`.
    pub(crate) logits: Vec<f32>,
    /// Log of the root mean square of the standardised features: 0 for a query as far from the training mean as most.
    pub(crate) distance: f32,
}

impl Scored {
    /// Of standardised features that have their logits; `vectors` is how many vectors lie side by side (the
    /// standardisation divides by its root).
    pub(crate) fn new(logits: Vec<f32>, features: &[f32], vectors: usize) -> Self {
        let squares = crate::train::dot32(features, features) * vectors as f32 / features.len().max(1) as f32;
        Self {
            logits,
            distance: 0.5 * squares.max(1e-12).ln(),
        }
    }

    /// End, energy, distance.
    fn scores(&self) -> [f64; SCORES] {
        let (end, experts) = self
            .logits
            .split_last()
            .map_or((0.0, &[][..]), |(end, rest)| (*end, rest));
        let top = experts.iter().copied().fold(f32::MIN, f32::max);
        let energy = top + experts.iter().map(|z| (z - top).exp()).sum::<f32>().ln();
        [
            f64::from(energy - end),
            f64::from(energy),
            f64::from(self.distance),
        ]
    }
}

/// The fitted regression, as written in `router.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scope {
    /// Of end, energy and distance.
    pub(crate) weights: [f64; SCORES],
    pub(crate) bias: f64,
    /// The probability of being in scope below which the router abstains.
    pub(crate) threshold: f32,
}

/// A dev row for the fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Example<'a> {
    pub(crate) scored: &'a Scored,
    pub(crate) is_in_scope: bool,
    pub(crate) weight: f64,
}

impl Scope {
    /// Probability that a query is in scope, where [`IN_SCOPE`] of all are.
    pub(crate) fn probability(&self, scored: &Scored) -> f32 {
        let logit: f64 = scored
            .scores()
            .iter()
            .zip(&self.weights)
            .map(|(s, w)| s * w)
            .sum();
        sigmoid(logit + self.bias) as f32
    }

    /// Whether the numbers can be used.
    pub(crate) fn is_sound(&self) -> bool {
        self.weights.iter().chain([&self.bias]).all(|w| w.is_finite())
            && (0.0..=1.0).contains(&self.threshold)
    }

    /// Fits the regression, the sides weighing as [`IN_SCOPE`] says, and chooses the threshold: where the shares of queries on the wrong
    /// side of it are least in sum, turning away at most a twentieth of those in scope. `None` unless each side has
    /// at least ten rows.
    pub(crate) fn fit(examples: &[Example<'_>]) -> Option<Self> {
        let side = |is_in_scope| examples.iter().filter(move |e| e.is_in_scope == is_in_scope);
        if side(true).count() < 10 || side(false).count() < 10 {
            return None;
        }
        let totals = [false, true].map(|is_in| side(is_in).map(|e| e.weight).sum::<f64>());
        let share = |is_in_scope| if is_in_scope { IN_SCOPE } else { 1.0 - IN_SCOPE };
        let rows: Vec<Point> = examples
            .iter()
            .map(|e| Point {
                x: e.scored.scores(),
                is_in_scope: e.is_in_scope,
                weight: share(e.is_in_scope) * e.weight / totals[usize::from(e.is_in_scope)],
            })
            .collect();
        let (weights, bias) = regress(&rows);
        let mut scope = Self {
            weights,
            bias,
            threshold: 0.0,
        };
        let mut judged: Vec<(f32, bool, f64)> = examples
            .iter()
            .zip(&rows)
            .map(|(e, row)| {
                (
                    scope.probability(e.scored),
                    row.is_in_scope,
                    row.weight / share(row.is_in_scope),
                )
            })
            .collect();
        judged.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut turned_away, mut caught, mut best) = (0.0, 0.0, 0.0);
        for pair in judged.windows(2) {
            let (p, is_in_scope, weight) = pair[0];
            if is_in_scope {
                turned_away += weight;
            } else {
                caught += weight;
            }
            if turned_away > MOST_TURNED_AWAY {
                break;
            }
            if caught - turned_away > best && pair[1].0 > p {
                best = caught - turned_away;
                scope.threshold = f32::midpoint(p, pair[1].0);
            }
        }
        Some(scope)
    }
}

struct Point {
    x: [f64; SCORES],
    is_in_scope: bool,
    weight: f64,
}

/// Ridge logistic regression by Newton's method on standardised columns; weights are those of the columns as they are.
fn regress(rows: &[Point]) -> ([f64; SCORES], f64) {
    const N: usize = SCORES + 1;
    let moment = |f: &dyn Fn(&Point) -> f64| rows.iter().map(|row| row.weight * f(row)).sum::<f64>();
    let mean: [f64; SCORES] = std::array::from_fn(|i| moment(&|row| row.x[i]));
    let deviation: [f64; SCORES] =
        std::array::from_fn(|i| moment(&|row| (row.x[i] - mean[i]).powi(2)).sqrt().max(1e-9));
    let mut at = [0.0; N];
    for _ in 0..STEPS {
        let mut gradient = [0.0; N];
        let mut hessian = [[0.0; N]; N];
        for row in rows {
            let x: [f64; N] = std::array::from_fn(|i| {
                if i < SCORES {
                    (row.x[i] - mean[i]) / deviation[i]
                } else {
                    1.0
                }
            });
            let p = sigmoid(x.iter().zip(&at).map(|(x, w)| x * w).sum());
            let error = row.weight * (p - f64::from(u8::from(row.is_in_scope)));
            let curvature = row.weight * p * (1.0 - p);
            for i in 0..N {
                gradient[i] += error * x[i];
                for j in 0..N {
                    hessian[i][j] += curvature * x[i] * x[j];
                }
            }
        }
        for i in 0..N {
            gradient[i] += RIDGE * at[i];
            hessian[i][i] += RIDGE;
        }
        let step = solve(hessian, gradient);
        // A damped step: far from the solution the full one may overshoot.
        let length = step.iter().map(|s| s * s).sum::<f64>().sqrt();
        let damping = (2.0 / length.max(1e-12)).min(1.0);
        at.iter_mut().zip(step).for_each(|(w, s)| *w -= damping * s);
        if length < 1e-9 {
            break;
        }
    }
    let weights: [f64; SCORES] = std::array::from_fn(|i| at[i] / deviation[i]);
    let bias = at[SCORES] - weights.iter().zip(&mean).map(|(w, m)| w * m).sum::<f64>();
    (weights, bias)
}

/// Solves a symmetric positive definite system by elimination, which needs no pivots there.
fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N]) -> [f64; N] {
    for i in 0..N {
        let pivot = matrix[i];
        for j in i + 1..N {
            let factor = matrix[j][i] / pivot[i];
            matrix[j]
                .iter_mut()
                .zip(pivot)
                .for_each(|(cell, above)| *cell -= factor * above);
            right[j] -= factor * right[i];
        }
    }
    for i in (0..N).rev() {
        let known: f64 = (i + 1..N).map(|j| matrix[i][j] * right[j]).sum();
        right[i] = (right[i] - known) / matrix[i][i];
    }
    right
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests;
