//! The gRPC port: `referral.v1`, health and reflection.
//!
//! Only translates: metadata to an [`Envelope`], messages to the pipeline's and back, errors to a
//! status with `google.rpc` details. A layer notes when a request came in before tonic starts its own
//! timer, so that our deadline, which answers DEADLINE_EXCEEDED, is always the earlier one.

mod convert;
mod envelope;
mod status;
#[cfg(test)]
mod tests;

pub use convert::{decision_to_wire, end_to_wire};
pub use envelope::AcceptedLayer;
pub use status::to_status;

use crate::metrics::Method;
use crate::pipeline::{Answering, Decision, Envelope, Event, GatewayError, Pipeline, Whole};
use crate::serve::Stage;
use futures::stream::BoxStream;
use referral_proto::v1;
use referral_proto::v1::referral_service_server::ReferralService;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// Response metadata that names the decision.
pub const DECISION_ID: &str = "referral-decision-id";

/// The service, over a pipeline that may still be loading.
#[derive(Clone)]
pub struct Service {
    stage: Stage,
}

impl Service {
    /// Answers LOADING until `stage` has its pipeline.
    pub fn new(stage: Stage) -> Self {
        Self { stage }
    }

    /// The pipeline and the request's envelope.
    fn open<T>(&self, method: Method, request: &Request<T>) -> Result<(&Arc<Pipeline>, Envelope), Status> {
        let refuse = |error| {
            self.stage.count(method, &error);
            to_status(&error, None)
        };
        let pipeline = self.stage.pipeline().map_err(refuse)?;
        let envelope = envelope::read(method, request).map_err(refuse)?;
        Ok((pipeline, envelope))
    }
}

#[tonic::async_trait]
impl ReferralService for Service {
    type GenerateStreamStream = BoxStream<'static, Result<v1::GenerateStreamResponse, Status>>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<v1::GenerateResponse>, Status> {
        let (pipeline, envelope) = self.open(Method::Generate, &request)?;
        let answering = pipeline
            .answer(envelope, request.into_inner())
            .map_err(|error| to_status(&error, None))?;
        let id = answering.id;
        let Whole { decision, result } = answering.whole().await;
        let (text, end) = result.map_err(|error| to_status(&error, Some(id)))?;
        let response = v1::GenerateResponse {
            decision: decision.map(decision_to_wire),
            text,
            finish_reason: convert::finish_to_wire(end.finish).into(),
            usage: Some(convert::usage_to_wire(&end)),
        };
        Ok(named(id, response))
    }

    async fn generate_stream(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (pipeline, envelope) = self.open(Method::GenerateStream, &request)?;
        let answering = pipeline
            .answer(envelope, request.into_inner())
            .map_err(|error| to_status(&error, None))?;
        let id = answering.id;
        let events = futures::stream::unfold(answering, move |mut answering| async move {
            let event = answering.next().await?;
            let message = event
                .map(event_to_wire)
                .map_err(|error| to_status(&error, Some(id)));
            Some((message, answering))
        });
        Ok(named(id, Box::pin(events)))
    }

    async fn route(&self, request: Request<v1::RouteRequest>) -> Result<Response<v1::RouteResponse>, Status> {
        let (pipeline, envelope) = self.open(Method::Route, &request)?;
        let routing = pipeline
            .route(envelope, request.into_inner())
            .map_err(|error| to_status(&error, None))?;
        let id = routing.id;
        let decision = routing
            .decision()
            .await
            .map_err(|error| to_status(&error, Some(id)))?;
        Ok(named(
            id,
            v1::RouteResponse {
                decision: Some(decision_to_wire(decision)),
            },
        ))
    }

    async fn compare(
        &self,
        request: Request<v1::CompareRequest>,
    ) -> Result<Response<v1::CompareResponse>, Status> {
        let (pipeline, envelope) = self.open(Method::Compare, &request)?;
        let request = request.into_inner();
        let experts = [request.expert_a.clone(), request.expert_b.clone()];
        // Counts the comparison when it ends, also if the client goes away and this future is dropped.
        let sides = pipeline
            .compare(envelope, request)
            .map_err(|error| to_status(&error, None))?;
        let counted = Counted {
            pipeline: Arc::clone(pipeline),
            error: Some(GatewayError::Cancelled),
        };
        let [a, b] = sides;
        let (a, b) = tokio::join!(a.whole_with_id(), b.whole_with_id());
        counted.ended();
        let [expert_a, expert_b] = experts;
        Ok(Response::new(v1::CompareResponse {
            a: Some(side_to_wire(expert_a, a)),
            b: Some(side_to_wire(expert_b, b)),
        }))
    }

    async fn send_feedback(
        &self,
        request: Request<v1::SendFeedbackRequest>,
    ) -> Result<Response<v1::SendFeedbackResponse>, Status> {
        let (pipeline, envelope) = self.open(Method::SendFeedback, &request)?;
        let recorded = pipeline
            .feedback(&envelope, request.into_inner())
            .await
            .map_err(|error| to_status(&error, None))?;
        Ok(Response::new(v1::SendFeedbackResponse { recorded }))
    }

    async fn list_experts(
        &self,
        request: Request<v1::ListExpertsRequest>,
    ) -> Result<Response<v1::ListExpertsResponse>, Status> {
        let (pipeline, _) = self.open(Method::ListExperts, &request)?;
        let wire = |(expert, health): (&Arc<dyn referral_experts::Expert>, _)| {
            let shown = (expert.id(), expert.kind(), expert.card());
            convert::expert_to_wire(shown, health, pipeline.is_routable(expert.id().as_str()))
        };
        let routers = pipeline.routers().map(|(router, health)| {
            let shown = (&router.id, router.kind, &router.card);
            convert::expert_to_wire(shown, health, pipeline.is_routable(router.id.as_str()))
        });
        let experts = pipeline.experts().map(wire).chain(routers).collect();
        pipeline.count(Method::ListExperts, None);
        Ok(Response::new(v1::ListExpertsResponse {
            experts,
            router_version: pipeline.router_version().to_owned(),
        }))
    }
}

