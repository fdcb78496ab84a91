//! Kernels for AVX2, with and without VNNI: as those for AVX-512, eight rows of a tile at a time.
#![expect(
    clippy::needless_range_loop,
    reason = "registers are numbered: a loop over them is unrolled"
)]

use super::activations::Activations;
use super::packed::{Format, TILE, Tile};
use super::product::Target;
use std::arch::x86_64::*;

/// Rows of a tile that a register has lanes for.
const LANES: usize = 8;

/// Writes the kernel for a set of features; `$dots` are the sums of a block's products, for one row of
/// activations.
macro_rules! tile_kernel {
    ($name:ident, $features:literal, $dots:ident) => {
        /// One tile times `ROWS` rows of activations from `first` on; see [`super::product`].
        ///
        /// # Safety
        /// The rows must be there, `tile` have as many blocks as each of them, and `target` be valid for `ROWS` rows.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const FORMAT: u8, const ROWS: usize>(
            tile: Tile<'_>,
            activations: &Activations,
            first: usize,
            target: Target,
        ) {
            let is_q8 = FORMAT == Format::Q8_0 as u8;
            let has_minima = FORMAT == Format::Q4_1 as u8;
            let lines = if is_q8 { 8 } else { 4 };
            let blocks = tile.scales.len();
            let low = _mm256_set1_epi8(15);
            let mut outputs = [[0f32; TILE]; ROWS];
            for half in 0..TILE / LANES {
                let mut sums = [_mm256_setzero_ps(); ROWS];
                for block in 0..blocks {
                    // SAFETY: `block` is below the tile's number of blocks, `first + row` below the number of
                    // rows, and `half` counts the halves of lines and scales.
                    unsafe {
                        let mut weights = [_mm256_setzero_si256(); 8];
                        let line = tile.lines.as_ptr().add(block * lines);
                        for i in 0..lines {
                            let bytes = _mm256_loadu_si256(line.add(i).cast::<__m256i>().add(half));
                            if is_q8 {
                                weights[i] = bytes;
                            } else {
                                weights[i] = _mm256_and_si256(bytes, low);
                                weights[i + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
                            }
                        }
                        let halves = |h: *const [u16; TILE]| _mm_loadu_si128(h.cast::<__m128i>().add(half));
                        let scales = _mm256_cvtph_ps(halves(tile.scales.as_ptr().add(block)));
                        for row in 0..ROWS {
                            let x = activations
                                .data()
                                .as_ptr()
                                .add((first + row) * blocks + block);
                            let values = (&raw const (*x).values).cast::<i32>();
                            let bias = match FORMAT {
                                _ if has_minima => 0,
                                _ if is_q8 => 16 * (*x).bias,
                                _ => (*x).bias,
                            };
                            let dots = $dots::<FORMAT>(&weights, values, bias);
                            let scale = _mm256_mul_ps(scales, _mm256_set1_ps((*x).scale));
                            sums[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, sums[row]);
                            if has_minima {
                                let minima = _mm256_cvtph_ps(halves(tile.minima.as_ptr().add(block)));
                                sums[row] = _mm256_fmadd_ps(minima, _mm256_set1_ps((*x).sum), sums[row]);
                            }
                        }
                    }
                }
                for (output, sum) in outputs.iter_mut().zip(sums) {
                    // SAFETY: the halves are within the array.
                    unsafe { _mm256_storeu_ps(output.as_mut_ptr().add(half * LANES), sum) };
                }
            }
            for (row, sums) in outputs.iter().enumerate() {
                // SAFETY: the target is valid for this row.
                unsafe { target.put(row, sums) };
            }
        }
    };
}

tile_kernel!(tile_vnni, "avx2,fma,f16c,avxvnni", dots_vnni);
tile_kernel!(tile, "avx2,fma,f16c", dots);

/// The products' sums by VNNI, `bias` added.
///
/// # Safety
/// `values` must be valid for a block's values.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
unsafe fn dots_vnni<const FORMAT: u8>(weights: &[__m256i; 8], values: *const i32, bias: i32) -> __m256i {
    let mut sum = _mm256_set1_epi32(bias);
    for (i, weights) in weights.iter().enumerate() {
        // SAFETY: a block has eight times four values.
        let four = _mm256_set1_epi32(unsafe { values.add(i).read_unaligned() });
        sum = _mm256_dpbusd_avx_epi32(sum, *weights, four);
    }
    sum
}

/// The products' sums by `maddubs`, which adds pairs in 16 bits, `bias` added.
///
/// # Safety
/// `values` must be valid for a block's values.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn dots<const FORMAT: u8>(weights: &[__m256i; 8], values: *const i32, bias: i32) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: a block has eight times four values.
    let four = |i: usize| _mm256_set1_epi32(unsafe { values.add(i).read_unaligned() });
    if FORMAT == Format::Q8_0 as u8 {
        // Two products of an unsigned byte would not fit 16 bits: take the weights' signs to the other side.
        // The stored weights are 128 too high, so no bias is left to correct.
        let mut sum = _mm256_setzero_si256();
        for (i, weights) in weights.iter().enumerate() {
            let signed = _mm256_xor_si256(*weights, _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(four(i), signed));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
        sum
    } else {
        // Eight pairs of products of 4 and 8 bits fit: 8 * 2 * 15 * 127 < 2^15.
        let mut sum = _mm256_setzero_si256();
        for (i, weights) in weights.iter().enumerate() {
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(*weights, four(i)));
        }
        _mm256_add_epi32(_mm256_madd_epi16(sum, ones), _mm256_set1_epi32(bias))
    }
}

/// `R` rows times `W` registers of columns of a matrix; see [`super::panel`].
///
/// # Safety
/// `a` must be valid for `depth` values from each of `a_rows` on; `b` for `8 W` values at `column` of `depth` rows
/// of `b_stride` values, of 2 bytes each if `HALF`, else 4; `c` for `8 W` values at `column` from each of `c_rows` on.
#[target_feature(enable = "avx2,fma,f16c")]
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
    let mut sums = [[_mm256_setzero_ps(); W]; R];
    // SAFETY: all places are within what the caller vouches for.
    unsafe {
        if add {
            for r in 0..R {
                for w in 0..W {
                    sums[r][w] = _mm256_loadu_ps(c.add(c_rows[r] + column + LANES * w));
                }
            }
        }
        for i in 0..depth {
            let mut right = [_mm256_setzero_ps(); W];
            for w in 0..W {
                let index = i * b_stride + column + LANES * w;
                right[w] = if HALF {
                    _mm256_cvtph_ps(_mm_loadu_si128(b.cast::<u16>().add(index).cast()))
                } else {
                    _mm256_loadu_ps(b.cast::<f32>().add(index))
                };
            }
            for r in 0..R {
                let left = _mm256_set1_ps(*a.add(a_rows[r] + i));
                for w in 0..W {
                    sums[r][w] = _mm256_fmadd_ps(left, right[w], sums[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                _mm256_storeu_ps(c.add(c_rows[r] + column + LANES * w), sums[r][w]);
            }
        }
    }
}
