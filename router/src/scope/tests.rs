use super::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Queries in scope have a sure expert and lie near; half of the others are told by their end token, half by their distance.
fn rows(n: usize) -> Vec<(Scored, bool)> {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut noise = move || random.random_range(-1.0f32..1.0);
    (0..n)
        .map(|i| {
            let is_in_scope = i % 2 == 0;
            let end = if is_in_scope || i % 4 == 1 { -3.0 } else { 2.0 };
            let far = if i % 4 == 1 { 1.5 } else { 0.0 };
            let logits = vec![3.0 + noise(), noise(), end + noise()];
            let distance = far + 0.3 * noise();
            (Scored { logits, distance }, is_in_scope)
        })
        .collect()
}

fn examples(rows: &[(Scored, bool)]) -> Vec<Example<'_>> {
    rows.iter()
        .map(|(scored, is_in_scope)| Example {
            scored,
            is_in_scope: *is_in_scope,
            weight: 1.0,
        })
        .collect()
}

#[test]
fn either_sign_of_being_out_of_scope_suffices() {
    let rows = rows(400);
    let scope = Scope::fit(&examples(&rows)).unwrap();
    let right = rows
        .iter()
        .filter(|(scored, is_in_scope)| (scope.probability(scored) >= scope.threshold) == *is_in_scope);
    assert!(right.count() > 380, "{scope:?}");
    assert!(scope.weights[0] > 0.0 && scope.weights[2] < 0.0, "{scope:?}");
    assert!(scope.is_sound());
}

#[test]
fn the_probability_is_calibrated_at_the_assumed_share() {
    let rows = rows(4000);
    let scope = Scope::fit(&examples(&rows)).unwrap();
    let mean = |side: bool| {
        let own = rows.iter().filter(|(_, is_in_scope)| *is_in_scope == side);
        own.map(|(scored, _)| f64::from(scope.probability(scored)))
            .sum::<f64>()
            / 2000.0
    };
    let all = IN_SCOPE * mean(true) + (1.0 - IN_SCOPE) * mean(false);
    assert!((all - IN_SCOPE).abs() < 0.01, "{all}");
}

#[test]
fn the_threshold_turns_away_at_most_a_twentieth() {
    // One number tells nothing: both sides are alike, and any threshold would turn many away.
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let rows: Vec<(Scored, bool)> = (0..200)
        .map(|i| {
            let logits = vec![
                random.random_range(0.0f32..3.0),
                0.0,
                random.random_range(-1.0f32..1.0),
            ];
            (
                Scored {
                    logits,
                    distance: random.random_range(-0.5f32..0.5),
                },
                i % 2 == 0,
            )
        })
        .collect();
    let scope = Scope::fit(&examples(&rows)).unwrap();
    let away = rows
        .iter()
        .filter(|(s, is_in)| *is_in && scope.probability(s) < scope.threshold)
        .count();
    assert!(away <= 5, "{away}");
}

#[test]
fn few_rows_fit_nothing() {
    assert!(Scope::fit(&examples(&rows(18))).is_none());
    assert!(Scope::fit(&[]).is_none());
}

#[test]
fn the_regression_meets_its_first_order_condition() {
    // For one column and the bias, against a value worked out by brute force.
    let points: Vec<Point> = [(0.0, false), (1.0, false), (1.0, true), (2.0, true)]
        .into_iter()
        .map(|(x, is_in_scope)| Point {
            x: [x, 0.0, 0.0],
            is_in_scope,
            weight: 0.25,
        })
        .collect();
    let (weights, bias) = regress(&points);
    let deviation = 0.5f64.sqrt();
    let slope = points
        .iter()
        .map(|p| {
            0.25 * (sigmoid(weights[0] * p.x[0] + bias) - f64::from(u8::from(p.is_in_scope))) * (p.x[0] - 1.0)
                / deviation
        })
        .sum::<f64>();
    assert!((slope + RIDGE * weights[0] * deviation).abs() < 1e-8);
    assert!(
        (bias + weights[0]).abs() < 1e-6,
        "by symmetry, even odds at x = 1"
    );
}

#[test]
fn a_vector_of_unit_variance_is_at_distance_zero() {
    // Two vectors side by side: the standardisation has divided by the root of two.
    let features = [1.0f32, -1.0, 1.0, -1.0].map(|x| x / 2f32.sqrt());
    assert!(Scored::new(vec![0.0, 0.0], &features, 2).distance.abs() < 1e-6);
    assert!(Scored::new(vec![0.0, 0.0], &[0.0; 4], 2).distance.is_finite());
}

#[test]
fn solves_a_system() {
    let x = solve([[4.0, 1.0], [1.0, 3.0]], [1.0, 2.0]);
    assert!((x[0] - 1.0 / 11.0).abs() < 1e-12 && (x[1] - 7.0 / 11.0).abs() < 1e-12);
}
