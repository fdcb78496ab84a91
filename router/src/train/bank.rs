//! Which rows go into the feature bank: of each class some from every file, evenly spread.

use super::search::Lab;
use super::split::Split;
use crate::RouterError;
use crate::bank::{Bank, ROWS_OF_CLASS};
use crate::dataset::{self, DataFile};
use crate::functional::RouterFile;
use std::collections::BTreeMap;

impl Lab<'_> {
    /// The bank of a fitted router.
    pub(super) fn bank(&self, file: &RouterFile, data: &[DataFile]) -> Result<Bank, RouterError> {
        let mut bank = Bank::new(file.mean.len(), file.head.bias.len());
        let features = &file.settings.read_out.features;
        let train = (self.train, data, ROWS_OF_CLASS[0], false);
        let held = (self.held, self.dev, ROWS_OF_CLASS[1], true);
        for (split, files, most, is_held) in [train, held] {
            let queries: Vec<&str> = files
                .iter()
                .flat_map(|f| &f.rows)
                .map(|row| row.query.as_str())
                .collect();
            for row in choose(&split.labels, &split.files, most) {
                let (Some(vector), Some(label), Some(query)) =
                    (split.features.get(row), split.labels.get(row), queries.get(row))
                else {
                    continue;
                };
                let one = Split {
                    features: vec![vector.clone()],
                    labels: vec![*label],
                    files: Vec::new(),
                };
                let mut vector = one.matrix(self.width, self.union, features);
                file.standardise(&mut vector);
                let scored = file.score(&vector, &dataset::normalise(query));
                bank.push(
                    &vector,
                    &scored.logits,
                    u32::try_from(*label).unwrap_or(u32::MAX),
                    is_held,
                );
            }
        }
        Ok(bank)
    }
}

/// At most `most` rows of each class: of every file the same number as far as it has them, evenly spaced over the file.
fn choose(labels: &[usize], files: &[usize], most: usize) -> Vec<usize> {
    let mut by_class: BTreeMap<usize, BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
    for (row, (label, file)) in labels.iter().zip(files).enumerate() {
        by_class
            .entry(*label)
            .or_default()
            .entry(*file)
            .or_default()
            .push(row);
    }
    let mut chosen = Vec::new();
    for by_file in by_class.into_values() {
        let mut lists: Vec<Vec<usize>> = by_file.into_values().collect();
        // The shortest first: what it cannot give the others may.
        lists.sort_by_key(Vec::len);
        let (mut left, mut files_left) = (most, lists.len());
        for list in lists {
            let take = list.len().min(left.div_ceil(files_left.max(1))).min(left);
            chosen.extend((0..take).filter_map(|i| list.get(i * list.len() / take).copied()));
            left -= take;
            files_left -= 1;
        }
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_gives_its_share_and_a_short_one_all_it_has() {
        // Class 0: three rows of file 0, forty of file 1; class 1: five rows of file 1.
        let labels: Vec<usize> = (0..48).map(|i| usize::from(i >= 43)).collect();
        let files: Vec<usize> = (0..48).map(|i| usize::from(i >= 3)).collect();
        let rows = choose(&labels, &files, 10);
        assert_eq!(rows.len(), 15);
        assert_eq!(rows[..3], [0, 1, 2]);
        let spread: Vec<usize> = rows[3..10].iter().map(|row| (row - 3) / 6).collect();
        assert!(
            spread.windows(2).all(|pair| pair[0] <= pair[1]) && spread[6] >= 5,
            "{rows:?}"
        );
        assert_eq!(rows[10..], [43, 44, 45, 46, 47]);
    }
}
