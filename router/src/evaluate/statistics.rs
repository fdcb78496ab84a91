//! The numbers of an evaluation, as pure functions.

use super::{CURVE_POINTS, CoveragePoint, ECE_BINS};

/// A part of a whole; 0 of nothing.
pub(super) fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// Index of the calibration bin of a confidence in [0, 1].
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the bins"
)]
pub(super) fn bin_of(confidence: f32) -> usize {
    ((confidence.clamp(0.0, 1.0) * ECE_BINS as f32) as usize).min(ECE_BINS - 1)
}

/// Nearest-rank percentile of sorted values; 0 if there are none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank within the slice"
)]
pub(super) fn percentile(sorted: &[u32], quantile: f64) -> u64 {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .map_or(0, |value| u64::from(*value))
}

/// Share that is right among the first so many rows, the surest first.
pub(super) fn right_among(rows: &[(f32, bool)], count: usize) -> f64 {
    let right = rows.iter().take(count).filter(|(_, is_right)| *is_right).count();
    share(right, count.min(rows.len()))
}

/// Accuracy on the surest 1/20, 2/20, … of the rows, the surest first.
pub(super) fn risk_coverage(rows: &[(f32, bool)]) -> Vec<CoveragePoint> {
    let ends = (1..=CURVE_POINTS).map(|point| (rows.len() * point).div_ceil(CURVE_POINTS));
    ends.map(|end| CoveragePoint {
        coverage: share(end, rows.len()),
        accuracy: right_among(rows, end),
    })
    .collect()
}

/// Mean risk over all coverages, rows sorted by confidence.
pub(super) fn aurc(rows: &[(f32, bool)]) -> f64 {
    let mut wrong = 0;
    let mut sum = 0.0;
    for (i, (_, is_right)) in rows.iter().enumerate() {
        wrong += usize::from(!is_right);
        sum += share(wrong, i + 1);
    }
    if rows.is_empty() {
        0.0
    } else {
        sum / rows.len() as f64
    }
}

/// Probability that a number of the first list is above one of the second, ties counting half; 0 if a list is empty.
pub(super) fn auroc(inside: Vec<f32>, mut outside: Vec<f32>) -> f64 {
    outside.sort_by(f32::total_cmp);
    let halves: usize = inside
        .iter()
        .map(|x| outside.partition_point(|y| y < x) + outside.partition_point(|y| y <= x))
        .sum();
    0.5 * share(halves, inside.len() * outside.len())
}
