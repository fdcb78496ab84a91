//! Training of the n-gram model: multinomial logistic regression on sparse tf-idf vectors.
//!
//! Template questions would teach it templates, so no expert brings more than `FILE_ROWS` rows of a file; names of
//! diseases and drugs from the rest stand in frames that all experts share (see `augment`).

use super::augment;
use super::regression::minimise;
use crate::dataset::{self, DataFile, Row};
use crate::lexical::{Lexical, Vocabulary, count, vector};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Most rows of one expert from one file.
const FILE_ROWS: usize = 400;
/// Most names of one expert, put into a frame each.
const NAMES: usize = 150;
/// What such a row weighs.
const NAME_WEIGHT: f32 = 0.5;
/// A feature must stand in this many rows.
const LEAST_ROWS: u32 = 2;
/// Strength of the regulariser, times the sum of the rows' weights (scikit-learn's `1 / C`).
const RIDGE: f32 = 0.25;
/// Most steps of the fit.
const ITERATIONS: usize = 150;

struct Sample {
    text: String,
    label: usize,
    weight: f32,
}

/// Trains on the rows of `data`; labels are places among `known`.
pub(super) fn train(data: &[DataFile], known: &[String], seed: u64) -> Lexical {
    let samples = samples(data, known, seed);
    let mut documents: HashMap<u32, u32> = HashMap::new();
    for sample in &samples {
        for key in count(&sample.text).into_keys() {
            *documents.entry(key).or_default() += 1;
        }
    }
    let mut keys: Vec<(u32, u32)> = documents.into_iter().filter(|(_, n)| *n >= LEAST_ROWS).collect();
    keys.sort_unstable();
    let n = samples.len() as f32;
    let vocabulary: Vocabulary = keys
        .iter()
        .enumerate()
        .map(|(place, (key, rows))| (*key, (place, ((1.0 + n) / (1.0 + *rows as f32)).ln() + 1.0)))
        .collect();
    let vectors: Vec<Vec<(usize, f32)>> = samples
        .iter()
        .map(|sample| vector(&sample.text, |key| vocabulary.get(&key).copied()))
        .collect();
    let total: f32 = samples.iter().map(|sample| sample.weight).sum();
    let (classes, size) = (known.len(), vocabulary.len() * known.len());
    let l2 = RIDGE / total.max(1.0);
    let objective = |at: &[f32]| {
        let (weights, bias) = at.split_at(size);
        let mut gradient: Vec<f32> = weights.iter().map(|w| l2 * w).collect();
        let mut bias_gradient = vec![0.0f32; classes];
        let mut loss = 0.5 * f64::from(l2) * weights.iter().map(|w| f64::from(w * w)).sum::<f64>();
        let mut z = vec![0.0f32; classes];
        for (sample, x) in samples.iter().zip(&vectors) {
            z.copy_from_slice(bias);
            for (place, value) in x {
                let own = &weights[place * classes..][..classes];
                z.iter_mut().zip(own).for_each(|(z, w)| *z += value * w);
            }
            let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let own = z[sample.label];
            z.iter_mut().for_each(|z| *z = (*z - top).exp());
            let sum: f32 = z.iter().sum();
            let weight = sample.weight / total;
            loss += f64::from(weight) * f64::from(sum.ln() + top - own);
            z.iter_mut().for_each(|p| *p *= weight / sum);
            z[sample.label] -= weight;
            bias_gradient.iter_mut().zip(&z).for_each(|(sum, d)| *sum += d);
            for (place, value) in x {
                let own = &mut gradient[place * classes..][..classes];
                own.iter_mut().zip(&z).for_each(|(sum, d)| *sum += value * d);
            }
        }
        gradient.extend(bias_gradient);
        Ok::<_, std::convert::Infallible>((loss, gradient))
    };
    let Ok(mut at) = minimise(size + classes, ITERATIONS, objective);
    let bias = at.split_off(size);
    Lexical::new(&vocabulary, &at, bias)
}

fn samples(data: &[DataFile], known: &[String], seed: u64) -> Vec<Sample> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(u64::MAX);
    let label = |row: &Row| known.iter().position(|expert| *expert == row.expert);
    let mut samples = Vec::new();
    for file in data {
        let mut by_expert: BTreeMap<usize, Vec<&Row>> = BTreeMap::new();
        for row in &file.rows {
            if let Some(label) = label(row) {
                by_expert.entry(label).or_default().push(row);
            }
        }
        for (label, mut rows) in by_expert {
            if rows.len() > FILE_ROWS {
                rows.shuffle(&mut random);
                rows.truncate(FILE_ROWS);
            }
            samples.extend(rows.into_iter().map(|row| Sample {
                text: dataset::normalise(&row.query),
                label,
                weight: 1.0,
            }));
        }
    }
    let mut names: BTreeMap<usize, (HashSet<&str>, Vec<&Row>)> = BTreeMap::new();
    for row in data.iter().flat_map(|file| &file.rows) {
        if let (Some(focus), Some(label)) = (row.focus.as_deref(), label(row)) {
            let (seen, rows) = names.entry(label).or_default();
            if seen.insert(focus) {
                rows.push(row);
            }
        }
    }
    for (label, (_, mut rows)) in names {
        rows.shuffle(&mut random);
        rows.truncate(NAMES);
        samples.extend(rows.into_iter().filter_map(|row| {
            Some(Sample {
                text: dataset::normalise(&augment::framed(row, &mut random)?),
                label,
                weight: NAME_WEIGHT,
            })
        }));
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(rows: &[(&str, &str)]) -> DataFile {
        DataFile {
            path: "rows.jsonl".into(),
            sha256: String::new(),
            rows: rows
                .iter()
                .enumerate()
                .map(|(i, (query, expert))| Row {
                    id: i.to_string(),
                    query: (*query).into(),
                    expert: (*expert).into(),
                    second: None,
                    focus: None,
                    scenario: None,
                })
                .collect(),
        }
    }

    #[test]
    fn words_and_parts_of_words_decide() {
        let data = [file(&[
            ("my heart races", "heart"),
            ("heart skipped a beat", "heart"),
            ("cardiac rhythm odd", "heart"),
            ("odd cardiac pain", "heart"),
            ("itchy skin rash", "skin"),
            ("the skin peels", "skin"),
            ("rash on the arm", "skin"),
            ("dermal rash spreads", "skin"),
        ])];
        let known = ["heart".to_owned(), "skin".to_owned(), "<expert_end>".to_owned()];
        let model = train(&data, &known, 0);
        assert_eq!(model, train(&data, &known, 0));
        assert!(model.features() > 10);
        for (query, right) in [("heart??", 0), ("RASH", 1), ("cardiacs", 0), ("skins", 1)] {
            let z = model.logits(query);
            let best = (0..3).max_by(|&a, &b| z[a].total_cmp(&z[b])).unwrap();
            assert_eq!(best, right, "{query}: {z:?}");
        }
    }

    #[test]
    fn an_expert_brings_a_bounded_number_of_rows_of_a_file() {
        let rows: Vec<(String, &str)> = (0..FILE_ROWS + 50)
            .map(|i| (format!("what is disease {i}"), "heart"))
            .collect();
        let rows: Vec<(&str, &str)> = rows.iter().map(|(q, e)| (q.as_str(), *e)).collect();
        assert_eq!(samples(&[file(&rows)], &["heart".to_owned()], 0).len(), FILE_ROWS);
    }
}
