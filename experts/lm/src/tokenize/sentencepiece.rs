//! SentencePiece vocabularies in GGUF files (`tokenizer.ggml.model` is `llama`: Llama 2, Mistral, Phi-3).
//!
//! candle reads GPT-2 vocabularies only. A SentencePiece BPE vocabulary has no list of merges: two pieces are
//! joined if the piece that they make is in the vocabulary, that with the best score first. Hugging Face's converter
//! (`SentencePieceExtractor` in transformers' `convert_slow_tokenizer.py`) turns scores into a list of merges, and
//! this does the same, so that one tokenizer serves both kinds of vocabulary.

use candle_core::quantized::gguf_file::{Content, Value as Gguf};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Stands for a space in pieces.
const SPACE: &str = "\u{2581}";

/// Kinds of tokens (`llama_token_type` of llama.cpp).
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The tokenizer in the form of a `tokenizer.json`; the error says what is wrong with the metadata.
pub(super) fn json(content: &Content) -> Result<Value, String> {
    let pieces = array(content, "tokenizer.ggml.tokens", |value| {
        value.to_string().ok().cloned()
    })?;
    let scores = array(content, "tokenizer.ggml.scores", |value| value.to_f32().ok())?;
    let kinds = array(content, "tokenizer.ggml.token_type", kind)?;
    if scores.len() != pieces.len() || kinds.len() != pieces.len() {
        return Err(format!(
            "it has {} tokens, {} scores and {} token types: fetch it again",
            pieces.len(),
            scores.len(),
            kinds.len()
        ));
    }
    let unknown = kinds.iter().position(|kind| *kind == UNKNOWN);
    let unknown = unknown.and_then(|id| pieces.get(id)).cloned();
    let is_added = |kind: i64| matches!(kind, UNKNOWN | CONTROL | USER_DEFINED);
    let added = pieces
        .iter()
        .zip(&kinds)
        .enumerate()
        .filter(|(_, (_, kind))| is_added(**kind));
    let added: Vec<Value> = added
        .map(|(id, (piece, _))| {
            json!({"id": id, "content": piece, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let flag = |key: &str| content.metadata.get(key).and_then(|value| value.to_bool().ok());
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    if flag("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
    }
    let merges = merges(&pieces, &scores, &kinds);
    let vocabulary: Map<String, Value> = pieces
        .into_iter()
        .zip(0_u32..)
        .map(|(piece, id)| (piece, id.into()))
        .collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges},
    }))
}

/// Every way to make a piece of two others, best score first; of the same score the longer left part, then the longer
/// right part, then as the parts' ids come.
fn merges(pieces: &[String], scores: &[f32], kinds: &[i64]) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> = pieces
        .iter()
        .enumerate()
        .map(|(id, piece)| (piece.as_str(), id))
        .collect();
    let mut found = Vec::new();
    for ((piece, score), _) in pieces
        .iter()
        .zip(scores)
        .zip(kinds)
        .filter(|(_, kind)| **kind == NORMAL)
    {
        let mut own: Vec<(usize, usize, &str, &str)> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = piece.split_at(at);
                Some((*ids.get(left)?, *ids.get(right)?, left, right))
            })
            .collect();
        own.sort_unstable();
        found.extend(own.into_iter().map(|(_, _, left, right)| (*score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    // Stable, so that equal ones stay in the order of the vocabulary.
    found.sort_by(|(a, left_a, right_a), (b, left_b, right_b)| {
        b.total_cmp(a)
            .then_with(|| length(left_b).cmp(&length(left_a)))
            .then_with(|| length(right_b).cmp(&length(right_a)))
    });
    found
        .into_iter()
        .map(|(_, left, right)| (left.to_owned(), right.to_owned()))
        .collect()
}

fn array<T>(content: &Content, key: &str, read: impl Fn(&Gguf) -> Option<T>) -> Result<Vec<T>, String> {
    let wrong = || format!("header entry {key} is missing or not a list of the right kind");
    let values = content
        .metadata
        .get(key)
        .and_then(|value| value.to_vec().ok())
        .ok_or_else(wrong)?;
    values.iter().map(|value| read(value).ok_or_else(wrong)).collect()
}

fn kind(value: &Gguf) -> Option<i64> {
    value
        .to_i32()
        .map(i64::from)
        .or_else(|_| value.to_u32().map(i64::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(pieces: &[(&str, f32, i32)]) -> Content {
        let list = |values: Vec<Gguf>| Gguf::Array(values);
        let metadata = [
            ("tokenizer.ggml.model", Gguf::String("llama".to_owned())),
            (
                "tokenizer.ggml.tokens",
                list(
                    pieces
                        .iter()
                        .map(|(text, _, _)| Gguf::String((*text).to_owned()))
                        .collect(),
                ),
            ),
            (
                "tokenizer.ggml.scores",
                list(pieces.iter().map(|(_, score, _)| Gguf::F32(*score)).collect()),
            ),
            (
                "tokenizer.ggml.token_type",
                list(pieces.iter().map(|(_, _, kind)| Gguf::I32(*kind)).collect()),
            ),
        ];
        Content {
            magic: candle_core::quantized::gguf_file::VersionedMagic::GgufV3,
            metadata: metadata
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            tensor_infos: HashMap::new(),
            tensor_data_offset: 0,
        }
    }

    const PIECES: [(&str, f32, i32); 13] = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("<0xC3>", 0.0, 6),
        ("<0xA9>", 0.0, 6),
        ("\u{2581}a", -1.0, 1),
        ("ab", -2.0, 1),
        ("\u{2581}ab", -3.0, 1),
        ("bc", -4.0, 1),
        ("\u{2581}", -5.0, 1),
        ("a", -6.0, 1),
        ("b", -7.0, 1),
        ("c", -8.0, 1),
        ("<|end|>", 0.0, 4),
    ];

    #[test]
    fn pieces_are_joined_by_score_and_bytes_stand_in_for_the_unknown() {
        let tokenizer = json(&content(&PIECES)).unwrap();
        let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer.to_string()).unwrap();
        let pieces = |text: &str| tokenizer.encode(text, false).unwrap().get_tokens().to_vec();
        // "▁a" is better than "ab" and "bc", and then nothing but "▁ab" can be made of what is there.
        assert_eq!(pieces("abc"), ["\u{2581}ab", "c"]);
        assert_eq!(pieces("b c"), ["\u{2581}", "b", "\u{2581}", "c"]);
        assert_eq!(
            pieces("aé<|end|>a"),
            ["\u{2581}a", "<0xC3>", "<0xA9>", "<|end|>", "\u{2581}a"]
        );
        let ids = tokenizer.encode("ab é c", false).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab é c");
    }

    #[test]
    fn metadata_that_does_not_fit_is_named() {
        let mut short = content(&PIECES);
        short.metadata.insert(
            "tokenizer.ggml.scores".to_owned(),
            Gguf::Array(vec![Gguf::F32(0.0)]),
        );
        assert!(json(&short).unwrap_err().contains("13 tokens, 1 scores"));
        short.metadata.remove("tokenizer.ggml.scores");
        assert!(
            json(&short)
                .unwrap_err()
                .contains("tokenizer.ggml.scores is missing")
        );
    }
}
