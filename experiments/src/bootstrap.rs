//! Offline comparison on the same questions: win, tie or loss by a paired bootstrap.
//!
//! As in "The Limited Impact of Medical Adaptation" (arXiv 2411.08870): questions are drawn again with
//! replacement, both arms' scores of a question stay together, and arm A wins if the 2.5th percentile of its
//! mean lead is above 0, loses if the 97.5th is below, else ties. Each arm is first given the prompt form that
//! suits it, chosen on validation questions, because a comparison under one form favours the model it was
//! written for. The percentile interval is Efron's (1979).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{at_least, finite, open_unit};
use crate::{Error, Interval};

/// How to resample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// How often the questions are drawn anew, ≥ 100; the paper's 10,000.
    pub resamples: u32,
    /// The interval's error, in (0, 1); 0.05 takes the 2.5th and the 97.5th percentile.
    pub error: f64,
    /// The same seed draws the same questions, for every pair of forms.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self {
            resamples: 10_000,
            error: 0.05,
            seed: 0,
        }
    }
}

/// Who leads, by the interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Arm A leads: the interval is above 0.
    Win,
    /// The interval holds 0.
    Tie,
    /// Arm B leads: the interval is below 0.
    Loss,
}

/// A paired comparison.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Lead {
    /// Mean score of A less that of B, in the score's unit.
    pub value: f64,
    /// The percentile interval of that.
    pub interval: Interval,
    /// What it says.
    pub verdict: Verdict,
}

/// One prompt form of one arm, with its scores question by question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Form {
    /// Its name.
    pub name: String,
    /// Scores of the validation questions, on which the form is chosen.
    pub validation: Vec<f64>,
    /// Scores of the test questions, in the same order for both arms.
    pub test: Vec<f64>,
}

/// One form of A against one form of B.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FormPair {
    /// A's form.
    pub a: String,
    /// B's form.
    pub b: String,
    /// The comparison on the test questions.
    pub lead: Lead,
}

/// Two arms, each under its forms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Each under the form best on its validation questions (the first of equals): the headline.
    pub selected: FormPair,
    /// Every form of A against every form of B: how far the verdict hangs on the form.
    pub crossed: Vec<FormPair>,
    /// Of `crossed`, how many A won.
    pub wins: usize,
    /// How many were ties.
    pub ties: usize,
    /// How many A lost.
    pub losses: usize,
}

impl Bootstrap {
    /// Compares scores question by question: `a[i]` and `b[i]` are of the same question.
    ///
    /// # Errors
    /// [`Error::Length`] for scores that do not pair; [`Error::TooFew`] below two questions or 100 resamples;
    /// [`Error::NotFinite`]; [`Error::OutOfRange`] for a bad error.
    pub fn paired(&self, a: &[f64], b: &[f64]) -> Result<Lead, Error> {
        open_unit("bootstrap.error", self.error)?;
        at_least("bootstrap.resamples", u64::from(self.resamples), 100)?;
        if a.len() != b.len() {
            return Err(Error::Length {
                field: "scores of b",
                got: b.len(),
                expected: a.len(),
            });
        }
        at_least("scores", a.len() as u64, 2)?;
        let mut leads = Vec::with_capacity(a.len());
        for (&one, &other) in a.iter().zip(b) {
            leads.push(finite("score of a", one)? - finite("score of b", other)?);
        }
        let count = leads.len();
        let mean = |sum: f64| finite("mean lead", sum / count as f64);
        let value = mean(leads.iter().sum())?;
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut means = Vec::with_capacity(self.resamples as usize);
        for _ in 0..self.resamples {
            means.push(mean(
                (0..count).map(|_| leads[random.random_range(0..count)]).sum(),
            )?);
        }
        means.sort_unstable_by(f64::total_cmp);
        let interval = Interval {
            low: percentile(&means, 0.5 * self.error),
            high: percentile(&means, 1.0 - 0.5 * self.error),
        };
        let verdict = if interval.low > 0.0 {
            Verdict::Win
        } else if interval.high < 0.0 {
            Verdict::Loss
        } else {
            Verdict::Tie
        };
        Ok(Lead {
            value,
            interval,
            verdict,
        })
    }

    /// Compares two arms, each under its own prompt forms.
    ///
    /// # Errors
    /// [`Error::TooFew`] for an arm without forms or a form without validation scores; else as
    /// [`Bootstrap::paired`].
    pub fn compare(&self, a: &[Form], b: &[Form]) -> Result<Comparison, Error> {
        let (best_a, best_b) = (best("forms of a", a)?, best("forms of b", b)?);
        let mut crossed = Vec::with_capacity(a.len() * b.len());
        for one in a {
            for other in b {
                let lead = self.paired(&one.test, &other.test)?;
                crossed.push(FormPair {
                    a: one.name.clone(),
                    b: other.name.clone(),
                    lead,
                });
            }
        }
        let selected = crossed[best_a * b.len() + best_b].clone();
        let count = |verdict| crossed.iter().filter(|pair| pair.lead.verdict == verdict).count();
        let (wins, ties, losses) = (count(Verdict::Win), count(Verdict::Tie), count(Verdict::Loss));
        Ok(Comparison {
            selected,
            crossed,
            wins,
            ties,
            losses,
        })
    }
}

