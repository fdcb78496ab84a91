//! Bad input as a user would try it: each gets a named error, and the gateway goes on.

use referral_proto::v1::{CompareRequest, GenerateRequest, GenerationOptions, RouteRequest};
use referral_tests::{Gateway, http};
use tonic::Code;

#[tokio::test]
async fn bad_requests_are_named_and_the_gateway_goes_on() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let mut client = gateway.client().await?.max_encoding_message_size(16 << 20);
    let ask = |query: &str| GenerateRequest {
        query: query.into(),
        ..Default::default()
    };
    let with = |options: GenerationOptions| GenerateRequest {
        options: Some(options),
        ..ask("What is asthma?")
    };
    let cases = [
        ("empty", ask(""), Code::InvalidArgument, "query"),
        ("blank", ask(" \n\t "), Code::InvalidArgument, "query"),
        (
            "1 MB",
            ask(&"pain ".repeat(200_000)),
            Code::InvalidArgument,
            "query",
        ),
        (
            "unknown expert",
            GenerateRequest {
                expert: Some("cardiologist".into()),
                ..ask("What is asthma?")
            },
            Code::NotFound,
            "cardiologist",
        ),
        (
            "no tokens",
            with(GenerationOptions {
                max_tokens: Some(0),
                ..Default::default()
            }),
            Code::InvalidArgument,
            "max_tokens",
        ),
        (
            "temperature",
            with(GenerationOptions {
                temperature: Some(f32::NAN),
                ..Default::default()
            }),
            Code::InvalidArgument,
            "temperature",
        ),
        (
            "top_p",
            with(GenerationOptions {
                top_p: Some(0.0),
                ..Default::default()
            }),
            Code::InvalidArgument,
            "top_p",
        ),
    ];
    for (name, request, code, word) in cases {
        let status = client.generate(request).await.expect_err(name);
        assert_eq!(status.code(), code, "{name}: {status:?}");
        assert!(status.message().contains(word), "{name}: {}", status.message());
    }
    let same = CompareRequest {
        query: "What is asthma?".into(),
        expert_a: "generalist".into(),
        expert_b: "generalist".into(),
        ..Default::default()
    };
    assert_eq!(
        client.compare(same).await.expect_err("same expert twice").code(),
        Code::InvalidArgument
    );

    let decision = client
        .route(RouteRequest {
            query: "What is asthma?".into(),
        })
        .await?
        .into_inner()
        .decision;
    assert_eq!(decision.map(|d| d.expert).as_deref(), Some("cardiopulmonary"));
    Ok(())
}

#[tokio::test]
async fn bad_http_bodies_get_a_named_error() -> anyhow::Result<()> {
    let gateway = Gateway::start("").await?;
    let url = format!("{}/v1/route", gateway.http);
    let cases: [(&str, Vec<u8>, &[u16]); 4] = [
        ("invalid UTF-8", b"{\"query\": \"\xff\xfe\"}".to_vec(), &[400]),
        ("no JSON", b"query=asthma".to_vec(), &[400]),
        ("empty query", b"{\"query\": \"\"}".to_vec(), &[400]),
        (
            "1 MB",
            format!("{{\"query\": \"{}\"}}", "pain ".repeat(200_000)).into_bytes(),
            &[400, 413],
        ),
    ];
    for (name, body, codes) in cases {
        let response = http()
            .post(&url)
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        assert!(codes.contains(&status), "{name}: {status} {text}");
        let error: serde_json::Value = serde_json::from_str(&text)?;
        assert!(
            error["error"]["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{name}: {text}"
        );
        assert!(error["error"]["type"].is_string(), "{name}: {text}");
    }
    let good = http()
        .post(&url)
        .json(&serde_json::json!({"query": "What is asthma?"}))
        .send()
        .await?;
    assert!(good.status().is_success(), "{}", good.text().await?);
    Ok(())
}
