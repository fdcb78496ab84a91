//! What a platform team's tools ask first: reflection, health, metrics.

use anyhow::Context;
use referral_tests::Gateway;
use std::collections::BTreeSet;
use tokio_stream::once;
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn services(gateway: &Gateway) -> anyhow::Result<BTreeSet<String>> {
    let channel = Channel::from_shared(gateway.grpc.clone())?.connect().await?;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(once(request))
        .await?
        .into_inner();
    let answer = answers.message().await?.context("no answer")?;
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        anyhow::bail!("{answer:?}")
    };
    Ok(list.service.into_iter().map(|s| s.name).collect())
}

#[tokio::test]
async fn reflection_lists_the_services_unless_switched_off() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let listed = services(&gateway).await?;
    assert!(
        listed.contains("referral.v1.ReferralService") && listed.contains("grpc.health.v1.Health"),
        "{listed:?}"
    );
    let closed = Gateway::start("server:\n  reflection: false\n").await?;
    assert!(services(&closed).await.is_err());
    Ok(())
}

#[tokio::test]
async fn health_serves_only_when_the_models_are_loaded() -> anyhow::Result<()> {
    let mut gateway = Gateway::spawn("")?;
    let channel = Channel::from_shared(gateway.grpc.clone())?.connect().await?;
    let mut health = HealthClient::new(channel);
    let mut seen = Vec::new();
    for service in ["", "referral.v1.ReferralService"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        seen.push(health.check(request).await?.into_inner().status());
    }
    assert_eq!(
        seen,
        [ServingStatus::NotServing; 2],
        "serving before the models were loaded"
    );
    gateway.wait_ready().await?;
    for service in ["", "referral.v1.ReferralService"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        assert_eq!(
            health.check(request).await?.into_inner().status(),
            ServingStatus::Serving
        );
    }
    Ok(())
}

/// Every metric that a dashboard or an alert names exists in a scrape of the real gateway.
#[tokio::test]
async fn dashboards_name_only_metrics_that_exist() -> anyhow::Result<()> {
    let pair = "{ strong: clinical_reasoning, weak: general_medicine, threshold: { share: 0.5 } }";
    let gateway = Gateway::start(&format!("policy: {{ pairs: [{pair}] }}\n")).await?;
    let scrape = gateway.metrics().await?;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards");
    let mut named = BTreeSet::new();
    for file in ["grafana/overview.json", "prometheus/alerts.yaml"] {
        let text = std::fs::read_to_string(root.join(file)).with_context(|| file.to_owned())?;
        named.extend(
            text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
                .filter(|word| word.starts_with("referral_"))
                .map(str::to_owned),
        );
    }
    assert!(named.len() >= 15, "{named:?}");
    let missing: Vec<_> = named
        .iter()
        .filter(|name| {
            !scrape.lines().any(|line| {
                line.strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
        })
        .collect();
    assert!(
        missing.is_empty(),
        "dashboards name metrics that the gateway does not have: {missing:?}"
    );
    Ok(())
}
