//! `referral ask`: one query, of a running gateway or of one started for it.

use super::failure::Failure;
use super::in_process::{self, Client, refusal, say};
use super::options::ConfigOptions;
use super::output::{FAINT, HEADING, NOTICE, print_json, stdout};
use super::serve::block_on;
use crate::http::json;
use clap::Args;
use referral_proto::v1;
use referral_proto::v1::generate_stream_response::Event;
use serde_json::{Value, json};
use std::io::Write as _;

/// Arguments of `referral ask`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The query
    query: String,
    /// Ask this expert, without routing
    #[arg(long, value_name = "EXPERT", conflicts_with = "compare")]
    expert: Option<String>,
    /// Ask these two experts and print both answers
    #[arg(long, value_name = "A,B", value_parser = two_experts)]
    compare: Option<(String, String)>,
    /// Most tokens to generate
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// gRPC address of a running gateway; without it the configured one is tried, else one is started
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn two_experts(text: &str) -> Result<(String, String), String> {
    let (a, b) = text
        .split_once(',')
        .ok_or("write two experts with a comma between, e.g. pharmacy,generalist")?;
    Ok((a.trim().to_owned(), b.trim().to_owned()))
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    block_on(ask(arguments, config))
}

async fn ask(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    if let Some(address) = &arguments.address {
        return put(arguments, in_process::connect(address).await?).await;
    }
    let settings = in_process::quiet_settings(config)?.settings;
    let usual = settings.server.grpc_address.to_string();
    if let Ok(client) = in_process::connect(&usual).await {
        return put(arguments, client).await;
    }
    say(&format!(
        "no gateway answers at {usual}: starting one for this query"
    ));
    let gateway = in_process::start(settings).await?;
    let client = in_process::connect(&gateway.grpc.to_string()).await?;
    let done = put(arguments, client).await;
    gateway.drain().await;
    done
}

async fn put(arguments: &Arguments, client: Client) -> Result<(), Failure> {
    let options = v1::GenerationOptions {
        max_tokens: arguments.max_tokens,
        ..Default::default()
    };
    match &arguments.compare {
        Some((a, b)) => {
            let request = v1::CompareRequest {
                query: arguments.query.clone(),
                expert_a: a.clone(),
                expert_b: b.clone(),
                options: Some(options),
            };
            compare(arguments, client, request).await
        }
        None => {
            let request = v1::GenerateRequest {
                query: arguments.query.clone(),
                expert: arguments.expert.clone(),
                options: Some(options),
                ..Default::default()
            };
            stream(arguments, client, request).await
        }
    }
}

async fn stream(
    arguments: &Arguments,
    mut client: Client,
    request: v1::GenerateRequest,
) -> Result<(), Failure> {
    let mut events = client
        .generate_stream(request)
        .await
        .map_err(|status| refusal(&status))?
        .into_inner();
    let (mut decision, mut text, mut ended) = (None, String::new(), None);
    while let Some(message) = events.message().await.map_err(|status| refusal(&status))? {
        match message.event {
            Some(Event::Decision(latest)) => {
                if !arguments.json {
                    say(&describe(&latest));
                }
                decision = Some(latest);
            }
            Some(Event::Text(more)) => {
                if !arguments.json {
                    let mut out = stdout();
                    write!(out, "{more}")?;
                    out.flush()?;
                }
                text.push_str(&more);
            }
            Some(Event::End(end)) => ended = Some(end),
            None => {}
        }
    }
    let end = ended.ok_or_else(|| Failure::new("the answer was cut off: the gateway closed the stream"))?;
    if arguments.json {
        return print_json(&json!({
            "decision": decision.as_ref().map(json::decision),
            "text": text,
            "finish_reason": json::finish(end.finish_reason()),
            "usage": end.usage.as_ref().map(json::usage),
        }));
    }
    writeln!(stdout())?;
    if end.finish_reason() == v1::FinishReason::Length {
        say(&format!(
            "{FAINT}(cut at the most tokens allowed; --max-tokens allows more){FAINT:#}"
        ));
    }
    Ok(())
}

async fn compare(
    arguments: &Arguments,
    mut client: Client,
    request: v1::CompareRequest,
) -> Result<(), Failure> {
    let both = client
        .compare(request)
        .await
        .map_err(|status| refusal(&status))?
        .into_inner();
    if arguments.json {
        return print_json(&json!({"a": side_json(both.a.as_ref()), "b": side_json(both.b.as_ref())}));
    }
    let mut out = stdout();
    for side in [both.a, both.b].into_iter().flatten() {
        let expert = side.decision.map(|decision| decision.expert).unwrap_or_default();
        writeln!(out, "{HEADING}{expert}{HEADING:#}")?;
        match side.result {
            Some(v1::compared_answer::Result::Answer(answer)) => writeln!(out, "{}\n", answer.text.trim())?,
            Some(v1::compared_answer::Result::Failure(failure)) => {
                writeln!(out, "{NOTICE}no answer: {}{NOTICE:#}\n", failure.message)?;
            }
            None => writeln!(
                out,
                "{NOTICE}the gateway sent neither an answer nor a failure{NOTICE:#}\n"
            )?,
        }
    }
    Ok(())
}

fn side_json(side: Option<&v1::ComparedAnswer>) -> Value {
    let Some(side) = side else { return Value::Null };
    let result = match &side.result {
        Some(v1::compared_answer::Result::Answer(answer)) => json!({
            "text": answer.text,
            "finish_reason": json::finish(answer.finish_reason()),
            "usage": answer.usage.as_ref().map(json::usage),
        }),
        Some(v1::compared_answer::Result::Failure(failure)) => {
            json!({"error_kind": failure.error_kind, "message": failure.message})
        }
        None => Value::Null,
    };
    json!({"decision": side.decision.as_ref().map(json::decision), "result": result})
}

/// Who answers and why, in a line.
fn describe(decision: &v1::Decision) -> String {
    let why: Vec<String> = decision
        .reasons()
        .map(|reason| json::short_name(reason.as_str_name(), "REASON_"))
        .collect();
    let sure = match decision.probabilities.first() {
        Some(_) if decision.reasons().any(|reason| reason == v1::Reason::OutOfScope) => {
            format!(", in scope with probability {:.2}", decision.in_scope())
        }
        Some(first) if decision.abstained => {
            format!(", not sure ({} {:.2})", first.expert, first.probability)
        }
        Some(_) => format!(", confidence {:.2}", decision.confidence),
        None => String::new(),
    };
    let whom = match decision.path.as_slice() {
        [_, _, ..] => decision.path.join(" → "),
        _ => decision.expert.clone(),
    };
    format!(
        "{FAINT}→ {whom} ({}{sure}), decision {}{FAINT:#}",
        why.join(", "),
        decision.id
    )
}
