//! The engine's own arithmetic for CPUs: products with 4- and 8-bit weights, attention on paged f16 keys and
//! values, low-rank updates, and the element-wise steps between them.
//!
//! Why not candle's: its fast kernels take rows that are a multiple of 256 long (those of small models are padded
//! by a third), know no Q4_1, round activations in blocks of 256, and leave attention to f32 matrices. These take
//! the blocks of GGUF files as they are. What to use is found out at run time ([`Level`]): AVX-512 with VNNI,
//! AVX-VNNI, AVX2, or portable code, which is also what the others are tested against.
//!
//! This is the one room where `unsafe` is allowed: vector loads and stores, calls of functions compiled for
//! instructions that were detected, and places of one matrix written by several threads. Every function that other
//! rooms see is safe: it checks the operands' lengths first.
//!
//! | module | what lives there |
//! |---|---|
//! | [`level`] | which instructions there are |
//! | [`threads`] | sharing work between threads |
//! | [`packed`] | the layout of weights |
//! | [`activations`] | 8-bit activations; norm and gate |
//! | [`product`] | weights times activations; `avx512`, `avx2` |
//! | [`panel`] | small dense products |
//! | [`lowrank`] | adapters' shares |
//! | [`logits`] | what sampling needs to know |
//! | [`pages`], [`attention`] | keys and values, and what reads them |

#![expect(
    unsafe_code,
    reason = "vector instructions, and matrices that threads write together; see above"
)]

mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod level;
mod logits;
mod lowrank;
mod packed;
mod pages;
mod panel;
mod product;
#[cfg(test)]
mod tests;
mod threads;

pub(crate) use activations::{Activations, rms_norm, silu_product};
pub(crate) use attention::{Angles, Heads, Sequence, attend};
pub(crate) use level::Level;
pub use level::instructions;
pub(crate) use logits::summarise;
pub(crate) use lowrank::{Columns, Factors, add_low_rank};
pub(crate) use packed::{Format, Packed};
pub(crate) use pages::{PAGE, PageShape, Pages};
pub use threads::compute_threads;
pub(crate) use threads::each_row;
