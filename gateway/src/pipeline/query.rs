//! From what a client sent to what the gateway works on: the only validation.
//!
//! Both ports bring the wire's own messages here; behind this nothing is checked again.

use super::GatewayError;
use referral_experts::{ExpertId, Query};
use referral_proto::v1;
use referral_router::dataset::normalise;
use std::collections::BTreeMap;

const MOST_TOKENS: u32 = 32_768;
const MOST_STOPS: usize = 8;
const LONGEST_STOP: usize = 256;
const MOST_LABELS: usize = 16;
const LONGEST_LABEL_KEY: usize = 64;
const LONGEST_LABEL: usize = 256;
const LONGEST_KEY: usize = 128;
const LONGEST_COMMENT: usize = 4096;

/// A validated query.
#[derive(Debug, Clone)]
pub(super) struct ValidQuery {
    /// What an expert is asked; the trace id is filled in by the pipeline.
    pub(super) ask: Query,
    /// What the router and the decision cache read.
    pub(super) normalised: String,
    /// Whom the caller wants to answer.
    pub(super) expert: Option<ExpertId>,
    /// For the decision log.
    pub(super) labels: BTreeMap<String, String>,
}

impl ValidQuery {
    /// Checks a query of at most `max_bytes`.
    ///
    /// # Errors
    /// [`GatewayError::Invalid`].
    pub(super) fn new(request: v1::GenerateRequest, max_bytes: usize) -> Result<Self, GatewayError> {
        let v1::GenerateRequest {
            query,
            expert,
            options,
            labels,
        } = request;
        let normalised = check_query(&query, max_bytes)?;
        let expert = expert.map(|name| check_expert("expert", &name)).transpose()?;
        check_labels(&labels)?;
        let ask = check_options(options.unwrap_or_default(), query, max_bytes)?;
        Ok(Self {
            ask,
            normalised,
            expert,
            labels: labels.into_iter().collect(),
        })
    }
}

/// A validated comparison.
#[derive(Debug, Clone)]
pub(super) struct ValidComparison {
    /// The query, addressed to the first expert.
    pub(super) query: ValidQuery,
    /// The two experts.
    pub(super) experts: [ExpertId; 2],
}

impl ValidComparison {
    /// Checks a comparison; see [`ValidQuery::new`].
    ///
    /// # Errors
    /// [`GatewayError::Invalid`].
    pub(super) fn new(request: v1::CompareRequest, max_bytes: usize) -> Result<Self, GatewayError> {
        let v1::CompareRequest {
            query,
            expert_a,
            expert_b,
            options,
        } = request;
        let query = v1::GenerateRequest {
            query,
            options,
            ..Default::default()
        };
        let query = ValidQuery::new(query, max_bytes)?;
        let experts = [
            check_expert("expert_a", &expert_a)?,
            check_expert("expert_b", &expert_b)?,
        ];
        if experts[0] == experts[1] {
            return Err(invalid(
                "expert_b",
                format!("{expert_b:?}"),
                "name an expert other than expert_a",
            ));
        }
        Ok(Self { query, experts })
    }
}

impl TryFrom<v1::SendFeedbackRequest> for crate::log::Feedback {
    type Error = GatewayError;
    fn try_from(request: v1::SendFeedbackRequest) -> Result<Self, GatewayError> {
        let v1::SendFeedbackRequest {
            decision_id,
            score,
            correct_expert,
            comment,
            idempotency_key,
        } = request;
        let id = uuid::Uuid::try_parse(&decision_id).map_err(|_| {
            invalid(
                "decision_id",
                shown(&decision_id),
                "send the id of a decision, a UUID",
            )
        })?;
        if score.is_some_and(|score| !(-1.0..=1.0).contains(&score)) {
            return Err(invalid(
                "score",
                format!("{score:?}"),
                "use -1 (harmful or wrong) to 1 (right and helpful)",
            ));
        }
        if let Some(expert) = &correct_expert {
            check_expert("correct_expert", expert)?;
        }
        if let Some(comment) = &comment
            && (comment.len() > LONGEST_COMMENT || comment.contains('\0'))
        {
            let fix = "send at most 4096 bytes of text without NUL";
            return Err(invalid(
                "comment",
                format!("a text of {} bytes", comment.len()),
                fix,
            ));
        }
        if score.is_none() && correct_expert.is_none() && comment.is_none() {
            return Err(invalid(
                "score",
                "nothing".into(),
                "send at least one of score, correct_expert and comment",
            ));
        }
        let key_fits = (1..=LONGEST_KEY).contains(&idempotency_key.len()) && !idempotency_key.contains('\0');
        if !key_fits {
            let fix = "send 1 to 128 bytes, the same for each retry, e.g. a UUID";
            return Err(invalid("idempotency_key", shown(&idempotency_key), fix));
        }
        Ok(Self {
            decision_id: id,
            idempotency_key,
            score,
            correct_expert,
            comment,
        })
    }
}

