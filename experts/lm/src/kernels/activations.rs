//! Activations rounded to 8 bits in blocks of 32, and the element-wise steps around the products.

use super::level::{Level, by_level};
use super::threads::each_row;
use crate::exp::exp;

/// Values that share a scale, of weights and activations alike.
pub(crate) const BLOCK: usize = 32;

/// 32 activations `value * scale`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Block {
    pub(super) scale: f32,
    /// -8 times the sum of the values: where an accumulator starts when weights stand 8 too high.
    pub(super) bias: i32,
    /// The sum of the activations, which weights' minima are multiplied with.
    pub(super) sum: f32,
    pub(super) values: [i8; BLOCK],
}

/// Rows of activations, quantised.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    rows: usize,
    /// Blocks of a row; the last is filled up with zeros.
    blocks: usize,
    data: Vec<Block>,
}

impl Activations {
    /// Quantises `x`, rows of `width` values. The memory is used again at the next call.
    pub(crate) fn quantise(&mut self, level: Level, x: &[f32], width: usize) {
        let blocks = width.div_ceil(BLOCK);
        let rows = x.len().checked_div(width).unwrap_or(0);
        (self.rows, self.blocks) = (rows, blocks);
        self.data.clear();
        self.data.resize(rows * blocks, Block::default());
        each_row(&mut self.data, blocks, |index, row| {
            let x = x.get(index * width..(index + 1) * width).unwrap_or_default();
            quantise_row(level, x, row);
        });
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    pub(super) fn data(&self) -> &[Block] {
        &self.data
    }
}

by_level! {
    fn quantise_row(x: &[f32], blocks: &mut [Block]) {
        let (whole, rest) = x.as_chunks::<BLOCK>();
        for (values, block) in whole.iter().zip(blocks.iter_mut()) {
            quantise_block(values, block);
        }
        if !rest.is_empty()
            && let Some(block) = blocks.get_mut(whole.len())
        {
            let mut values = [0.0; BLOCK];
            for (value, x) in values.iter_mut().zip(rest) {
                *value = *x;
            }
            quantise_block(&values, block);
        }
    }
}

#[inline(always)]
fn quantise_block(x: &[f32; BLOCK], block: &mut Block) {
    /// Adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let mut lanes = [0f32; 8];
    // Zero, unless a value is infinite or no number: then that must be seen in the result, and the integers cannot show it.
    let mut broken = [0f32; 8];
    for chunk in x.as_chunks::<8>().0 {
        for ((lane, broken), x) in lanes.iter_mut().zip(&mut broken).zip(chunk) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
            *broken += x * 0.0;
        }
    }
    let largest = lanes.iter().fold(0f32, |m, l| if *l > m { *l } else { m });
    let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut sum = 0;
    for (value, x) in block.values.iter_mut().zip(x) {
        let rounded = (x * factor + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        *value = rounded as i8;
        sum += i32::from(rounded as i8);
    }
    block.scale = largest / 127.0 + broken.iter().sum::<f32>();
    block.bias = -8 * sum;
    block.sum = sum as f32 * block.scale;
}

/// Root-mean-square normalisation of each row of `x`, times `weight` (whose length is the width).
pub(crate) fn rms_norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32, output: &mut Vec<f32>) {
    output.clear();
    output.resize(x.len(), 0.0);
    let width = weight.len();
    each_row(output, width, |index, row| {
        let x = x.get(index * width..(index + 1) * width).unwrap_or_default();
        norm_row(level, x, weight, epsilon, row);
    });
}

by_level! {
    fn norm_row(x: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
        // Sixteen sums, since a single one would have to be added in order.
        let (chunks, rest) = x.as_chunks::<16>();
        let mut lanes = [0f32; 16];
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += x * x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += x * x;
        }
        let squares: f32 = lanes.iter().sum();
        let factor = (squares / x.len() as f32 + epsilon).sqrt().recip();
        for ((o, x), w) in output.iter_mut().zip(x).zip(weight) {
            *o = x * factor * w;
        }
    }
}

/// `silu(gate) * up` for rows that hold the gate's `width` values and then the other factor's.
pub(crate) fn silu_product(level: Level, gate_up: &[f32], width: usize, output: &mut Vec<f32>) {
    output.clear();
    output.resize(gate_up.len() / 2, 0.0);
    each_row(output, width, |index, row| {
        let gate_up = gate_up
            .get(2 * index * width..2 * (index + 1) * width)
            .unwrap_or_default();
        let (gate, up) = gate_up.split_at(gate_up.len() / 2);
        silu_row(level, gate, up, row);
    });
}

by_level! {
    fn silu_row(gate: &[f32], up: &[f32], output: &mut [f32]) {
        for ((o, &g), u) in output.iter_mut().zip(gate).zip(up) {
            *o = g / (1.0 + exp(-g)) * u;
        }
    }
}
