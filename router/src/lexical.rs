//! Words as evidence beside the read-out: a linear model over words, pairs of words and groups of letters.
//!
//! A small language model knows few drug and disease names; which words go with which expert is learnt far better
//! from the words themselves, and an n-gram model costs microseconds. Its logits are added to those of the functional
//! tokens with a weight chosen on dev (a log-linear pool of experts; what each side gives is in the crate's README).
//!
//! Features are tf-idf (sublinear, Salton and Buckley 1988) over word 1- and 2-grams and over 3- to 5-grams of
//! letters within a padded word, each of the two blocks scaled to length 1. A feature is known by the 32-bit FNV-1a hash
//! of its text, so the file holds no text of the training data.

use crate::functional::{halved, whole};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;

/// Lengths of letter groups.
const LETTERS: std::ops::RangeInclusive<usize> = 3..=5;
/// Blocks of features that are scaled to length 1 each: words, letters.
pub(crate) const BLOCKS: usize = 2;

/// Features of a text: hash to block and number of times.
pub(crate) fn count(text: &str) -> HashMap<u32, (usize, f32)> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let mut counts = HashMap::new();
    let mut add = |block: usize, parts: &[&str]| {
        counts.entry(hash(block, parts)).or_insert((block, 0.0)).1 += 1.0;
    };
    for word in &words {
        add(0, &[word]);
    }
    for pair in words.windows(2) {
        add(0, pair);
    }
    for word in &words {
        let padded: String = format!(" {word} ");
        let starts: Vec<usize> = padded
            .char_indices()
            .map(|(at, _)| at)
            .chain([padded.len()])
            .collect();
        for length in LETTERS {
            for window in starts.windows(length + 1) {
                if let [from, .., to] = window {
                    add(1, &[&padded[*from..*to]]);
                }
            }
        }
    }
    counts
}

/// FNV-1a (Fowler, Noll and Vo) over the block and the parts, folded to 32 bits.
fn hash(block: usize, parts: &[&str]) -> u32 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |byte: u8| {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    };
    feed(block as u8);
    for part in parts {
        feed(0xff);
        part.bytes().for_each(&mut feed);
    }
    (state >> 32) as u32 ^ state as u32
}

/// A feature's place and its inverse document frequency.
pub(crate) type Vocabulary = HashMap<u32, (usize, f32)>;

/// The tf-idf vector of a text: places in the vocabulary and values, ordered by place.
pub(crate) fn vector(text: &str, find: impl Fn(u32) -> Option<(usize, f32)>) -> Vec<(usize, f32)> {
    let mut squares = [0.0f32; BLOCKS];
    let mut found: Vec<(usize, usize, f32)> = count(text)
        .into_iter()
        .filter_map(|(key, (block, times))| {
            let (place, idf) = find(key)?;
            Some((place, block, (1.0 + times.ln()) * idf))
        })
        .collect();
    found.sort_unstable_by_key(|(place, ..)| *place);
    for (_, block, value) in &found {
        squares[*block] += value * value;
    }
    found
        .into_iter()
        .map(|(place, block, value)| (place, value / squares[block].sqrt().max(f32::MIN_POSITIVE)))
        .collect()
}

/// The trained model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lexical {
    /// Hashes of the features, ascending.
    keys: Vec<u32>,
    idf: Vec<f32>,
    /// One per feature: its weights are stored in 127ths of this.
    scale: Vec<f32>,
    /// `features × classes`.
    weights: Vec<i8>,
    /// One per class.
    bias: Vec<f32>,
}

/// Tensor names in a router's `tokens.safetensors`.
const NAMES: [&str; 5] = [
    "lexical_keys",
    "lexical_idf",
    "lexical_scale",
    "lexical_weights",
    "lexical_bias",
];

