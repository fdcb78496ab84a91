//! Splitting rules for GGUF tokenizers that candle reads wrongly.
//!
//! A GGUF file names its splitting rule (`tokenizer.ggml.pre`). candle knows a few; for all others
//! it takes GPT-2's with a space put in front of the text and without the splitting of digits, which
//! is neither what SmolLM was trained with nor what llama.cpp does (`llama-vocab.cpp`).

use tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

/// The rule to use instead of candle's, if candle's is wrong for this name.
pub(super) fn correction(pre: &str, add_space_prefix: bool) -> Option<PreTokenizerWrapper> {
    let byte_level = ByteLevel::new(add_space_prefix, true, true);
    match pre {
        "qwen2" | "smaug-bpe" | "lfm2" | "llama3" => None,
        // llama.cpp: "\p{N}" before GPT-2's expression.
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            Some(Sequence::new(vec![Digits::new(true).into(), byte_level.into()]).into())
        }
        _ => Some(byte_level.into()),
    }
}
