//! Keys and values in f16, in pages of 32 tokens.
//!
//! A page belongs to one layer and holds, for each key/value head, first the keys and then the values of its
//! tokens. Keys lie across (component by component, 32 tokens side by side), so that scores of 32 tokens are
//! computed in one go; values lie token by token. Sequences with a common head share its pages: a page is copied
//! only when a sequence writes behind a head that others hold too.

use half::f16;
use half::slice::HalfFloatSliceExt;
use std::sync::Arc;

/// Tokens of a page.
pub(crate) const PAGE: usize = 32;

/// Heads of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageShape {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl PageShape {
    /// Values of a head as they are held, the last ones zero: the kernels take 32 columns at a time.
    pub(super) fn padded(self) -> usize {
        self.head_dim.next_multiple_of(32)
    }

    /// Values of one head in a page, keys and values.
    fn head(self) -> usize {
        2 * PAGE * self.padded()
    }

    /// Bytes of a page.
    pub(crate) fn bytes(self) -> usize {
        self.kv_heads * self.head() * size_of::<u16>()
    }

    /// A page without tokens.
    pub(crate) fn page(self) -> Page {
        Page(vec![0; self.kv_heads * self.head()])
    }
}

/// Keys and values of 32 tokens of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Page(Vec<u16>);

/// Pages of one layer of one sequence, in order.
pub(crate) type Pages = Vec<Arc<Page>>;

impl Page {
    /// Keys (`padded × 32`) and values (`32 × padded`) of a head.
    pub(super) fn head(&self, shape: PageShape, head: usize) -> (&[u16], &[u16]) {
        let start = head * shape.head();
        let both = self.0.get(start..start + shape.head()).unwrap_or_default();
        both.split_at(both.len() / 2)
    }

    /// Writes keys and values (`kv_heads * head_dim` each) of the page's token `slot`. `halves` is room for a
    /// head's values.
    pub(super) fn put(
        &mut self,
        shape: PageShape,
        slot: usize,
        keys: &[f32],
        values: &[f32],
        halves: &mut Vec<f16>,
    ) {
        let dim = shape.head_dim;
        halves.resize(dim, f16::ZERO);
        let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
        for ((keys, values), head) in heads.zip(self.0.chunks_exact_mut(shape.head().max(1))) {
            let (held_keys, held_values) = head.split_at_mut(shape.head() / 2);
            halves.convert_from_f32_slice(keys);
            for (key, place) in halves.iter().zip(held_keys.iter_mut().skip(slot).step_by(PAGE)) {
                *place = key.to_bits();
            }
            halves.convert_from_f32_slice(values);
            for (value, place) in halves
                .iter()
                .zip(held_values.iter_mut().skip(slot * shape.padded()))
            {
                *place = value.to_bits();
            }
        }
    }
}