impl Lexical {
    /// From full-precision weights (`features × classes`, in the vocabulary's places).
    pub(crate) fn new(vocabulary: &Vocabulary, weights: &[f32], bias: Vec<f32>) -> Self {
        let classes = bias.len();
        let mut order: Vec<(u32, usize, f32)> = vocabulary
            .iter()
            .map(|(key, (place, idf))| (*key, *place, *idf))
            .collect();
        order.sort_unstable_by_key(|(key, ..)| *key);
        let mut model = Self {
            keys: Vec::with_capacity(order.len()),
            idf: Vec::with_capacity(order.len()),
            scale: Vec::with_capacity(order.len()),
            weights: Vec::with_capacity(weights.len()),
            bias,
        };
        for (key, place, idf) in order {
            let own = weights
                .get(place * classes..(place + 1) * classes)
                .unwrap_or_default();
            let largest = own.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            let scale = f16::from_f32(largest.max(1e-4)).to_f32();
            model.keys.push(key);
            model.idf.push(f16::from_f32(idf).to_f32());
            model.scale.push(scale);
            model.weights.extend(
                own.iter()
                    .map(|w| (127.0 * w / scale).round().clamp(-127.0, 127.0) as i8),
            );
        }
        model
    }

    /// Makes room for a class at this place, for which the words say nothing yet.
    pub(crate) fn insert_class(&mut self, at: usize) {
        let classes = self.bias.len().max(1);
        let rows = self.weights.chunks_exact(classes);
        self.weights = rows
            .flat_map(|row| [&row[..at], &[0], &row[at..]].concat())
            .collect();
        self.bias.insert(at, 0.0);
    }

    /// Takes a class out.
    pub(crate) fn remove_class(&mut self, at: usize) {
        let classes = self.bias.len().max(1);
        let rows = self.weights.chunks_exact(classes);
        self.weights = rows
            .flat_map(|row| [&row[..at], &row[at + 1..]].concat())
            .collect();
        self.bias.remove(at);
    }

    /// Features that it knows.
    pub(crate) fn features(&self) -> usize {
        self.keys.len()
    }

    /// One logit per class for a normalised query.
    pub(crate) fn logits(&self, text: &str) -> Vec<f32> {
        let classes = self.bias.len();
        let find = |key| {
            let place = self.keys.binary_search(&key).ok()?;
            Some((place, *self.idf.get(place)?))
        };
        let mut logits = self.bias.clone();
        for (place, value) in vector(text, find) {
            let factor = value * self.scale.get(place).copied().unwrap_or(0.0) / 127.0;
            let own = self
                .weights
                .get(place * classes..(place + 1) * classes)
                .unwrap_or_default();
            logits
                .iter_mut()
                .zip(own)
                .for_each(|(z, w)| *z += factor * f32::from(*w));
        }
        logits
    }

    /// Reads it out of a router's tensors; `None` if there is none, an error text if it is not whole.
    pub(crate) fn read(tensors: &SafeTensors<'_>, classes: usize) -> Result<Option<Self>, String> {
        if tensors.tensor(NAMES[0]).is_err() {
            return Ok(None);
        }
        let bytes = |name: &str, dtype: Dtype, count: Option<usize>| {
            let tensor = tensors.tensor(name).map_err(|error| error.to_string())?;
            let found = tensor.shape().iter().product::<usize>();
            match tensor.dtype() == dtype && count.is_none_or(|count| count == found) {
                true => Ok(tensor.data().to_vec()),
                false => Err(format!(
                    "{name} is {:?} of {found} values: train the router again",
                    tensor.dtype()
                )),
            }
        };
        let keys: Vec<u32> = bytes(NAMES[0], Dtype::U32, None)?
            .as_chunks::<4>()
            .0
            .iter()
            .map(|x| u32::from_le_bytes(*x))
            .collect();
        let n = keys.len();
        let halves = |name| {
            let bytes = bytes(name, Dtype::F16, Some(n))?;
            Ok::<Vec<f32>, String>(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|x| f16::from_le_bytes(*x).to_f32())
                    .collect(),
            )
        };
        let model = Self {
            idf: halves(NAMES[1])?,
            scale: halves(NAMES[2])?,
            weights: bytes(NAMES[3], Dtype::I8, Some(n * classes))?
                .into_iter()
                .map(|x| x as i8)
                .collect(),
            bias: bytes(NAMES[4], Dtype::F32, Some(classes))?
                .as_chunks::<4>()
                .0
                .iter()
                .map(|x| f32::from_le_bytes(*x))
                .collect(),
            keys,
        };
        let is_sound = model.keys.is_sorted()
            && [&model.idf, &model.scale, &model.bias]
                .into_iter()
                .flatten()
                .all(|x| x.is_finite());
        match is_sound {
            true => Ok(Some(model)),
            false => Err("lexical tensors hold a value that is not finite, or keys out of order: train the router again".to_owned()),
        }
    }

    /// The tensors' bytes, to be written beside the functional tokens.
    pub(crate) fn bytes(&self) -> LexicalBytes {
        LexicalBytes {
            keys: self.keys.iter().flat_map(|x| x.to_le_bytes()).collect(),
            idf: halved(&self.idf),
            scale: halved(&self.scale),
            weights: self.weights.iter().map(|x| *x as u8).collect(),
            bias: whole(&self.bias),
            features: self.keys.len(),
            classes: self.bias.len(),
        }
    }
}

