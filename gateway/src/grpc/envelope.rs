//! What a request's metadata says, and when it came in.

use crate::metrics::Method;
use crate::pipeline::{Envelope, GatewayError, parse_grpc_timeout};
use std::task::{Context, Poll};
use tokio::time::Instant;
use tonic::Request;

/// When a request came in.
#[derive(Debug, Clone, Copy)]
struct Accepted(Instant);

/// Notes when a request came in. tonic starts its own timer (which answers CANCELLED) after it has
/// called this layer: the deadline counted from here is never later than tonic's.
#[derive(Debug, Clone, Copy)]
pub struct AcceptedLayer;

/// [`AcceptedLayer`]'s service.
#[derive(Debug, Clone)]
pub struct AcceptedService<S>(S);

impl<S> tower::Layer<S> for AcceptedLayer {
    type Service = AcceptedService<S>;
    fn layer(&self, inner: S) -> Self::Service {
        AcceptedService(inner)
    }
}

impl<S, B> tower::Service<http::Request<B>> for AcceptedService<S>
where
    S: tower::Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        request.extensions_mut().insert(Accepted(Instant::now()));
        self.0.call(request)
    }
}

/// The envelope of a request.
pub(super) fn read<T>(method: Method, request: &Request<T>) -> Result<Envelope, GatewayError> {
    let text = |key: &str| request.metadata().get(key).and_then(|value| value.to_str().ok());
    Ok(Envelope {
        method,
        accepted: request
            .extensions()
            .get::<Accepted>()
            .map_or_else(Instant::now, |accepted| accepted.0),
        traceparent: text("traceparent").map(str::to_owned),
        timeout: text("grpc-timeout").map(parse_grpc_timeout).transpose()?,
    })
}
