//! `referral demo`: a gateway on this machine, and the shipped queries through its real gRPC port.

mod queries;
mod report;

use super::failure::Failure;
use super::in_process::{self, Client, say};
use super::options::ConfigOptions;
use super::serve::{Signals, block_on};
use clap::Args;
use futures::{StreamExt as _, stream};
use queries::DemoQuery;
use referral_proto::v1;
use referral_proto::v1::generate_stream_response::Event;
use report::{Report, Row};
use std::path::PathBuf;
use std::time::Instant;

/// Queries on their way at a time: enough to show batching, few enough to read along.
const AT_A_TIME: usize = 2;

/// Arguments of `referral demo`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// End after the queries instead of staying up until Ctrl-C
    #[arg(long)]
    exit: bool,
    /// Queries to send instead of the shipped ones: JSON lines with id and query, and expected if known
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 48)]
    max_tokens: u32,
    /// Print JSON, a line for each query and one for the summary
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let queries = match &arguments.queries {
        Some(path) => queries::read(path)?,
        None => queries::shipped()?,
    };
    block_on(demonstrate(arguments, config, queries))
}

async fn demonstrate(
    arguments: &Arguments,
    config: &ConfigOptions,
    queries: Vec<DemoQuery>,
) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let loaded = in_process::quiet_settings(config)?;
    let mut settings = loaded.settings;
    // A demonstration leaves nothing behind, unless a log was asked for.
    let scratch = tempfile::tempdir()?;
    if loaded
        .shown
        .pointer("/log/path")
        .is_none_or(serde_json::Value::is_null)
    {
        settings.log.path = scratch.path().join("decisions.sqlite");
    }
    let gateway = tokio::select! {
        started = in_process::start(settings) => started?,
        () = signals.next() => return Ok(()),
    };
    let (grpc, http) = (gateway.grpc.to_string(), gateway.http.to_string());
    let client = in_process::connect(&grpc).await?;
    let mut report = Report::new(arguments.json);
    report.head()?;
    let sent = async {
        let started = Instant::now();
        let rows = stream::iter(queries).map(|query| ask(client.clone(), query, arguments.max_tokens));
        let mut rows = rows.buffer_unordered(AT_A_TIME);
        while let Some(row) = rows.next().await {
            report.row(row)?;
        }
        report.summary(started.elapsed(), &grpc, &http)
    };
    let unanswered = tokio::select! {
        unanswered = sent => unanswered?,
        () = signals.next() => {
            gateway.drain().await;
            return Ok(());
        }
    };
    if !arguments.exit {
        say("the gateway stays up until Ctrl-C");
        signals.next().await;
    }
    gateway.drain().await;
    match unanswered {
        0 => Ok(()),
        count => Err(Failure::new(format!(
            "{count} queries were not answered: the table says why"
        ))),
    }
}

/// Sends one query as a client would and notes when its parts arrive.
async fn ask(mut client: Client, query: DemoQuery, max_tokens: u32) -> Row {
    let mut row = Row::new(query);
    if let Err(status) = receive(&mut client, &mut row, max_tokens).await {
        row.error = Some(format!("{}: {}", status.code(), status.message()));
    }
    row
}

async fn receive(client: &mut Client, row: &mut Row, max_tokens: u32) -> Result<(), tonic::Status> {
    let options = v1::GenerationOptions {
        max_tokens: Some(max_tokens),
        ..Default::default()
    };
    let request = v1::GenerateRequest {
        query: row.query.query.clone(),
        options: Some(options),
        ..Default::default()
    };
    let started = Instant::now();
    let mut events = client.generate_stream(request).await?.into_inner();
    while let Some(message) = events.message().await? {
        match message.event {
            Some(Event::Decision(decision)) => {
                row.to_decision.get_or_insert_with(|| started.elapsed());
                row.decision = Some(decision);
            }
            Some(Event::Text(text)) => {
                row.to_first_token.get_or_insert_with(|| started.elapsed());
                row.text.push_str(&text);
            }
            Some(Event::End(end)) => {
                row.tokens = end.usage.map_or(0, |usage| usage.completion_tokens);
                return Ok(());
            }
            None => {}
        }
    }
    Err(tonic::Status::data_loss("the stream ended without its end"))
}
