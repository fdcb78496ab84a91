//! Where a tokenizer comes from: a GGUF file's metadata or the files of a Hugging Face directory.

use super::template::ChatTemplate;
use super::{Tokenizer, failed};
use super::{pipeline, sentencepiece};
use crate::{LmError, Result};
use candle_core::quantized::gguf_file;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use serde_json::Value;
use std::path::Path;

impl Tokenizer {
    /// Opens the tokenizer of a GGUF file or of a Hugging Face directory.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::from_directory(path);
        }
        let io = |source| LmError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = std::io::BufReader::new(std::fs::File::open(path).map_err(io)?);
        let content = gguf_file::Content::read(&mut file).map_err(|error| LmError::BadFile {
            path: path.to_owned(),
            what: "a GGUF model",
            detail: error.to_string(),
        })?;
        Self::from_gguf(&content, path)
    }

    /// The tokenizer in the metadata of an open GGUF file; `path` is for messages.
    pub fn from_gguf(content: &gguf_file::Content, path: &Path) -> Result<Self> {
        let bad = |detail: String| LmError::BadFile {
            path: path.to_owned(),
            what: "a GGUF tokenizer",
            detail,
        };
        let text = |key: &str| content.metadata.get(key).and_then(|value| value.to_string().ok());
        let flag = |key: &str| content.metadata.get(key).and_then(|value| value.to_bool().ok());
        let id = |key: &str| content.metadata.get(key).and_then(|value| value.to_u32().ok());

        let special = if text("tokenizer.ggml.model").is_some_and(|kind| kind == "llama") {
            let json = sentencepiece::json(content).map_err(bad)?;
            tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(|error| bad(error.to_string()))?
        } else {
            let mut special =
                tokenizers::Tokenizer::from_gguf(content).map_err(|error| bad(error.to_string()))?;
            let pre = text("tokenizer.ggml.pre").map_or("gpt-2", String::as_str);
            let add_space_prefix = flag("tokenizer.ggml.add_space_prefix").unwrap_or(false);
            if let Some(rule) = pipeline::correction(pre, add_space_prefix) {
                special.with_pre_tokenizer(Some(rule));
            }
            special
        };
        let mut plain = special.clone();
        plain.set_encode_special_tokens(true);

        let token = |key: &str| id(key).and_then(|id| special.id_to_token(id)).unwrap_or_default();
        let (bos, eos) = (
            token("tokenizer.ggml.bos_token_id"),
            token("tokenizer.ggml.eos_token_id"),
        );
        let template = ChatTemplate::new(text("tokenizer.chat_template").map(String::as_str), bos, eos)?;
        let stop = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
            .iter()
            .filter_map(|key| id(key));
        let stop = stop.collect();
        Ok(Self::assemble(special, plain, template, stop))
    }

    /// The tokenizer of a Hugging Face directory: `tokenizer.json`, and where they are there
    /// `tokenizer_config.json`, `chat_template.jinja` and `generation_config.json`.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer.json");
        let bad = |detail: String| LmError::BadFile {
            path: path.clone(),
            what: "a tokenizer",
            detail,
        };
        let Some(mut json) = read_json(&path)? else {
            return Err(bad(
                "the file is missing: copy tokenizer.json beside the weights".to_owned()
            ));
        };
        let parse = |json: &Value| {
            let bytes = serde_json::to_vec(json).map_err(|error| bad(error.to_string()))?;
            let mut tokenizer =
                tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| bad(error.to_string()))?;
            // The files' limits are for training batches; lengths are the engine's business.
            tokenizer.with_truncation(None).map_err(failed)?;
            tokenizer.with_padding(None);
            Ok::<_, LmError>(tokenizer)
        };
        let special = parse(&json)?;
        // Added tokens that are not "special" (such as `<think>`) steer a model as well: for plain
        // text all of them are treated as special, that is, not recognised.
        for token in json
            .get_mut("added_tokens")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(token) = token.as_object_mut() {
                token.insert("special".to_owned(), Value::Bool(true));
            }
        }
        let mut plain = parse(&json)?;
        plain.set_encode_special_tokens(true);

        let config = read_json(&directory.join("tokenizer_config.json"))?.unwrap_or_default();
        let token = |key: &str| {
            let value = &config[key];
            value
                .as_str()
                .or_else(|| value["content"].as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let (bos, eos) = (token("bos_token"), token("eos_token"));
        let own_file = read_text(&directory.join("chat_template.jinja"))?;
        let source = own_file
            .as_deref()
            .or_else(|| chat_template(&config["chat_template"]));
        let mut stop: Vec<u32> = special.token_to_id(&eos).into_iter().collect();
        let generation = read_json(&directory.join("generation_config.json"))?.unwrap_or_default();
        let ids = &generation["eos_token_id"];
        let many = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
        stop.extend(
            many.iter()
                .filter_map(Value::as_u64)
                .filter_map(|id| u32::try_from(id).ok()),
        );
        let template = ChatTemplate::new(source, bos, eos)?;
        Ok(Self::assemble(special, plain, template, stop))
    }
}

/// A template given as text, or the one named `default` of several.
fn chat_template(value: &Value) -> Option<&str> {
    let named = |entry: &&Value| entry["name"] == "default";
    value
        .as_str()
        .or_else(|| value.as_array()?.iter().find(named)?["template"].as_str())
}

/// The file's text; `None` if there is no such file.
fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LmError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    let json = serde_json::from_str(&text).map_err(|error| LmError::BadFile {
        path: path.to_owned(),
        what: "a JSON file",
        detail: error.to_string(),
    })?;
    Ok(Some(json))
}
