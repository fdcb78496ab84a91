//! A gateway within the command's own process, and clients of it or of any other.

use super::failure::Failure;
use super::options::ConfigOptions;
use super::telemetry;
use crate::config::{Loaded, Settings};
use crate::serve::{Gateway, ServeError};
use referral_proto::v1::referral_service_client::ReferralServiceClient;
use std::io::Write as _;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// A client of a gateway.
pub(super) type Client = ReferralServiceClient<Channel>;

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The configuration, with log lines of warnings only: standard error is for the command's own words.
pub(super) fn quiet_settings(config: &ConfigOptions) -> Result<Loaded, Failure> {
    let mut loaded = config.load()?;
    loaded.settings.telemetry.filter = "warn".to_owned();
    telemetry::start(&loaded.settings.telemetry);
    Ok(loaded)
}

/// Opens the configured ports, or any free ones where they are taken, and loads the models.
pub(super) async fn start(settings: Settings) -> Result<Gateway, Failure> {
    let mut gateway = match Gateway::open(settings.clone()).await {
        Err(ServeError::Port { .. }) => {
            let mut free = settings;
            free.server.grpc_address.set_port(0);
            free.server.http_address.set_port(0);
            Gateway::open(free).await?
        }
        opened => opened?,
    };
    say("loading models (the first start fetches about 100 MB once) …");
    let started = Instant::now();
    gateway.load().await?;
    say(&format!("ready after {:.1} s", started.elapsed().as_secs_f32()));
    Ok(gateway)
}

/// Connects to a gateway: `HOST:PORT` or a URL.
pub(super) async fn connect(address: &str) -> Result<Client, Failure> {
    let url = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let hint = "start one with `referral serve`, or give its gRPC address with --address HOST:PORT";
    let refused = |error: &dyn std::error::Error| {
        Failure::new(format!("no gateway answers at {url}: {error}")).with_hint(hint)
    };
    let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| refused(&error))?;
    let channel = endpoint
        .connect_timeout(CONNECT_LIMIT)
        .connect()
        .await
        .map_err(|error| refused(&error))?;
    Ok(ReferralServiceClient::new(channel))
}

/// A word to the user, beside the command's output.
pub(super) fn say(text: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// A status as a failure. The gateway's messages say what to do; an empty one leaves its code's.
pub(super) fn refusal(status: &tonic::Status) -> Failure {
    match status.message() {
        "" => Failure::new(status.code().to_string()),
        message => Failure::new(message),
    }
}
