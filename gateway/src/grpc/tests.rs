//! Over a real socket: what only the port can get wrong.

use crate::log::DecisionLog;
use crate::pipeline::Parts;
use crate::scripted::{ScriptedDecider, ScriptedExpert, Step, settings};
use crate::serve::Gateway;
use referral_experts::{ExpertErrorKind, Finish};
use referral_proto::v1;
use referral_proto::v1::generate_stream_response::Event;
use referral_proto::v1::referral_service_client::ReferralServiceClient;
use referral_router::Graph;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt as _;

const GOOD: &[Step] = &[Step::Say("Take"), Step::Say(" one."), Step::End(Finish::Length)];

struct Served {
    gateway: Gateway,
    channel: Channel,
    client: ReferralServiceClient<Channel>,
    parts: Option<Parts>,
    _directory: TempDir,
}

impl Served {
    /// Ports open, nothing loaded.
    async fn open(pharmacy: &[Step]) -> Self {
        let (mut settings, directory) = settings();
        settings.server.grpc_address.set_port(0);
        settings.server.http_address.set_port(0);
        settings.server.max_concurrent_requests = 2;
        let log = DecisionLog::open(&settings.log).unwrap();
        let gateway = Gateway::open(settings).await.unwrap();
        let channel = Channel::from_shared(format!("http://{}", gateway.grpc))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let parts = Parts {
            experts: vec![
                ScriptedExpert::new("pharmacy", pharmacy),
                ScriptedExpert::new("generalist", GOOD),
            ],
            graph: Graph::single(Arc::new(ScriptedDecider::default())),
            nodes: Vec::new(),
            pairs: Vec::new(),
            reformatter: None,
            log,
            metrics: gateway.metrics().clone(),
        };
        let client = ReferralServiceClient::new(channel.clone()).max_encoding_message_size(64 << 20);
        Self {
            gateway,
            channel,
            client,
            parts: Some(parts),
            _directory: directory,
        }
    }

    async fn serving(pharmacy: &[Step]) -> Self {
        let mut served = Self::open(pharmacy).await;
        served.load().await;
        served
    }

    async fn load(&mut self) {
        self.gateway.serve(self.parts.take().unwrap()).await.unwrap();
    }

    async fn health(&self) -> [ServingStatus; 2] {
        let mut statuses = Vec::new();
        for service in ["", "referral.v1.ReferralService"] {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            let answer = HealthClient::new(self.channel.clone())
                .check(request)
                .await
                .unwrap();
            statuses.push(answer.into_inner().status());
        }
        statuses.try_into().unwrap()
    }
}