/// Counts a comparison once.
struct Counted {
    pipeline: Arc<Pipeline>,
    error: Option<GatewayError>,
}

impl Counted {
    fn ended(mut self) {
        self.error = None;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.pipeline.count(Method::Compare, self.error.as_ref());
    }
}

/// A response whose metadata names the decision.
fn named<T>(id: Uuid, message: T) -> Response<T> {
    let mut response = Response::new(message);
    if let Ok(id) = id.to_string().parse() {
        response.metadata_mut().insert(DECISION_ID, id);
    }
    response
}

fn event_to_wire(event: Event) -> v1::GenerateStreamResponse {
    use v1::generate_stream_response::Event as Wire;
    let event = match event {
        Event::Decision(decision) => Wire::Decision(decision_to_wire(*decision)),
        Event::Text(text) => Wire::Text(text),
        Event::End(end) => Wire::End(end_to_wire(&end)),
    };
    v1::GenerateStreamResponse { event: Some(event) }
}

fn side_to_wire(expert: String, (id, whole): (Uuid, Whole)) -> v1::ComparedAnswer {
    use v1::compared_answer::Result as Wire;
    // A side that failed before its decision was told still names its id and expert.
    let known = |decision: Decision| decision_to_wire(decision);
    let unknown = || v1::Decision {
        id: id.to_string(),
        expert,
        ..Default::default()
    };
    let result = match whole.result {
        Ok((text, end)) => Wire::Answer(v1::Answered {
            text,
            finish_reason: convert::finish_to_wire(end.finish).into(),
            usage: Some(convert::usage_to_wire(&end)),
        }),
        Err(error) => Wire::Failure(v1::Failure {
            error_kind: error.expert_kind_label().to_owned(),
            message: error.to_string(),
        }),
    };
    v1::ComparedAnswer {
        decision: Some(whole.decision.map_or_else(unknown, known)),
        result: Some(result),
    }
}

impl Answering {
    async fn whole_with_id(self) -> (Uuid, Whole) {
        (self.id, self.whole().await)
    }
}
