use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn row(expert: &str, second: Option<&str>) -> Row {
    Row {
        id: "r".into(),
        query: "q".into(),
        expert: expert.into(),
        second: second.map(Into::into),
        focus: None,
        scenario: None,
    }
}

fn routing(chosen: &str, other: &str, confidence: f32, abstained: bool, us: u64) -> Routing {
    Routing {
        probabilities: vec![(chosen.into(), confidence), (other.into(), 1.0 - confidence)],
        confidence,
        in_scope: confidence,
        out_of_scope: false,
        abstained,
        windowed: false,
        latency: Duration::from_micros(us),
    }
}

fn experts() -> Vec<String> {
    ["a", "b", "c"].map(String::from).to_vec()
}

fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-6, "{got} is not {want}");
}

#[test]
fn figures_of_a_case_worked_by_hand() {
    let mut accumulator = Accumulator::new(&experts());
    for (truth, second, chosen, other, confidence, abstained, us) in [
        ("a", None, "a", "b", 0.9, false, 10),
        ("a", None, "a", "b", 0.9, false, 20),
        ("a", Some("b"), "b", "a", 0.6, false, 30),
        ("b", None, "b", "a", 0.5, true, 40),
    ] {
        accumulator
            .push(
                &row(truth, second),
                &routing(chosen, other, confidence, abstained, us),
            )
            .unwrap();
    }
    let figures = accumulator.finish();
    near(figures.accuracy, 0.75);
    near(figures.accuracy_with_second, 1.0);
    // F1: a 2*2/(3+2), b 2*1/(1+2); c is not in the data and does not count.
    near(figures.macro_f1, (0.8 + 2.0 / 3.0) / 2.0);
    near(figures.coverage, 0.75);
    near(figures.selective_accuracy, 2.0 / 3.0);
    // Bins: 0.9 twice (both right), 0.6 (wrong), 0.5 (right).
    near(figures.ece, 0.5 * 0.1 + 0.25 * 0.6 + 0.25 * 0.5);
    near(
        figures.nll,
        -(2.0 * 0.9f64.ln() + 0.4f64.ln() + 0.5f64.ln()) / 4.0,
    );
    assert_eq!((figures.latency_p50_us, figures.latency_p95_us), (20, 40));
    assert_eq!(figures.confusion.counts, [[2, 1, 0], [0, 1, 0], [0, 0, 0]]);
    near(figures.experts[0].recall, 2.0 / 3.0);
    near(figures.experts[1].precision, 0.5);
    // The surest three of four: 0.9, 0.9 (right), 0.6 (wrong). Risks at 1 to 4 rows: 0, 0, 1/3, 1/4.
    near(figures.accuracy_at_60, 2.0 / 3.0);
    near(figures.aurc, (1.0 / 3.0 + 0.25) / 4.0);
    assert_eq!(figures.out_of_scope, None);
    near(figures.risk_coverage[9].accuracy, 1.0);
    near(figures.risk_coverage[19].accuracy, 0.75);
    let text = figures.to_string();
    assert!(
        text.contains("accuracy            0.7500") && text.contains("p50 0.0 ms"),
        "{text}"
    );
}

#[test]
fn an_unknown_label_is_named() {
    let mut accumulator = Accumulator::new(&experts());
    let error = accumulator
        .push(&row("skin", None), &routing("a", "b", 0.9, false, 1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"skin\"") && error.contains("a, b, c"), "{error}");
}

#[test]
fn rows_without_an_expert_count_for_scope_alone() {
    let mut accumulator = Accumulator::new(&experts());
    for (truth, in_scope, confidence, abstained) in [
        ("a", 0.9, 0.9, false),
        ("a", 0.8, 0.3, true),
        (EXPERT_END, 0.1, 0.4, true),
        (EXPERT_END, 0.8, 0.2, true),
        (EXPERT_END, 0.2, 0.9, false),
    ] {
        let routing = Routing {
            in_scope,
            ..routing("a", "b", confidence, abstained, 1)
        };
        accumulator.push(&row(truth, None), &routing).unwrap();
    }
    let figures = accumulator.finish();
    assert_eq!((figures.n, figures.coverage), (2, 0.5));
    let scope = figures.out_of_scope.clone().unwrap();
    assert_eq!((scope.n, scope.abstained), (3, 2.0 / 3.0));
    // Of six pairs five are in order and one is tied; by confidence 0.9 beats two and ties one, 0.3 beats one.
    near(scope.ood_auroc, 5.5 / 6.0);
    near(scope.ood_auroc_confidence, 3.5 / 6.0);
    assert!(
        figures.to_string().contains("ood_auroc           0.9167"),
        "{figures}"
    );
}

#[test]
fn nothing_evaluates_to_zeros() {
    let figures = Accumulator::new(&experts()).finish();
    assert_eq!(
        (figures.n, figures.accuracy, figures.macro_f1, figures.ece),
        (0, 0.0, 0.0, 0.0)
    );
}

#[test]
fn percentiles_are_nearest_rank() {
    let values: Vec<u32> = (1..=100).collect();
    assert_eq!(
        (
            percentile(&values, 0.5),
            percentile(&values, 0.95),
            percentile(&values, 1.0)
        ),
        (50, 95, 100)
    );
    assert_eq!((percentile(&[7], 0.5), percentile(&[], 0.5)), (7, 0));
}

proptest! {
    #[test]
    fn figures_stay_in_their_ranges_and_ignore_the_order_of_rows(
        cases in proptest::collection::vec((0usize..3, 0usize..3, 0.34f32..1.0, any::<bool>()), 1..40)
    ) {
        let names = experts();
        let run = |cases: &[(usize, usize, f32, bool)]| {
            let mut accumulator = Accumulator::new(&names);
            for &(truth, chosen, confidence, abstained) in cases {
                let other = &names[(chosen + 1) % 3];
                accumulator.push(&row(&names[truth], None), &routing(&names[chosen], other, confidence, abstained, 5)).unwrap();
            }
            accumulator.finish()
        };
        let figures = run(&cases);
        for value in [figures.accuracy, figures.macro_f1, figures.ece, figures.coverage, figures.selective_accuracy] {
            prop_assert!((0.0..=1.0).contains(&value));
        }
        prop_assert_eq!(figures.confusion.counts.iter().flatten().sum::<usize>(), cases.len());
        prop_assert!((figures.risk_coverage[CURVE_POINTS - 1].accuracy - figures.accuracy).abs() < 1e-9);
        let reversed: Vec<_> = cases.iter().rev().copied().collect();
        let other = run(&reversed);
        prop_assert_eq!(&figures.confusion, &other.confusion);
        prop_assert!((figures.ece - other.ece).abs() < 1e-9 && (figures.macro_f1 - other.macro_f1).abs() < 1e-9);
    }
}
