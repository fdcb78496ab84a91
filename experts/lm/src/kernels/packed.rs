//! Weight matrices in 4 or 8 bits, laid out for the dot products of [`super::product`].
//!
//! The formats are those of GGUF files, blocks of 32 values of a row with a scale in f16 (and in Q4_1 a
//! minimum), so a file's own blocks are taken over without loss. Only their order differs: a *tile* holds 16
//! rows, and of every block first all rows' values 0 to 3, then all rows' values 4 to 7, and so on. One
//! 512-bit register then holds four values of each of 16 rows, and a dot product with the same four
//! activations advances 16 outputs at once without a horizontal sum.

use super::activations::BLOCK;
use candle_core::quantized::{GgmlDType, QTensor};
use half::f16;

/// Rows of a tile.
pub(super) const TILE: usize = 16;

/// How the values of a matrix are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `scale * (q - 8)`, `q` of 4 bits.
    Q4_0,
    /// `scale * q + minimum`, `q` of 4 bits.
    Q4_1,
    /// `scale * q`, `q` of 8 bits.
    Q8_0,
}

impl Format {
    /// The format of a file's type; `None` for those that there are no kernels for.
    pub(crate) fn of(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::Q4_0 => Some(Self::Q4_0),
            GgmlDType::Q4_1 => Some(Self::Q4_1),
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Lines of a tile's block.
    pub(super) fn lines(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 => 4,
            Self::Q8_0 => 8,
        }
    }

    /// Bytes of a file's block.
    fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }
}

/// Four bytes of each of a tile's rows. In the 4-bit formats line `l` of a block holds the values `4l..` in
/// the low halves and `16 + 4l..` in the high; in Q8_0 the values `4l..`, 128 too high, hence unsigned.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 4 * TILE]);

/// A matrix `outputs × inputs`.
#[derive(Debug)]
pub(crate) struct Packed {
    format: Format,
    outputs: usize,
    /// Values of a row, filled up to whole blocks.
    inputs: usize,
    lines: Vec<Line>,
    /// Scales in f16, for each tile and block those of its rows.
    scales: Vec<[u16; TILE]>,
    /// Minima likewise; empty unless the format has them.
    minima: Vec<[u16; TILE]>,
}

/// The parts of a matrix that 16 outputs need.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) lines: &'a [Line],
    pub(super) scales: &'a [[u16; TILE]],
    pub(super) minima: &'a [[u16; TILE]],
}

impl Packed {
    /// Matrices of the same row length and type, one below the other. `None` if they are not, or there are
    /// no kernels for their type.
    ///
    /// # Errors
    /// Those of reading a tensor's data.
    pub(crate) fn stack(parts: &[QTensor]) -> candle_core::Result<Option<Self>> {
        let Some(first) = parts.first() else {
            return Ok(None);
        };
        let Some(format) = Format::of(first.dtype()) else {
            return Ok(None);
        };
        let (_, inputs) = first.shape().dims2()?;
        let row_bytes = inputs / BLOCK * format.block_bytes();
        let mut outputs = 0;
        let mut data = Vec::with_capacity(parts.len());
        for part in parts {
            let (rows, columns) = part.shape().dims2()?;
            let bytes = part.data()?;
            let is_alike = columns == inputs && inputs.is_multiple_of(BLOCK) && part.dtype() == first.dtype();
            if !is_alike || bytes.len() != rows * row_bytes {
                return Ok(None);
            }
            outputs += rows;
            data.push(bytes);
        }
        let mut packed = Self::zeros(format, outputs, inputs);
        let rows = data.iter().flat_map(|bytes| bytes.chunks_exact(row_bytes.max(1)));
        for (row, bytes) in rows.enumerate() {
            for (block, bytes) in bytes.chunks_exact(format.block_bytes()).enumerate() {
                packed.put(row, block, bytes);
            }
        }
        Ok(Some(packed))
    }

    fn zeros(format: Format, outputs: usize, inputs: usize) -> Self {
        let cells = outputs.div_ceil(TILE) * (inputs / BLOCK);
        let minima = if format == Format::Q4_1 { cells } else { 0 };
        Self {
            format,
            outputs,
            inputs,
            lines: vec![Line([0; 4 * TILE]); cells * format.lines()],
            scales: vec![[0; TILE]; cells],
            minima: vec![[0; TILE]; minima],
        }
    }

