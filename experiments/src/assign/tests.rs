use super::*;

fn plan(name: &str, weights: &[(&str, f64)]) -> Plan {
    Plan {
        name: name.into(),
        salt: format!("salt of {name}"),
        unit: Unit::User,
        population: Population::default(),
        traffic: Traffic::share(1.0),
        arms: weights
            .iter()
            .map(|&(name, weight)| Arm {
                name: name.into(),
                weight,
            })
            .collect(),
        start: None,
        end: None,
    }
}

fn even(name: &str) -> Plan {
    plan(name, &[("generalist", 0.5), ("specialist", 0.5)])
}

fn settled(plan: Plan) -> Experiment {
    Experiment::try_from(plan).unwrap()
}

/// The arms of units 0 to `count`, none where left out.
fn arms(experiment: &Experiment, count: u32) -> Vec<Option<usize>> {
    let nobody = Attributes::new();
    (0..count)
        .map(|unit| {
            experiment
                .assign(&unit.to_string(), &nobody, 0)
                .unwrap()
                .map(|a| a.index)
        })
        .collect()
}

fn moved(before: &[(&str, f64)], after: &[(&str, f64)]) -> f64 {
    let count = 40_000;
    let (old, new) = (settled(plan("x", before)), settled(plan("x", after)));
    let names = |experiment: &Experiment| -> Vec<String> {
        arms(experiment, count)
            .into_iter()
            .map(|at| experiment.plan().arms[at.unwrap()].name.clone())
            .collect()
    };
    names(&old)
        .iter()
        .zip(&names(&new))
        .filter(|(a, b)| a != b)
        .count() as f64
        / f64::from(count)
}

#[test]
fn a_known_unit_gets_its_known_arm() {
    // Fixed beforehand: a change of the hash would reassign everybody.
    let experiment = settled(plan("fixed", &[("a", 0.2), ("b", 0.3), ("c", 0.5)]));
    let got: Vec<usize> = arms(&experiment, 16).into_iter().flatten().collect();
    assert_eq!(got, [2, 2, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 1, 0, 2, 2]);
}

#[test]
fn replicas_agree_whatever_the_order_of_arms() {
    let one = settled(plan("x", &[("a", 0.2), ("b", 0.3), ("c", 0.5)]));
    let text = serde_json::to_string(one.plan()).unwrap();
    let other = settled(serde_json::from_str(&text).unwrap());
    assert_eq!(arms(&one, 10_000), arms(&other, 10_000));
    assert_eq!(
        moved(
            &[("a", 0.2), ("b", 0.3), ("c", 0.5)],
            &[("c", 0.5), ("a", 0.2), ("b", 0.3)]
        ),
        0.0
    );
}

#[test]
fn few_units_move_when_weights_change() {
    // Two arms: exactly the change. 0.02 is four standard errors and more.
    assert!((moved(&[("a", 0.5), ("b", 0.5)], &[("a", 0.9), ("b", 0.1)]) - 0.4).abs() < 0.02);
    // A new arm at the others' even expense: only its own share moves.
    let grown = moved(&[("a", 0.5), ("b", 0.5)], &[("a", 0.45), ("b", 0.45), ("c", 0.1)]);
    assert!((grown - 0.1).abs() < 0.02, "{grown}");
    // So does the one arm that grows: cumulative thresholds would move 1/4, as the arm in the middle shifts.
    let third = 1.0 / 3.0;
    let squeezed = moved(
        &[("a", third), ("b", third), ("c", third)],
        &[("a", 0.5), ("b", 0.25), ("c", 0.25)],
    );
    assert!((squeezed - 1.0 / 6.0).abs() < 0.02, "{squeezed}");
    // In every case at least d, at most 2d / (1 + d): here d = 0.3.
    let swapped = moved(
        &[("a", 0.2), ("b", 0.3), ("c", 0.5)],
        &[("a", 0.5), ("b", 0.3), ("c", 0.2)],
    );
    assert!((0.28..0.6 / 1.3 + 0.02).contains(&swapped), "{swapped}");
}

