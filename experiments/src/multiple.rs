//! Many segments, many chances to be wrong: p-values adjusted for their number.
//!
//! An adjusted p-value is compared with the level directly. The always-valid p-values of
//! [`crate::sequential`] may be given at any stopping time; they stay p-values there.

use crate::Error;
use crate::error::{at_least, probability};

/// Holm's (1979) step-down adjustment: p̃₍ᵢ₎ = max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎). Rejecting where
/// p̃ ≤ α keeps the chance of any false rejection at α under every dependence. Same order as `p_values`.
///
/// # Errors
/// [`Error::TooFew`] without p-values; [`Error::NotFinite`] or [`Error::OutOfRange`] for one outside [0, 1].
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>, Error> {
    let order = ascending(p_values)?;
    let count = p_values.len();
    let mut adjusted = vec![0.0; count];
    let mut most: f64 = 0.0;
    for (rank, &at) in order.iter().enumerate() {
        most = most.max((p_values[at] * (count - rank) as f64).min(1.0));
        adjusted[at] = most;
    }
    Ok(adjusted)
}

/// Benjamini & Hochberg's (1995) step-up adjustment: p̃₍ᵢ₎ = min over j ≥ i of min(1, m p₍ⱼ₎ / j). Rejecting
/// where p̃ ≤ q keeps the expected share of false rejections at q if the p-values are independent or
/// positively dependent (Benjamini & Yekutieli 2001). Same order as `p_values`.
///
/// # Errors
/// As [`holm`].
pub fn benjamini_hochberg(p_values: &[f64]) -> Result<Vec<f64>, Error> {
    let order = ascending(p_values)?;
    let count = p_values.len();
    let mut adjusted = vec![0.0; count];
    let mut least: f64 = 1.0;
    for (rank, &at) in order.iter().enumerate().rev() {
        least = least.min(p_values[at] * (count as f64 / (rank + 1) as f64));
        adjusted[at] = least;
    }
    Ok(adjusted)
}

/// Positions from the smallest p-value to the largest.
fn ascending(p_values: &[f64]) -> Result<Vec<usize>, Error> {
    at_least("p_values", p_values.len() as u64, 1)?;
    for &p in p_values {
        probability("p_values", p)?;
    }
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    Ok(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert!(
            got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
            "{got:?} is not {expected:?}"
        );
    }

    // Reference: R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm" and "BH").
    #[test]
    fn agrees_with_r() {
        let p = [0.01, 0.04, 0.03, 0.005];
        assert_close(&holm(&p).unwrap(), &[0.03, 0.06, 0.06, 0.02]);
        assert_close(&benjamini_hochberg(&p).unwrap(), &[0.02, 0.04, 0.04, 0.02]);
    }

    #[test]
    fn bad_p_values_are_named() {
        assert!(matches!(
            holm(&[]),
            Err(Error::TooFew {
                field: "p_values",
                ..
            })
        ));
        assert!(matches!(holm(&[0.1, f64::NAN]), Err(Error::NotFinite { .. })));
        assert!(matches!(
            benjamini_hochberg(&[1.1]),
            Err(Error::OutOfRange { .. })
        ));
    }

    proptest! {
        #[test]
        fn adjusting_raises_p_and_holm_is_the_stricter(p in prop::collection::vec(0.0f64..=1.0, 1..30)) {
            let (strict, lenient) = (holm(&p).unwrap(), benjamini_hochberg(&p).unwrap());
            for at in 0..p.len() {
                prop_assert!(p[at] <= lenient[at] && lenient[at] <= strict[at] && strict[at] <= 1.0);
            }
        }
    }
}
