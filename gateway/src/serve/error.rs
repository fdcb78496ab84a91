//! Why a gateway cannot start or go on.

use std::net::SocketAddr;

/// Why a gateway cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port cannot be opened.
    #[error(
        "cannot listen on {address} (server.{setting}): {source}. Free it, or choose another with server.{setting} \
         or --{}; port 0 takes any free one",
        setting.replace('_', "-")
    )]
    Port {
        /// Which address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Grpc(#[from] tonic::transport::Error),
    /// The HTTP server failed.
    #[error("the HTTP server failed")]
    Http(#[source] std::io::Error),
    /// The contract's descriptors are not usable.
    #[error("gRPC reflection cannot be set up: set server.reflection to false to go without")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A metric's name is taken.
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// A model could not be fetched or loaded, or its engine not started.
    #[error("model {name}: {source}")]
    Model {
        /// Its key in `models`.
        name: String,
        /// Why.
        #[source]
        source: Box<referral_lm::LmError>,
    },
    /// The router could not be loaded.
    #[error("router: {0}")]
    Router(#[source] Box<referral_router::RouterError>),
    /// The adapter that puts queries in better words could not be loaded.
    #[error("router.reformat.adapter: {0}")]
    Reformat(#[source] Box<referral_lm::LmError>),
    /// The router and the configuration do not know the same experts.
    #[error(
        "the router and the configuration do not fit: {}. To start all the same, set router.allow_unmatched to true",
        .0.join("; ")
    )]
    Tokens(Vec<String>),
    /// The routers cannot be bound together.
    #[error("{0}")]
    Graph(#[from] referral_router::graph::GraphError),
    /// An expert could not be made.
    #[error("expert {id}: {source}")]
    Expert {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The decision log cannot be used.
    #[error(transparent)]
    Log(#[from] crate::log::LogError),
    /// The operating system gives no thread.
    #[error("cannot start the router's thread")]
    Thread(#[source] std::io::Error),
    /// A task of the gateway ended unexpectedly.
    #[error("the gateway failed: {0}")]
    Loading(String),
}
