//! Causal grouped-query attention of one sequence against its own cache.
//!
//! The queries of a group share one key/value head, so a group's heads are laid out as rows of one matrix
//! for that head: keys and values are never repeated. Long prompts are taken [`CHUNK`] tokens at a time
//! against the keys seen so far, which leaves out most of the half of the score matrix that the causal
//! mask would throw away.

use super::kernels::causal_softmax;
use crate::Result;
use candle_core::Tensor;

/// Query tokens taken together.
const CHUNK: usize = 128;

/// `queries`: `tokens × heads × head_dim`; `keys`, `values`: `kv_heads × seen × head_dim`, of which the
/// last `tokens` belong to the queries. Returns `tokens × (heads * head_dim)`.
pub(super) fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (tokens, heads, head_dim) = queries.dims3()?;
    let (kv_heads, seen, _) = keys.dims3()?;
    let group = heads / kv_heads;
    let past = seen - tokens;
    let mut outputs = Vec::with_capacity(tokens.div_ceil(CHUNK));
    for start in (0..tokens).step_by(CHUNK) {
        let rows = CHUNK.min(tokens - start);
        let visible = past + start + rows;
        let q = queries
            .narrow(0, start, rows)?
            .reshape((rows, kv_heads, group, head_dim))?
            .permute((1, 2, 0, 3))?
            .reshape((kv_heads, group * rows, head_dim))?;
        let scores = q.matmul(&keys.narrow(1, 0, visible)?.transpose(1, 2)?)?;
        let weights = causal_softmax(scores, rows, 1.0 / (head_dim as f32).sqrt())?;
        let mixed = weights.matmul(&values.narrow(1, 0, visible)?)?;
        outputs.push(
            mixed
                .reshape((kv_heads, group, rows, head_dim))?
                .permute((2, 0, 1, 3))?
                .reshape((rows, heads * head_dim))?,
        );
    }
    match outputs.as_slice() {
        [one] => Ok(one.clone()),
        _ => Ok(Tensor::cat(&outputs, 0)?),
    }
}
