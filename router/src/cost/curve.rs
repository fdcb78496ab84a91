//! What a ranking of queries by "worth the strong model" buys: PGR, APGR, CPT (RouteLLM, arXiv 2406.18665).
//!
//! Send the share `c` of queries with the highest scores to the strong model, the others to the weak one, and let `r(c)`
//! be the share answered right. With `w = r(0)` and `s = r(1)`,
//! - `PGR(c) = (r(c) − w) / (s − w)`: the part of the quality gap recovered;
//! - `APGR`: the area under PGR over `c` in [0, 1], by trapezoids at every query; 0.5 for a random ranking;
//! - `CPT(x)`: the smallest `c` at which PGR reaches `x`, interpolated between queries.
//!
//! Queries of equal score are sent together in a random order, of which the expectation is taken: a straight line.
//! Intervals are percentile bootstraps over queries.

use crate::RouterError;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Whether each model answered a query right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// The strong model did.
    pub strong: bool,
    /// The weak model did.
    pub weak: bool,
}

impl Outcome {
    /// What sending the query to the strong model gains: −1, 0 or 1.
    pub fn gain(self) -> i64 {
        i64::from(self.strong) - i64::from(self.weak)
    }
}

/// A figure with its 95% bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// On the rows as they are.
    pub value: f64,
    /// 2.5th percentile of the resamples.
    pub low: f64,
    /// 97.5th percentile of the resamples.
    pub high: f64,
}

/// What one ranking buys.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Area under the curve of recovered performance.
    pub apgr: Estimate,
    /// Share of strong calls that recovers half of the gap.
    pub cpt50: Estimate,
    /// Share of strong calls that recovers four fifths of the gap.
    pub cpt80: Estimate,
}

/// Queries in the order in which they are sent to the strong model.
struct Ranking {
    /// Gain of each query, highest score first.
    gains: Vec<i64>,
    /// End of each run of equal scores.
    ends: Vec<usize>,
    /// Index of each query in the data.
    order: Vec<usize>,
}

impl Ranking {
    fn new(scores: &[f64], outcomes: &[Outcome]) -> Self {
        let mut order: Vec<usize> = (0..scores.len().min(outcomes.len())).collect();
        let score = |i: &usize| scores.get(*i).copied().unwrap_or(f64::NEG_INFINITY);
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let gains = order
            .iter()
            .filter_map(|i| outcomes.get(*i))
            .map(|o| o.gain())
            .collect();
        let ends = (1..=order.len())
            .filter(|&end| {
                order
                    .get(end)
                    .is_none_or(|next| score(next).total_cmp(&score(&order[end - 1])).is_ne())
            })
            .collect();
        Self { gains, ends, order }
    }

    /// APGR, CPT50 and CPT80 where query `i` of the data counts `counts[i]` times; `None` if the strong model is no
    /// better than the weak one then.
    fn figures(&self, counts: &[u32]) -> Option<[f64; 3]> {
        let count = |place: usize| self.order.get(place).and_then(|i| counts.get(*i)).copied();
        let blocks: Vec<(f64, f64)> = self
            .ends
            .iter()
            .scan(0, |start, &end| {
                let mut block = (0i64, 0i64);
                for place in *start..end {
                    let times = i64::from(count(place).unwrap_or(0));
                    block = (block.0 + times, block.1 + times * self.gains[place]);
                }
                *start = end;
                Some((block.0 as f64, block.1 as f64))
            })
            .collect();
        let (n, gap) = blocks
            .iter()
            .fold((0.0, 0.0), |sum, b| (sum.0 + b.0, sum.1 + b.1));
        if gap <= 0.0 {
            return None;
        }
        let (mut sent, mut gained, mut area) = (0.0, 0.0, 0.0);
        let (mut cpt50, mut cpt80) = (None, None);
        for (queries, gain) in blocks {
            for (cpt, part) in [(&mut cpt50, 0.5), (&mut cpt80, 0.8)] {
                let wanted = part * gap;
                if cpt.is_none() && gained + gain >= wanted && gain > 0.0 {
                    *cpt = Some((sent + queries * (wanted - gained) / gain) / n);
                }
            }
            area += queries * (gained + gain / 2.0);
            sent += queries;
            gained += gain;
        }
        Some([area / (n * gap), cpt50.unwrap_or(1.0), cpt80.unwrap_or(1.0)])
    }
}