fn ask(query: &str) -> v1::GenerateRequest {
    v1::GenerateRequest {
        query: query.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn it_serves_once_loaded_and_says_so() {
    let mut served = Served::open(GOOD).await;
    assert_eq!(served.health().await, [ServingStatus::NotServing; 2]);
    let early = served.client.generate(ask("pharmacy")).await.unwrap_err();
    assert_eq!(
        (
            early.code(),
            early.get_details_error_info().unwrap().reason.as_str()
        ),
        (Code::Unavailable, "LOADING")
    );
    served.load().await;
    assert_eq!(served.health().await, [ServingStatus::Serving; 2]);
    let answer = served.client.generate(ask("pharmacy")).await.unwrap();
    let named = answer
        .metadata()
        .get(super::DECISION_ID)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let answer = answer.into_inner();
    assert_eq!(
        (answer.text.as_str(), answer.finish_reason()),
        ("Take one.", v1::FinishReason::Length)
    );
    let decision = answer.decision.unwrap();
    assert_eq!((decision.id, decision.expert.as_str()), (named, "pharmacy"));
    assert_eq!(
        decision.probabilities.iter().map(|p| p.probability).sum::<f32>(),
        1.0
    );
    let experts = served
        .client
        .list_experts(v1::ListExpertsRequest {})
        .await
        .unwrap()
        .into_inner();
    let rows: Vec<_> = experts
        .experts
        .iter()
        .map(|e| (e.id.as_str(), e.ready, e.routable))
        .collect();
    assert_eq!(rows, [("pharmacy", true, true), ("generalist", true, false)]);
    assert_eq!(experts.router_version, "scripted-1");
    assert!(served.gateway.drain().await);
}

#[tokio::test]
async fn a_stream_is_decision_texts_end() {
    let mut served = Served::serving(GOOD).await;
    let mut stream = served
        .client
        .generate_stream(ask("pharmacy"))
        .await
        .unwrap()
        .into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        events.push(message.event.unwrap());
    }
    assert!(
        matches!(
            &events[..],
            [Event::Decision(_), Event::Text(_), Event::Text(_), Event::End(_)]
        ),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_in_a_status() {
    let mut served = Served::serving(&[Step::Say("Take"), Step::Fail(ExpertErrorKind::Unavailable)]).await;
    let mut stream = served
        .client
        .generate_stream(ask("pharmacy"))
        .await
        .unwrap()
        .into_inner();
    let status = loop {
        match stream.message().await {
            Ok(Some(message)) => assert!(!matches!(message.event, Some(Event::End(_)))),
            Ok(None) => panic!("the stream ended as if it were complete"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    let info = status.get_details_error_info().unwrap();
    assert_eq!(
        (
            info.metadata["expert"].as_str(),
            info.metadata["error_kind"].as_str()
        ),
        ("pharmacy", "unavailable")
    );
}

#[tokio::test]
async fn deadlines_are_answered_as_such_before_and_within_a_stream() {
    for script in [&[Step::Hang][..], &[Step::Say("Take"), Step::Hang]] {
        let mut served = Served::serving(script).await;
        // The header alone: tonic's client would start a timer of its own.
        let slow = || {
            let mut request = Request::new(ask("pharmacy"));
            request
                .metadata_mut()
                .insert("grpc-timeout", "200m".parse().unwrap());
            request
        };
        let unary = served.client.generate(slow()).await.unwrap_err();
        assert_eq!(unary.code(), Code::DeadlineExceeded, "{unary:?}");
        let mut stream = served.client.generate_stream(slow()).await.unwrap().into_inner();
        let streamed = loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "the stream ended as if it were complete"),
                Err(status) => break status,
            }
        };
        assert_eq!(streamed.code(), Code::DeadlineExceeded, "{streamed:?}");
    }
}

#[tokio::test]
async fn errors_carry_details_that_machines_can_read() {
    let mut served = Served::serving(&[Step::Say("Take"), Step::Hang]).await;
    let status = served.client.generate(ask(" ")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.get_details_bad_request().unwrap().field_violations[0].field,
        "query"
    );
    let long = served
        .client
        .generate(ask(&"pain ".repeat(200_000)))
        .await
        .unwrap_err();
    assert_eq!(
        (
            long.code(),
            long.message().starts_with("query: a text of 1000000 bytes")
        ),
        (Code::InvalidArgument, true)
    );
    let mut odd = Request::new(ask("pharmacy"));
    odd.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let odd = served.client.generate(odd).await.unwrap_err();
    assert_eq!(
        odd.get_details_bad_request().unwrap().field_violations[0].field,
        "grpc-timeout"
    );

    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(served.client.generate_stream(ask("pharmacy")).await.unwrap());
    }
    let full = served.client.generate(ask("pharmacy")).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
}

#[tokio::test]
async fn compare_answers_both_sides_and_feedback_counts_once() {
    let mut served = Served::serving(&[Step::Fail(ExpertErrorKind::Overloaded)]).await;
    let request = v1::CompareRequest {
        query: "pharmacy".to_owned(),
        expert_a: "pharmacy".to_owned(),
        expert_b: "generalist".to_owned(),
        options: None,
    };
    let both = served.client.compare(request).await.unwrap().into_inner();
    let (a, b) = (both.a.unwrap(), both.b.unwrap());
    let Some(v1::compared_answer::Result::Failure(failure)) = a.result else {
        panic!("{a:?}")
    };
    assert_eq!(
        (failure.error_kind.as_str(), a.decision.unwrap().expert.as_str()),
        ("overloaded", "pharmacy")
    );
    let Some(v1::compared_answer::Result::Answer(answer)) = b.result else {
        panic!("{b:?}")
    };
    assert_eq!(answer.text, "Take one.");
    let feedback = v1::SendFeedbackRequest {
        decision_id: b.decision.unwrap().id,
        score: Some(0.5),
        idempotency_key: "k".to_owned(),
        ..Default::default()
    };
    assert!(
        served
            .client
            .send_feedback(feedback.clone())
            .await
            .unwrap()
            .into_inner()
            .recorded
    );
    assert!(
        !served
            .client
            .send_feedback(feedback)
            .await
            .unwrap()
            .into_inner()
            .recorded
    );
    let text = served.gateway.metrics().render().unwrap();
    assert!(
        text.contains(r#"referral_requests_total{code="OK",method="compare"} 1"#),
        "{text}"
    );
    assert!(
        text.contains(r#"referral_requests_total{code="OK",method="send_feedback"} 2"#),
        "{text}"
    );
}

#[tokio::test]
async fn draining_lets_an_accepted_stream_end() {
    let gated: &[Step] = &[
        Step::Say("Take"),
        Step::Gate,
        Step::Say(" one."),
        Step::End(Finish::Stop),
    ];
    let mut served = Served::open(GOOD).await;
    let expert = ScriptedExpert::new("pharmacy", gated);
    served.parts.as_mut().unwrap().experts[0] = expert.clone();
    served.load().await;
    let mut stream = served
        .client
        .generate_stream(ask("pharmacy"))
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap().unwrap();
    let draining = tokio::spawn(served.gateway.drain());
    // On a connection that is still open, a new query is refused by name while the old one goes on.
    let refused = loop {
        match served
            .client
            .route(v1::RouteRequest {
                query: "pharmacy".to_owned(),
            })
            .await
        {
            Ok(_) => tokio::task::yield_now().await,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    expert.gate.add_permits(1);
    let mut last = None;
    while let Some(message) = stream.message().await.unwrap() {
        last = message.event;
    }
    assert!(matches!(last, Some(Event::End(_))), "{last:?}");
    assert!(draining.await.unwrap());
}
