//! Multinomial logistic regression: the functional tokens' rows, trained on frozen features.
//!
//! Minimises the weighted mean cross-entropy plus `l2 / 2 · ‖rows‖²` (biases are free) with L-BFGS. The problem is
//! convex, so the result depends on the data and `l2` alone, not on a seed or a step size.

use candle_core::{Device, Tensor};
use std::collections::VecDeque;

/// Curvature pairs that L-BFGS remembers.
const MEMORY: usize = 10;

/// Standardised features with labels and weights.
pub(crate) struct Problem<'a> {
    /// `n × width`.
    pub(crate) features: &'a Tensor,
    pub(crate) labels: &'a [usize],
    /// Positive, adding up to 1.
    pub(crate) weights: &'a [f32],
    pub(crate) classes: usize,
    pub(crate) l2: f32,
}

/// The functional tokens: one row of `width` numbers and one bias per class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Head {
    /// `classes × width`, row-major.
    pub(crate) rows: Vec<f32>,
    /// One per class.
    pub(crate) bias: Vec<f32>,
}

impl Head {
    /// One logit per class.
    pub(crate) fn logits(&self, x: &[f32]) -> Vec<f32> {
        self.rows
            .chunks_exact(x.len().max(1))
            .zip(&self.bias)
            .map(|(row, bias)| bias + dot32(row, x))
            .collect()
    }
}

impl Problem<'_> {
    fn width(&self) -> candle_core::Result<usize> {
        self.features.dim(1)
    }

    /// Loss and gradient at parameters laid out as all rows, then all biases. Both products run in candle's
    /// kernels, which split work by output cell, so a run repeats to the bit.
    fn gradient(&self, parameters: &[f32]) -> candle_core::Result<(f64, Vec<f32>)> {
        let (n, width) = self.features.dims2()?;
        let (rows, bias) = parameters.split_at(self.classes * width);
        let matrix = Tensor::from_slice(rows, (self.classes, width), &Device::Cpu)?;
        let mut errors = self
            .features
            .matmul(&matrix.t()?)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let mut loss = 0.0f64;
        let mut bias_gradient = vec![0.0f32; self.classes];
        for ((z, &label), &weight) in errors
            .chunks_exact_mut(self.classes)
            .zip(self.labels)
            .zip(self.weights)
        {
            z.iter_mut().zip(bias).for_each(|(z, bias)| *z += bias);
            let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let own = z.get(label).copied().unwrap_or(top);
            z.iter_mut().for_each(|z| *z = (*z - top).exp());
            let sum: f32 = z.iter().sum();
            loss += f64::from(weight) * f64::from(sum.ln() + top - own);
            for (class, (error, total)) in z.iter_mut().zip(&mut bias_gradient).enumerate() {
                *error = weight * (*error / sum - if class == label { 1.0 } else { 0.0 });
                *total += *error;
            }
        }
        let errors = Tensor::from_vec(errors, (n, self.classes), &Device::Cpu)?;
        let mut gradient = errors
            .t()?
            .matmul(self.features)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        for (g, w) in gradient.iter_mut().zip(rows) {
            *g += self.l2 * w;
            loss += 0.5 * f64::from(self.l2) * f64::from(w * w);
        }
        gradient.extend(bias_gradient);
        Ok((loss, gradient))
    }

    /// Minimises from zero in at most `iterations` steps.
    pub(crate) fn solve(&self, iterations: usize) -> candle_core::Result<Head> {
        let size = self.classes * self.width()?;
        let mut at = minimise(size + self.classes, iterations, |at| self.gradient(at))?;
        let bias = at.split_off(size);
        Ok(Head { rows: at, bias })
    }
}

/// L-BFGS (Liu and Nocedal 1989) from zero in at most `iterations` steps. `objective` gives the loss and its gradient.
pub(super) fn minimise<E>(
    size: usize,
    iterations: usize,
    objective: impl Fn(&[f32]) -> Result<(f64, Vec<f32>), E>,
) -> Result<Vec<f32>, E> {
    let mut at = vec![0.0; size];
    let (mut loss, mut gradient) = objective(&at)?;
    let mut memory: VecDeque<(Vec<f32>, Vec<f32>, f64)> = VecDeque::with_capacity(MEMORY);
    for _ in 0..iterations {
        let direction = lbfgs_direction(&gradient, &memory);
        let slope = dot(&gradient, &direction);
        if slope >= 0.0 {
            break;
        }
        // Armijo backtracking; the quasi-Newton step is 1 except at the very start.
        let mut step = if memory.is_empty() {
            (1.0 / dot(&gradient, &gradient).sqrt()).min(1.0)
        } else {
            1.0
        };
        let accepted = loop {
            let next: Vec<f32> = at
                .iter()
                .zip(&direction)
                .map(|(x, d)| x + step as f32 * d)
                .collect();
            let (value, slopes) = objective(&next)?;
            if value <= loss + 1e-4 * step * slope {
                break Some((next, value, slopes));
            }
            step *= 0.5;
            if step < 1e-6 {
                break None;
            }
        };
        let Some((next, value, slopes)) = accepted else {
            break;
        };
        let s: Vec<f32> = next.iter().zip(&at).map(|(a, b)| a - b).collect();
        let y: Vec<f32> = slopes.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&s, &y);
        if curvature > 1e-12 {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back((s, y, curvature));
        }
        let gain = loss - value;
        (at, loss, gradient) = (next, value, slopes);
        if gain < 1e-7 * loss.max(1e-3) {
            break;
        }
    }
    Ok(at)
}