/// The position of the form with the best validation mean.
fn best(field: &'static str, forms: &[Form]) -> Result<usize, Error> {
    at_least(field, forms.len() as u64, 1)?;
    let mut best = (0, f64::NEG_INFINITY);
    for (at, form) in forms.iter().enumerate() {
        at_least("form.validation", form.validation.len() as u64, 1)?;
        form.validation
            .iter()
            .try_for_each(|&score| finite("form.validation", score).map(drop))?;
        let mean = form.validation.iter().sum::<f64>() / form.validation.len() as f64;
        if mean > best.1 {
            best = (at, mean);
        }
    }
    Ok(best.0)
}

/// The `share` quantile of sorted values, interpolated linearly (Hyndman & Fan 1996, type 7, as NumPy's).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Bootstrap = Bootstrap {
        resamples: 2_000,
        error: 0.05,
        seed: 3,
    };

    fn form(name: &str, validation: f64, right: usize, of: usize) -> Form {
        let test = (0..of).map(|at| f64::from(u8::from(at < right))).collect();
        Form {
            name: name.into(),
            validation: vec![validation],
            test,
        }
    }

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 0.5), 3.0);
        assert!((percentile(&values, 0.975) - 7.7).abs() < 1e-12);
    }

    #[test]
    fn the_interval_is_near_the_normal_one_on_many_questions() {
        let leads: Vec<f64> = (0..400).map(|at| f64::from(at % 5) - 1.5).collect();
        let lead = Bootstrap {
            resamples: 10_000,
            ..QUICK
        }
        .paired(&leads, &vec![0.0; 400])
        .unwrap();
        // Mean 0.5, deviation √2 over 400 questions.
        let radius = 1.96 * (2.0f64 / 400.0).sqrt();
        assert!((lead.value - 0.5).abs() < 1e-12);
        assert!((lead.interval.low - (0.5 - radius)).abs() < 0.01, "{lead:?}");
        assert!((lead.interval.high - (0.5 + radius)).abs() < 0.01, "{lead:?}");
        assert_eq!(lead.verdict, Verdict::Win);
    }

    #[test]
    fn swapping_the_arms_swaps_the_verdict_and_pairing_counts() {
        let (strong, weak) = (form("x", 0.0, 70, 100), form("x", 0.0, 55, 100));
        assert_eq!(
            QUICK.paired(&strong.test, &weak.test).unwrap().verdict,
            Verdict::Win
        );
        assert_eq!(
            QUICK.paired(&weak.test, &strong.test).unwrap().verdict,
            Verdict::Loss
        );
        // The same rates on other questions no longer go together: the interval is wider.
        let shifted: Vec<f64> = weak.test.iter().rev().copied().collect();
        assert_eq!(
            QUICK.paired(&strong.test, &shifted).unwrap().verdict,
            Verdict::Tie
        );
        assert_eq!(
            QUICK.paired(&strong.test, &strong.test).unwrap().verdict,
            Verdict::Tie
        );
    }

    #[test]
    fn each_arm_gets_its_own_best_form() {
        let a = [form("plain", 0.5, 40, 100), form("letters", 0.6, 60, 100)];
        let b = [form("plain", 0.7, 60, 100), form("letters", 0.4, 90, 100)];
        let comparison = QUICK.compare(&a, &b).unwrap();
        assert_eq!(
            (comparison.selected.a.as_str(), comparison.selected.b.as_str()),
            ("letters", "plain")
        );
        assert_eq!(comparison.selected.lead.verdict, Verdict::Tie);
        assert_eq!((comparison.wins, comparison.ties, comparison.losses), (0, 1, 3));
    }

    #[test]
    fn bad_input_is_named() {
        assert!(matches!(
            QUICK.paired(&[1.0, 2.0], &[1.0]),
            Err(Error::Length { .. })
        ));
        assert!(matches!(
            QUICK.paired(&[1.0, f64::NAN], &[1.0, 1.0]),
            Err(Error::NotFinite { .. })
        ));
        assert!(matches!(QUICK.paired(&[], &[]), Err(Error::TooFew { .. })));
        assert!(matches!(
            QUICK.compare(&[], &[]),
            Err(Error::TooFew {
                field: "forms of a",
                ..
            })
        ));
        let few = Bootstrap {
            resamples: 1,
            ..QUICK
        };
        assert!(matches!(
            few.paired(&[1.0, 2.0], &[1.0, 2.0]),
            Err(Error::TooFew { .. })
        ));
    }
}
