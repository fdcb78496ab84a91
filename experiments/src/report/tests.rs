use super::*;

const fn interval(low: f64, high: f64) -> Interval {
    Interval { low, high }
}

fn evidence() -> Evidence {
    Evidence {
        primary: interval(0.01, 0.09),
        direction: Direction::Higher,
        least_gain: 0.02,
        guardrails: vec![Guardrail {
            name: "errors".into(),
            direction: Direction::Lower,
            difference: interval(-0.01, 0.004),
            margin: 0.005,
        }],
        ratio_p_value: Some(0.4),
        ratio_error: 0.001,
        sample: 800,
        minimum: 500,
        maximum: 5_000,
    }
}

fn outcome(change: impl FnOnce(&mut Evidence)) -> (Action, Reason) {
    let mut evidence = evidence();
    change(&mut evidence);
    let said = recommend(&evidence).unwrap();
    (said.action, said.reason)
}

#[test]
fn a_gain_with_safe_guardrails_ships() {
    assert!(matches!(outcome(|_| ()), (Action::Ship, Reason::Better { .. })));
    // The same where less is better.
    let lower = outcome(|e| {
        e.direction = Direction::Lower;
        e.primary = interval(-0.09, -0.01);
    });
    assert!(matches!(lower, (Action::Ship, Reason::Better { .. })));
}

#[test]
fn a_mismatch_comes_before_everything() {
    let said = outcome(|e| {
        e.ratio_p_value = Some(0.0005);
        e.sample = 10;
        e.guardrails[0].difference = interval(0.1, 0.2);
    });
    assert_eq!(said, (Action::Repair, Reason::RatioMismatch { p_value: 0.0005 }));
}

#[test]
fn harm_does_not_wait_for_the_minimum_but_shipping_and_stopping_do() {
    let harmed = outcome(|e| {
        e.sample = 10;
        e.guardrails[0].difference = interval(0.006, 0.2);
    });
    assert!(matches!(harmed, (Action::Stop, Reason::GuardrailHarmed { .. })));
    for primary in [
        interval(0.01, 0.09),
        interval(-0.09, -0.01),
        interval(-0.001, 0.001),
    ] {
        let early = outcome(|e| {
            e.sample = 499;
            e.primary = primary;
        });
        assert_eq!(
            early,
            (
                Action::KeepRunning,
                Reason::BelowMinimum {
                    sample: 499,
                    minimum: 500
                }
            )
        );
    }
}

#[test]
fn an_open_guardrail_holds_shipping_back_until_patience_ends() {
    let open = |e: &mut Evidence| e.guardrails[0].difference = interval(-0.01, 0.006);
    assert!(matches!(
        outcome(open),
        (Action::KeepRunning, Reason::GuardrailOpen { .. })
    ));
    let late = outcome(|e| {
        open(e);
        e.sample = 5_000;
    });
    assert!(matches!(late, (Action::Stop, Reason::Exhausted { .. })));
}

#[test]
fn a_loss_stops_and_so_does_futility() {
    let said = |low, high| outcome(|e| e.primary = interval(low, high));
    assert!(matches!(said(-0.09, -0.01), (Action::Stop, Reason::Worse { .. })));
    assert!(matches!(
        said(-0.01, 0.015),
        (Action::Stop, Reason::NoGain { .. })
    ));
    assert!(matches!(
        said(-0.01, 0.05),
        (Action::KeepRunning, Reason::Undecided { .. })
    ));
    let late = outcome(|e| {
        e.primary = interval(-0.01, 0.05);
        e.sample = 5_000;
    });
    assert_eq!(late, (Action::Stop, Reason::Exhausted { sample: 5_000 }));
}

#[test]
fn nothing_known_keeps_running() {
    let said = outcome(|e| {
        e.primary = Interval::EVERYTHING;
        e.guardrails[0].difference = Interval::EVERYTHING;
        e.ratio_p_value = None;
    });
    assert!(matches!(said, (Action::KeepRunning, Reason::Undecided { .. })));
}

#[test]
fn the_line_names_numbers() {
    let line = recommend(&evidence()).unwrap().to_string();
    assert_eq!(
        line,
        "ship: the treatment is better (difference [0.0100, 0.0900])"
    );
}

#[test]
fn bad_input_is_named() {
    let fails = |change: fn(&mut Evidence)| {
        let mut evidence = evidence();
        change(&mut evidence);
        recommend(&evidence).unwrap_err()
    };
    assert!(matches!(
        fails(|e| e.primary.low = f64::NAN),
        Error::NotFinite { field: "primary", .. }
    ));
    assert!(matches!(
        fails(|e| e.primary.low = 1.0),
        Error::OutOfRange { field: "primary", .. }
    ));
    assert!(matches!(
        fails(|e| e.guardrails[0].margin = -1.0),
        Error::OutOfRange { .. }
    ));
    assert!(matches!(
        fails(|e| e.ratio_p_value = Some(1.5)),
        Error::OutOfRange { .. }
    ));
    assert!(matches!(fails(|e| e.minimum = 0), Error::TooFew { .. }));
    assert!(matches!(fails(|e| e.maximum = 1), Error::TooFew { .. }));
}
