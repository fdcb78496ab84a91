//! Causal grouped-query attention on paged f16 keys and values, in one pass (Dao et al. 2022, FlashAttention,
//! without its backward half): scores of a tile are turned into weights and used before the next tile's are
//! computed, so that neither scores nor rotated queries are ever a matrix in memory.
//!
//! The queries of a group share a key/value head; their rows are taken together, up to eight at a time.

use super::level::{Level, by_level};
use super::pages::{PAGE, Page, PageShape, Pages};
use super::panel::{MOST_ROWS, Matrix, multiply, panel};
use super::threads::{Shared, share};
use crate::exp::exp;
use std::sync::{Arc, Mutex, PoisonError};

/// Pages whose scores are turned into weights together.
const PAGES_TOGETHER: usize = 8;
/// Keys of those.
const KEYS: usize = PAGES_TOGETHER * PAGE;
/// Tokens of a unit of work.
const UNIT_TOKENS: usize = 16;
/// Multiplications below which waking other threads costs more than it saves.
const PARALLEL_PRODUCTS: usize = 64 * 1024;
/// Tokens whose keys are written on one thread.
const PARALLEL_TOKENS: usize = 32;

/// The heads of a model's attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Query heads, a multiple of the key/value heads.
    pub(crate) queries: usize,
    pub(crate) keys: PageShape,
}

impl Heads {
    /// Values of a row of queries, keys and values side by side.
    fn width(self) -> usize {
        (self.queries + 2 * self.keys.kv_heads) * self.keys.head_dim
    }
}

/// Cosines and sines of each token's rotary angles, `head_dim / 2` of each a token.
pub(crate) struct Angles {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

/// The part of one sequence in a batch.
pub(crate) struct Sequence<'a> {
    /// The layer's pages, with room for the new tokens.
    pub(crate) pages: &'a mut Pages,
    /// Tokens held before.
    pub(crate) past: usize,
    /// Where its new tokens begin in the batch.
    pub(crate) start: usize,
    /// New tokens.
    pub(crate) count: usize,
}

/// Rotates queries and keys of `qkv` (for each token the queries, keys and values of all heads), appends keys and
/// values to the sequences' pages, and writes each token's mixture of values (`tokens × queries * head_dim`) to
/// `output`.
///
/// # Errors
/// If the operands do not fit each other.
pub(crate) fn attend(
    level: Level,
    heads: Heads,
    qkv: &[f32],
    angles: &Angles,
    sequences: &mut [Sequence<'_>],
    output: &mut Vec<f32>,
) -> candle_core::Result<()> {
    let (width, dim) = (heads.width(), heads.keys.head_dim);
    let tokens = qkv.len() / width.max(1);
    let fits = sequences
        .iter()
        .all(|s| s.start + s.count <= tokens && s.past + s.count <= s.pages.len() * PAGE);
    if !fits || angles.cos.len() != tokens * dim / 2 || angles.sin.len() != angles.cos.len() {
        candle_core::bail!("attention: {tokens} tokens do not fit their sequences' pages or angles");
    }
    write(heads, qkv, angles, sequences);
    output.clear();
    output.resize(tokens * heads.queries * dim, 0.0);
    let mut units = Vec::new();
    let mut products = 0;
    for sequence in sequences.iter() {
        products += sequence.count * (sequence.past + sequence.count) * heads.queries * dim;
        for first in (0..sequence.count).step_by(UNIT_TOKENS) {
            let count = UNIT_TOKENS.min(sequence.count - first);
            units.extend((0..heads.keys.kv_heads).map(|head| Unit {
                pages: sequence.pages,
                past: sequence.past + first,
                start: sequence.start + first,
                count,
                head,
            }));
        }
    }
    let shared = Shared::new(output);
    share(units.len(), products >= PARALLEL_PRODUCTS, |range| {
        let mut room = Room::new(heads);
        for unit in units.get(range).unwrap_or_default() {
            unit.compute(level, heads, qkv, angles, &mut room, &shared);
        }
    });
    Ok(())
}

/// Rotates pairs of neighbours.
fn rotate(values: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, cos), sin) in values.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        let [a, b] = *pair;
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}

impl Angles {
    fn of(&self, token: usize, pairs: usize) -> (&[f32], &[f32]) {
        let range = token * pairs..(token + 1) * pairs;
        (
            self.cos.get(range.clone()).unwrap_or_default(),
            self.sin.get(range).unwrap_or_default(),
        )
    }
}