/// APGR, CPT50 and CPT80 of several rankings of the same queries, each with its interval from `resamples` resamples.
/// All rankings meet the same resamples. A resample in which the strong model is no better is left out.
///
/// # Errors
/// [`RouterError::Invalid`] if the strong model is not better than the weak one (no gap, no figures), if scores and
/// outcomes are not of one length, or if a score is not a number.
pub fn figures(
    rankings: &[&[f64]],
    outcomes: &[Outcome],
    resamples: usize,
    seed: u64,
) -> Result<Vec<Figures>, RouterError> {
    let n = outcomes.len();
    for scores in rankings {
        if scores.len() != n || scores.iter().any(|score| score.is_nan()) {
            return Err(RouterError::Invalid {
                field: "scores",
                value: format!("{} for {n} queries", scores.len()),
                fix: "give one number for each query".to_owned(),
            });
        }
    }
    let ranked: Vec<Ranking> = rankings
        .iter()
        .map(|scores| Ranking::new(scores, outcomes))
        .collect();
    let once = vec![1; n];
    let values = ranked.iter().map(|ranking| ranking.figures(&once));
    let Some(values) = values.collect::<Option<Vec<[f64; 3]>>>() else {
        let right = |is_right: fn(&Outcome) -> bool| outcomes.iter().filter(|o| is_right(o)).count();
        return Err(RouterError::Invalid {
            field: "strong_correct",
            value: format!("{} of {n} right", right(|o| o.strong)),
            fix: format!(
                "the strong model must be right more often than the weak one, which has {}: are the columns swapped?",
                right(|o| o.weak)
            ),
        });
    };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut samples = vec![[const { Vec::new() }; 3]; ranked.len()];
    let mut counts = vec![0u32; n];
    for _ in 0..resamples {
        counts.fill(0);
        for _ in 0..n {
            counts[random.random_range(0..n)] += 1;
        }
        for (ranking, samples) in ranked.iter().zip(&mut samples) {
            let drawn = ranking.figures(&counts);
            for (values, value) in samples.iter_mut().zip(drawn.into_iter().flatten()) {
                values.push(value);
            }
        }
    }
    Ok(values
        .into_iter()
        .zip(samples)
        .map(|([apgr, cpt50, cpt80], [a, b, c])| Figures {
            apgr: estimate(apgr, a),
            cpt50: estimate(cpt50, b),
            cpt80: estimate(cpt80, c),
        })
        .collect())
}

