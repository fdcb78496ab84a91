//! Causal grouped-query attention over ragged rows, with its gradient.
//!
//! Rows are packed one after another in the token dimension; each attends to itself alone, so no
//! padding is computed. The query heads that share a key/value head are stacked into one matrix,
//! which makes three products a row of the forward pass and five of the backward pass.

use super::kernels::{Values, exp, rewrite};
use crate::Result;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Head counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) dim: usize,
}

/// What the backward pass of one row needs: queries and probabilities `[keys, group * n, ..]`,
/// keys and values `[keys, n, dim]`.
struct SavedRow {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    probability: Tensor,
}

/// What [`Heads::backward`] needs of a forward pass.
pub(super) struct SavedAttention(Vec<SavedRow>);

impl Heads {
    fn group(self) -> usize {
        self.queries / self.keys
    }

    /// Packed `[tokens, heads * dim]` to one row's `[keys, heads / keys * n, dim]`.
    fn gather(self, packed: &[f32], row: &Range<usize>, heads: usize) -> Result<Tensor> {
        let (n, group) = (row.len(), heads / self.keys);
        let mut stacked = Vec::with_capacity(n * heads * self.dim);
        for head in 0..heads {
            for token in row.clone() {
                let start = (token * heads + head) * self.dim;
                stacked.extend_from_slice(&packed[start..start + self.dim]);
            }
        }
        Ok(Tensor::from_vec(
            stacked,
            (self.keys, group * n, self.dim),
            &Device::Cpu,
        )?)
    }

    /// The inverse of [`Heads::gather`], for all rows.
    fn scatter(self, stacked: &[Tensor], rows: &[Range<usize>], heads: usize) -> Result<Tensor> {
        let tokens = rows.last().map_or(0, |row| row.end);
        let mut packed = vec![0.0; tokens * heads * self.dim];
        for (stacked, row) in stacked.iter().zip(rows) {
            let values = Values::of(stacked)?;
            let mut parts = values.chunks(self.dim);
            for head in 0..heads {
                for (token, part) in row.clone().zip(&mut parts) {
                    let start = (token * heads + head) * self.dim;
                    packed[start..start + self.dim].copy_from_slice(part);
                }
            }
        }
        Ok(Tensor::from_vec(
            packed,
            (tokens, heads * self.dim),
            &Device::Cpu,
        )?)
    }

    /// `q` `[tokens, queries * dim]` and `k`, `v` `[tokens, keys * dim]`, rotated already, to
    /// `[tokens, queries * dim]`.
    pub(super) fn forward(
        self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        rows: &[Range<usize>],
    ) -> Result<(Tensor, SavedAttention)> {
        let (qs, ks, vs) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
        let (qs, ks, vs): (&[f32], &[f32], &[f32]) = (&qs, &ks, &vs);
        let scale = (self.dim as f32).sqrt().recip();
        let done = rows
            .par_iter()
            .map(|row| {
                let query = self.gather(qs, row, self.queries)?;
                let key = self.gather(ks, row, self.keys)?;
                let value = self.gather(vs, row, self.keys)?;
                let probability = query.matmul(&key.t()?)?;
                let n = row.len();
                rewrite(&probability, |scores| {
                    for (index, scores) in scores.chunks_mut(n).enumerate() {
                        causal_softmax(scores, index % n + 1, scale);
                    }
                })?;
                let out = probability.matmul(&value)?;
                Ok((
                    out,
                    SavedRow {
                        query,
                        key,
                        value,
                        probability,
                    },
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        let (outs, saved): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        Ok((self.scatter(&outs, rows, self.queries)?, SavedAttention(saved)))
    }

    /// Gradients of [`Heads::forward`] with respect to `q`, `k` and `v`.
    pub(super) fn backward(
        self,
        saved: &SavedAttention,
        d_out: &Tensor,
        rows: &[Range<usize>],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let d_outs = Values::of(d_out)?;
        let d_outs: &[f32] = &d_outs;
        let scale = (self.dim as f32).sqrt().recip();
        let done = rows
            .par_iter()
            .zip(&saved.0)
            .map(|(row, saved)| {
                let d_out = self.gather(d_outs, row, self.queries)?;
                let d_value = saved.probability.t()?.matmul(&d_out)?;
                let d_score = d_out.matmul(&saved.value.t()?)?;
                let probabilities = Values::of(&saved.probability)?;
                let n = row.len();
                rewrite(&d_score, |d_scores| {
                    for (d, p) in d_scores.chunks_mut(n).zip(probabilities.chunks(n)) {
                        let inner: f32 = d.iter().zip(p).map(|(d, p)| d * p).sum();
                        for (d, p) in d.iter_mut().zip(p) {
                            *d = scale * p * (*d - inner);
                        }
                    }
                })?;
                let d_query = d_score.matmul(&saved.key)?;
                let d_key = d_score.t()?.matmul(&saved.query)?;
                Ok((d_query, (d_key, d_value)))
            })
            .collect::<Result<Vec<_>>>()?;
        let (d_query, rest): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        let (d_key, d_value): (Vec<_>, Vec<_>) = rest.into_iter().unzip();
        debug_assert_eq!(self.group() * self.keys, self.queries);
        Ok((
            self.scatter(&d_query, rows, self.queries)?,
            self.scatter(&d_key, rows, self.keys)?,
            self.scatter(&d_value, rows, self.keys)?,
        ))
    }
}

/// Softmax of the first `seen` scores times `scale`; the others, of later tokens, become 0.
fn causal_softmax(scores: &mut [f32], seen: usize, scale: f32) {
    let (seen, later) = scores.split_at_mut(seen);
    let largest = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in seen.iter_mut() {
        *score = exp((*score - largest) * scale);
        sum += *score;
    }
    let factor = sum.recip();
    seen.iter_mut().for_each(|score| *score *= factor);
    later.fill(0.0);
}
