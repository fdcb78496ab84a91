//! The share of a low-rank adapter in a product: `y += scale * (x A) B`, row by row.

use super::level::Level;
use super::panel::{MOST_ROWS, Matrix, multiply, panel, panel_at};
use super::threads::{Shared, share};

/// The two factors: `a` is `inputs × rank`, `b` is `rank × outputs`, both row-major.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) rank: usize,
}

/// Columns of a matrix of rows of `stride` values.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    pub(crate) stride: usize,
    pub(crate) first: usize,
}

/// Rows below which waking other threads costs more than it saves.
const PARALLEL_ROWS: usize = 32;

/// Adds to the rows `rows` of `output` (at the columns from `columns.first` on) the adapter's share for the same
/// rows of `x` (rows of `width` values), times the row's entry of `scales`. All rows go through the same factors
/// together, whatever their scales; nothing of the size of a weight matrix is made.
///
/// # Errors
/// If factors, rows or scales do not fit the matrices.
pub(crate) fn add_low_rank(
    level: Level,
    factors: Factors<'_>,
    (x, width): (&[f32], usize),
    (rows, scales): (&[u32], &[f32]),
    output: &mut [f32],
    columns: Columns,
) -> candle_core::Result<()> {
    let Factors { a, b, rank } = factors;
    let outputs = b.len().checked_div(rank).unwrap_or(0);
    // Each row once: the rows of a tile are written without a lock.
    let ascend = rows.windows(2).all(|pair| pair.first() < pair.last());
    let last = rows.last().map_or(0, |row| *row as usize + 1);
    let fits = rank > 0
        && a.len() == width * rank
        && b.len() == rank * outputs
        && rows.len() == scales.len()
        && columns.first + outputs <= columns.stride
        && x.len() >= last * width
        && output.len() >= last * columns.stride;
    if !(ascend && fits) {
        candle_core::bail!(
            "low-rank factors of {} and {} values and rank {rank} for {} rows of {width}",
            a.len(),
            b.len(),
            rows.len()
        );
    }
    let output = Shared::new(output);
    let tiles = rows.len().div_ceil(MOST_ROWS);
    share(tiles, rows.len() >= PARALLEL_ROWS, |range| {
        let mut inner = vec![0f32; MOST_ROWS * rank];
        for tile in range {
            let start = tile * MOST_ROWS;
            let end = rows.len().min(start + MOST_ROWS);
            let rows = rows.get(start..end).unwrap_or_default();
            let scales = scales.get(start..end).unwrap_or_default();
            let (mut from, mut between, mut to) = ([0; MOST_ROWS], [0; MOST_ROWS], [0; MOST_ROWS]);
            for (index, row) in rows.iter().enumerate() {
                from[index] = *row as usize * width;
                between[index] = index * rank;
                to[index] = *row as usize * columns.stride + columns.first;
            }
            let (from, between, to) = (&from[..rows.len()], &between[..rows.len()], &to[..rows.len()]);
            let full = Matrix::Full(a, rank);
            panel(level, x, from, width, full, rank, &mut inner, between, false);
            for (inner, scale) in inner.chunks_exact_mut(rank).zip(scales) {
                multiply(level, inner, *scale);
            }
            let full = Matrix::Full(b, outputs);
            // SAFETY: the factors, `x` and the output's rows are as long as checked above, and no row is in
            // two tiles.
            unsafe {
                panel_at(
                    level,
                    &inner,
                    between,
                    rank,
                    full,
                    outputs,
                    output.at(0),
                    to,
                    true,
                );
            }
        }
    });
    Ok(())
}
