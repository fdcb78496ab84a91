use super::*;

fn moments(values: &[f64]) -> Moments {
    let mut moments = Moments::default();
    for &value in values {
        moments.push(value).unwrap();
    }
    moments
}

fn rate(successes: u64, trials: u64) -> Proportion {
    Proportion::try_new(successes, trials).unwrap()
}

fn assert_effect(effect: Effect, value: f64, low: f64, high: f64) {
    for (got, expected) in [
        (effect.value, value),
        (effect.interval.low, low),
        (effect.interval.high, high),
    ] {
        assert!(
            (got - expected).abs() < 1e-6,
            "{effect:?}: {got} is not {expected}"
        );
    }
}

const A: [f64; 6] = [5.1, 6.3, 7.2, 4.8, 6.0, 5.5];
const B: [f64; 5] = [4.2, 5.0, 4.4, 5.9, 3.7];

// References: SciPy's Welch test, Newcombe (1998) table II, and the formulas evaluated with NumPy.
#[test]
fn agrees_with_the_references() {
    let (a, b) = (moments(&A), moments(&B));
    assert_effect(
        mean_difference(&a, &b, 0.05).unwrap(),
        1.176666667,
        -0.004299757,
        2.35763309,
    );
    assert_effect(
        hedges_g(&a, &b, 0.05).unwrap(),
        1.248137364,
        -0.048224196,
        2.544498923,
    );
    assert_effect(
        mean_ratio(&a, &b, 0.05).unwrap(),
        1.253591954,
        1.026527314,
        1.530882585,
    );
    assert_effect(
        risk_difference(&rate(56, 70), &rate(48, 80), 0.05).unwrap(),
        0.2,
        0.052431472,
        0.333872654,
    );
    assert_effect(
        cohen_h(&rate(56, 70), &rate(48, 80), 0.05).unwrap(),
        0.442143188,
        0.121368784,
        0.762917592,
    );
}

#[test]
fn ratios_are_near_to_one_where_nothing_differs_and_survive_empty_cells() {
    let same = risk_ratio(&rate(20, 100), &rate(20, 100), 0.05).unwrap();
    assert_eq!(same.value, 1.0);
    // Katz: variance 2 (1/20 − 1/100), so the ends are exp(± 1.959964 · √0.08).
    let radius = 1.959_963_984_540_054 * 0.08f64.sqrt();
    assert_effect(same, 1.0, (-radius).exp(), radius.exp());
    let bare = risk_ratio(&rate(0, 50), &rate(5, 50), 0.05).unwrap();
    assert!(bare.value > 0.0 && bare.interval.low > 0.0 && bare.interval.high.is_finite());
}

#[test]
fn no_spread_gives_the_point() {
    let effect = mean_difference(&moments(&[2.0, 2.0]), &moments(&[1.0, 1.0]), 0.05).unwrap();
    assert_eq!(effect.interval, Interval { low: 1.0, high: 1.0 });
}

#[test]
fn bad_input_is_named() {
    let (some, one) = (moments(&A), moments(&[1.0]));
    assert!(matches!(
        mean_difference(&some, &one, 0.05),
        Err(Error::TooFew { .. })
    ));
    assert!(matches!(
        mean_difference(&some, &some, 0.0),
        Err(Error::OutOfRange { field: "error", .. })
    ));
    assert!(matches!(
        mean_difference(&some, &some, f64::NAN),
        Err(Error::NotFinite { .. })
    ));
    let still = moments(&[1.0, 1.0]);
    assert!(matches!(
        hedges_g(&still, &still, 0.05),
        Err(Error::Constant { .. })
    ));
    assert!(matches!(
        mean_ratio(&moments(&[-1.0, -2.0]), &some, 0.05),
        Err(Error::OutOfRange { .. })
    ));
    assert!(matches!(
        risk_difference(&rate(0, 0), &rate(1, 2), 0.05),
        Err(Error::TooFew { .. })
    ));
    assert!(matches!(
        cohen_h(&rate(1, 2), &rate(0, 0), 0.05),
        Err(Error::TooFew { .. })
    ));
    assert!(matches!(
        Estimate::try_new(0.0, -1.0, 2.0),
        Err(Error::OutOfRange { .. })
    ));
}
