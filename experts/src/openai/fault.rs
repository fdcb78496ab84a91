//! What went wrong with an upstream, as one of the closed kinds and a text that is safe to log.
//!
//! Upstreams quote what they were sent: validation errors repeat the query, gateways repeat keys.
//! So an upstream's words are bounded, and withheld where they quote either.

use crate::expert::{ExpertError, ExpertErrorKind, ExpertId, Query};
use http::StatusCode;
use serde_json::Value;
use std::error::Error;

/// Longest quotation of an upstream, in characters.
const MAX_QUOTE: usize = 240;
/// A quotation that shares this many characters in a row with the query is withheld.
const SHARED_RUN: usize = 16;

/// A failure before it is known whose it is.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: ExpertErrorKind,
    pub(super) detail: String,
}

impl Fault {
    pub(super) fn new(kind: ExpertErrorKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }

    pub(super) fn interrupted(detail: impl Into<String>) -> Self {
        Self::new(ExpertErrorKind::Interrupted, detail)
    }

    pub(super) fn timeout(detail: impl Into<String>) -> Self {
        Self::new(ExpertErrorKind::Timeout, detail)
    }

    pub(super) fn of(self, expert: &ExpertId) -> ExpertError {
        ExpertError {
            expert: expert.clone(),
            kind: self.kind,
            detail: self.detail,
        }
    }

    /// A response's status and body.
    pub(super) fn from_status(
        status: StatusCode,
        retry_after: Option<&str>,
        body: &[u8],
        secrets: &Secrets,
    ) -> Self {
        let mut detail = format!("HTTP {status}");
        if let Some(words) = secrets.quote(&upstream_words(body)) {
            detail += &format!(": {words}");
        }
        if let Some(wait) = retry_after.and_then(|wait| secrets.quote(wait)) {
            detail += &format!(" (retry after {wait})");
        }
        match status {
            StatusCode::NOT_FOUND => detail += "; check base_url and model",
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => detail += "; check api_key",
            status if status.is_redirection() => detail += "; redirects are not followed, check base_url",
            _ => {}
        }
        Self::new(kind_of(status), detail)
    }

    /// An `error` in a body or stream whose HTTP status said nothing.
    pub(super) fn from_error_value(error: &Value, secrets: &Secrets) -> Self {
        let code = error.get("code").and_then(|code| match code {
            Value::Number(number) => number.as_u64().and_then(|code| u16::try_from(code).ok()),
            Value::String(text) => text.parse().ok(),
            _ => None,
        });
        let status = code
            .and_then(|code| StatusCode::from_u16(code).ok())
            .filter(|code| code.as_u16() >= 400);
        let kind = status.map_or(ExpertErrorKind::Interrupted, kind_of);
        let words = secrets
            .quote(&words_of(error))
            .unwrap_or_else(|| "no reason given".to_owned());
        Self::new(kind, format!("the server broke off: {words}"))
    }

    /// A request that got no (complete) response.
    pub(super) fn from_transport(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let (text, is_tls) = chain(&error);
        if is_tls {
            return Self::new(ExpertErrorKind::Unavailable, format!("TLS failed: {text}"));
        }
        let kind = if error.is_timeout() {
            ExpertErrorKind::Timeout
        } else if error.is_connect() {
            ExpertErrorKind::Unavailable
        } else if error.is_builder() {
            ExpertErrorKind::Internal
        } else {
            ExpertErrorKind::Interrupted
        };
        Self::new(kind, text)
    }
}

fn kind_of(status: StatusCode) -> ExpertErrorKind {
    match status.as_u16() {
        400 | 413 | 422 => ExpertErrorKind::InvalidQuery,
        401 | 403 => ExpertErrorKind::Unauthorized,
        408 | 504 => ExpertErrorKind::Timeout,
        // 529 is how some hosted models say that they are overloaded.
        429 | 529 => ExpertErrorKind::Overloaded,
        300..=399 | 404 | 502 | 503 => ExpertErrorKind::Unavailable,
        _ => ExpertErrorKind::Internal,
    }
}

/// The error and its causes in one line, and whether one of them is TLS.
fn chain(error: &reqwest::Error) -> (String, bool) {
    let (mut text, mut is_tls) = (error.to_string(), false);
    let mut cause = error.source();
    while let Some(link) = cause {
        let said = link.to_string();
        if !text.ends_with(&said) {
            text += &format!(": {said}");
        }
        is_tls |= is_tls_error(link);
        cause = link.source();
    }
    (text, is_tls)
}

/// Whether this is rustls' error, or I/O errors wrapped around it (whose `source` skips it).
fn is_tls_error(error: &(dyn Error + 'static)) -> bool {
    let inner = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>() || inner.is_some_and(|inner| is_tls_error(inner))
}

/// What an error body says: the JSON's message, or the text itself.
fn upstream_words(body: &[u8]) -> String {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => words_of(value.get("error").unwrap_or(&value)),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    }
}

fn words_of(error: &Value) -> String {
    let said = ["message", "detail", "error"]
        .iter()
        .find_map(|key| error.get(key))
        .unwrap_or(error);
    match said {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// What must never be quoted.
#[derive(Default)]
pub(super) struct Secrets {
    /// Keys and header values.
    pub(super) keys: Vec<String>,
    /// Texts of people, in lower case.
    texts: Vec<String>,
}

impl Secrets {
    pub(super) fn new(keys: Vec<String>, query: &Query) -> Self {
        let texts = [Some(&query.text), query.system.as_ref()];
        Self {
            keys,
            texts: texts
                .into_iter()
                .flatten()
                .map(|text| one_line(text).to_lowercase())
                .collect(),
        }
    }

    /// An upstream's words in one bounded line, or that they are withheld; `None` if there are none.
    pub(super) fn quote(&self, words: &str) -> Option<String> {
        let line = one_line(&words.trim().chars().take(4 * MAX_QUOTE).collect::<String>());
        if line.is_empty() {
            return None;
        }
        if self
            .keys
            .iter()
            .any(|key| !key.is_empty() && line.contains(key.as_str()))
        {
            return Some("[withheld: quotes a credential]".to_owned());
        }
        // Cut first: what is not shown needs no check, and a key cut in two was found above.
        let line: String = line.chars().take(MAX_QUOTE).collect();
        if self
            .texts
            .iter()
            .any(|text| shares_run(&line.to_lowercase(), text))
        {
            return Some("[withheld: quotes the query]".to_owned());
        }
        Some(line)
    }
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Whether some run of [`SHARED_RUN`] characters of `line` (or all of a shorter `text`) is in both.
fn shares_run(line: &str, text: &str) -> bool {
    let text = text.trim();
    if text.chars().count() < SHARED_RUN {
        return !text.is_empty() && line.contains(text);
    }
    let starts: Vec<usize> = line
        .char_indices()
        .map(|(at, _)| at)
        .chain([line.len()])
        .collect();
    starts
        .windows(SHARED_RUN + 1)
        .any(|run| text.contains(&line[run[0]..run[SHARED_RUN]]))
}
