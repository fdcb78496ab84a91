//! Every level of instructions against the portable code, and both against the definition in f64.

use super::panel::{Matrix, panel};
use super::*;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1f32..1.0)).collect()
}

fn quantised(outputs: usize, inputs: usize, dtype: GgmlDType, seed: u64) -> QTensor {
    let values = random(outputs * inputs, seed);
    let dense = Tensor::from_vec(values, (outputs, inputs), &Device::Cpu).unwrap();
    QTensor::quantize(&dense, dtype).unwrap()
}

fn packed(weight: QTensor) -> Packed {
    Packed::stack(&[weight]).unwrap().unwrap()
}

fn product(level: Level, weight: &Packed, x: &[f32], width: usize) -> Vec<f32> {
    let mut activations = Activations::default();
    activations.quantise(level, x, width);
    let mut output = vec![f32::NAN; x.len() / width * weight.outputs()];
    weight.multiply(level, &activations, &mut output, false).unwrap();
    output
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= bound * largest,
            "value {index}: {a} instead of {b}, of {largest}"
        );
    }
}

const DTYPES: [GgmlDType; 3] = [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn products_are_the_same_at_every_level_and_near_the_exact_ones(
        rows in 1usize..20, outputs in 1usize..70, blocks in 1usize..6, cut in 0usize..32, seed: u64,
    ) {
        let width = blocks * 32 - cut;
        let x = random(rows * width, seed);
        for dtype in DTYPES {
            let weight = quantised(outputs, blocks * 32, dtype, seed ^ 1);
            let dense = weight.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            let weight = packed(weight);
            let mut row = vec![0.0; blocks * 32];
            for (index, dense) in dense.iter().enumerate() {
                weight.row(index, &mut row);
                prop_assert_eq!(&row, dense);
            }
            let exact: Vec<f32> = x
                .chunks(width)
                .flat_map(|x| dense.iter().map(move |w| x.iter().zip(w).map(|(x, w)| x * w).sum()))
                .collect();
            let mut earlier: Option<Vec<f32>> = None;
            for level in Level::all() {
                let found = product(level, &weight, &x, width);
                // Rounding to 8 bits errs by up to half a step of 1/127 in each of a row's products.
                assert_near(&found, &exact, 0.1);
                if let Some(earlier) = earlier.filter(|_| level != Level::all()[1]) {
                    prop_assert_eq!(&found, &earlier, "{:?} {:?}", dtype, level);
                }
                let scalar = product(Level::all()[0], &weight, &x, width);
                assert_near(&found, &scalar, 1e-5);
                // A row alone is the same row.
                let last = product(level, &weight, &x[(rows - 1) * width..], width);
                prop_assert_eq!(&found[(rows - 1) * outputs..], &last[..]);
                earlier = Some(found);
            }
        }
    }

    #[test]
    fn panels_equal_the_definition(
        rows in 1usize..=8, depth in 1usize..50, columns in 1usize..100, is_half: bool, add: bool, seed: u64,
    ) {
        let (a, b) = (random(rows * (depth + 3), seed), random(depth * (columns + 2), seed ^ 1));
        let halves: Vec<u16> = b.iter().map(|v| f16::from_f32(*v).to_bits()).collect();
        let b: Vec<f32> = if is_half { halves.iter().map(|h| f16::from_bits(*h).to_f32()).collect() } else { b };
        let matrix = if is_half { Matrix::Half(&halves, columns + 2) } else { Matrix::Full(&b, columns + 2) };
        let start = random(rows * (columns + 1), seed ^ 2);
        let a_rows: Vec<usize> = (0..rows).map(|r| r * (depth + 3)).collect();
        // In `c` the rows stand in reverse.
        let c_rows: Vec<usize> = (0..rows).rev().map(|r| r * (columns + 1)).collect();
        let mut expected = start.clone();
        for (a_row, c_row) in a_rows.iter().zip(&c_rows) {
            for column in 0..columns {
                let sum: f64 = (0..depth).map(|i| f64::from(a[a_row + i]) * f64::from(b[i * (columns + 2) + column])).sum();
                let before = if add { f64::from(start[c_row + column]) } else { 0.0 };
                expected[c_row + column] = (before + sum) as f32;
            }
        }
        for level in Level::all() {
            let mut c = start.clone();
            panel(level, &a, &a_rows, depth, matrix, columns, &mut c, &c_rows, add);
            assert_near(&c, &expected, 1e-5);
        }
    }

    #[test]
    fn attention_equals_the_definition(
        kv_heads in 1usize..3, group in 1usize..4, pairs in 1usize..20,
        lengths in proptest::collection::vec((0usize..300, 1usize..40), 1..4), seed: u64,
    ) {
        let shape = PageShape { kv_heads, head_dim: 2 * pairs };
        let heads = Heads { queries: kv_heads * group, keys: shape };
        for (index, &(past, count)) in lengths.iter().enumerate() {
            check_attention(heads, past, count, seed ^ index as u64);
        }
        let alone: Vec<Vec<f32>> = lengths.iter().map(|&l| attention(Level::best(), heads, &[l], seed)).collect();
        prop_assert_eq!(attention(Level::best(), heads, &lengths, seed), alone.concat());
    }
}

