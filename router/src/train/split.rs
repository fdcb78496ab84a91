//! The rows of a training run: which are used, what they are labelled, and what each weighs.

use super::Choices;
use crate::RouterError;
use crate::dataset::{self, DataFile, Row};
use crate::functional::{EXPERT_END, Feature};
use half::f16;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Features and labels of some rows.
pub(super) struct Split {
    pub(super) features: Vec<Vec<f16>>,
    /// Index of the expert; the number of experts for [`EXPERT_END`].
    pub(super) labels: Vec<usize>,
    /// Index of the file.
    pub(super) files: Vec<usize>,
}

impl Split {
    /// Labels the rows of `files` by their place among `known`; `features` are theirs, in their order.
    pub(super) fn new(files: &[DataFile], known: &[String], features: Vec<Vec<f16>>) -> Self {
        let mut labels = Vec::new();
        let mut indices = Vec::new();
        for (index, file) in files.iter().enumerate() {
            for row in &file.rows {
                labels.push(
                    known
                        .iter()
                        .position(|expert| *expert == row.expert)
                        .unwrap_or(known.len()),
                );
                indices.push(index);
            }
        }
        Self {
            features,
            labels,
            files: indices,
        }
    }

    /// The columns of some features, row by row; the rows hold the vectors of `union`, each of `width` numbers.
    pub(super) fn matrix(&self, width: usize, union: &[Feature], features: &[Feature]) -> Vec<f32> {
        let slots: Vec<usize> = features
            .iter()
            .filter_map(|f| union.iter().position(|u| u == f))
            .collect();
        let mut matrix = Vec::with_capacity(self.features.len() * slots.len() * width);
        for row in &self.features {
            for slot in &slots {
                matrix.extend(row.iter().skip(slot * width).take(width).map(|x| x.to_f32()));
            }
        }
        matrix
    }

    /// Weights of the rows, adding up to 1.
    pub(super) fn weights(&self, choices: &Choices) -> Vec<f32> {
        let mut of_file: BTreeMap<usize, f64> = BTreeMap::new();
        let mut of_class: BTreeMap<(usize, usize), f64> = BTreeMap::new();
        for (file, label) in self.files.iter().zip(&self.labels) {
            *of_file.entry(*file).or_default() += 1.0;
            *of_class.entry((*file, *label)).or_default() += 1.0;
        }
        let class_weight =
            |key: &(usize, usize)| of_class.get(key).map_or(0.0, |n| n.powf(-choices.class_balance));
        let mut total: BTreeMap<usize, f64> = BTreeMap::new();
        for (key, n) in &of_class {
            *total.entry(key.0).or_default() += n * class_weight(key);
        }
        let shares: f64 = of_file.values().map(|n| n.powf(choices.source_exponent)).sum();
        let keys = self.files.iter().copied().zip(self.labels.iter().copied());
        keys.map(|key| {
            let share = of_file
                .get(&key.0)
                .map_or(0.0, |n| n.powf(choices.source_exponent))
                / shares;
            (share * class_weight(&key) / total.get(&key.0).copied().unwrap_or(1.0)) as f32
        })
        .collect()
    }
}

/// The experts in the data, by name; each needs at least two different queries.
pub(super) fn experts_of(data: &[DataFile]) -> Result<Vec<String>, RouterError> {
    let mut queries: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in data
        .iter()
        .flat_map(|file| &file.rows)
        .filter(|row| row.expert != EXPERT_END)
    {
        queries
            .entry(&row.expert)
            .or_default()
            .insert(dataset::normalise(&row.query));
    }
    let invalid = |value: String, fix: &str| {
        Err(RouterError::Invalid {
            field: "data",
            value,
            fix: fix.to_owned(),
        })
    };
    if let Some((expert, _)) = queries.iter().find(|(_, queries)| queries.len() < 2) {
        return invalid(
            format!("expert {expert:?} with one distinct query"),
            "give each expert at least two different queries",
        );
    }
    if queries.len() < 2 {
        return invalid(
            format!("{} expert(s)", queries.len()),
            "a router needs at least two experts",
        );
    }
    Ok(queries.into_keys().map(str::to_owned).collect())
}

/// Takes training rows out whose query is also in dev, which would make every figure a lie. Returns how many.
pub(super) fn drop_leaks(data: &mut [DataFile], dev: &[DataFile]) -> usize {
    let key = |row: &Row| dataset::normalise(&row.query).to_lowercase();
    let held: HashSet<String> = dev.iter().flat_map(|file| &file.rows).map(key).collect();
    let mut dropped = 0;
    for file in data {
        let before = file.rows.len();
        file.rows.retain(|row| !held.contains(&key(row)));
        dropped += before - file.rows.len();
    }
    dropped
}

/// Keeps at most `most` rows of an expert in each file, chosen by the seed, in their order.
pub(super) fn thin(files: &mut [DataFile], most: usize, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for file in files {
        let mut by_expert: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, row) in file.rows.iter().enumerate() {
            by_expert.entry(&row.expert).or_default().push(i);
        }
        let mut keep = BTreeSet::new();
        for rows in by_expert.values_mut() {
            rows.shuffle(&mut random);
            keep.extend(rows.iter().take(most).copied());
        }
        let mut i = 0;
        file.rows.retain(|_| {
            i += 1;
            keep.contains(&(i - 1))
        });
    }
}
