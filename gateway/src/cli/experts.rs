//! `referral experts`: who can answer, by the configuration or by a running gateway.

use super::failure::Failure;
use super::options::ConfigOptions;
use super::output::{print_json, print_table};
use crate::config::{ExpertSettings, Provider};
use clap::Args;
use referral_experts::{ExpertKind, Residency};
use referral_proto::v1::referral_service_client::ReferralServiceClient;
use referral_proto::v1::{self, ListExpertsRequest};
use serde::Serialize;

/// Arguments of `referral experts`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Ask this running gateway instead of reading the configuration, e.g. http://127.0.0.1:50051
    #[arg(long, value_name = "URL")]
    address: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An expert as it is printed.
#[derive(Serialize)]
struct Row {
    id: String,
    kind: &'static str,
    /// `local`, `openai` or `router`; a running gateway says of a router only, in its model.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'static str>,
    model: String,
    licence: String,
    residency: &'static str,
    /// Only a running gateway knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routable: Option<bool>,
    description: String,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let rows: Vec<Row> = match &arguments.address {
        Some(address) => ask(address)?.into_iter().map(from_gateway).collect(),
        None => config
            .load()?
            .settings
            .experts
            .iter()
            .map(from_settings)
            .collect(),
    };
    if arguments.json {
        return print_json(&rows);
    }
    let headings = ["EXPERT", "KIND", "RESIDENCY", "STATE", "MODEL", "DESCRIPTION"];
    let table: Vec<Vec<String>> = rows.into_iter().map(Row::cells).collect();
    print_table(&headings, &table)
}

impl Row {
    fn cells(self) -> Vec<String> {
        let state = match (self.ready, self.provider) {
            (Some(true), _) => "ready",
            (Some(false), _) => "not ready",
            (None, provider) => provider.unwrap_or("-"),
        };
        let cells = [
            self.id,
            self.kind.into(),
            self.residency.into(),
            state.into(),
            self.model,
            self.description,
        ];
        cells.into()
    }
}

fn ask(address: &str) -> Result<Vec<v1::Expert>, Failure> {
    let url = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut client = ReferralServiceClient::connect(url.clone())
            .await
            .map_err(|error| {
                Failure::new(format!("no gateway answers at {url}: {error}"))
                    .with_hint("start one with `referral serve`, or give its gRPC address with --address")
            })?;
        Ok(client
            .list_experts(ListExpertsRequest {})
            .await?
            .into_inner()
            .experts)
    })
}

fn from_gateway(expert: v1::Expert) -> Row {
    Row {
        kind: match expert.kind() {
            v1::ExpertKind::Unspecified => "unknown",
            v1::ExpertKind::Specialist => "specialist",
            v1::ExpertKind::Generalist => "generalist",
            v1::ExpertKind::Domain => "domain",
        },
        residency: match expert.residency() {
            v1::Residency::Unspecified => "unknown",
            v1::Residency::OnPremises => "on_premises",
            v1::Residency::External => "external",
        },
        provider: None,
        ready: Some(expert.ready),
        routable: Some(expert.routable),
        id: expert.id,
        model: expert.model,
        licence: expert.licence,
        description: expert.description,
    }
}

fn from_settings(expert: &ExpertSettings) -> Row {
    Row {
        id: expert.id.to_string(),
        kind: match expert.kind {
            ExpertKind::Specialist => "specialist",
            ExpertKind::Generalist => "generalist",
            ExpertKind::Domain => "domain",
        },
        provider: Some(match expert.provider {
            Provider::Local(_) => "local",
            Provider::OpenAi(_) => "openai",
            Provider::Router(_) => "router",
        }),
        model: expert.card.model.clone(),
        licence: expert.card.licence.clone(),
        residency: match expert.card.residency {
            Residency::OnPremises => "on_premises",
            Residency::External => "external",
        },
        ready: None,
        routable: None,
        description: expert.card.description.clone(),
    }
}
