//! The chat completions format: what is sent, and what is understood of what comes back.
//!
//! Servers differ in what they leave out (`usage`, `logprobs`, `[DONE]`), in what they put in place
//! of it (`null`, empty lists) and in where errors sit; everything here is optional for that reason.

use super::fault::{Fault, Secrets};
use super::settings::OpenAiSettings;
use super::sse::Event;
use crate::expert::{Chunk, Finish, Query, TokenUsage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most text of one answer, in bytes.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// What a server calls the most tokens to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenLimitField {
    /// `max_tokens`: vLLM, SGLang, TGI, llama.cpp, Ollama.
    #[default]
    MaxTokens,
    /// `max_completion_tokens`: newer hosted models.
    MaxCompletionTokens,
}

#[derive(Serialize)]
pub(super) struct Request<'a> {
    model: &'a str,
    messages: Vec<SentMessage<'a>>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
}

#[derive(Serialize)]
struct SentMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> Request<'a> {
    pub(super) fn new(settings: &'a OpenAiSettings, query: &'a Query) -> Self {
        let system = query.system.as_deref().or(settings.system_prompt.as_deref());
        let system = system.filter(|text| !text.trim().is_empty());
        let messages = system
            .map(|content| SentMessage {
                role: "system",
                content,
            })
            .into_iter();
        let limit = Some(query.max_tokens.unwrap_or(settings.max_tokens));
        let is_new = settings.token_limit_field == TokenLimitField::MaxCompletionTokens;
        Self {
            model: &settings.model,
            messages: messages
                .chain([SentMessage {
                    role: "user",
                    content: &query.text,
                }])
                .collect(),
            stream: settings.stream,
            stream_options: settings.stream.then_some(StreamOptions { include_usage: true }),
            max_tokens: limit.filter(|_| !is_new),
            max_completion_tokens: limit.filter(|_| is_new),
            temperature: query.temperature.or(settings.temperature),
            top_p: query.top_p.or(settings.top_p),
            seed: query.seed,
            stop: &query.stop,
            logprobs: settings.log_probabilities.then_some(true),
        }
    }
}

#[derive(Deserialize)]
struct Completion {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<u32>,
    /// In streams.
    delta: Option<Message>,
    /// In whole answers.
    message: Option<Message>,
    finish_reason: Option<String>,
    logprobs: Option<LogProbabilities>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize)]
struct LogProbabilities {
    content: Option<Vec<TokenLogProbability>>,
}

#[derive(Deserialize)]
struct TokenLogProbability {
    logprob: Option<f64>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

/// What is known of an answer so far.
#[derive(Default)]
pub(super) struct Progress {
    finish: Option<Finish>,
    usage: TokenUsage,
    log_probability_sum: f64,
    tokens: u32,
    text_bytes: usize,
    is_done: bool,
}

impl Progress {
    /// Whether a finish reason was given, so that the text is complete.
    pub(super) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Whether the server said that nothing follows.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Takes one event of a stream; returns its text, if any.
    pub(super) fn event(&mut self, event: &Event, secrets: &Secrets) -> Result<Option<String>, Fault> {
        if event.data.trim() == "[DONE]" {
            self.is_done = true;
            // Saying so is an ending even where the reason was left out.
            self.finish.get_or_insert(Finish::Stop);
            return Ok(None);
        }
        match serde_json::from_str(&event.data) {
            Ok(value) => self.completion(value, event.is_error, secrets),
            Err(_) if event.is_error => Err(Fault::from_error_value(
                &Value::from(event.data.as_str()),
                secrets,
            )),
            Err(error) => Err(Fault::interrupted(format!(
                "the stream holds an event that is not JSON ({error})"
            ))),
        }
    }

    /// Takes a whole answer's body; returns its text, if any.
    pub(super) fn body(&mut self, body: &[u8], secrets: &Secrets) -> Result<Option<String>, Fault> {
        let value = serde_json::from_slice(body).map_err(|error| {
            Fault::interrupted(format!(
                "the answer is not JSON ({error}); does base_url point at the API?"
            ))
        })?;
        self.completion(value, false, secrets)
    }

    fn completion(
        &mut self,
        value: Value,
        is_error: bool,
        secrets: &Secrets,
    ) -> Result<Option<String>, Fault> {
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            return Err(Fault::from_error_value(error, secrets));
        }
        if is_error || value.get("object").and_then(Value::as_str) == Some("error") {
            return Err(Fault::from_error_value(&value, secrets));
        }
        let completion: Completion = serde_json::from_value(value).map_err(|error| {
            // serde quotes unexpected values, which may be text.
            let words = secrets.quote(&error.to_string()).unwrap_or_default();
            Fault::interrupted(format!("the answer is not a chat completion: {words}"))
        })?;
        if let Some(usage) = completion.usage {
            let count = |tokens: Option<u64>| u32::try_from(tokens.unwrap_or(0)).unwrap_or(u32::MAX);
            self.usage = TokenUsage {
                prompt: count(usage.prompt_tokens),
                completion: count(usage.completion_tokens),
            };
        }
        let mut text = String::new();
        for choice in completion
            .choices
            .into_iter()
            .flatten()
            .filter(|choice| choice.index.unwrap_or(0) == 0)
        {
            let tokens = choice
                .logprobs
                .and_then(|probabilities| probabilities.content)
                .unwrap_or_default();
            for log_probability in tokens
                .iter()
                .filter_map(|token| token.logprob)
                .filter(|p| p.is_finite())
            {
                self.log_probability_sum += log_probability;
                self.tokens += 1;
            }
            text.extend(
                choice
                    .delta
                    .or(choice.message)
                    .and_then(|message| message.content),
            );
            if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
                self.finish = Some(match reason.as_str() {
                    "length" | "max_tokens" => Finish::Length,
                    "content_filter" => Finish::ContentFilter,
                    _ => Finish::Stop,
                });
            }
        }
        self.text_bytes += text.len();
        if self.text_bytes > MAX_ANSWER_BYTES {
            return Err(Fault::interrupted(format!(
                "the answer exceeds {MAX_ANSWER_BYTES} bytes"
            )));
        }
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The closing chunk, or that the answer was cut off.
    pub(super) fn end(&self) -> Result<Chunk, Fault> {
        let Some(finish) = self.finish else {
            return Err(Fault::interrupted(
                "the server ended the answer without a finish reason",
            ));
        };
        let mean = self.log_probability_sum / f64::from(self.tokens.max(1));
        Ok(Chunk::End {
            finish,
            usage: self.usage,
            mean_log_probability: (self.tokens > 0).then_some(mean as f32),
        })
    }
}
