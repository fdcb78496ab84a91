//! One functional token against all others, which stay as they are.
//!
//! With `L` the log of the others' summed exponentials, the new token's probability is `σ(w·x + b - L)`: a binary
//! logistic regression with an offset, convex, with as many unknowns as a token has numbers.

use super::regression::{Head, dot32, minimise};
use crate::RouterError;
use referral_lm::LmError;

/// Strength of the regulariser; that of the heads it joins is chosen between 1e-3 and 3e-2.
const L2: f32 = 3e-3;
/// Most steps.
const ITERATIONS: usize = 100;

/// Fits one token. Rows are features, whether they are the new class's, and a weight; `offsets` are their `L`.
pub(crate) fn fit_against(rows: &[(Vec<f32>, bool, f32)], offsets: &[f32]) -> Result<Head, RouterError> {
    let width = rows.first().map_or(0, |(x, ..)| x.len());
    let total: f32 = rows.iter().map(|(.., weight)| weight).sum();
    let function = |at: &[f32]| {
        let (w, b) = at.split_at(width);
        let mut gradient: Vec<f32> = w.iter().map(|w| L2 * w).chain([0.0]).collect();
        let mut loss = 0.5 * f64::from(L2) * f64::from(dot32(w, w));
        for ((x, is_new, weight), offset) in rows.iter().zip(offsets) {
            let z = dot32(w, x) + b.iter().sum::<f32>() - offset;
            let signed = if *is_new { -z } else { z };
            // ln(1 + e^signed), without overflow.
            loss += f64::from(weight / total) * f64::from(signed.max(0.0) + (-signed.abs()).exp().ln_1p());
            let p = 1.0 / (1.0 + (-z).exp());
            let error = weight / total * (p - if *is_new { 1.0 } else { 0.0 });
            gradient.iter_mut().zip(x).for_each(|(g, x)| *g += error * x);
            if let Some(bias) = gradient.last_mut() {
                *bias += error;
            }
        }
        Ok::<_, LmError>((loss, gradient))
    };
    let mut rows = minimise(width + 1, ITERATIONS, function)?;
    let bias = rows.split_off(width);
    Ok(Head { rows, bias })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_token_wins_its_rows_and_leaves_the_others() {
        // The old tokens' sum is 2 everywhere; the new class lies along the second axis.
        let rows: Vec<(Vec<f32>, bool, f32)> = (0..40)
            .map(|i| {
                let is_new = i % 4 == 0;
                let wobble = (i as f32 * 0.7).sin() * 0.2;
                (
                    vec![wobble, if is_new { 3.0 } else { -1.0 } + wobble],
                    is_new,
                    1.0,
                )
            })
            .collect();
        let head = fit_against(&rows, &[2.0; 40]).unwrap();
        for (x, is_new, _) in &rows {
            assert_eq!(head.logits(x)[0] > 2.0, *is_new, "{x:?}");
        }
        assert_eq!(head, fit_against(&rows, &[2.0; 40]).unwrap());
    }
}