#[test]
fn growing_traffic_moves_nobody_between_arms() {
    let mut small = even("x");
    small.traffic = Traffic::share(0.1);
    let mut large = even("x");
    large.traffic = Traffic::share(0.6);
    let (small, large) = (arms(&settled(small), 20_000), arms(&settled(large), 20_000));
    let share = |arms: &[Option<usize>]| arms.iter().flatten().count() as f64 / 20_000.0;
    assert!((share(&small) - 0.1).abs() < 0.01 && (share(&large) - 0.6).abs() < 0.02);
    assert!(
        small
            .iter()
            .zip(&large)
            .all(|(before, after)| before.is_none() || before == after)
    );
}

#[test]
fn population_and_time_decide_who_is_in() {
    let mut plan = even("x");
    plan.population = Population([("expert".into(), ["cardiology".to_owned()].into())].into());
    (plan.start, plan.end) = (Some(100), Some(200));
    let experiment = settled(plan);
    let of = |expert: &str, now| {
        let attributes = [("expert".to_owned(), expert.to_owned())].into();
        experiment.assign("u", &attributes, now).unwrap().is_some()
    };
    assert!(of("cardiology", 100) && of("cardiology", 199));
    assert!(!of("cardiology", 99) && !of("cardiology", 200) && !of("oncology", 150));
    assert!(experiment.assign("u", &Attributes::new(), 150).unwrap().is_none());
    assert!(matches!(
        experiment.assign(" ", &Attributes::new(), 150),
        Err(Error::Empty { field: "unit" })
    ));
}

#[test]
fn a_weight_of_zero_gets_nobody() {
    let experiment = settled(plan("x", &[("a", 1.0), ("b", 0.0)]));
    assert!(arms(&experiment, 1_000).iter().all(|arm| *arm == Some(0)));
}

#[test]
fn bad_plans_are_named() {
    let fails = |change: fn(&mut Plan)| {
        let mut plan = even("x");
        change(&mut plan);
        Experiment::try_from(plan).unwrap_err()
    };
    assert!(matches!(
        fails(|p| p.salt.clear()),
        Error::Empty {
            field: "experiment.salt"
        }
    ));
    assert!(matches!(
        fails(|p| p.arms[0].weight = 0.6),
        Error::WeightSum { .. }
    ));
    assert!(matches!(
        fails(|p| p.arms[0].weight = f64::NAN),
        Error::NotFinite { .. }
    ));
    assert!(matches!(
        fails(|p| p.arms[0].weight = -0.5),
        Error::OutOfRange { .. }
    ));
    assert!(matches!(fails(|p| p.arms.truncate(1)), Error::TooFew { .. }));
    assert!(matches!(
        fails(|p| p.arms[1].name = "generalist".into()),
        Error::Duplicate { .. }
    ));
    assert!(matches!(fails(|p| p.traffic.to = 1.5), Error::OutOfRange { .. }));
    assert!(matches!(fails(|p| p.traffic.to = 0.0), Error::OutOfRange { .. }));
    assert!(matches!(
        fails(|p| (p.start, p.end) = (Some(2), Some(1))),
        Error::OutOfRange { .. }
    ));
    let nobody = fails(|p| p.population = Population([("expert".into(), Default::default())].into()));
    assert!(matches!(nobody, Error::TooFew { .. }));
}