/// Appends the new tokens' keys and values.
fn write(heads: Heads, qkv: &[f32], angles: &Angles, sequences: &mut [Sequence<'_>]) {
    /// Tokens that go to one page.
    struct Part<'a> {
        page: &'a mut Page,
        slot: usize,
        start: usize,
        count: usize,
    }
    let mut parts = Vec::new();
    let mut tokens = 0;
    for sequence in sequences {
        tokens += sequence.count;
        let mut done = 0;
        for (index, page) in sequence.pages.iter_mut().enumerate().skip(sequence.past / PAGE) {
            let slot = (sequence.past + done) - index * PAGE;
            let count = (PAGE - slot).min(sequence.count - done);
            if count == 0 {
                break;
            }
            parts.push(Mutex::new(Part {
                // Copies a page that a prefix or another sequence holds too.
                page: Arc::make_mut(page),
                slot,
                start: sequence.start + done,
                count,
            }));
            done += count;
        }
    }
    let shape = heads.keys;
    let (queries, keys) = (heads.queries * shape.head_dim, shape.kv_heads * shape.head_dim);
    share(parts.len(), tokens >= PARALLEL_TOKENS, |range| {
        let (mut rotated, mut halves) = (vec![0f32; keys], Vec::new());
        for part in parts.get(range).unwrap_or_default() {
            // Every part is locked once, by the thread that writes it.
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            for index in 0..part.count {
                let token = part.start + index;
                let row = qkv.get(token * heads.width()..(token + 1) * heads.width());
                let (new_keys, values) = row.unwrap_or_default().split_at(queries + keys);
                rotated.copy_from_slice(new_keys.get(queries..).unwrap_or_default());
                let (cos, sin) = angles.of(token, shape.head_dim / 2);
                for key in rotated.chunks_exact_mut(shape.head_dim) {
                    rotate(key, cos, sin);
                }
                let slot = part.slot + index;
                part.page.put(shape, slot, &rotated, values, &mut halves);
            }
        }
    });
}

/// New tokens of one sequence and the queries of one key/value head.
struct Unit<'a> {
    pages: &'a [Arc<Page>],
    past: usize,
    start: usize,
    count: usize,
    head: usize,
}

/// Where a thread computes: for each row its queries, mixture and scores.
struct Room {
    queries: Vec<f32>,
    mixed: Vec<f32>,
    scores: Vec<f32>,
}

/// What is known of a row's softmax so far.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    total: f32,
    /// What the mixture so far has to be multiplied with.
    factor: f32,
}

impl Room {
    fn new(heads: Heads) -> Self {
        let padded = MOST_ROWS * heads.keys.padded();
        Self {
            queries: vec![0.0; padded],
            mixed: vec![0.0; padded],
            scores: vec![0.0; MOST_ROWS * KEYS],
        }
    }
}

