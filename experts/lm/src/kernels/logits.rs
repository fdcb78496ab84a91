//! What sampling needs to know of a vocabulary's logits, in two sweeps.

use super::level::{Level, by_level};
use crate::exp::exp;

/// A summary of logits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    /// The largest.
    pub(crate) largest: f32,
    /// The sum of `e^(logit - largest)`.
    pub(crate) total: f32,
    /// Whether one of them is NaN or +∞.
    pub(crate) is_broken: bool,
}

/// Summarises logits, of which -∞ are allowed.
pub(crate) fn summarise(level: Level, logits: &[f32]) -> Summary {
    let mut summary = Summary {
        largest: f32::NEG_INFINITY,
        total: 0.0,
        is_broken: false,
    };
    sweep(level, logits, &mut summary);
    summary
}

by_level! {
    fn sweep(logits: &[f32], summary: &mut Summary) {
        let (chunks, rest) = logits.as_chunks::<16>();
        let mut largest = [f32::NEG_INFINITY; 16];
        let mut broken = [0u32; 16];
        let mut look = |lanes: &[f32]| {
            for ((largest, broken), x) in largest.iter_mut().zip(&mut broken).zip(lanes) {
                *largest = if *x > *largest { *x } else { *largest };
                // Neither NaN nor +∞ is below +∞.
                *broken |= u32::from(x.partial_cmp(&f32::INFINITY) != Some(std::cmp::Ordering::Less));
            }
        };
        for chunk in chunks {
            look(chunk);
        }
        look(rest);
        summary.is_broken = broken.iter().any(|b| *b != 0);
        summary.largest = largest.iter().fold(f32::NEG_INFINITY, |m, l| if *l > m { *l } else { m });
        let mut totals = [0f32; 16];
        for chunk in chunks {
            for (total, x) in totals.iter_mut().zip(chunk) {
                *total += exp(*x - summary.largest);
            }
        }
        for (total, x) in totals.iter_mut().zip(rest) {
            *total += exp(*x - summary.largest);
        }
        summary.total = totals.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_equal_the_definition_at_every_level() {
        let logits: Vec<f32> = (0..4999).map(|i| ((i * 37) % 1000) as f32 / 50.0 - 9.0).collect();
        let total: f64 = logits.iter().map(|x| f64::from(x - 10.98).exp()).sum();
        for level in Level::all() {
            let found = summarise(level, &logits);
            assert_eq!((found.largest, found.is_broken), (10.98, false));
            assert!((f64::from(found.total) / total - 1.0).abs() < 1e-5);
            for (bad, index) in [(f32::NAN, 3), (f32::INFINITY, 4998)] {
                let mut logits = logits.clone();
                logits[index] = bad;
                assert!(summarise(level, &logits).is_broken);
            }
            let nothing = summarise(level, &[f32::NEG_INFINITY; 40]);
            assert_eq!((nothing.largest, nothing.is_broken), (f32::NEG_INFINITY, false));
        }
    }
}