/// The rows of queries, keys and values of a sequence, the same for a seed whatever else is in a batch.
fn rows(heads: Heads, tokens: usize, seed: u64) -> Vec<f32> {
    let width = (heads.queries + 2 * heads.keys.kv_heads) * heads.keys.head_dim;
    random(tokens * width, seed)
        .into_iter()
        .map(|v| 3.0 * v)
        .collect()
}

fn angles(positions: impl Iterator<Item = usize> + Clone, pairs: usize) -> Angles {
    let all = positions.flat_map(|p| (0..pairs).map(move |i| p as f32 * 0.7f32.powi(i as i32)));
    Angles {
        cos: all.clone().map(f32::cos).collect(),
        sin: all.map(f32::sin).collect(),
    }
}

/// Attention of the new tokens of sequences of `(past, new)` tokens; the past went in by a pass of its own.
fn attention(level: Level, heads: Heads, lengths: &[(usize, usize)], seed: u64) -> Vec<f32> {
    let (shape, pairs) = (heads.keys, heads.keys.head_dim / 2);
    let width = (heads.queries + 2 * shape.kv_heads) * shape.head_dim;
    let mut caches: Vec<Pages> = Vec::new();
    let (mut batch, mut positions) = (Vec::new(), Vec::new());
    let mut output = Vec::new();
    for &(past, new) in lengths {
        let all = rows(heads, past + new, seed);
        let mut pages: Pages = (0..(past + new).div_ceil(PAGE))
            .map(|_| Arc::new(shape.page()))
            .collect();
        let (before, after) = all.split_at(past * width);
        let sequence = Sequence {
            pages: &mut pages,
            past: 0,
            start: 0,
            count: past,
        };
        attend(
            level,
            heads,
            before,
            &angles(0..past, pairs),
            &mut [sequence],
            &mut output,
        )
        .unwrap();
        caches.push(pages);
        batch.extend_from_slice(after);
        positions.extend(past..past + new);
    }
    let mut start = 0;
    let mut sequences = Vec::new();
    for (pages, &(past, count)) in caches.iter_mut().zip(lengths) {
        sequences.push(Sequence {
            pages,
            past,
            start,
            count,
        });
        start += count;
    }
    attend(
        level,
        heads,
        &batch,
        &angles(positions.into_iter(), pairs),
        &mut sequences,
        &mut output,
    )
    .unwrap();
    output
}

