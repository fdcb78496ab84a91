use super::*;

#[test]
fn every_series_of_a_closed_set_exists_before_the_first_event() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry, &["generalist", "pharmacy"]).unwrap();
    let text = metrics.render().unwrap();
    for series in [
        r#"referral_decisions_total{expert="pharmacy",reason="router_failed"} 0"#,
        r#"referral_requests_total{code="RESOURCE_EXHAUSTED",method="generate_stream"} 0"#,
        r#"referral_errors_total{kind="cancelled"} 0"#,
        r#"referral_fallbacks_total{error_kind="interrupted",from="generalist"} 0"#,
        "referral_cache_hits_total 0",
        r#"referral_tokens_total{expert="generalist",type="completion"} 0"#,
        r#"referral_time_to_first_token_seconds_count{expert="pharmacy"} 0"#,
        "referral_gateway_overhead_seconds_count 0",
        "referral_build_info{version=",
    ] {
        assert!(text.contains(series), "{series} is missing from\n{text}");
    }
}

#[test]
fn registering_twice_is_an_error_and_not_a_panic() {
    let registry = Registry::new();
    Metrics::register(&registry, &[]).unwrap();
    assert!(Metrics::register(&registry, &[]).is_err());
}