#[test]
fn overlap_is_refused_or_layered() {
    let clash = |a: &Plan, b: &Plan| match check_overlaps(&[settled(a.clone()), settled(b.clone())]) {
        Ok(()) => None,
        Err(Error::Overlap { clash, .. }) => Some(clash),
        Err(other) => panic!("{other}"),
    };
    let (a, mut b) = (even("a"), even("b"));
    assert_eq!(clash(&a, &b), Some(Clash::Unlayered));
    let for_expert = |plan: &Plan, expert: &str| Plan {
        population: Population([("expert".into(), [expert.to_owned()].into())].into()),
        ..plan.clone()
    };
    assert_eq!(
        clash(&for_expert(&a, "cardiology"), &for_expert(&b, "oncology")),
        None
    );
    assert_eq!(clash(&for_expert(&a, "cardiology"), &b), Some(Clash::Unlayered));
    let during = |plan: &Plan, start, end| Plan {
        start: Some(start),
        end: Some(end),
        ..plan.clone()
    };
    assert_eq!(clash(&during(&a, 0, 10), &during(&b, 10, 20)), None);
    assert_eq!(
        clash(&during(&a, 0, 11), &during(&b, 10, 20)),
        Some(Clash::Unlayered)
    );
    let slice = |plan: &Plan, layer: &str, from, to| Plan {
        traffic: Traffic {
            layer: Some(layer.into()),
            from,
            to,
        },
        ..plan.clone()
    };
    assert_eq!(
        clash(&slice(&a, "one", 0.0, 1.0), &slice(&b, "two", 0.0, 1.0)),
        None
    );
    assert_eq!(
        clash(&slice(&a, "one", 0.0, 0.5), &slice(&b, "one", 0.5, 1.0)),
        None
    );
    assert_eq!(
        clash(&slice(&a, "one", 0.0, 0.6), &slice(&b, "one", 0.5, 1.0)),
        Some(Clash::Slices)
    );
    b.salt.clone_from(&a.salt);
    assert_eq!(
        clash(&slice(&a, "one", 0.0, 1.0), &slice(&b, "two", 0.0, 1.0)),
        Some(Clash::Salt)
    );
    b = Plan {
        unit: Unit::Query,
        ..even("b")
    };
    assert_eq!(
        clash(&slice(&a, "one", 0.0, 0.5), &slice(&b, "one", 0.5, 1.0)),
        Some(Clash::Units)
    );
    assert_eq!(clash(&a, &even("a")), Some(Clash::Name));
}

#[test]
fn slices_of_one_layer_share_no_unit() {
    let slice = |name: &str, from, to| {
        settled(Plan {
            traffic: Traffic {
                layer: Some("l".into()),
                from,
                to,
            },
            ..even(name)
        })
    };
    let (a, b) = (
        arms(&slice("a", 0.0, 0.5), 5_000),
        arms(&slice("b", 0.5, 1.0), 5_000),
    );
    assert!(
        a.iter()
            .zip(&b)
            .all(|(one, other)| one.is_some() != other.is_some())
    );
}

