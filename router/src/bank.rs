//! The feature bank: standardised features of some hundred rows a class, in eight bits, shipped beside the tokens.
//!
//! A new functional token must be told from all others, which takes their features but not their texts. A row is kept as
//! 127ths of its largest number, with its logits: a few megabytes, without anybody's words in them. Most rows come from the training
//! files; some come from the dev files and are only measured on, so that a change to the router can be judged.

use crate::RouterError;
use crate::functional::whole;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::Path;

/// The bank's file name.
pub(crate) const BANK: &str = "bank.safetensors";
/// Most rows of a class to learn from, and most to measure on.
pub(crate) const ROWS_OF_CLASS: [usize; 2] = [120, 40];

/// Rows with their classes.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Bank {
    width: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    classes: usize,
    /// What all tokens, and the words, said of each row.
    logits: Vec<f32>,
    /// Index of the token; `<expert_end>`'s is the last.
    pub(crate) labels: Vec<u32>,
    /// Whether a row is only measured on.
    pub(crate) held: Vec<bool>,
}

impl Bank {
    /// An empty bank of rows with `width` numbers, of a router with so many tokens.
    pub(crate) fn new(width: usize, classes: usize) -> Self {
        Self {
            width,
            classes,
            ..Self::default()
        }
    }

    /// Adds a row of standardised features with its logits.
    #[expect(clippy::cast_possible_truncation, reason = "within ±127 by the scale")]
    pub(crate) fn push(&mut self, features: &[f32], logits: &[f32], label: u32, is_held: bool) {
        let most = features.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let scale = if most > 0.0 { most / 127.0 } else { 1.0 };
        self.values
            .extend(features.iter().map(|x| (x / scale).round() as i8));
        self.scales.push(scale);
        self.logits.extend(logits);
        self.labels.push(label);
        self.held.push(is_held);
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The features of a row.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let scale = self.scales.get(row).copied().unwrap_or(1.0);
        let values = self.values.iter().skip(row * self.width).take(self.width);
        values.map(|x| f32::from(*x) * scale).collect()
    }

    /// The logits of a row, `<expert_end>`'s last.
    pub(crate) fn logits(&self, row: usize) -> &[f32] {
        self.logits
            .get(row * self.classes..(row + 1) * self.classes)
            .unwrap_or_default()
    }

    /// Makes room for a token at this place, whose logit of each row `logit` says.
    pub(crate) fn insert_class(&mut self, at: usize, logit: impl Fn(&[f32]) -> f32) {
        let logits = (0..self.len()).flat_map(|row| {
            let old = self.logits(row);
            [&old[..at], &[logit(&self.row(row))], &old[at..]].concat()
        });
        self.logits = logits.collect();
        self.classes += 1;
        for label in &mut self.labels {
            *label += u32::from(*label as usize >= at);
        }
    }

    /// Takes a token out, with its rows.
    pub(crate) fn remove_class(&mut self, at: usize) {
        let mut kept = Self::new(self.width, self.classes - 1);
        for row in (0..self.len()).filter(|row| self.labels[*row] as usize != at) {
            let (label, logits) = (self.labels[row], self.logits(row));
            kept.values
                .extend(&self.values[row * self.width..(row + 1) * self.width]);
            kept.scales.push(self.scales[row]);
            kept.logits.extend([&logits[..at], &logits[at + 1..]].concat());
            kept.labels.push(label - u32::from(label as usize > at));
            kept.held.push(self.held[row]);
        }
        *self = kept;
    }

    /// Rows to learn from and rows to measure on, of each of so many classes.
    pub(crate) fn counts(&self, classes: usize) -> Vec<[usize; 2]> {
        let mut counts = vec![[0; 2]; classes];
        for (label, is_held) in self.labels.iter().zip(&self.held) {
            if let Some(count) = counts.get_mut(*label as usize) {
                count[usize::from(*is_held)] += 1;
            }
        }
        counts
    }

    /// Reads and checks a bank for tokens of this width and number; `path` is for messages only.
    pub(crate) fn parse(
        path: &Path,
        bytes: &[u8],
        width: usize,
        classes: usize,
    ) -> Result<Self, RouterError> {
        let bad = |detail: String| RouterError::BadFile {
            path: path.to_owned(),
            what: "a router's feature bank",
            detail: format!("{BANK}: {detail}; train the router again"),
        };
        if bytes.is_empty() {
            return Err(bad("it is missing: the router was trained without one".to_owned()));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| bad(error.to_string()))?;
        let tensor = |name: &str, dtype: Dtype| {
            let tensor = tensors.tensor(name).map_err(|error| bad(error.to_string()))?;
            if tensor.dtype() == dtype {
                Ok(tensor)
            } else {
                Err(bad(format!("{name} is {:?}, not {dtype:?}", tensor.dtype())))
            }
        };
        let values = tensor("values", Dtype::I8)?;
        let n = values.shape().first().copied().unwrap_or(0);
        let (scales, labels) = (tensor("scales", Dtype::F32)?, tensor("labels", Dtype::U32)?);
        let held = tensor("held", Dtype::U8)?;
        let logits = tensor("logits", Dtype::F32)?;
        if logits.shape() != [n, classes] {
            return Err(bad(format!("its logits are not of {classes} tokens")));
        }
        if values.shape() != [n, width] || [&scales, &labels, &held].iter().any(|t| t.shape() != [n]) {
            return Err(bad(format!("the shapes do not fit tokens of width {width}")));
        }
        let words = |tensor: &TensorView<'_>| tensor.data().as_chunks::<4>().0.to_vec();
        let bank = Self {
            width,
            classes,
            logits: words(&logits).into_iter().map(f32::from_le_bytes).collect(),
            values: values.data().iter().map(|x| x.cast_signed()).collect(),
            scales: words(&scales).into_iter().map(f32::from_le_bytes).collect(),
            labels: words(&labels).into_iter().map(u32::from_le_bytes).collect(),
            held: held.data().iter().map(|x| *x != 0).collect(),
        };
        if bank.labels.iter().any(|label| *label as usize >= classes) {
            return Err(bad(format!("a label is not below {classes}")));
        }
        if bank
            .scales
            .iter()
            .any(|scale| !(scale.is_finite() && *scale > 0.0))
        {
            return Err(bad("a scale is not positive".to_owned()));
        }
        if bank.logits.iter().any(|logit| !logit.is_finite()) {
            return Err(bad("a logit is not finite".to_owned()));
        }
        Ok(bank)
    }

