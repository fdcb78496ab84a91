//! Products of quantised weights with quantised activations.
//!
//! Within a block of 32 the sums are of integers and exact; a block's sum is then scaled and added to the
//! output's f32. Every output adds its blocks in the same order, whatever the number of rows, threads or the
//! instruction set, so a row's result does not depend on its company in a batch.

use super::activations::{Activations, BLOCK};
use super::level::{Level, Set};
use super::packed::{Format, Packed, TILE, Tile};
use super::threads::{Shared, share};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use half::f16;

/// Rows of activations that any kernel call takes at most.
const MOST_ROWS: usize = 8;
/// Rows of activations that are taken through several tiles before the next: they stay in the second-level
/// cache while the tiles come from the first.
const ROW_BLOCK: usize = 128;
/// Multiplications below which waking other threads costs more than it saves.
const PARALLEL_PRODUCTS: usize = 64 * 1024;

/// Where a kernel writes: `rows` outputs of `columns` values, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
    /// 1 to [`TILE`].
    pub(super) columns: usize,
    /// Whether the product is added to what stands there.
    pub(super) add: bool,
}

impl Packed {
    /// `activations × Wᵀ` into `output` (`rows × outputs`), or added to it.
    ///
    /// # Errors
    /// If the activations' width or the output's length does not fit the matrix.
    pub(crate) fn multiply(
        &self,
        level: Level,
        activations: &Activations,
        output: &mut [f32],
        add: bool,
    ) -> candle_core::Result<()> {
        let (rows, outputs) = (activations.rows(), self.outputs());
        if activations.blocks() * BLOCK != self.inputs() || output.len() != rows * outputs {
            candle_core::bail!(
                "a product of {outputs} × {} weights with {rows} rows of {} activations into {} values",
                self.inputs(),
                activations.blocks() * BLOCK,
                output.len()
            );
        }
        if rows == 0 {
            return Ok(());
        }
        let worthwhile = rows * outputs * self.inputs() >= PARALLEL_PRODUCTS;
        let output = Shared::new(output);
        share(self.tiles(), worthwhile, |tiles| {
            for start in (0..rows).step_by(ROW_BLOCK) {
                let end = rows.min(start + ROW_BLOCK);
                for (index, tile) in tiles.clone().filter_map(|i| Some((i, self.tile(i)?))) {
                    let column = index * TILE;
                    let mut row = start;
                    while row < end {
                        let count = 1 << (end - row).min(most_rows(level)).ilog2();
                        // SAFETY: the place is within `rows × outputs`, and no other unit has these columns.
                        let start = unsafe { output.at(row * outputs + column) };
                        let target = Target {
                            start,
                            stride: outputs,
                            columns: TILE.min(outputs - column),
                            add,
                        };
                        // SAFETY: `row + count <= rows`, the tile has as many blocks as a row of activations
                        // (checked above), and the target's rows are this unit's.
                        unsafe { kernel(level, self.format(), tile, activations, row, count, target) };
                        row += count;
                    }
                }
            }
        });
        Ok(())
    }
}

/// Rows of activations that one kernel call takes at most: as many as there are registers for.
fn most_rows(level: Level) -> usize {
    if level.set() == Set::Avx512 { 8 } else { 4 }
}

/// Multiplies a tile with `count` rows of activations from `first` on; `count` is a power of two and at most
/// [`most_rows`].
///
/// # Safety
/// The rows must be there, `tile` have as many blocks as each of them, and `target` be valid for `count` rows.
unsafe fn kernel(
    level: Level,
    format: Format,
    tile: Tile<'_>,
    activations: &Activations,
    first: usize,
    count: usize,
    target: Target,
) {
    /// Picks the instance for format and number of rows.
    #[cfg(target_arch = "x86_64")]
    macro_rules! dispatch {
        ($level:ident::$kernel:ident, $($rows:literal),*) => {
            match (format, count) {
                $(
                    (Format::Q4_0, $rows) => $level::$kernel::<{ Format::Q4_0 as u8 }, $rows>(tile, activations, first, target),
                    (Format::Q4_1, $rows) => $level::$kernel::<{ Format::Q4_1 as u8 }, $rows>(tile, activations, first, target),
                    (Format::Q8_0, $rows) => $level::$kernel::<{ Format::Q8_0 as u8 }, $rows>(tile, activations, first, target),
                )*
                _ => scalar(format, tile, activations, first, count, target),
            }
        };
    }
    // SAFETY: a level exists only where its instructions were detected; the rest is the caller's word.
    unsafe {
        match level.set() {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => dispatch!(avx512::tile, 1, 2, 4, 8),
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni => dispatch!(avx2::tile_vnni, 1, 2, 4),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => dispatch!(avx2::tile, 1, 2, 4),
            _ => scalar(format, tile, activations, first, count, target),
        }
    }
}

/// The portable kernel, which the others are tested against.
///
/// # Safety
/// As [`kernel`].
unsafe fn scalar(
    format: Format,
    tile: Tile<'_>,
    activations: &Activations,
    first: usize,
    count: usize,
    target: Target,
) {
    let blocks = tile.scales.len();
    let value = |bits: u16| f16::from_bits(bits).to_f32();
    let mut sums = [[0f32; TILE]; MOST_ROWS];
    for (block, scales) in tile.scales.iter().enumerate() {
        let minima = tile.minima.get(block).copied().unwrap_or_default();
        for (lane, (&scale, &minimum)) in scales.iter().zip(&minima).enumerate() {
            let weights = tile.quants(format, block, lane);
            let (scale, minimum) = (value(scale), value(minimum));
            for (row, sums) in sums.iter_mut().take(count).enumerate() {
                let Some(x) = activations.data().get((first + row) * blocks + block) else {
                    continue;
                };
                let dot: i32 = weights
                    .iter()
                    .zip(&x.values)
                    .map(|(w, x)| i32::from(*w) * i32::from(*x))
                    .sum();
                let dot = dot + format.zero() / 8 * x.bias;
                if let Some(sum) = sums.get_mut(lane) {
                    *sum += dot as f32 * (scale * x.scale) + minimum * x.sum;
                }
            }
        }
    }
    for (row, sums) in sums.iter().take(count).enumerate() {
        // SAFETY: the target is valid for `count` rows, by the caller's word.
        unsafe { target.put(row, sums) };
    }
}

impl Target {
    /// Writes a row's outputs, or adds them.
    ///
    /// # Safety
    /// The target must be valid for this row.
    #[inline(always)]
    pub(super) unsafe fn put(self, row: usize, sums: &[f32; TILE]) {
        // SAFETY: by the caller's word; a target has at least one column.
        let output =
            unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.columns) };
        for (output, sum) in output.iter_mut().zip(sums) {
            *output = if self.add { *output + sum } else { *sum };
        }
    }
}
