//! What the formulas promise, tried on simulated experiments with fixed seeds. Each test prints what it
//! measured (`-- --nocapture`); the README states these figures.

#![expect(
    clippy::unwrap_used,
    reason = "a simulation may fail loudly, in its helpers too"
)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use referral_experiments::assign::{
    Arm, Attributes, Experiment, Plan, Population, Posterior, Thompson, Traffic, Unit, Weighted,
    WeightedSettings, choose,
};
use referral_experiments::cuped;
use referral_experiments::moments::{Moments, PairedMoments, Proportion};
use referral_experiments::multiple::{benjamini_hochberg, holm};
use referral_experiments::ratio::{Ratio, chi_square};
use referral_experiments::sequential::{Monitor, Sequential, Settings, power_curve};

/// Runs of each simulation.
const RUNS: u64 = 2_000;
/// Observations per arm in each.
const SIZE: u64 = 1_000;

fn test(planned: u64, burn_in: u64) -> Sequential {
    Sequential::try_from(Settings {
        error: 0.05,
        planned,
        burn_in,
    })
    .unwrap()
}

fn normal(random: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.random::<f64>()).cos()
}

/// The share of runs in which the interval misses `truth` at one look at least, looking after each pair.
fn missed_means(
    sequential: &Sequential,
    runs: u64,
    truth: f64,
    draw: impl Fn(&mut ChaCha8Rng) -> f64,
) -> f64 {
    let missed = (0..runs).filter(|&run| {
        let mut random = ChaCha8Rng::seed_from_u64(run);
        let (mut treatment, mut control) = (Moments::default(), Moments::default());
        (0..SIZE).any(|_| {
            treatment.push(truth + draw(&mut random)).unwrap();
            control.push(draw(&mut random)).unwrap();
            // Before the burn-in there is no interval to miss.
            let estimate = sequential.difference_of_means(&treatment, &control);
            estimate.is_ok_and(|estimate| !sequential.interval(&estimate).contains(truth))
        })
    });
    missed.count() as f64 / runs as f64
}

/// The same for rates, from the first pair on.
fn missed_rates(sequential: &Sequential, runs: u64, treated: f64, untreated: f64, null: f64) -> f64 {
    let missed = (0..runs).filter(|&run| {
        let mut random = ChaCha8Rng::seed_from_u64(1_000_000 + run);
        let (mut treatment, mut control) = (Proportion::default(), Proportion::default());
        (0..SIZE).any(|_| {
            treatment.push(random.random_bool(treated));
            control.push(random.random_bool(untreated));
            let estimate = sequential
                .difference_of_proportions(&treatment, &control)
                .unwrap();
            !sequential.interval(&estimate).contains(null)
        })
    });
    missed.count() as f64 / runs as f64
}

#[test]
fn peeking_at_means_keeps_the_error_and_the_coverage() {
    let sequential = test(500, 50);
    let lognormal = |random: &mut ChaCha8Rng| (0.5 * normal(random)).exp();
    for (name, error) in [
        ("normal, no effect", missed_means(&sequential, RUNS, 0.0, normal)),
        (
            "uniform, no effect",
            missed_means(&sequential, RUNS, 0.0, |r| r.random()),
        ),
        (
            "log-normal (σ = 0.5), no effect",
            missed_means(&sequential, RUNS, 0.0, lognormal),
        ),
        (
            "exponential, effect 0.3",
            missed_means(&sequential, RUNS, 0.3, |r| -(1.0 - r.random::<f64>()).ln()),
        ),
    ] {
        println!(
            "means, {name}: missed at some look in {:.2}% of {RUNS} runs",
            100.0 * error
        );
        assert!(error <= 0.05, "{name}: {error}");
    }
}

#[test]
fn peeking_at_proportions_keeps_the_error_and_the_coverage() {
    let sequential = test(500, 2);
    for (treated, untreated) in [
        (0.5, 0.5),
        (0.1, 0.1),
        (0.02, 0.02),
        (0.9, 0.9),
        (0.7, 0.6),
        (0.05, 0.02),
    ] {
        let error = missed_rates(&sequential, RUNS, treated, untreated, treated - untreated);
        println!(
            "rates {treated} and {untreated}: missed at some look in {:.2}% of {RUNS} runs",
            100.0 * error
        );
        assert!(error <= 0.05, "{treated} and {untreated}: {error}");
    }
}

