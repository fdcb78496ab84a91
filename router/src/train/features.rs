//! Features of many queries, computed once: extraction in batches, with a cache file that outlives the run.
//!
//! Extraction is nearly all the time of a training run. The cache is a file of fixed records, `key ‖ f16 vector`, the
//! key being a digest of the model, the read-out, a probe of the engine and the query; it is appended to batch by batch, so an
//! interrupted run goes on where it stopped, and a half-written record at the end is dropped.

use crate::functional::ReadOut;
use crate::{RouterError, dataset, digest};
use half::f16;
use indicatif::ProgressBar;
use referral_lm::LanguageModel;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Tokens of one forward pass: enough to fill the kernels, few enough to stay in the CPU's caches.
const BATCH_TOKENS: usize = 768;
const KEY_BYTES: usize = 32;
/// A query whose features tell engines apart.
const PROBE: &str = "Which of my tablets should I stop before the operation on Friday?";

/// Computes the features of all queries, row by row in their order; equal queries are computed once.
pub(crate) fn extract(
    model: &LanguageModel,
    read_out: &ReadOut,
    queries: &[&str],
    cache: Option<&Path>,
    progress: &ProgressBar,
) -> Result<Vec<Vec<f16>>, RouterError> {
    let width = read_out.width();
    let identity = identity(model, read_out)?;
    let normal: Vec<String> = queries.iter().map(|query| dataset::normalise(query)).collect();
    let keys: Vec<[u8; KEY_BYTES]> = normal
        .iter()
        .map(|query| digest::parts(&[&identity, query.as_bytes()]))
        .collect();

    let mut known = match cache {
        Some(path) => load(path, width)?,
        None => HashMap::new(),
    };
    let mut wanted = Vec::new();
    let mut queued = std::collections::HashSet::new();
    for (key, query) in keys.iter().zip(&normal) {
        if !known.contains_key(key) && queued.insert(*key) {
            wanted.push((*key, read_out.tokens(query)?));
        }
    }
    // Neighbours of like length fill a batch evenly; the longest first makes the time left an upper estimate.
    wanted.sort_by_key(|(_, tokens)| std::cmp::Reverse(tokens.len()));
    progress.set_length(wanted.len() as u64);
    progress.set_message("reading queries");
    let mut rest = wanted.as_slice();
    while let Some((_, longest)) = rest.first() {
        let count = (BATCH_TOKENS / longest.len().max(8)).clamp(1, rest.len());
        let (batch, later) = rest.split_at(count);
        rest = later;
        let tokens: Vec<Vec<u32>> = batch.iter().map(|(_, tokens)| tokens.clone()).collect();
        let mut record = Vec::new();
        for ((key, _), vector) in batch.iter().zip(read_out.read(&tokens)?) {
            let vector: Vec<f16> = vector.into_iter().map(f16::from_f32).collect();
            record.extend_from_slice(key);
            record.extend(vector.iter().flat_map(|x| x.to_le_bytes()));
            known.insert(*key, vector);
        }
        if let Some(path) = cache {
            let io = |source| RouterError::Io {
                path: path.to_owned(),
                source,
            };
            OpenOptions::new()
                .append(true)
                .open(path)
                .and_then(|mut file| file.write_all(&record))
                .map_err(io)?;
        }
        progress.inc(count as u64);
    }
    Ok(keys
        .iter()
        .map(|key| known.get(key).cloned().unwrap_or_default())
        .collect())
}

/// Everything besides the query that the features depend on. The engine's arithmetic is part of it: a probe query is
/// read anew, so that features that another version of the engine cached are not taken for this one's.
fn identity(model: &LanguageModel, read_out: &ReadOut) -> Result<Vec<u8>, RouterError> {
    let info = model.info();
    let spec = serde_json::to_string(read_out.spec()).map_err(|error| RouterError::Invalid {
        field: "read-out",
        value: error.to_string(),
        fix: "report this as a defect".to_owned(),
    })?;
    let mut identity = format!(
        "{} {} {} {} {spec}",
        info.name, info.layers, info.width, info.weight_bytes
    )
    .into_bytes();
    for vector in read_out.read(&[read_out.tokens(PROBE)?])? {
        identity.extend(vector.into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()));
    }
    Ok(identity)
}

/// Reads the cache, creating it if it is not there; cuts off a record that was not written to its end.
fn load(path: &Path, width: usize) -> Result<HashMap<[u8; KEY_BYTES], Vec<f16>>, RouterError> {
    let io = |source| RouterError::Io {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(io)?;
    let bytes = std::fs::read(path).map_err(io)?;
    let record = KEY_BYTES + 2 * width;
    file.set_len((bytes.len() / record * record) as u64).map_err(io)?;
    let mut known = HashMap::with_capacity(bytes.len() / record);
    for piece in bytes.chunks_exact(record) {
        if let Some((key, vector)) = piece.split_first_chunk::<KEY_BYTES>() {
            let vector = vector
                .as_chunks::<2>()
                .0
                .iter()
                .map(|pair| f16::from_le_bytes(*pair))
                .collect();
            known.insert(*key, vector);
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functional::{Feature, PROMPT, Pooling, ReadOutSpec, Window};
    use crate::tiny;

    #[test]
    fn features_of_another_arithmetic_are_not_taken_from_the_cache() {
        let identify = |seed| {
            let model = tiny::seeded(seed);
            let spec = ReadOutSpec {
                prompt: PROMPT.to_owned(),
                window: Window::default(),
                features: vec![Feature {
                    layer: 2,
                    pooling: Pooling::Last,
                }],
            };
            identity(&model, &ReadOut::new(model.clone(), spec, None).unwrap()).unwrap()
        };
        assert_eq!(identify(3), identify(3));
        assert_ne!(
            identify(3),
            identify(4),
            "same name, shape and size, other numbers"
        );
    }

    #[test]
    fn a_half_written_record_is_cut_off() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![7u8; KEY_BYTES];
        bytes.extend(
            [f16::from_f32(1.5), f16::from_f32(-2.0)]
                .iter()
                .flat_map(|x| x.to_le_bytes()),
        );
        let whole = bytes.len();
        bytes.extend([9u8; 20]);
        std::fs::write(file.path(), &bytes).unwrap();
        let known = load(file.path(), 2).unwrap();
        assert_eq!(known.len(), 1);
        assert_eq!(
            known[&[7u8; KEY_BYTES]],
            [f16::from_f32(1.5), f16::from_f32(-2.0)]
        );
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), whole as u64);
    }
}