impl Unit<'_> {
    fn compute(
        &self,
        level: Level,
        heads: Heads,
        qkv: &[f32],
        angles: &Angles,
        room: &mut Room,
        output: &Shared<'_>,
    ) {
        let group = heads.queries / heads.keys.kv_heads;
        let dim = heads.keys.head_dim;
        let rows = self.count * group;
        for start in (0..rows).step_by(MOST_ROWS) {
            let end = rows.min(start + MOST_ROWS);
            // A row is a token's query of one head of the group.
            let place = |row: usize| (self.start + row / group, self.head * group + row % group);
            let padded = heads.keys.padded();
            for (row, query) in (start..end).zip(room.queries.chunks_exact_mut(padded)) {
                let (token, head) = place(row);
                let from = token * heads.width() + head * dim;
                let (query, rest) = query.split_at_mut(dim);
                query.copy_from_slice(qkv.get(from..from + dim).unwrap_or_default());
                rest.fill(0.0);
                let (cos, sin) = angles.of(token, dim / 2);
                rotate(query, cos, sin);
                multiply(level, query, 1.0 / (dim as f32).sqrt());
            }
            let mut seen = [0; MOST_ROWS];
            for (row, seen) in (start..end).zip(&mut seen) {
                *seen = self.past + row / group + 1;
            }
            let seen = seen.get(..end - start).unwrap_or_default();
            let totals = self.mix(level, heads.keys, seen, room);
            for ((row, mixed), softmax) in (start..end).zip(room.mixed.chunks_exact_mut(padded)).zip(totals) {
                let (mixed, _) = mixed.split_at_mut(dim);
                multiply(level, mixed, softmax.total.recip());
                let (token, head) = place(row);
                // SAFETY: the place of a token's head is within the output, and one unit's alone.
                unsafe {
                    let to = output.at((token * heads.queries + head) * dim);
                    std::ptr::copy_nonoverlapping(mixed.as_ptr(), to, dim);
                }
            }
        }
    }

    /// Mixes the values of the first `seen` tokens for each row, by weights that do not add up to 1 yet.
    fn mix(&self, level: Level, shape: PageShape, seen: &[usize], room: &mut Room) -> [Softmax; MOST_ROWS] {
        let padded = shape.padded();
        let mut states = [Softmax {
            largest: f32::NEG_INFINITY,
            total: 0.0,
            factor: 0.0,
        }; MOST_ROWS];
        let (mut wide, mut narrow) = ([0; MOST_ROWS], [0; MOST_ROWS]);
        for row in 0..MOST_ROWS {
            (wide[row], narrow[row]) = (row * KEYS, row * padded);
        }
        let (wide, narrow) = (&wide[..seen.len()], &narrow[..seen.len()]);
        let most = seen.iter().copied().max().unwrap_or(0);
        for (block, pages) in self.pages.chunks(PAGES_TOGETHER).enumerate() {
            let before = block * KEYS;
            if before >= most {
                break;
            }
            let pages = pages.get(..(most - before).div_ceil(PAGE)).unwrap_or(pages);
            for (index, page) in pages.iter().enumerate() {
                let (keys, _) = page.head(shape, self.head);
                let scores = room.scores.get_mut(index * PAGE..).unwrap_or_default();
                let (queries, dim) = (&room.queries, shape.head_dim);
                panel(
                    level,
                    queries,
                    narrow,
                    dim,
                    Matrix::Half(keys, PAGE),
                    PAGE,
                    scores,
                    wide,
                    false,
                );
            }
            let rows = room
                .scores
                .chunks_exact_mut(KEYS)
                .zip(room.mixed.chunks_exact_mut(padded));
            for (((scores, mixed), state), seen) in rows.zip(&mut states).zip(seen) {
                soften(level, scores, seen.saturating_sub(before).min(KEYS), state);
                if block > 0 {
                    multiply(level, mixed, state.factor);
                }
            }
            for (index, page) in pages.iter().enumerate() {
                let (_, values) = page.head(shape, self.head);
                let weights = room.scores.get(index * PAGE..).unwrap_or_default();
                let depth = PAGE.min(most - before - index * PAGE);
                let add = block + index > 0;
                let values = Matrix::Half(values, padded);
                panel(
                    level,
                    weights,
                    wide,
                    depth,
                    values,
                    padded,
                    &mut room.mixed,
                    narrow,
                    add,
                );
            }
        }
        states
    }
}

by_level! {
    /// Turns the first `seen` scores into weights, the others into zeros.
    fn soften(scores: &mut [f32], seen: usize, state: &mut Softmax) {
        let (seen, unseen) = scores.split_at_mut(seen);
        unseen.fill(0.0);
        let before = state.largest;
        let (chunks, rest) = seen.as_chunks::<16>();
        let mut lanes = [before; 16];
        for chunk in chunks {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane = if *score > *lane { *score } else { *lane };
            }
        }
        for (lane, score) in lanes.iter_mut().zip(rest) {
            *lane = if *score > *lane { *score } else { *lane };
        }
        let largest = lanes.iter().fold(before, |m, l| if *l > m { *l } else { m });
        let (chunks, rest) = seen.as_chunks_mut::<16>();
        let mut totals = [0f32; 16];
        for chunk in chunks {
            for (total, score) in totals.iter_mut().zip(chunk) {
                *score = exp(*score - largest);
                *total += *score;
            }
        }
        for (total, score) in totals.iter_mut().zip(rest) {
            *score = exp(*score - largest);
            *total += *score;
        }
        // Nothing is mixed yet before the first scores.
        state.factor = if before == f32::NEG_INFINITY { 0.0 } else { exp(before - largest) };
        state.total = state.total * state.factor + totals.iter().sum::<f32>();
        state.largest = largest;
    }
}