#[test]
fn the_usual_interval_would_not_survive_peeking() {
    // What all this is for: z = 1.96 at every look.
    let fooled = (0..500).filter(|&run| {
        let mut random = ChaCha8Rng::seed_from_u64(run);
        let mut sum = 0.0;
        (1..=2 * SIZE).any(|n| {
            sum += normal(&mut random);
            n >= 50 && sum.abs() > 1.96 * (n as f64).sqrt()
        })
    });
    let share = fooled.count() as f64 / 500.0;
    println!(
        "fixed-sample interval under peeking: wrong in {:.1}% of 500 runs",
        100.0 * share
    );
    assert!(share > 0.2);
}

#[test]
fn power_is_what_the_boundary_integrated_numerically_says() {
    let sequential = test(500, 50);
    for effect in [0.1, 0.15, 0.2] {
        let theory = power_curve(&sequential, effect, 2f64.sqrt(), 1, SIZE)
            .unwrap()
            .last()
            .unwrap()
            .power;
        let measured = missed_means_of_null(&sequential, effect);
        println!("means, effect {effect} σ by {SIZE} per arm: power {measured:.3}, theory {theory:.3}");
        assert!(
            (measured / theory - 1.0).abs() <= 0.1,
            "{effect}: {measured} is not {theory}"
        );
    }
    let sequential = test(500, 2);
    for (treated, untreated) in [(0.56, 0.5), (0.58, 0.5), (0.6, 0.5)] {
        let deviation = f64::sqrt(treated * (1.0 - treated) + untreated * (1.0 - untreated));
        let curve = power_curve(&sequential, treated - untreated, deviation, 1, SIZE).unwrap();
        let theory = curve.last().unwrap().power;
        let measured = missed_rates(&sequential, RUNS, treated, untreated, 0.0);
        println!(
            "rates {treated} and {untreated} by {SIZE} per arm: power {measured:.3}, theory {theory:.3}"
        );
        assert!(
            (measured / theory - 1.0).abs() <= 0.1,
            "{treated}: {measured} is not {theory}"
        );
    }
    let theory = power_curve(&test(500, 50), 0.0, 2f64.sqrt(), 1, SIZE)
        .unwrap()
        .last()
        .unwrap()
        .power;
    println!(
        "no effect by {SIZE} per arm: false positives by theory {:.2}%",
        100.0 * theory
    );
    assert!(theory > 0.0 && theory < 0.05);
}

/// The share of runs in which zero is excluded though the effect is there.
fn missed_means_of_null(sequential: &Sequential, effect: f64) -> f64 {
    let found = (0..RUNS).filter(|&run| {
        let mut random = ChaCha8Rng::seed_from_u64(2_000_000 + run);
        let (mut treatment, mut control) = (Moments::default(), Moments::default());
        (0..SIZE).any(|_| {
            treatment.push(effect + normal(&mut random)).unwrap();
            control.push(normal(&mut random)).unwrap();
            let estimate = sequential.difference_of_means(&treatment, &control);
            estimate.is_ok_and(|estimate| !sequential.interval(&estimate).contains(0.0))
        })
    });
    found.count() as f64 / RUNS as f64
}

/// The share of runs in which the ratio is refuted at 0.001 by `size` units, looking every `every`.
fn refuted(share: f64, size: u64, every: u64, runs: u64) -> f64 {
    let ratio = Ratio::try_new(vec![0.5, 0.5], 500.0).unwrap();
    let found = (0..runs).filter(|&run| {
        let mut random = ChaCha8Rng::seed_from_u64(3_000_000 + run);
        let (mut counts, mut monitor) = ([0u64; 2], Monitor::default());
        (1..=size).any(|n| {
            counts[usize::from(random.random_bool(share))] += 1;
            if n % every == 0 {
                monitor.observe(ratio.log_evidence(&counts).unwrap()).unwrap();
            }
            monitor.p_value() <= 0.001
        })
    });
    found.count() as f64 / runs as f64
}

