//! The contract's messages as JSON: the same field names, enums in snake case.

use referral_proto::v1;
use serde_json::{Value, json};

/// A decision.
pub(crate) fn decision(decision: &v1::Decision) -> Value {
    let probabilities: Vec<Value> = decision
        .probabilities
        .iter()
        .map(|one| json!({"expert": one.expert, "probability": one.probability}))
        .collect();
    let fallbacks: Vec<Value> = decision
        .fallbacks
        .iter()
        .map(|failed| json!({"expert": failed.expert, "error_kind": failed.error_kind}))
        .collect();
    let reasons: Vec<String> = decision
        .reasons()
        .map(|reason| short_name(reason.as_str_name(), "REASON_"))
        .collect();
    let reformat = decision
        .reformat
        .as_ref()
        .map(|new| json!({"outcome": new.outcome, "text": new.text, "latency_us": new.latency_us}));
    json!({
        "id": decision.id,
        "expert": decision.expert,
        "confidence": decision.confidence,
        "probabilities": probabilities,
        "abstained": decision.abstained,
        "reasons": reasons,
        "fallbacks": fallbacks,
        "router_version": decision.router_version,
        "router_latency_us": decision.router_latency_us,
        "trace_id": decision.trace_id,
        "in_scope": decision.in_scope,
        "gain": decision.gain,
        "path": decision.path,
        "reformat": reformat,
    })
}

/// What an answer cost.
pub(crate) fn usage(usage: &v1::Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "mean_log_probability": usage.mean_log_probability,
        "time_to_first_token_us": usage.time_to_first_token_us,
        "total_us": usage.total_us,
    })
}

/// Why an answer ended.
pub(crate) fn finish(finish: v1::FinishReason) -> String {
    short_name(finish.as_str_name(), "FINISH_REASON_")
}

/// A reason's or another enum's name without its type's prefix.
pub(crate) fn short_name(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}
