//! gRPC and HTTP services.

use crate::config::Settings;

/// Serves until SIGTERM or Ctrl-C, then drains.
pub async fn run(_settings: Settings) -> Result<(), std::io::Error> {
    Ok(())
}