#[test]
fn a_ratio_of_48_to_52_is_found_and_an_even_one_is_not() {
    let (found, size) = (refuted(0.52, 25_000, 100, 1_000), 25_000);
    let false_alarms = refuted(0.5, 2_000, 1, RUNS);
    println!("48/52 found by {size} units: {:.1}% of 1,000 runs", 100.0 * found);
    println!(
        "50/50 refuted by 2,000 units, looking at each: {:.2}% of {RUNS} runs",
        100.0 * false_alarms
    );
    assert!(found >= 0.95, "{found}");
    assert!(false_alarms <= 0.003, "{false_alarms}");
    let fixed = chi_square(&[12_000, 13_000], &[0.5, 0.5]).unwrap();
    println!("chi-square of 12,000 to 13,000 (48/52 at {size}): p = {fixed:.1e}");
    assert!(fixed < 0.001);
}

#[test]
fn cuped_takes_off_the_square_of_the_correlation() {
    for rho in [0.3, 0.6, 0.9] {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let (mut plain, mut adjusted) = (Moments::default(), Moments::default());
        let (mut stated, mut truths) = (Moments::default(), 0);
        for _ in 0..RUNS {
            let mut arms = [PairedMoments::default(); 2];
            for (at, arm) in arms.iter_mut().enumerate() {
                for _ in 0..200 {
                    let before = normal(&mut random);
                    let noise = f64::sqrt(1.0 - rho * rho) * normal(&mut random);
                    arm.push(rho * before + noise + if at == 0 { 0.2 } else { 0.0 }, before)
                        .unwrap();
                }
            }
            let difference = cuped::difference_of_means(&arms[0], &arms[1], 50).unwrap();
            plain
                .push(arms[0].outcome().mean() - arms[1].outcome().mean())
                .unwrap();
            adjusted.push(difference.estimate.value).unwrap();
            stated.push(difference.estimate.variance).unwrap();
            truths += u32::from(
                (difference.estimate.value - 0.2).abs() < 1.96 * difference.estimate.variance.sqrt(),
            );
        }
        let reduction = 1.0 - adjusted.variance().unwrap() / plain.variance().unwrap();
        println!(
            "CUPED, ρ = {rho}: variance less by {reduction:.3}, ρ² = {:.3}",
            rho * rho
        );
        // Two standard errors of a variance over 2,000 runs are 0.063 of it, and there are two variances.
        assert!(
            (reduction - rho * rho).abs() < 0.09 * (1.0 - rho * rho),
            "{rho}: {reduction}"
        );
        assert!(
            (adjusted.mean() - 0.2).abs() < 0.01,
            "biased: {}",
            adjusted.mean()
        );
        assert!((stated.mean() / adjusted.variance().unwrap() - 1.0).abs() < 0.1);
        assert!(f64::from(truths) / RUNS as f64 > 0.93);
    }
}

#[test]
fn holm_and_benjamini_hochberg_keep_what_they_promise() {
    let (nulls, all, level) = (15, 20, 0.05);
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let (mut families, mut shares, mut naive, mut found) = (0u32, 0.0, 0u32, [0usize; 2]);
    for _ in 0..RUNS {
        // Two-sided p-values; the last five have an effect of three standard errors.
        let p: Vec<f64> = (0..all)
            .map(|at| {
                let z: f64 = normal(&mut random) + if at < nulls { 0.0 } else { 3.0 };
                libm::erfc(z.abs() / std::f64::consts::SQRT_2)
            })
            .collect();
        let rejected = |p: &[f64]| -> (usize, usize) {
            let count = |part: &[f64]| part.iter().filter(|p| **p <= level).count();
            (count(&p[..nulls]), count(&p[nulls..]))
        };
        let (strict, lenient) = (
            rejected(&holm(&p).unwrap()),
            rejected(&benjamini_hochberg(&p).unwrap()),
        );
        families += u32::from(strict.0 > 0);
        shares += lenient.0 as f64 / (lenient.0 + lenient.1).max(1) as f64;
        naive += u32::from(rejected(&p).0 > 0);
        found = [found[0] + strict.1, found[1] + lenient.1];
    }
    let runs = RUNS as f64;
    let (family, share, naive) = (f64::from(families) / runs, shares / runs, f64::from(naive) / runs);
    let power = found.map(|found| found as f64 / (5.0 * runs));
    println!(
        "20 segments, 5 true: any false by Holm {:.2}%, unadjusted {:.1}%",
        100.0 * family,
        100.0 * naive
    );
    println!(
        "false share by Benjamini–Hochberg {:.2}%; found {:.0}% (Holm {:.0}%)",
        100.0 * share,
        100.0 * power[1],
        100.0 * power[0]
    );
    assert!(family <= level && share <= level && naive > 0.4);
    assert!(power[1] > power[0] && power[0] > 0.3);
}