/// The two-loop recursion: minus the approximate inverse Hessian times the gradient.
fn lbfgs_direction(gradient: &[f32], memory: &VecDeque<(Vec<f32>, Vec<f32>, f64)>) -> Vec<f32> {
    let mut q: Vec<f32> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(memory.len());
    for (s, y, curvature) in memory.iter().rev() {
        let alpha = dot(s, &q) / curvature;
        q.iter_mut().zip(y).for_each(|(q, y)| *q -= alpha as f32 * y);
        alphas.push(alpha);
    }
    if let Some((_, y, curvature)) = memory.back() {
        let scale = (curvature / dot(y, y)) as f32;
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for ((s, y, curvature), alpha) in memory.iter().zip(alphas.iter().rev()) {
        let beta = dot(y, &q) / curvature;
        q.iter_mut()
            .zip(s)
            .for_each(|(q, s)| *q += (alpha - beta) as f32 * s);
    }
    q
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Eight running sums, so that the compiler may use vector registers; floating-point sums are never reordered for it.
pub(crate) fn dot32(a: &[f32], b: &[f32]) -> f32 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Three clusters around fixed centres.
    fn clusters(n: usize, width: usize) -> (Tensor, Vec<usize>, Vec<f32>) {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let labels: Vec<usize> = (0..n).map(|i| i % 3).collect();
        let cell = |label: usize, d: usize| if d % 3 == label { 1.0 } else { 0.0 };
        let features: Vec<f32> = labels
            .iter()
            .flat_map(|label| (0..width).map(move |d| cell(*label, d)))
            .map(|centre| centre + random.random_range(-0.8f32..0.8))
            .collect();
        (
            Tensor::from_vec(features, (n, width), &Device::Cpu).unwrap(),
            labels,
            vec![1.0 / n as f32; n],
        )
    }

    #[test]
    fn learns_separable_clusters_and_repeats_to_the_bit() {
        let (features, labels, weights) = clusters(600, 12);
        let problem = Problem {
            features: &features,
            labels: &labels,
            weights: &weights,
            classes: 3,
            l2: 1e-3,
        };
        let head = problem.solve(100).unwrap();
        let right = features
            .to_vec2::<f32>()
            .unwrap()
            .into_iter()
            .zip(&labels)
            .filter(|(x, label)| {
                let z = head.logits(x);
                z.iter().all(|other| *other <= z[**label])
            });
        assert!(right.count() > 590);
        assert_eq!(head, problem.solve(100).unwrap());
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss_and_vanishes_at_the_solution() {
        let (features, labels, weights) = clusters(90, 5);
        let problem = Problem {
            features: &features,
            labels: &labels,
            weights: &weights,
            classes: 3,
            l2: 0.05,
        };
        let at: Vec<f32> = (0..18).map(|i| (i as f32 * 0.7).sin() * 0.3).collect();
        let (_, gradient) = problem.gradient(&at).unwrap();
        for i in 0..at.len() {
            let shifted = |by: f32| {
                let mut moved = at.clone();
                moved[i] += by;
                problem.gradient(&moved).unwrap().0
            };
            let slope = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
            assert!(
                (slope - f64::from(gradient[i])).abs() < 1e-4,
                "{i}: {slope} {}",
                gradient[i]
            );
        }
        let head = problem.solve(200).unwrap();
        let (_, gradient) = problem.gradient(&[head.rows, head.bias].concat()).unwrap();
        assert!(dot(&gradient, &gradient).sqrt() < 1e-3);
    }

    #[test]
    fn dot32_is_the_plain_sum() {
        let a: Vec<f32> = (0..19).map(|i| i as f32).collect();
        assert_eq!(dot32(&a, &a), (0..19).map(|i| (i * i) as f32).sum::<f32>());
    }
}
