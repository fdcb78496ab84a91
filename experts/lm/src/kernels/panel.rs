//! Small dense products `C = A B` (or `C += A B`) in f32, `B` in f32 or f16: the pieces that attention and
//! low-rank adapters are made of.
//!
//! Rows of `A` and `C` are given by where they begin, so that they need not be gathered. Each value is the sum of
//! its products in order, whatever the number of rows.

use super::level::{Level, Set, by_level};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use half::f16;

/// Rows that one call takes at most.
pub(super) const MOST_ROWS: usize = 8;

/// A matrix of rows of `stride` values.
#[derive(Clone, Copy)]
pub(super) enum Matrix<'a> {
    Full(&'a [f32], usize),
    Half(&'a [u16], usize),
}

impl Matrix<'_> {
    fn stride(self) -> usize {
        match self {
            Self::Full(_, stride) | Self::Half(_, stride) => stride,
        }
    }

    /// Whether it has `depth` rows of `columns` values.
    fn has(self, depth: usize, columns: usize) -> bool {
        let len = match self {
            Self::Full(values, _) => values.len(),
            Self::Half(values, _) => values.len(),
        };
        columns <= self.stride() && depth * self.stride() <= len
    }

    fn value(self, row: usize, column: usize) -> f32 {
        let index = row * self.stride() + column;
        match self {
            Self::Full(values, _) => values.get(index).copied().unwrap_or(0.0),
            Self::Half(values, _) => values
                .get(index)
                .map_or(0.0, |bits| f16::from_bits(*bits).to_f32()),
        }
    }
}

/// For each of up to [`MOST_ROWS`] rows: `depth` values of `a` from `a_rows` on times `b`, whose first `columns`
/// columns are written to `c` from `c_rows` on, or added there.
///
/// # Panics
/// If an operand is too short: callers lay them out.
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix product has three operands with their places"
)]
pub(super) fn panel(
    level: Level,
    a: &[f32],
    a_rows: &[usize],
    depth: usize,
    b: Matrix<'_>,
    columns: usize,
    c: &mut [f32],
    c_rows: &[usize],
    add: bool,
) {
    let fits = |rows: &[usize], width: usize, len: usize| rows.iter().all(|row| row + width <= len);
    assert!(
        fits(a_rows, depth, a.len()) && fits(c_rows, columns, c.len()) && b.has(depth, columns),
        "a panel's operands are as long as its rows and columns say"
    );
    // SAFETY: checked above.
    unsafe { panel_at(level, a, a_rows, depth, b, columns, c.as_mut_ptr(), c_rows, add) }
}

/// As [`panel`], with unchecked operands.
///
/// # Safety
/// They must be as long as [`panel`] asserts, and nothing else use the rows of `c` meanwhile.
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix product has three operands with their places"
)]
pub(super) unsafe fn panel_at(
    level: Level,
    a: &[f32],
    a_rows: &[usize],
    depth: usize,
    b: Matrix<'_>,
    columns: usize,
    c: *mut f32,
    c_rows: &[usize],
    add: bool,
) {
    #[cfg(target_arch = "x86_64")]
    let first = {
        /// Calls `$strip` for as many strips of `$width` columns as there are, and returns the column behind.
        macro_rules! strips {
            ($column:expr, $width:literal, $level:ident::$strip:ident, $registers:literal; $($rows:literal)*) => {{
                let mut column: usize = $column;
                while column + $width <= columns {
                    match (a_rows.len(), b) {
                        $(
                            ($rows, Matrix::Half(values, stride)) => {
                                if let (Ok(a_rows), Ok(c_rows)) = (a_rows.try_into(), c_rows.try_into()) {
                                    $level::$strip::<true, $rows, $registers>(a.as_ptr(), a_rows, depth, values.as_ptr().cast(), stride, column, c, c_rows, add);
                                }
                            }
                            ($rows, Matrix::Full(values, stride)) => {
                                if let (Ok(a_rows), Ok(c_rows)) = (a_rows.try_into(), c_rows.try_into()) {
                                    $level::$strip::<false, $rows, $registers>(a.as_ptr(), a_rows, depth, values.as_ptr().cast(), stride, column, c, c_rows, add);
                                }
                            }
                        )*
                        _ => break,
                    }
                    column += $width;
                }
                column
            }};
        }
        match level.set() {
            // SAFETY: a level exists only where its instructions were detected; the operands are the caller's.
            Set::Avx512 => unsafe {
                let column = strips!(0, 32, avx512::panel, 2; 1 2 3 4 5 6 7 8);
                strips!(column, 16, avx512::panel, 1; 1 2 3 4 5 6 7 8)
            },
            // SAFETY: as above.
            Set::Avx2 | Set::AvxVnni => unsafe { strips!(0, 8, avx2::panel, 1; 1 2 3 4 5 6 7 8) },
            Set::Scalar => 0,
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let first = {
        let _ = level;
        0
    };
    // SAFETY: the caller's word.
    unsafe { scalar(a, a_rows, depth, b, first..columns, c, c_rows, add) }
}

/// The portable kernel, and that for the columns that fill no register.
///
/// # Safety
/// As [`panel_at`].
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix product has three operands with their places"
)]
unsafe fn scalar(
    a: &[f32],
    a_rows: &[usize],
    depth: usize,
    b: Matrix<'_>,
    columns: std::ops::Range<usize>,
    c: *mut f32,
    c_rows: &[usize],
    add: bool,
) {
    if columns.is_empty() {
        return;
    }
    for (&a_row, &c_row) in a_rows.iter().zip(c_rows) {
        let a = a.get(a_row..a_row + depth).unwrap_or_default();
        // SAFETY: the row has these columns, and nothing else uses them, by the caller's word.
        let c = unsafe { std::slice::from_raw_parts_mut(c.add(c_row + columns.start), columns.len()) };
        if !add {
            c.fill(0.0);
        }
        for (i, a) in a.iter().enumerate() {
            for (c, column) in c.iter_mut().zip(columns.clone()) {
                *c += a * b.value(i, column);
            }
        }
    }
}

by_level! {
    /// Multiplies all values with `factor`.
    pub(super) fn multiply(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}