    /// Takes over a file's block.
    fn put(&mut self, row: usize, block: usize, bytes: &[u8]) {
        let (cell, lane) = (row / TILE * (self.inputs / BLOCK) + block, row % TILE);
        let mut rest = bytes;
        let mut half = || match rest.split_first_chunk::<2>() {
            Some((half, tail)) => {
                rest = tail;
                u16::from_le_bytes(*half)
            }
            None => 0,
        };
        if let Some(scale) = self.scales.get_mut(cell).and_then(|c| c.get_mut(lane)) {
            *scale = half();
        }
        if let Some(minimum) = self.minima.get_mut(cell).and_then(|c| c.get_mut(lane)) {
            *minimum = half();
        }
        // Q8_0's values become unsigned.
        let flip = if self.format == Format::Q8_0 { 0x80 } else { 0 };
        let lines = self.format.lines();
        let target = self.lines.get_mut(cell * lines..).unwrap_or_default();
        for (line, four) in target.iter_mut().zip(rest.chunks_exact(4)) {
            for (to, from) in line.0.iter_mut().skip(4 * lane).zip(four) {
                *to = from ^ flip;
            }
        }
    }

    /// Rows.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Values of a row, filled up to whole blocks.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
            + size_of_val(self.scales.as_slice())
            + size_of_val(self.minima.as_slice())
    }

    /// Writes the values of row `row` to `output`; nothing if there is no such row.
    pub(crate) fn row(&self, row: usize, output: &mut [f32]) {
        let lane = row % TILE;
        let Some(tile) = self.tile(row / TILE) else {
            return;
        };
        let value = |halves: Option<&[u16; TILE]>| {
            halves
                .and_then(|h| h.get(lane))
                .map_or(0.0, |bits| f16::from_bits(*bits).to_f32())
        };
        for (block, output) in output.chunks_mut(BLOCK).enumerate() {
            let scale = value(tile.scales.get(block));
            let minimum = value(tile.minima.get(block));
            let quants = tile.quants(self.format, block, lane);
            let zero = self.format.zero();
            for (value, quant) in output.iter_mut().zip(quants) {
                *value = scale * (i32::from(quant) - zero) as f32 + minimum;
            }
        }
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    pub(super) fn tiles(&self) -> usize {
        self.outputs.div_ceil(TILE)
    }

    pub(super) fn tile(&self, index: usize) -> Option<Tile<'_>> {
        let blocks = self.inputs / BLOCK;
        let cells = index * blocks..(index + 1) * blocks;
        let lines = self.format.lines();
        Some(Tile {
            lines: self.lines.get(cells.start * lines..cells.end * lines)?,
            scales: self.scales.get(cells.clone())?,
            minima: self.minima.get(cells).unwrap_or_default(),
        })
    }
}

impl Format {
    /// What a stored value of zero is.
    pub(super) fn zero(self) -> i32 {
        match self {
            Self::Q4_0 => 8,
            Self::Q4_1 => 0,
            Self::Q8_0 => 128,
        }
    }
}

impl Tile<'_> {
    /// The stored values of one row of a block, in order.
    pub(super) fn quants(&self, format: Format, block: usize, lane: usize) -> [u8; BLOCK] {
        let mut quants = [0; BLOCK];
        let lines = self
            .lines
            .chunks_exact(format.lines())
            .nth(block)
            .unwrap_or_default();
        let four =
            |line: &Line| -> [u8; 4] { line.0.as_chunks::<4>().0.get(lane).copied().unwrap_or_default() };
        if format == Format::Q8_0 {
            for (to, line) in quants.chunks_exact_mut(4).zip(lines) {
                to.copy_from_slice(&four(line));
            }
        } else {
            let (low, high) = quants.split_at_mut(BLOCK / 2);
            for ((low, high), line) in low.chunks_exact_mut(4).zip(high.chunks_exact_mut(4)).zip(lines) {
                for ((low, high), byte) in low.iter_mut().zip(high).zip(four(line)) {
                    (*low, *high) = (byte & 15, byte >> 4);
                }
            }
        }
        quants
    }
}
