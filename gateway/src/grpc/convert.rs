//! From the domain to the wire. The other way is validation: [`crate::pipeline`].

use crate::pipeline::{AnswerEnd, Decision};
use referral_experts::{Card, ExpertId, ExpertKind, Finish, Health, Modality, Residency};
use referral_proto::v1;
use referral_router::policy::Reason;
use std::time::Duration;

/// A decision on the wire.
pub fn decision_to_wire(decision: Decision) -> v1::Decision {
    v1::Decision {
        id: decision.id.to_string(),
        expert: decision.expert,
        confidence: decision.confidence,
        probabilities: decision
            .probabilities
            .into_iter()
            .map(|(expert, probability)| v1::ExpertProbability { expert, probability })
            .collect(),
        abstained: decision.abstained,
        reasons: decision
            .reasons
            .into_iter()
            .map(|reason| reason_to_wire(reason).into())
            .collect(),
        fallbacks: decision
            .fallbacks
            .into_iter()
            .map(|failed| v1::Fallback {
                expert: failed.expert,
                error_kind: failed.setback.as_str().to_owned(),
            })
            .collect(),
        router_version: decision.router_version,
        router_latency_us: micros(decision.router_latency),
        trace_id: decision.trace_id,
        in_scope: decision.in_scope,
        gain: decision.gain,
        path: decision.path,
        reformat: decision.reformatted.map(|new| v1::Reformat {
            outcome: new.outcome.as_str().to_owned(),
            text: new.text,
            latency_us: micros(new.latency),
        }),
    }
}

fn reason_to_wire(reason: Reason) -> v1::Reason {
    match reason {
        Reason::Routed => v1::Reason::Routed,
        Reason::Abstained => v1::Reason::Abstained,
        Reason::OutOfScope => v1::Reason::OutOfScope,
        Reason::Requested => v1::Reason::Requested,
        Reason::NotConfigured => v1::Reason::NotConfigured,
        Reason::Unhealthy => v1::Reason::Unhealthy,
        Reason::Residency => v1::Reason::Residency,
        Reason::Cached => v1::Reason::Cached,
        Reason::Fallback => v1::Reason::Fallback,
        Reason::RouterFailed => v1::Reason::RouterFailed,
        Reason::Windowed => v1::Reason::Windowed,
        Reason::Strong => v1::Reason::Strong,
        Reason::Weak => v1::Reason::Weak,
        Reason::Escalated => v1::Reason::Escalated,
    }
}

/// The end of a stream on the wire.
pub fn end_to_wire(end: &AnswerEnd) -> v1::StreamEnd {
    v1::StreamEnd {
        finish_reason: finish_to_wire(end.finish).into(),
        usage: Some(usage_to_wire(end)),
    }
}

pub(super) fn usage_to_wire(end: &AnswerEnd) -> v1::Usage {
    v1::Usage {
        prompt_tokens: end.usage.prompt,
        completion_tokens: end.usage.completion,
        mean_log_probability: end.mean_log_probability,
        time_to_first_token_us: micros(end.time_to_first_token),
        total_us: micros(end.total),
    }
}

pub(super) fn finish_to_wire(finish: Finish) -> v1::FinishReason {
    match finish {
        Finish::Stop => v1::FinishReason::Stop,
        Finish::Length => v1::FinishReason::Length,
        Finish::ContentFilter => v1::FinishReason::ContentFilter,
    }
}

pub(super) fn expert_to_wire(
    (id, kind, card): (&ExpertId, ExpertKind, &Card),
    health: Health,
    routable: bool,
) -> v1::Expert {
    let kind = match kind {
        ExpertKind::Specialist => v1::ExpertKind::Specialist,
        ExpertKind::Generalist => v1::ExpertKind::Generalist,
        ExpertKind::Domain => v1::ExpertKind::Domain,
    };
    let residency = match card.residency {
        Residency::OnPremises => v1::Residency::OnPremises,
        Residency::External => v1::Residency::External,
    };
    let modality = match card.modality {
        Modality::Text => "text",
        Modality::Image => "image",
    };
    let (ready, health_detail) = match health {
        Health::Ready => (true, String::new()),
        Health::Unavailable(why) => (false, why),
    };
    v1::Expert {
        id: id.to_string(),
        kind: kind.into(),
        model: card.model.clone(),
        licence: card.licence.clone(),
        description: card.description.clone(),
        languages: card.languages.clone(),
        modality: modality.to_owned(),
        price_per_million_input: card.price_per_million_input,
        price_per_million_output: card.price_per_million_output,
        residency: residency.into(),
        ready,
        health_detail,
        routable,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