#[test]
fn weighting_is_unbiased_where_the_plain_mean_is_not() {
    let thompson = Thompson {
        draws: 100,
        floor: 0.05,
    };
    let (rates, runs) = ([0.5, 0.5], 2_000u64);
    let (mut plain, mut weighed) = (Moments::default(), Moments::default());
    let mut covered = 0u32;
    for run in 0..runs {
        let mut random = ChaCha8Rng::seed_from_u64(4_000_000 + run);
        let mut arms = [Proportion::default(); 2];
        let mut weighted = Weighted::try_new(
            2,
            WeightedSettings {
                clip: 0.01,
                baseline: 0.5,
            },
        )
        .unwrap();
        for batch in 0..20 {
            let posteriors = arms.map(|arm| Posterior::bernoulli(&arm));
            let propensities = thompson.propensities(&posteriors, run * 20 + batch).unwrap();
            for _ in 0..10 {
                let choice = choose(&propensities, random.random()).unwrap();
                let is_success = random.random_bool(rates[choice.arm]);
                arms[choice.arm].push(is_success);
                weighted
                    .push(choice.arm, choice.propensity, f64::from(u8::from(is_success)))
                    .unwrap();
            }
        }
        let mean = weighted.mean(0).unwrap();
        plain.push(arms[0].rate().unwrap_or(0.5)).unwrap();
        weighed.push(mean.value).unwrap();
        covered += u32::from((mean.value - 0.5).abs() <= 1.96 * mean.variance.sqrt());
        assert_eq!(weighted.clipped(), 0);
    }
    let bias = |seen: &Moments| (seen.mean() - 0.5, (seen.variance().unwrap() / runs as f64).sqrt());
    let ((naive, naive_error), (left, error)) = (bias(&plain), bias(&weighed));
    let coverage = f64::from(covered) / runs as f64;
    println!(
        "Thompson, {runs} runs of 200: plain mean off by {naive:+.4} ± {naive_error:.4} (standard error)"
    );
    println!(
        "inverse-propensity weighted: {left:+.4} ± {error:.4}; its 95% interval covers {:.1}%",
        100.0 * coverage
    );
    assert!(naive < -5.0 * naive_error, "the plain mean should be biased");
    assert!(left.abs() < 3.0 * error, "{left} ± {error}");
    assert!(coverage > 0.92);
}

fn experiment(salt: &str, weights: &[f64]) -> Experiment {
    let arms = weights.iter().enumerate().map(|(at, &weight)| Arm {
        name: format!("arm {at}"),
        weight,
    });
    Experiment::try_from(Plan {
        name: salt.into(),
        salt: salt.into(),
        unit: Unit::User,
        population: Population::default(),
        traffic: Traffic::share(1.0),
        arms: arms.collect(),
        start: None,
        end: None,
    })
    .unwrap()
}

#[test]
fn assignment_is_uniform_sticky_and_independent_between_experiments() {
    let weights = [0.2, 0.3, 0.5];
    let (one, replica, other) = (
        experiment("one", &weights),
        experiment("one", &weights),
        experiment("two", &weights),
    );
    let nobody = Attributes::new();
    let arm = |experiment: &Experiment, unit: &str| {
        experiment
            .assign(unit, &nobody, 0)
            .unwrap()
            .map(|assignment| assignment.index)
            .unwrap()
    };
    let (mut counts, mut table, mut agreed) = ([0u64; 3], [0u64; 9], 0);
    let units = 200_000;
    for unit in 0..units {
        let unit = format!("user-{unit}");
        let (a, b) = (arm(&one, &unit), arm(&other, &unit));
        agreed += u32::from(arm(&replica, &unit) == a);
        counts[a] += 1;
        table[3 * a + b] += 1;
    }
    let uniform = chi_square(&counts, &weights).unwrap();
    let products: Vec<f64> = weights
        .iter()
        .flat_map(|a| weights.iter().map(move |b| a * b))
        .collect();
    let independent = chi_square(&table, &products).unwrap();
    println!("{units} units, weights {weights:?}: {counts:?}, chi-square p = {uniform:.2}");
    println!(
        "against another experiment's arms: chi-square p = {independent:.2}; {agreed} alike on a replica"
    );
    assert!(uniform > 0.001 && independent > 0.001);
    assert_eq!(agreed, units);
}
