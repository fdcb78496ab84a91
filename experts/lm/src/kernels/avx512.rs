//! Kernels for AVX-512 with VNNI.
#![expect(
    clippy::needless_range_loop,
    reason = "registers are numbered: a loop over them is unrolled"
)]

use super::activations::{Activations, BLOCK};
use super::packed::{Format, TILE, Tile};
use super::product::Target;
use std::arch::x86_64::*;

/// One tile times `ROWS` rows of activations from `first` on; see [`super::product`].
///
/// # Safety
/// The rows must be there, `tile` have as many blocks as each of them, and `target` be valid for `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) unsafe fn tile<const FORMAT: u8, const ROWS: usize>(
    tile: Tile<'_>,
    activations: &Activations,
    first: usize,
    target: Target,
) {
    let is_q8 = FORMAT == Format::Q8_0 as u8;
    let has_minima = FORMAT == Format::Q4_1 as u8;
    let lines = if is_q8 { 8 } else { 4 };
    let blocks = tile.scales.len();
    let low = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); ROWS];
    for block in 0..blocks {
        // SAFETY: `block` is below the tile's number of blocks, and `first + row` below the number of rows.
        unsafe {
            let mut weights = [_mm512_setzero_si512(); 8];
            let line = tile.lines.as_ptr().add(block * lines);
            for i in 0..lines {
                let bytes = _mm512_loadu_si512(line.add(i).cast());
                if is_q8 {
                    weights[i] = bytes;
                } else {
                    weights[i] = _mm512_and_si512(bytes, low);
                    weights[i + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
                }
            }
            let scales = _mm512_cvtph_ps(_mm256_loadu_si256(tile.scales.as_ptr().add(block).cast()));
            let minima = if has_minima {
                _mm512_cvtph_ps(_mm256_loadu_si256(tile.minima.as_ptr().add(block).cast()))
            } else {
                _mm512_setzero_ps()
            };
            let x = activations.data().as_ptr().add(first * blocks + block);
            let mut dots = [_mm512_setzero_si512(); ROWS];
            if !has_minima {
                for row in 0..ROWS {
                    let bias = _mm512_set1_epi32((*x.add(row * blocks)).bias);
                    dots[row] = if is_q8 { _mm512_slli_epi32::<4>(bias) } else { bias };
                }
            }
            for i in 0..BLOCK / 4 {
                for row in 0..ROWS {
                    let four = (&raw const (*x.add(row * blocks)).values).cast::<i32>().add(i);
                    let four = _mm512_set1_epi32(four.read_unaligned());
                    dots[row] = _mm512_dpbusd_epi32(dots[row], weights[i], four);
                }
            }
            for row in 0..ROWS {
                let x = x.add(row * blocks);
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps((*x).scale));
                sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[row]), scale, sums[row]);
                if has_minima {
                    sums[row] = _mm512_fmadd_ps(minima, _mm512_set1_ps((*x).sum), sums[row]);
                }
            }
        }
    }
    let columns = ((1u32 << target.columns) - 1) as __mmask16;
    for (row, sum) in sums.into_iter().enumerate() {
        // SAFETY: the target is valid for this row and its columns.
        unsafe {
            let output = target.start.add(row * target.stride);
            let before = if target.add {
                _mm512_maskz_loadu_ps(columns, output)
            } else {
                _mm512_setzero_ps()
            };
            _mm512_mask_storeu_ps(output, columns, _mm512_add_ps(before, sum));
        }
    }
}

/// `R` rows times `W` registers of columns of a matrix; see [`super::panel`].
///
/// # Safety
/// `a` must be valid for `depth` values from each of `a_rows` on; `b` for `16 W` values at `column` of `depth` rows
/// of `b_stride` values, of 2 bytes each if `HALF`, else 4; `c` for `16 W` values at `column` from each of `c_rows` on.
#[target_feature(enable = "avx512f,f16c")]
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix product has three operands with their places"
)]
pub(super) unsafe fn panel<const HALF: bool, const R: usize, const W: usize>(
    a: *const f32,
    a_rows: &[usize; R],
    depth: usize,
    b: *const u8,
    b_stride: usize,
    column: usize,
    c: *mut f32,
    c_rows: &[usize; R],
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); W]; R];
    // SAFETY: all places are within what the caller vouches for.
    unsafe {
        if add {
            for r in 0..R {
                for w in 0..W {
                    sums[r][w] = _mm512_loadu_ps(c.add(c_rows[r] + column + TILE * w));
                }
            }
        }
        for i in 0..depth {
            let mut right = [_mm512_setzero_ps(); W];
            for w in 0..W {
                let index = i * b_stride + column + TILE * w;
                right[w] = if HALF {
                    _mm512_cvtph_ps(_mm256_loadu_si256(b.cast::<u16>().add(index).cast()))
                } else {
                    _mm512_loadu_ps(b.cast::<f32>().add(index))
                };
            }
            for r in 0..R {
                let left = _mm512_set1_ps(*a.add(a_rows[r] + i));
                for w in 0..W {
                    sums[r][w] = _mm512_fmadd_ps(left, right[w], sums[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                _mm512_storeu_ps(c.add(c_rows[r] + column + TILE * w), sums[r][w]);
            }
        }
    }
}
