//! The running gateway: ports, loading, health, drain.
//!
//! Ports are bound first, so that a taken port fails at once and probes find a server that says
//! NOT_SERVING; then models are fetched and loaded off the async workers; then health says SERVING.
//! Going away: health says NOT_SERVING and nobody is admitted, but the ports stay open so that probes,
//! scrapes and accepted queries end well; what outlasts the grace period is cut off by name.

mod error;
mod parts;
mod stage;
#[cfg(test)]
mod tests;
mod tokens;

pub use error::ServeError;
pub(crate) use parts::{graph, octopus_v4};
pub use stage::Stage;

use crate::config::Settings;
use crate::grpc::{AcceptedLayer, Service};
use crate::metrics::Metrics;
use crate::pipeline::{Parts, Pipeline};
use prometheus::Registry;
use referral_proto::v1::referral_service_server::ReferralServiceServer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// How often experts are asked for their health.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// How long open connections may linger once every query has ended.
const CLOSING_GRACE: Duration = Duration::from_secs(2);
/// Above `server.max_query_bytes`, for the rest of a message; a longer message is refused unread.
const MESSAGE_ALLOWANCE: usize = 4 << 20;
/// Silence after which a connection is asked whether it lives, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// A gateway whose ports are open.
pub struct Gateway {
    /// Where gRPC is served.
    pub grpc: SocketAddr,
    /// Where HTTP is served.
    pub http: SocketAddr,
    settings: Settings,
    stage: Stage,
    health: HealthReporter,
    servers: JoinSet<Result<(), ServeError>>,
    watch: JoinSet<()>,
    closing: CancellationToken,
}

impl Gateway {
    /// Opens both ports; queries are answered with LOADING until [`Self::load`] is done.
    ///
    /// # Errors
    /// [`ServeError::Port`] if one is taken.
    pub async fn open(settings: Settings) -> Result<Self, ServeError> {
        let grpc_listener = bind(settings.server.grpc_address, "grpc_address").await?;
        let http_listener = bind(settings.server.http_address, "http_address").await?;
        let address = |listener: &TcpListener, wanted| listener.local_addr().unwrap_or(wanted);
        let grpc = address(&grpc_listener, settings.server.grpc_address);
        let http = address(&http_listener, settings.server.http_address);

        let workers = settings.experts.iter().filter(|expert| expert.is_worker());
        let names: Vec<&str> = workers.map(|expert| expert.id.as_str()).collect();
        let stage = Stage::new(Metrics::register(&Registry::new(), &names)?);
        let closing = CancellationToken::new();
        let health = HealthReporter::new();
        set_health(&health, ServingStatus::NotServing).await;

        let mut servers = JoinSet::new();
        let router = tonic::transport::Server::builder()
            .layer(AcceptedLayer)
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .add_service(tonic_health::pb::health_server::HealthServer::new(
                tonic_health::server::HealthService::from_health_reporter(health.clone()),
            ))
            .add_service(
                ReferralServiceServer::new(Service::new(stage.clone())).max_decoding_message_size(
                    settings.server.max_query_bytes.saturating_add(MESSAGE_ALLOWANCE),
                ),
            );
        let (v1, v1alpha) = if settings.server.reflection {
            reflection()?
        } else {
            (None, None)
        };
        let router = router.add_optional_service(v1).add_optional_service(v1alpha);
        let incoming = tonic::transport::server::TcpIncoming::from(grpc_listener).with_nodelay(Some(true));
        let closed = closing.clone().cancelled_owned();
        servers.spawn(async move { Ok(router.serve_with_incoming_shutdown(incoming, closed).await?) });
        let pages = crate::http::router(stage.clone(), &settings.server);
        let closed = closing.clone().cancelled_owned();
        servers.spawn(async move {
            let serve = axum::serve(http_listener, pages).with_graceful_shutdown(closed);
            serve.await.map_err(ServeError::Http)
        });
        Ok(Self {
            grpc,
            http,
            settings,
            stage,
            health,
            servers,
            watch: JoinSet::new(),
            closing,
        })
    }

    /// Fetches and loads models, then serves.
    ///
    /// # Errors
    /// Whatever is missing, corrupt or unfit, by name.
    pub async fn load(&mut self) -> Result<(), ServeError> {
        let settings = self.settings.clone();
        let metrics = self.stage.metrics().clone();
        let parts = tokio::task::spawn_blocking(move || parts::load(&settings, metrics))
            .await
            .map_err(|error| ServeError::Loading(error.to_string()))??;
        self.serve(parts).await
    }

    /// Serves with these parts.
    pub(crate) async fn serve(&mut self, parts: Parts) -> Result<(), ServeError> {
        let pipeline = Pipeline::start(&self.settings, parts)
            .await
            .map_err(ServeError::Thread)?;
        let watched = Arc::clone(&pipeline);
        self.watch.spawn(async move {
            let mut ticks = tokio::time::interval(HEALTH_INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                watched.refresh_health().await;
            }
        });
        self.stage.open(pipeline);
        set_health(&self.health, ServingStatus::Serving).await;
        Ok(())
    }

    /// What is measured.
    pub fn metrics(&self) -> &Metrics {
        self.stage.metrics()
    }

    /// Returns only if a port fails while serving.
    pub async fn failed(&mut self) -> ServeError {
        match self.servers.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => ServeError::Loading(error.to_string()),
            Some(Ok(Ok(()))) | None => ServeError::Loading("a port closed by itself".to_owned()),
        }
    }

    /// Drains and closes. True if no accepted query was cut off.
    pub async fn drain(mut self) -> bool {
        set_health(&self.health, ServingStatus::NotServing).await;
        self.stage.begin_drain();
        let in_time = match self.stage.pipeline_if_open() {
            Some(pipeline) => pipeline.drain(self.settings.server.drain_grace).await,
            None => true,
        };
        self.closing.cancel();
        let closed = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSING_GRACE, closed).await.is_err() {
            tracing::debug!("closing connections that are still open");
        }
        self.servers.shutdown().await;
        self.watch.shutdown().await;
        in_time
    }
}

async fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Port {
            address,
            setting,
            source,
        })
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in [
        "",
        <ReferralServiceServer<Service> as tonic::server::NamedService>::NAME,
    ] {
        health.set_service_status(service, status).await;
    }
}

type Reflection<T> = Option<T>;

/// Both versions of the reflection service: older tools know v1alpha only.
fn reflection() -> Result<
    (
        Reflection<
            tonic_reflection::server::v1::ServerReflectionServer<
                impl tonic_reflection::server::v1::ServerReflection,
            >,
        >,
        Reflection<
            tonic_reflection::server::v1alpha::ServerReflectionServer<
                impl tonic_reflection::server::v1alpha::ServerReflection,
            >,
        >,
    ),
    ServeError,
> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(referral_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok((Some(builder().build_v1()?), Some(builder().build_v1alpha()?)))
}