/// A model as bytes.
pub(crate) struct LexicalBytes {
    keys: Vec<u8>,
    idf: Vec<u8>,
    scale: Vec<u8>,
    weights: Vec<u8>,
    bias: Vec<u8>,
    features: usize,
    classes: usize,
}

impl LexicalBytes {
    /// Named views for the file.
    pub(crate) fn views(&self) -> Result<Vec<(&'static str, TensorView<'_>)>, safetensors::SafeTensorError> {
        let (n, c) = (self.features, self.classes);
        [
            (Dtype::U32, vec![n], &self.keys),
            (Dtype::F16, vec![n], &self.idf),
            (Dtype::F16, vec![n], &self.scale),
            (Dtype::I8, vec![n, c], &self.weights),
            (Dtype::F32, vec![c], &self.bias),
        ]
        .into_iter()
        .zip(NAMES)
        .map(|((dtype, shape, data), name)| Ok((name, TensorView::new(dtype, shape, data)?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_pairs_and_letter_groups_are_counted() {
        let counts = count("Warfarin, warfarin!");
        assert_eq!(counts[&hash(0, &["warfarin"])], (0, 2.0));
        assert_eq!(counts[&hash(0, &["warfarin", "warfarin"])], (0, 1.0));
        assert_eq!(counts[&hash(1, &[" wa"])], (1, 2.0));
        assert_eq!(counts[&hash(1, &["arf"])], (1, 2.0));
        assert_eq!(counts[&hash(1, &["arin "])], (1, 2.0));
        assert!(!counts.contains_key(&hash(1, &["in"])));
        assert!(count("?!… ").is_empty());
    }

    #[test]
    fn blocks_have_length_1() {
        let vocabulary: Vocabulary = count("heart attack")
            .keys()
            .enumerate()
            .map(|(i, k)| (*k, (i, 2.0)))
            .collect();
        let x = vector("heart attack, unseen", |key| vocabulary.get(&key).copied());
        let squares: f32 = x.iter().map(|(_, v)| v * v).sum();
        assert!((squares - 2.0).abs() < 1e-5, "{squares}");
        assert!(vector("zzz", |key| vocabulary.get(&key).copied()).is_empty());
    }

    #[test]
    fn a_model_survives_its_file() {
        let vocabulary: Vocabulary = count("heart")
            .keys()
            .enumerate()
            .map(|(i, k)| (*k, (i, 1.5)))
            .collect();
        let weights: Vec<f32> = (0..2 * vocabulary.len()).map(|i| (i as f32).sin()).collect();
        let model = Lexical::new(&vocabulary, &weights, vec![0.25, -1.0]);
        let bytes = model.bytes();
        let file = safetensors::serialize(bytes.views().unwrap(), None).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(Lexical::read(&tensors, 2).unwrap().unwrap(), model);
        assert!(Lexical::read(&tensors, 3).unwrap_err().contains("lexical"));
        let exact: Vec<f32> = (0..2)
            .map(|k| {
                let x = vector("heart", |key| vocabulary.get(&key).copied());
                [0.25, -1.0][k] + x.iter().map(|(i, v)| v * weights[2 * i + k]).sum::<f32>()
            })
            .collect();
        for (found, exact) in model.logits("Heart").iter().zip(exact) {
            assert!((found - exact).abs() < 0.02, "{found} {exact}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_finite_logits(text in ".{0,200}") {
            let vocabulary: Vocabulary = count("heart attack at night").keys().enumerate().map(|(i, k)| (*k, (i, 1.5))).collect();
            let weights = vec![0.5; vocabulary.len()];
            let model = Lexical::new(&vocabulary, &weights, vec![0.0]);
            prop_assert!(model.logits(&text).iter().all(|z| z.is_finite()));
        }
    }
}