fn check_query(query: &str, max_bytes: usize) -> Result<String, GatewayError> {
    let size = || format!("a text of {} bytes", query.len());
    if query.len() > max_bytes {
        let fix = format!("send at most {max_bytes} bytes, or raise server.max_query_bytes");
        return Err(invalid("query", size(), &fix));
    }
    if query.contains('\0') {
        return Err(invalid(
            "query",
            "a text with a NUL character".to_owned(),
            "send text only",
        ));
    }
    let normalised = normalise(query);
    if normalised.is_empty() {
        return Err(invalid("query", "an empty text".to_owned(), "ask something"));
    }
    Ok(normalised)
}

fn check_expert(field: &'static str, name: &str) -> Result<ExpertId, GatewayError> {
    ExpertId::try_from(name).map_err(|_| {
        invalid(
            field,
            shown(name),
            "use an id of ListExperts: 1 to 64 of a-z 0-9 _ - starting with a letter",
        )
    })
}

fn check_options(
    options: v1::GenerationOptions,
    text: String,
    max_bytes: usize,
) -> Result<Query, GatewayError> {
    let v1::GenerationOptions {
        max_tokens,
        temperature,
        top_p,
        seed,
        stop,
        system,
    } = options;
    if let Some(count) = max_tokens
        && !(1..=MOST_TOKENS).contains(&count)
    {
        return Err(invalid(
            "options.max_tokens",
            count.to_string(),
            &format!("use 1 to {MOST_TOKENS}"),
        ));
    }
    if let Some(value) = temperature
        && !(0.0..=2.0).contains(&value)
    {
        return Err(invalid(
            "options.temperature",
            value.to_string(),
            "use 0 (greedy) to 2",
        ));
    }
    if let Some(value) = top_p
        && !(value > 0.0 && value <= 1.0)
    {
        return Err(invalid(
            "options.top_p",
            value.to_string(),
            "use a number above 0 and at most 1",
        ));
    }
    if stop.len() > MOST_STOPS {
        return Err(invalid(
            "options.stop",
            format!("{} texts", stop.len()),
            "send at most 8",
        ));
    }
    if let Some(bad) = stop
        .iter()
        .find(|text| text.is_empty() || text.len() > LONGEST_STOP)
    {
        return Err(invalid(
            "options.stop",
            format!("a text of {} bytes", bad.len()),
            "use 1 to 256 bytes each",
        ));
    }
    if let Some(system) = &system
        && (system.len() > max_bytes || system.contains('\0'))
    {
        let fix = format!("send at most {max_bytes} bytes of text without NUL");
        return Err(invalid(
            "options.system",
            format!("a text of {} bytes", system.len()),
            &fix,
        ));
    }
    Ok(Query {
        text,
        system,
        max_tokens,
        temperature,
        top_p,
        seed,
        stop,
        trace_id: String::new(),
    })
}

fn check_labels(labels: &std::collections::HashMap<String, String>) -> Result<(), GatewayError> {
    if labels.len() > MOST_LABELS {
        return Err(invalid(
            "labels",
            format!("{} labels", labels.len()),
            "send at most 16",
        ));
    }
    for (key, value) in labels {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if !(1..=LONGEST_LABEL_KEY).contains(&key.len()) || !key.bytes().all(is_name) {
            return Err(invalid(
                "labels",
                shown(key),
                "use keys of 1 to 64 of a-z A-Z 0-9 _ - .",
            ));
        }
        if value.len() > LONGEST_LABEL || value.contains('\0') {
            let fix = format!("send at most 256 bytes of text for label {key}");
            return Err(invalid(
                "labels",
                format!("a text of {} bytes", value.len()),
                &fix,
            ));
        }
    }
    Ok(())
}

fn invalid(field: &'static str, value: String, fix: &str) -> GatewayError {
    GatewayError::Invalid {
        field,
        value,
        fix: fix.to_owned(),
    }
}

/// A client's text in a message: quoted, and cut where it is long.
fn shown(text: &str) -> String {
    const LONGEST: usize = 64;
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    format!("{:?}…", text.chars().take(LONGEST).collect::<String>())
}

#[cfg(test)]
mod tests;