fn estimate(value: f64, mut samples: Vec<f64>) -> Estimate {
    samples.sort_by(f64::total_cmp);
    // Nearest rank; without resamples the interval is the value itself.
    let at = |numerator: usize| {
        let rank = (samples.len() * numerator).div_ceil(1000).max(1);
        samples.get(rank - 1).copied().unwrap_or(value)
    };
    Estimate {
        value,
        low: at(25),
        high: at(975),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GAIN: Outcome = Outcome {
        strong: true,
        weak: false,
    };
    const LOSS: Outcome = Outcome {
        strong: false,
        weak: true,
    };
    const BOTH: Outcome = Outcome {
        strong: true,
        weak: true,
    };

    fn of(scores: &[f64], outcomes: &[Outcome]) -> [f64; 3] {
        let figures = figures(&[scores], outcomes, 0, 0).unwrap()[0];
        [figures.apgr.value, figures.cpt50.value, figures.cpt80.value]
    }

    fn close(found: [f64; 3], expected: [f64; 3]) {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn figures_are_those_computed_by_hand() {
        // PGR at 0, 1/4, … is 0, ½, ½, 1, 1: areas of a quarter's width, 1/4, 1/2, 3/4, 1.
        close(
            of(&[0.9, 0.7, 0.5, 0.1], &[GAIN, BOTH, GAIN, BOTH]),
            [2.5 / 4.0, 0.25, 0.65],
        );
        // A loss makes PGR fall and pass the mark again: the first time counts. 0, 1, 0, 1, 1.
        close(
            of(&[4.0, 3.0, 2.0, 1.0], &[GAIN, LOSS, GAIN, BOTH]),
            [0.25 * (0.5 + 0.5 + 0.5 + 1.0), 0.125, 0.2],
        );
        // Equal scores are a straight line, whatever the order of the rows.
        close(of(&[1.0; 3], &[GAIN, BOTH, BOTH]), [0.5, 0.5, 0.8]);
        // The two best queries tie: the line to 1 ends after both.
        close(
            of(&[2.0, 2.0, 1.0, 1.0], &[BOTH, GAIN, BOTH, BOTH]),
            [0.75, 0.25, 0.4],
        );
        // PGR may rise above 1: 0, 1, 2, 1.
        close(
            of(&[3.0, 2.0, 1.0], &[GAIN, GAIN, LOSS]),
            [3.5 / 3.0, 0.5 / 3.0, 0.8 / 3.0],
        );
    }

    #[test]
    fn the_interval_repeats_and_holds_the_value() {
        let outcomes: Vec<Outcome> = (0..300).map(|i| if i % 3 == 0 { GAIN } else { BOTH }).collect();
        let scores: Vec<f64> = (0..300)
            .map(|i| f64::from((i * 7919 % 300) - (i % 3) * 60))
            .collect();
        let flat = vec![0.0; 300];
        let run = |seed| figures(&[&scores, &flat], &outcomes, 400, seed).unwrap();
        let found = run(1);
        assert_eq!(found, run(1));
        assert_ne!(found[0].apgr, run(2)[0].apgr);
        let apgr = found[0].apgr;
        assert!(apgr.low < apgr.value && apgr.value < apgr.high, "{apgr:?}");
        assert!(apgr.high - apgr.low < 0.2);
        assert_eq!((found[1].apgr.low, found[1].apgr.high), (0.5, 0.5));
    }

    #[test]
    fn a_strong_model_that_is_no_better_is_refused() {
        let error = figures(&[&[1.0, 2.0]], &[GAIN, LOSS], 10, 0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("1 of 2 right") && error.contains("swapped"),
            "{error}"
        );
        assert!(figures(&[&[1.0]], &[GAIN, BOTH], 10, 0).is_err());
        assert!(figures(&[&[f64::NAN, 1.0]], &[GAIN, BOTH], 10, 0).is_err());
        assert!(figures(&[&[]], &[], 10, 0).is_err());
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        (any::<bool>(), any::<bool>()).prop_map(|(strong, weak)| Outcome { strong, weak })
    }

    proptest! {
        /// Only the order of scores matters; no ranking beats the oracle; a ranking and its reverse add up to 1.
        #[test]
        fn rankings_keep_their_laws(rows in proptest::collection::vec((0i32..20, outcome()), 1..60)) {
            let outcomes: Vec<Outcome> = rows.iter().map(|row| row.1).collect();
            prop_assume!(outcomes.iter().map(|o| o.gain()).sum::<i64>() > 0);
            let scores: Vec<f64> = rows.iter().map(|row| f64::from(row.0)).collect();
            let stretched: Vec<f64> = scores.iter().map(|score| (score / 5.0).exp()).collect();
            let reversed: Vec<f64> = scores.iter().map(|score| -score).collect();
            let oracle: Vec<f64> = outcomes.iter().map(|o| o.gain() as f64).collect();
            let found = figures(&[&scores, &stretched, &reversed, &oracle], &outcomes, 0, 0).unwrap();
            prop_assert_eq!(found[0], found[1]);
            prop_assert!((found[0].apgr.value + found[2].apgr.value - 1.0).abs() < 1e-9);
            prop_assert!(found[0].apgr.value <= found[3].apgr.value + 1e-9);
            prop_assert!(found[0].cpt50.value + 1e-9 >= found[3].cpt50.value);
            prop_assert!((0.0..=1.0).contains(&found[0].cpt50.value));
            prop_assert!(found[0].cpt50.value <= found[0].cpt80.value + 1e-12);
        }
    }
}