#[test]
fn propensities_follow_the_evidence_keep_the_floor_and_repeat() {
    let thompson = Thompson {
        draws: 2_000,
        floor: 0.05,
    };
    let rate = |s, n| Posterior::bernoulli(&crate::moments::Proportion::try_new(s, n).unwrap());
    let same = thompson.propensities(&[rate(50, 100), rate(50, 100)], 1).unwrap();
    assert!((same[0] - 0.5).abs() < 0.05, "{same:?}");
    let clear = thompson
        .propensities(&[rate(10, 100), rate(90, 100), rate(10, 100)], 1)
        .unwrap();
    assert!((clear[0] - 0.05).abs() < 1e-9 && (clear[1] - 0.9).abs() < 1e-9);
    assert!((clear.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    let mut seen = crate::moments::Moments::default();
    for value in [4.0, 5.0, 6.0, 5.0, 4.5] {
        seen.push(value).unwrap();
    }
    let prior = GaussianPrior {
        mean: 0.0,
        strength: 0.01,
        deviation: 1.0,
    };
    let none = Posterior::gaussian(&crate::moments::Moments::default(), &prior).unwrap();
    let five = Posterior::gaussian(&seen, &prior).unwrap();
    assert!(matches!(five, Posterior::Student { mean, .. } if (mean - 4.9).abs() < 0.02));
    // An arm of which nothing is known is tried often.
    assert!(thompson.propensities(&[five, none], 7).unwrap()[1] > 0.2);
    assert_eq!(
        thompson.propensities(&[five, none], 7),
        thompson.propensities(&[five, none], 7)
    );
    let choice = choose(&clear, 99).unwrap();
    assert_eq!(
        (choice, choice.propensity),
        (choose(&clear, 99).unwrap(), clear[choice.arm])
    );
}

#[test]
fn bad_adaptive_input_is_named() {
    let fair = Posterior::Beta { a: 1.0, b: 1.0 };
    let with = |draws, floor| Thompson { draws, floor }.propensities(&[fair, fair], 1);
    assert!(matches!(with(0, 0.1), Err(Error::TooFew { .. })));
    assert!(matches!(with(10, 0.6), Err(Error::OutOfRange { .. })));
    assert!(matches!(with(10, 0.0), Err(Error::OutOfRange { .. })));
    let bad = Posterior::Beta { a: f64::NAN, b: 1.0 };
    let thompson = Thompson {
        draws: 10,
        floor: 0.1,
    };
    assert!(matches!(
        thompson.propensities(&[fair, bad], 1),
        Err(Error::NotFinite { .. })
    ));
    assert!(matches!(choose(&[0.5, 0.6], 1), Err(Error::WeightSum { .. })));
    let settings = WeightedSettings {
        clip: 0.1,
        baseline: 0.0,
    };
    let mut weighted = Weighted::try_new(2, settings).unwrap();
    assert!(matches!(
        weighted.push(2, 0.5, 1.0),
        Err(Error::OutOfRange { field: "arm", .. })
    ));
    assert!(matches!(
        weighted.push(0, 0.0, 1.0),
        Err(Error::OutOfRange { .. })
    ));
    assert!(matches!(
        weighted.push(0, 0.5, f64::NAN),
        Err(Error::NotFinite { .. })
    ));
    assert!(matches!(weighted.mean(0), Err(Error::TooFew { .. })));
    assert!(matches!(
        Weighted::try_new(
            2,
            WeightedSettings {
                clip: 0.0,
                ..settings
            }
        ),
        Err(Error::OutOfRange { .. })
    ));
    let mut other = Weighted::try_new(
        2,
        WeightedSettings {
            baseline: 1.0,
            ..settings
        },
    )
    .unwrap();
    assert!(matches!(other.merge(&weighted), Err(Error::OutOfRange { .. })));
}

#[test]
fn weighting_does_the_sums_and_merges() {
    let settings = WeightedSettings {
        clip: 0.1,
        baseline: 1.0,
    };
    let decisions = [(0, 0.5, 2.0), (1, 0.5, 4.0), (0, 0.8, 3.0), (1, 0.05, 2.0)];
    let fill = |part: &[(usize, f64, f64)]| {
        let mut weighted = Weighted::try_new(2, settings).unwrap();
        for &(arm, propensity, outcome) in part {
            weighted.push(arm, propensity, outcome).unwrap();
        }
        weighted
    };
    let whole = fill(&decisions);
    // Arm 0: 1 + (1/0.5 + 2/0.8) / 4; arm 1: 1 + (3/0.5 + 1/0.1) / 4, its last propensity clipped.
    assert!((whole.mean(0).unwrap().value - 2.125).abs() < 1e-12);
    assert!((whole.mean(1).unwrap().value - 5.0).abs() < 1e-12);
    assert_eq!(whole.clipped(), 1);
    // The difference's variance is that of the terms' differences, decision by decision.
    let mut terms = crate::moments::Moments::default();
    for term in [-2.0, 6.0, -2.5, 10.0] {
        terms.push(term).unwrap();
    }
    let difference = whole.difference(1, 0).unwrap();
    assert!((difference.value - terms.mean()).abs() < 1e-12);
    assert!((difference.variance - terms.variance().unwrap() / 4.0).abs() < 1e-12);
    let mut merged = fill(&decisions[..1]);
    merged.merge(&fill(&decisions[1..])).unwrap();
    assert!((merged.mean(1).unwrap().variance - whole.mean(1).unwrap().variance).abs() < 1e-12);
}
