use proptest::prelude::*;

use super::*;

fn test(error: f64, planned: u64, burn_in: u64) -> Sequential {
    Sequential::try_from(Settings {
        error,
        planned,
        burn_in,
    })
    .unwrap()
}

fn estimate(value: f64, variance: f64, size: f64) -> Estimate {
    Estimate::try_new(value, variance, size).unwrap()
}

#[test]
fn the_interval_is_tightest_at_the_planned_size() {
    let reach = |planned| test(0.05, planned, 2).reach(1_000.0);
    assert!(reach(1_000) < reach(900) && reach(1_000) < reach(1_100));
    // x = ln(1 + x) + 2 ln 20 has x = 8.21; the reach is √((1 + 1/x)(ln(1 + x) − 2 ln α)) = √(1 + x).
    assert!((reach(1_000) - (1.0 + test(0.05, 1, 2).spread).sqrt()).abs() < 1e-9);
    assert!((test(0.05, 1, 2).spread - 8.2118).abs() < 1e-3);
}

#[test]
fn a_mean_has_the_closed_form_of_the_asymptotic_confidence_sequence() {
    // Waudby-Smith et al. 2024, Theorem 2.2: σ̂ √(2 (tρ² + 1)/(t²ρ²) · ln(√(tρ² + 1)/α)), ρ² = x*/n*.
    let (sequential, t) = (test(0.05, 500, 2), 300.0);
    let rho2 = sequential.spread / 500.0;
    let radius = (2.0 * (t * rho2 + 1.0) / (t * t * rho2) * ((t * rho2 + 1.0).sqrt() / 0.05f64).ln()).sqrt();
    let interval = sequential.interval(&estimate(0.0, 4.0 / t, t));
    assert!((interval.high - 2.0 * radius).abs() < 1e-12, "{interval:?}");
}

proptest! {
    #[test]
    fn the_interval_excludes_exactly_what_the_evidence_rejects(
        value in -3.0f64..3.0, variance in 1e-4f64..2.0, size in 1.0f64..1e5, null in -1.0f64..1.0,
        error in 0.001f64..0.5,
    ) {
        let sequential = test(error, 1_000, 2);
        let estimate = estimate(value, variance, size);
        let evidence = sequential.log_evidence(&estimate, null).unwrap();
        // Too near to the threshold, rounding decides.
        prop_assume!((evidence + error.ln()).abs() > 1e-9);
        prop_assert_eq!(evidence > -error.ln(), !sequential.interval(&estimate).contains(null));
    }

    #[test]
    fn no_counts_make_trouble(s in 0u64..50, n in 0u64..50, t in 0u64..50, m in 0u64..50) {
        let sequential = test(0.05, 100, 2);
        if let (Ok(one), Ok(other)) = (Proportion::try_new(s, n), Proportion::try_new(t, m)) {
            match sequential.difference_of_proportions(&one, &other) {
                Ok(estimate) => prop_assert!(sequential.interval(&estimate).contains(estimate.value)),
                Err(error) => {
                    let is_empty = matches!(error, Error::TooFew { .. });
                    prop_assert!(is_empty && (n == 0 || m == 0));
                }
            }
        }
    }
}

#[test]
fn evidence_once_seen_does_not_fade() {
    let mut monitor = Monitor::default();
    assert_eq!(monitor.p_value(), 1.0);
    for evidence in [-1.0, 20f64.ln(), -3.0] {
        monitor.observe(evidence).unwrap();
    }
    assert!((monitor.p_value() - 0.05).abs() < 1e-12);
    assert!(matches!(monitor.observe(f64::NAN), Err(Error::NotFinite { .. })));
    let back: Monitor = serde_json::from_str(&serde_json::to_string(&monitor).unwrap()).unwrap();
    assert!((back.p_value() - 0.05).abs() < 1e-12);
}

#[test]
fn nothing_is_claimed_without_a_spread() {
    let sequential = test(0.05, 100, 2);
    let certain = estimate(1.0, 0.0, 50.0);
    assert_eq!(sequential.interval(&certain), Interval::EVERYTHING);
    assert_eq!(sequential.log_evidence(&certain, 0.0).unwrap(), 0.0);
}

#[test]
fn bad_input_is_named() {
    let settings = Settings {
        error: 0.05,
        planned: 10,
        burn_in: 2,
    };
    let fails = |settings| Sequential::try_from(settings).unwrap_err();
    assert!(matches!(
        fails(Settings {
            error: 1.0,
            ..settings
        }),
        Error::OutOfRange { .. }
    ));
    assert!(matches!(
        fails(Settings {
            error: f64::NAN,
            ..settings
        }),
        Error::NotFinite { .. }
    ));
    assert!(matches!(
        fails(Settings {
            planned: 0,
            ..settings
        }),
        Error::TooFew { .. }
    ));
    assert!(matches!(
        fails(Settings {
            burn_in: 1,
            ..settings
        }),
        Error::TooFew { .. }
    ));
    let sequential = test(0.05, 10, 30);
    assert!(matches!(
        sequential.mean(&Moments::default()),
        Err(Error::TooFew { need: 30, .. })
    ));
    let empty = Proportion::default();
    assert!(matches!(
        sequential.difference_of_proportions(&empty, &empty),
        Err(Error::TooFew { .. })
    ));
    assert!(matches!(
        power_curve(&sequential, f64::NAN, 1.0, 1, 50),
        Err(Error::NotFinite { .. })
    ));
    assert!(matches!(
        power_curve(&sequential, 0.1, 0.0, 1, 50),
        Err(Error::OutOfRange { .. })
    ));
    assert!(matches!(
        power_curve(&sequential, 0.1, 1.0, 0, 50),
        Err(Error::TooFew { .. })
    ));
    assert!(matches!(
        power_curve(&sequential, 0.1, 1.0, 1, 20),
        Err(Error::TooFew { .. })
    ));
    assert!(matches!(
        power_curve(&sequential, 0.1, 1.0, 1, 9_000),
        Err(Error::OutOfRange { field: "looks", .. })
    ));
}

#[test]
fn one_look_has_the_normal_tails_power() {
    // A single look at n = 100: P(|Z + δ√n| ≥ reach).
    let sequential = test(0.05, 100, 2);
    let power = power_curve(&sequential, 0.3, 1.0, 100, 100).unwrap()[0].power;
    let (reach, shift) = (sequential.reach(100.0), 3.0);
    let tail = crate::special::normal_tail;
    assert!(
        (power - (tail(reach - shift) + tail(reach + shift))).abs() < 1e-3,
        "{power}"
    );
}
