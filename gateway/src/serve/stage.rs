//! How far the gateway is: loading, serving, draining. Both ports look here before each request.

use crate::metrics::{Method, Metrics};
use crate::pipeline::{GatewayError, Pipeline};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Shared by the ports.
#[derive(Clone)]
pub struct Stage {
    pipeline: Arc<OnceLock<Arc<Pipeline>>>,
    is_draining: Arc<AtomicBool>,
    metrics: Metrics,
}

impl Stage {
    /// Loading.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            pipeline: Arc::default(),
            is_draining: Arc::default(),
            metrics,
        }
    }

    /// Serving; a second call changes nothing.
    pub fn open(&self, pipeline: Arc<Pipeline>) {
        self.pipeline.get_or_init(|| pipeline);
    }

    /// Draining: nobody is admitted from now on.
    pub fn begin_drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        if let Some(pipeline) = self.pipeline.get() {
            pipeline.close();
        }
    }

    /// The pipeline; while draining too, since it refuses by itself.
    ///
    /// # Errors
    /// [`GatewayError::Loading`] until there is one, [`GatewayError::Draining`] if there will be none.
    pub fn pipeline(&self) -> Result<&Arc<Pipeline>, GatewayError> {
        let missing = || {
            if self.is_draining() {
                GatewayError::Draining
            } else {
                GatewayError::Loading
            }
        };
        self.pipeline.get().ok_or_else(missing)
    }

    /// The pipeline, if there is one.
    pub fn pipeline_if_open(&self) -> Option<&Arc<Pipeline>> {
        self.pipeline.get()
    }

    /// Whether queries are admitted.
    pub fn is_ready(&self) -> bool {
        self.pipeline.get().is_some() && !self.is_draining()
    }

    /// What is measured.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Counts a request that met no pipeline or a bad envelope.
    pub fn count(&self, method: Method, error: &GatewayError) {
        self.metrics.request(method, error.code());
        self.metrics.error(error.kind());
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }
}