fn check_attention(heads: Heads, past: usize, count: usize, seed: u64) {
    let (dim, group) = (heads.keys.head_dim, heads.queries / heads.keys.kv_heads);
    let width = (heads.queries + 2 * heads.keys.kv_heads) * dim;
    let all = rows(heads, past + count, seed);
    let turned = |token: usize, first: usize| -> Vec<f64> {
        let values = &all[token * width + first..][..dim];
        let angle = |i: usize| f64::from(token as f32 * 0.7f32.powi(i as i32));
        let pair = |i: usize| {
            let (a, b) = (f64::from(values[2 * i]), f64::from(values[2 * i + 1]));
            let (sin, cos) = angle(i).sin_cos();
            [a * cos - b * sin, a * sin + b * cos]
        };
        (0..dim / 2).flat_map(pair).collect()
    };
    let mut expected = Vec::new();
    for token in past..past + count {
        for head in 0..heads.queries {
            let query = turned(token, head * dim);
            let key_at = (heads.queries + head / group) * dim;
            let value_at = key_at + heads.keys.kv_heads * dim;
            let weights: Vec<f64> = (0..=token)
                .map(|t| {
                    let key = turned(t, key_at);
                    let score: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                    (score / (dim as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            expected.extend((0..dim).map(|i| {
                let mixed: f64 = weights
                    .iter()
                    .enumerate()
                    .map(|(t, w)| w * f64::from(all[t * width + value_at + i]))
                    .sum();
                (mixed / total) as f32
            }));
        }
    }
    for level in Level::all() {
        // Keys and values are rounded to 11 bits.
        assert_near(&attention(level, heads, &[(past, count)], seed), &expected, 0.02);
    }
}

#[test]
fn a_page_that_others_hold_is_copied_before_it_is_written() {
    let shape = PageShape {
        kv_heads: 1,
        head_dim: 4,
    };
    let heads = Heads {
        queries: 1,
        keys: shape,
    };
    let all = rows(heads, 40, 1);
    let run = |pages: &mut Pages, past: usize, rows: &[f32]| {
        let count = rows.len() / 12;
        let sequence = Sequence {
            pages,
            past,
            start: 0,
            count,
        };
        let mut output = Vec::new();
        attend(
            Level::best(),
            heads,
            rows,
            &angles(past..past + count, 2),
            &mut [sequence],
            &mut output,
        )
        .unwrap();
        output
    };
    let mut first: Pages = (0..2).map(|_| Arc::new(shape.page())).collect();
    run(&mut first, 0, &all[..35 * 12]);
    let mut second = first.clone();
    let expected = run(&mut first, 35, &all[35 * 12..]);
    // The first page stays shared; what the second sequence writes does not reach the first's copy.
    run(&mut second, 35, &random(5 * 12, 9));
    assert!(Arc::ptr_eq(&first[0], &second[0]) && !Arc::ptr_eq(&first[1], &second[1]));
    assert_eq!(run(&mut first, 35, &all[35 * 12..]), expected);
}

#[test]
fn low_rank_shares_equal_the_definition_and_do_not_depend_on_their_company() {
    let (width, rank, outputs, tokens) = (70, 5, 41, 90);
    let (a, b) = (random(width * rank, 1), random(rank * outputs, 2));
    let (x, start) = (random(tokens * width, 3), random(tokens * (outputs + 9), 4));
    let factors = Factors { a: &a, b: &b, rank };
    let columns = Columns {
        stride: outputs + 9,
        first: 7,
    };
    // Most rows, each with a scale of its own.
    let rows: Vec<u32> = (0..tokens as u32).filter(|row| row % 7 != 3).collect();
    let scales: Vec<f32> = rows.iter().map(|row| *row as f32 / 40.0 - 1.0).collect();
    let mut expected = start.clone();
    for (row, scale) in rows.iter().zip(&scales) {
        let x = &x[*row as usize * width..][..width];
        let inner: Vec<f32> = (0..rank)
            .map(|r| (0..width).map(|i| x[i] * a[i * rank + r]).sum())
            .collect();
        for column in 0..outputs {
            let share: f32 = (0..rank).map(|r| inner[r] * b[r * outputs + column]).sum();
            expected[*row as usize * columns.stride + columns.first + column] += scale * share;
        }
    }
    for level in Level::all() {
        let mut found = start.clone();
        add_low_rank(level, factors, (&x, width), (&rows, &scales), &mut found, columns).unwrap();
        assert_near(&found, &expected, 1e-5);
        let mut alone = start.clone();
        let one = (&rows[50..51], &scales[50..51]);
        add_low_rank(level, factors, (&x, width), one, &mut alone, columns).unwrap();
        let row = rows[50] as usize * columns.stride;
        assert_eq!(alone[row..row + columns.stride], found[row..row + columns.stride]);
    }
    let mut output = start.clone();
    let twice = (&[4u32, 4][..], &[1f32, 1.0][..]);
    assert!(add_low_rank(Level::best(), factors, (&x, width), twice, &mut output, columns).is_err());
    let beyond = (&[tokens as u32][..], &[1f32][..]);
    assert!(add_low_rank(Level::best(), factors, (&x, width), beyond, &mut output, columns).is_err());
    assert_eq!(output, start);
}

#[test]
fn norms_and_gates_equal_the_definition_at_every_level() {
    let (tokens, width) = (300, 90);
    let x: Vec<f32> = random(tokens * width, 1).iter().map(|v| 4.0 * v).collect();
    let weight = random(width, 2);
    let normed: Vec<f32> = x
        .chunks(width)
        .flat_map(|x| {
            let mean = x.iter().map(|v| v * v).sum::<f32>() / width as f32;
            let weight = &weight;
            x.iter()
                .zip(weight)
                .map(move |(x, w)| x / (mean + 1e-5).sqrt() * w)
        })
        .collect();
    let gated: Vec<f32> = x
        .chunks(2 * width)
        .flat_map(|x| (0..width).map(|i| x[i] / (1.0 + (-x[i]).exp()) * x[width + i]))
        .collect();
    for level in Level::all() {
        let mut output = vec![7.0; 3];
        rms_norm(level, &x, &weight, 1e-5, &mut output);
        assert_near(&output, &normed, 1e-5);
        silu_product(level, &x, width, &mut output);
        assert_near(&output, &gated, 1e-5);
    }
}

#[test]
fn stacked_matrices_are_one_and_unlike_ones_are_refused() {
    let (upper, lower) = (
        || quantised(21, 64, GgmlDType::Q4_1, 1),
        || quantised(9, 64, GgmlDType::Q4_1, 2),
    );
    let both = Packed::stack(&[upper(), lower()]).unwrap().unwrap();
    let x = random(3 * 64, 3);
    let level = Level::best();
    let (found, upper, lower) = (
        product(level, &both, &x, 64),
        product(level, &packed(upper()), &x, 64),
        product(level, &packed(lower()), &x, 64),
    );
    for row in 0..3 {
        assert_eq!(found[row * 30..][..21], upper[row * 21..][..21]);
        assert_eq!(found[row * 30 + 21..][..9], lower[row * 9..][..9]);
    }
    let other = [
        quantised(21, 64, GgmlDType::Q4_1, 1),
        quantised(9, 64, GgmlDType::Q4_0, 2),
    ];
    assert!(Packed::stack(&other).unwrap().is_none());
    assert!(
        Packed::stack(&[quantised(9, 256, GgmlDType::Q4K, 2)])
            .unwrap()
            .is_none()
    );
    assert!(Packed::stack(&[]).unwrap().is_none());
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let weight = packed(quantised(20, 64, GgmlDType::Q8_0, 1));
    let mut activations = Activations::default();
    activations.quantise(Level::best(), &random(2 * 64, 2), 64);
    let mut output = vec![0.0; 39];
    assert!(
        weight
            .multiply(Level::best(), &activations, &mut output, false)
            .is_err()
    );
    activations.quantise(Level::best(), &random(2 * 96, 2), 96);
    output.push(0.0);
    assert!(
        weight
            .multiply(Level::best(), &activations, &mut output, false)
            .is_err()
    );
    let heads = Heads {
        queries: 1,
        keys: PageShape {
            kv_heads: 1,
            head_dim: 4,
        },
    };
    let mut pages = vec![Arc::new(heads.keys.page())];
    let sequence = Sequence {
        pages: &mut pages,
        past: 30,
        start: 0,
        count: 3,
    };
    let result = attend(
        Level::best(),
        heads,
        &random(36, 1),
        &angles(30..33, 2),
        &mut [sequence],
        &mut output,
    );
    assert!(result.is_err());
}

#[test]
fn sums_are_added_to_what_is_there_if_asked() {
    let weight = packed(quantised(37, 64, GgmlDType::Q4_0, 1));
    let x = random(5 * 64, 2);
    for level in Level::all() {
        let mut activations = Activations::default();
        activations.quantise(level, &x, 64);
        let mut output = vec![0.5; 5 * 37];
        weight.multiply(level, &activations, &mut output, true).unwrap();
        let expected: Vec<f32> = product(level, &weight, &x, 64).iter().map(|v| 0.5 + v).collect();
        assert_eq!(output, expected);
    }
}