    /// Writes the bank into a router's directory.
    pub(crate) fn save(&self, directory: &Path) -> Result<(), RouterError> {
        let path = directory.join(BANK);
        let bad = |error: safetensors::SafeTensorError| RouterError::BadFile {
            path: path.clone(),
            what: "a router's feature bank",
            detail: error.to_string(),
        };
        let n = self.len();
        let values: Vec<u8> = self.values.iter().map(|x| x.cast_unsigned()).collect();
        let scales = whole(&self.scales);
        let labels: Vec<u8> = self.labels.iter().flat_map(|x| x.to_le_bytes()).collect();
        let logits = whole(&self.logits);
        let held: Vec<u8> = self.held.iter().map(|is_held| u8::from(*is_held)).collect();
        let view = |dtype, shape, data| TensorView::new(dtype, shape, data).map_err(bad);
        let tensors = [
            ("values", view(Dtype::I8, vec![n, self.width], &values)?),
            ("scales", view(Dtype::F32, vec![n], &scales)?),
            ("labels", view(Dtype::U32, vec![n], &labels)?),
            ("logits", view(Dtype::F32, vec![n, self.classes], &logits)?),
            ("held", view(Dtype::U8, vec![n], &held)?),
        ];
        let bytes = safetensors::serialize(tensors, None).map_err(bad)?;
        std::fs::write(&path, bytes).map_err(|source| RouterError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bank() -> Bank {
        let mut bank = Bank::new(4, 3);
        bank.push(&[0.5, -1.0, 0.25, 0.0], &[0.1, 0.2, 0.3], 0, false);
        bank.push(&[0.0; 4], &[0.4, 0.5, 0.6], 1, true);
        bank.push(&[3.0, 1.0, -2.0, 0.1], &[0.7, 0.8, 0.9], 2, false);
        bank
    }

    #[test]
    fn what_is_saved_is_read_to_a_127th() {
        let directory = tempfile::tempdir().unwrap();
        bank().save(directory.path()).unwrap();
        let bytes = std::fs::read(directory.path().join(BANK)).unwrap();
        let read = Bank::parse(directory.path(), &bytes, 4, 3).unwrap();
        assert_eq!(read, bank());
        for (got, want) in read.row(2).iter().zip([3.0, 1.0, -2.0, 0.1]) {
            assert!((got - want).abs() <= 0.5 * 3.0 / 127.0 + 1e-6, "{got} {want}");
        }
        assert_eq!(read.row(1), [0.0; 4]);
        assert_eq!(read.counts(3), [[1, 0], [0, 1], [1, 0]]);
    }

    #[test]
    fn classes_can_go_and_move() {
        let mut bank = bank();
        bank.remove_class(1);
        assert_eq!((bank.len(), bank.labels.clone()), (2, vec![0, 1]));
        assert_eq!(bank.logits(1), [0.7, 0.9]);
        bank.insert_class(1, |x| x[0].round());
        assert_eq!(
            (bank.labels.clone(), bank.logits(1)),
            (vec![0, 2], &[0.7, 3.0, 0.9][..])
        );
        assert!((bank.row(1)[0] - 3.0).abs() < 1e-6);
    }

    #[test]
    fn unusable_banks_are_named() {
        let directory = tempfile::tempdir().unwrap();
        bank().save(directory.path()).unwrap();
        let bytes = std::fs::read(directory.path().join(BANK)).unwrap();
        let fails = |bytes: &[u8], width, classes, says: &str| {
            let error = Bank::parse(Path::new("r"), bytes, width, classes)
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error} does not say {says:?}");
        };
        fails(&[], 4, 3, "trained without one");
        fails(&bytes[..bytes.len() - 2], 4, 3, "bank.safetensors:");
        fails(&bytes, 5, 3, "width 5");
        fails(&bytes, 4, 2, "not of 2 tokens");
        for logit in [f32::NAN, f32::INFINITY] {
            let mut bank = bank();
            bank.push(&[1.0; 4], &[0.1, logit, 0.3], 0, false);
            bank.save(directory.path()).unwrap();
            let bytes = std::fs::read(directory.path().join(BANK)).unwrap();
            fails(&bytes, 4, 3, "a logit is not finite");
        }
    }
}
