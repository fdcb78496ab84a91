//! How good a gain model is: its curve beside those of a random ranking and of the oracle.

use super::curve::{self, Figures, Outcome};
use super::{GainModel, GainRow, outcomes};
use crate::RouterError;
use serde::Serialize;
use std::fmt;

/// The figures of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Rows.
    pub n: usize,
    /// Share that the weak model has right: what never asking the strong one gives.
    pub weak_accuracy: f64,
    /// Share that the strong model has right: what always asking it gives, at a share of strong calls of 1.
    pub strong_accuracy: f64,
    /// Share that either has right: what a perfect choice gives.
    pub oracle_accuracy: f64,
    /// By predicted gain.
    pub router: Figures,
    /// By chance, in expectation.
    pub random: Figures,
    /// By the true gain.
    pub oracle: Figures,
    /// Resamples of the intervals.
    pub resamples: usize,
    /// Their seed.
    pub seed: u64,
}

/// Figures of predicted gains.
///
/// # Errors
/// Those of [`curve::figures`] and [`outcomes`].
pub fn figures(
    rows: &[GainRow],
    gains: &[f32],
    resamples: usize,
    seed: u64,
) -> Result<Evaluation, RouterError> {
    let outcomes = outcomes(rows)?;
    let scores: Vec<f64> = gains.iter().copied().map(f64::from).collect();
    let chance = vec![0.0; rows.len()];
    let truth: Vec<f64> = outcomes.iter().map(|outcome| outcome.gain() as f64).collect();
    let found = curve::figures(&[&scores, &chance, &truth], &outcomes, resamples, seed)?;
    let [router, random, oracle] = found
        .try_into()
        .map_err(|found: Vec<Figures>| RouterError::Invalid {
            field: "rankings",
            value: found.len().to_string(),
            fix: "report this as a defect".to_owned(),
        })?;
    let share = |is: fn(&Outcome) -> bool| {
        outcomes.iter().filter(|outcome| is(outcome)).count() as f64 / outcomes.len().max(1) as f64
    };
    Ok(Evaluation {
        n: rows.len(),
        weak_accuracy: share(|outcome| outcome.weak),
        strong_accuracy: share(|outcome| outcome.strong),
        oracle_accuracy: share(|outcome| outcome.weak || outcome.strong),
        router,
        random,
        oracle,
        resamples,
        seed,
    })
}

/// Predicts the gain of every row. `progress` hears the number of rows done.
pub fn predict(
    model: &GainModel,
    rows: &[GainRow],
    mut progress: impl FnMut(usize),
) -> Result<Vec<f32>, RouterError> {
    let mut gains = Vec::with_capacity(rows.len());
    for row in rows {
        gains.extend(model.gains(&[&row.prompt])?);
        progress(gains.len());
    }
    Ok(gains)
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "n {}; right: weak {:.3}, strong {:.3}, a perfect choice {:.3}\n",
            self.n, self.weak_accuracy, self.strong_accuracy, self.oracle_accuracy
        )?;
        writeln!(
            f,
            "{:<14} {:<22} {:<22} {:<22}",
            "ranking", "APGR", "CPT50", "CPT80"
        )?;
        for (name, figures) in [
            ("router", self.router),
            ("random", self.random),
            ("oracle", self.oracle),
        ] {
            write!(f, "{name:<14}")?;
            for estimate in [figures.apgr, figures.cpt50, figures.cpt80] {
                let cell = format!(
                    "{:.3} [{:.3}, {:.3}]",
                    estimate.value, estimate.low, estimate.high
                );
                write!(f, " {cell:<22}")?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "always strong  recovers the whole gap at a share of strong calls of 1"
        )?;
        writeln!(
            f,
            "\n95% intervals: bootstrap over rows, {} resamples, seed {}",
            self.resamples, self.seed
        )
    }
}
