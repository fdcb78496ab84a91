//! How an OpenAI-compatible server is reached and what is asked of it.

use super::wire::TokenLimitField;
use http::{HeaderName, HeaderValue};
use reqwest::Url;
use std::fmt;
use std::time::Duration;

/// Settings of one server and model.
#[derive(Clone)]
pub struct OpenAiSettings {
    /// Base URL, `http` or `https`. With a path it is used as it is (`http://gpu1:8000/v1`,
    /// `https://host/openai`); without one, `/v1` is added (`http://gpu1:8000`).
    pub base_url: String,
    /// The model's name at that server.
    pub model: String,
    /// Bearer token.
    pub api_key: Option<String>,
    /// More headers of each request; their values are treated as secrets.
    pub headers: Vec<(HeaderName, String)>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait between two pieces of a stream, and for its first. Answers that are not streamed
    /// know only the query's deadline.
    pub idle_timeout: Duration,
    /// Whether answers are asked for as streams.
    pub stream: bool,
    /// Whether log-probabilities are asked for; some servers refuse.
    pub log_probabilities: bool,
    /// What the server calls the most tokens to generate.
    pub token_limit_field: TokenLimitField,
    /// System prompt of queries without one.
    pub system_prompt: Option<String>,
    /// Most tokens to generate where the query does not say.
    pub max_tokens: u32,
    /// Temperature where the query does not say; `None` leaves it to the server.
    pub temperature: Option<f32>,
    /// Nucleus mass where the query does not say; `None` leaves it to the server.
    pub top_p: Option<f32>,
}

impl OpenAiSettings {
    /// Settings with the defaults: streaming, no key, 5 s to connect, 30 s between pieces, 512 tokens.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: model.into(),
            api_key: None,
            headers: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            stream: true,
            log_probabilities: false,
            token_limit_field: TokenLimitField::MaxTokens,
            system_prompt: None,
            max_tokens: 512,
            temperature: None,
            top_p: None,
        }
    }
}

impl fmt::Debug for OpenAiSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiSettings")
            .field("base_url", &self.base_url)
            .field("model", &self.model)
            .field("api_key", &self.api_key.as_ref().map(|_| "[redacted]"))
            .field(
                "headers",
                &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            )
            .field("connect_timeout", &self.connect_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// The base URL is none, or not one that can be used.
    #[error("base_url {url:?} is not allowed: {fix}")]
    BaseUrl {
        /// What was given, without user name and password.
        url: String,
        /// What is allowed.
        fix: &'static str,
    },
    /// A header value or the key holds characters that HTTP forbids.
    #[error("{0} holds characters that HTTP forbids in a header: remove line breaks and control characters")]
    Header(String),
    /// The TLS or HTTP client could not be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(#[source] reqwest::Error),
}

/// The base URL, checked, without a slash at the end.
pub(super) fn base_url(text: &str) -> Result<Url, InvalidSettings> {
    let invalid = |url: &str, fix| InvalidSettings::BaseUrl {
        url: url.to_owned(),
        fix,
    };
    let Ok(mut url) = Url::parse(text.trim()) else {
        let shown = if text.contains('@') { "[redacted]" } else { text };
        return Err(invalid(shown, "write a URL such as http://gpu1:8000/v1"));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(
            "[redacted]",
            "put credentials into api_key, not into the URL",
        ));
    }
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(invalid(text, "use http:// or https:// and a host"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(text, "leave out everything from ? or # on"));
    }
    let path = match url.path().trim_end_matches('/') {
        "" => "/v1".to_owned(),
        // The whole endpoint, as other tools want it.
        path => path.strip_suffix("/chat/completions").unwrap_or(path).to_owned(),
    };
    url.set_path(&path);
    Ok(url)
}

/// Headers of every request.
pub(super) fn headers(settings: &OpenAiSettings) -> Result<http::HeaderMap, InvalidSettings> {
    let mut map = http::HeaderMap::new();
    let value = |name: &str, text: &str| {
        let mut value = HeaderValue::from_str(text).map_err(|_| InvalidSettings::Header(name.to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    };
    if let Some(key) = &settings.api_key {
        map.insert(
            http::header::AUTHORIZATION,
            value("api_key", &format!("Bearer {key}"))?,
        );
    }
    for (name, text) in &settings.headers {
        map.insert(name, value(name.as_str(), text)?);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        for (given, used) in [
            ("http://gpu1:8000", "http://gpu1:8000/v1"),
            ("http://gpu1:8000/", "http://gpu1:8000/v1"),
            ("http://gpu1:8000/v1/", "http://gpu1:8000/v1"),
            ("https://host/openai", "https://host/openai"),
            (" http://[::1]:1/v1/chat/completions", "http://[::1]:1/v1"),
        ] {
            assert_eq!(base_url(given).unwrap().as_str(), used);
        }
        for bad in [
            "",
            "gpu1:8000",
            "/v1",
            "ftp://host/v1",
            "http://",
            "http://h/v1?x=1",
            "http://h/#a",
        ] {
            assert!(base_url(bad).is_err(), "{bad:?}");
        }
        let error = base_url("http://me:hunter2@host/v1").unwrap_err().to_string();
        assert!(error.contains("api_key") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn secrets_stay_out_of_debug_and_errors() {
        let mut settings = OpenAiSettings::new("http://h", "m");
        settings.api_key = Some("sk-secret".into());
        settings.headers = vec![(HeaderName::from_static("x-team"), "sk-other".into())];
        let text = format!("{settings:?} {:?}", headers(&settings).unwrap());
        assert!(!text.contains("sk-") && text.contains("x-team"), "{text}");
        settings.api_key = Some("sk-secret\n".into());
        let error = headers(&settings).unwrap_err().to_string();
        assert!(error.starts_with("api_key") && !error.contains("sk-"), "{error}");
    }
}
