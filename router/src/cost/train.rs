//! Training of a gain model: features once, then convex fits, choices by cross-validation.
//!
//! Regularisers and the groups' share are those with the best out-of-fold APGR on the training rows
//! alone, one coordinate at a time; the dev rows choose nothing, so that their figures stay honest. Afterwards
//! the heads are fitted to all training rows, and the dev rows give the quantiles from which thresholds are set.

mod card;

use super::curve::{self, Outcome};
use super::evaluate::{Evaluation, figures};
use super::file::{FORMAT, GainFile, OUTCOMES, Settings};
use super::{GainRow, group_gain, outcome_gain};
use crate::RouterError;
use crate::functional::{ModelIdentity, PROMPT, ReadOut, ReadOutSpec, Window};
use crate::train::{Head, Problem, SourceFile, candidate_features, extract};
use candle_core::{Device, Tensor};
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use referral_lm::train::pooled::moments;
use referral_lm::{LanguageModel, LmError};
use serde::Serialize;
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

/// Most steps of one fit.
const ITERATIONS: usize = 80;
/// Parts of the cross-validation.
const FOLDS: usize = 4;
/// Rows of the mean gain that a group's own mean is drawn to.
const PRIOR_ROWS: f32 = 20.0;
/// Steps between the quantiles of the predicted gain.
const QUANTILES: usize = 200;
/// Resamples of the report's intervals.
const RESAMPLES: usize = 10_000;

/// What to train on and how.
#[derive(Debug, Clone)]
pub struct TrainGainOptions {
    /// Training rows.
    pub data: PathBuf,
    /// Held-out rows: they choose nothing but give the report's figures and the thresholds' quantiles.
    pub dev: PathBuf,
    /// Directory to write; created if missing.
    pub out: PathBuf,
    /// The deepest layer read.
    pub layer: usize,
    /// Draws the folds and the resamples.
    pub seed: u64,
    /// File that keeps features from run to run.
    pub feature_cache: Option<PathBuf>,
}

/// What was chosen, or tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Choices {
    /// Regulariser of the outcomes' head.
    pub l2: f32,
    /// Regulariser of the groups' head.
    pub group_l2: f32,
    /// Part of the groups in the predicted gain.
    pub group_share: f32,
    /// Out-of-fold APGR on the training rows.
    pub apgr: f64,
}

/// The result of a training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The data.
    pub sources: Vec<SourceFile>,
    /// The deepest layer read.
    pub layer: usize,
    /// The seed.
    pub seed: u64,
    /// Training rows left out because their prompt is in the dev file too.
    pub dropped_rows: usize,
    /// What was chosen.
    pub choices: Choices,
    /// All that was tried.
    pub grid: Vec<Choices>,
    /// Figures on the dev rows.
    pub dev: Evaluation,
}

/// The training rows as numbers.
struct Lab {
    standard: Vec<Vec<f32>>,
    outcomes: Vec<Outcome>,
    /// Group of each row, and how many there are; none if a row has no subject.
    groups: Option<(Vec<usize>, usize)>,
    /// Fold of each row.
    folds: Vec<usize>,
}

/// Trains a gain model on `model` and writes it, its report and its card into `options.out`.
///
/// # Errors
/// [`RouterError::BadRow`] and [`RouterError::BadFile`] for the data, [`RouterError::Invalid`] for options and for data in
/// which the strong model is no better.
pub fn train_gain(
    model: &LanguageModel,
    options: &TrainGainOptions,
    progress: &ProgressBar,
) -> Result<Report, RouterError> {
    let mut rows = super::read_file(&options.data)?;
    let dev = super::read_file(&options.dev)?;
    let sources = vec![
        SourceFile::named(&options.data, "train", rows.len())?,
        SourceFile::named(&options.dev, "dev", dev.len())?,
    ];
    let dropped_rows = drop_leaks(&mut rows, &dev);
    if rows.len() < 2 * FOLDS {
        return Err(RouterError::BadFile {
            path: options.data.clone(),
            what: "strong-or-weak data",
            detail: format!(
                "it has {} rows that are not in dev: {} are too few",
                rows.len(),
                2 * FOLDS - 1
            ),
        });
    }
    // Data without a gap between the models has no figures: told before the features are computed.
    let outcomes = super::outcomes(&rows)?;
    for known in [&outcomes, &super::outcomes(&dev)?] {
        curve::figures(&[&vec![0.0; known.len()]], known, 0, 0)?;
    }
    let features = candidate_features(model.info().layers, Some(options.layer));
    let read_out_spec = ReadOutSpec {
        prompt: PROMPT.to_owned(),
        window: Window::default(),
        features: features.into_iter().flatten().collect(),
    };
    let read_out = ReadOut::new(model.clone(), read_out_spec.clone(), None)?;
    let prompts: Vec<&str> = rows.iter().chain(&dev).map(|row| row.prompt.as_str()).collect();
    let mut read = extract(
        model,
        &read_out,
        &prompts,
        options.feature_cache.as_deref(),
        progress,
    )?;
    let dev_read = read.split_off(rows.len());

    progress.set_message("fitting");
    let (mean, scale) = moments(read.iter().map(Vec::as_slice), read_out_spec.features.len());
    let (names, groups) = groups(&rows);
    let lab = Lab {
        standard: read
            .iter()
            .map(|row| {
                let standard = row.iter().zip(&mean).zip(&scale);
                standard
                    .map(|((x, mean), scale)| (x.to_f32() - mean) / scale)
                    .collect()
            })
            .collect(),
        outcomes,
        groups,
        folds: folds(rows.len(), options.seed),
    };
    let (choices, grid) = lab.search(progress)?;

    let all: Vec<usize> = (0..rows.len()).collect();
    let matrix = lab.matrix(&all)?;
    let uses_groups = choices.group_share > 0.0;
    let mut file = GainFile {
        outcomes: lab.fit_outcomes(&all, &matrix, choices.l2)?,
        groups: lab.fit_groups(&all, &matrix, choices.group_l2, uses_groups)?,
        settings: Settings {
            format: FORMAT,
            model: ModelIdentity::of(model),
            read_out: read_out_spec,
            group_share: choices.group_share,
            groups: if uses_groups { names } else { Vec::new() },
            group_gains: if uses_groups {
                lab.group_gains(&all)
            } else {
                Vec::new()
            },
            gain_quantiles: Vec::new(),
        },
        mean,
        scale,
    };
    let dev_gains = dev_read.iter().map(|read| {
        let read: Vec<f32> = read.iter().map(|x| x.to_f32()).collect();
        file.gain(&file.standardise(&read))
    });
    let dev_gains: Vec<f32> = dev_gains.collect();
    let report = Report {
        sources,
        layer: options.layer,
        seed: options.seed,
        dropped_rows,
        choices,
        grid,
        dev: figures(&dev, &dev_gains, RESAMPLES, options.seed)?,
    };
    file.settings.gain_quantiles = quantiles(dev_gains);
    std::fs::create_dir_all(&options.out).map_err(|source| RouterError::Io {
        path: options.out.clone(),
        source,
    })?;
    file.save(&options.out)?;
    report.save(&options.out, &file.settings.model)?;
    Ok(report)
}

impl Lab {
    /// Inputs of some rows.
    fn matrix(&self, rows: &[usize]) -> Result<Tensor, RouterError> {
        let matrix: Vec<f32> = rows
            .iter()
            .flat_map(|row| &self.standard[*row])
            .copied()
            .collect();
        let columns = matrix.len() / rows.len().max(1);
        Ok(Tensor::from_vec(matrix, (rows.len(), columns), &Device::Cpu).map_err(LmError::from)?)
    }

    fn fit_outcomes(&self, rows: &[usize], matrix: &Tensor, l2: f32) -> Result<Head, RouterError> {
        let class = |row: &usize| {
            let Outcome { strong, weak } = self.outcomes[*row];
            2 * usize::from(strong) + usize::from(weak)
        };
        let labels: Vec<usize> = rows.iter().map(class).collect();
        fit(matrix, &labels, OUTCOMES, l2)
    }

    /// An empty head where there are no groups, or none are wanted.
    fn fit_groups(
        &self,
        rows: &[usize],
        matrix: &Tensor,
        l2: f32,
        wanted: bool,
    ) -> Result<Head, RouterError> {
        match &self.groups {
            Some((of, count)) if wanted => {
                let labels: Vec<usize> = rows.iter().map(|row| of[*row]).collect();
                fit(matrix, &labels, *count, l2)
            }
            _ => Ok(Head {
                rows: Vec::new(),
                bias: Vec::new(),
            }),
        }
    }

    /// Mean gain of each group among some rows, drawn to the mean of all.
    fn group_gains(&self, rows: &[usize]) -> Vec<f32> {
        let Some((of, count)) = &self.groups else {
            return Vec::new();
        };
        let gain = |row: &usize| self.outcomes[*row].gain() as f32;
        let mean = rows.iter().map(gain).sum::<f32>() / rows.len().max(1) as f32;
        let mut sums = vec![(PRIOR_ROWS, PRIOR_ROWS * mean); *count];
        for row in rows {
            let sum = &mut sums[of[*row]];
            *sum = (sum.0 + 1.0, sum.1 + gain(row));
        }
        sums.into_iter().map(|(n, gain)| gain / n).collect()
    }

    /// Predicts every row by heads fitted to the other folds; `predict` gets (training rows, their matrix, the logits).
    fn out_of_fold(
        &self,
        mut fit: impl FnMut(&[usize], &Tensor) -> Result<Box<dyn Fn(&[f32]) -> f32>, RouterError>,
    ) -> Result<Vec<f32>, RouterError> {
        let mut gains = vec![0.0; self.folds.len()];
        for fold in 0..FOLDS {
            let (held, rows): (Vec<usize>, Vec<usize>) =
                (0..self.folds.len()).partition(|row| self.folds[*row] == fold);
            let predict = fit(&rows, &self.matrix(&rows)?)?;
            for row in held {
                gains[row] = predict(&self.standard[row]);
            }
        }
        Ok(gains)
    }

    fn apgr(&self, gains: &[f32]) -> Result<f64, RouterError> {
        let scores: Vec<f64> = gains.iter().copied().map(f64::from).collect();
        let found = curve::figures(&[&scores], &self.outcomes, 0, 0)?;
        Ok(found.first().map_or(0.0, |figures| figures.apgr.value))
    }

    /// Coordinate search: the outcomes' `l2`, then the groups' `l2` and share.
    fn search(&self, progress: &ProgressBar) -> Result<(Choices, Vec<Choices>), RouterError> {
        let mut grid = Vec::new();
        let own = |choices: &Choices| {
            self.out_of_fold(|rows, matrix| {
                let head = self.fit_outcomes(rows, matrix, choices.l2)?;
                Ok(Box::new(move |inputs: &[f32]| outcome_gain(&head.logits(inputs))))
            })
        };
        let mut best: Option<(Choices, Vec<f32>)> = None;
        let mut consider = |choices: Choices, gains: Vec<f32>, best: &mut Option<(Choices, Vec<f32>)>| {
            let choices = Choices {
                apgr: self.apgr(&gains)?,
                ..choices
            };
            progress.set_message(format!("fitting: APGR {:.4}", choices.apgr));
            grid.push(choices);
            if best.as_ref().is_none_or(|(best, _)| choices.apgr > best.apgr) {
                *best = Some((choices, gains));
            }
            Ok::<(), RouterError>(())
        };
        let start = Choices {
            l2: 0.3,
            group_l2: 0.03,
            group_share: 0.0,
            apgr: 0.0,
        };
        for l2 in [0.03, 0.1, 0.3, 1.0] {
            let choices = Choices { l2, ..start };
            consider(choices, own(&choices)?, &mut best)?;
        }
        let (base, own) = best.clone().unwrap_or((start, Vec::new()));
        if self.groups.is_some() {
            for group_l2 in [0.01, 0.03] {
                let by_group = self.out_of_fold(|rows, matrix| {
                    let head = self.fit_groups(rows, matrix, group_l2, true)?;
                    let gains = self.group_gains(rows);
                    Ok(Box::new(move |inputs: &[f32]| {
                        group_gain(&head.logits(inputs), &gains)
                    }))
                })?;
                for group_share in [0.2, 0.3, 0.4, 0.6, 0.8, 1.0] {
                    let choices = Choices {
                        group_l2,
                        group_share,
                        ..base
                    };
                    let mixed = own.iter().zip(&by_group);
                    let mixed = mixed.map(|(own, group)| (1.0 - group_share) * own + group_share * group);
                    consider(choices, mixed.collect(), &mut best)?;
                }
            }
        }
        Ok((best.map_or(start, |(choices, _)| choices), grid))
    }
}

fn fit(matrix: &Tensor, labels: &[usize], classes: usize, l2: f32) -> Result<Head, RouterError> {
    let weights = vec![1.0 / labels.len().max(1) as f32; labels.len()];
    let problem = Problem {
        features: matrix,
        labels,
        weights: &weights,
        classes,
        l2,
    };
    Ok(problem.solve(ITERATIONS).map_err(LmError::from)?)
}

/// The groups' names, and each row's; none unless every row names its group and there are two.
fn groups(rows: &[GainRow]) -> (Vec<String>, Option<(Vec<usize>, usize)>) {
    let names: BTreeSet<&str> = rows.iter().filter_map(|row| row.subject.as_deref()).collect();
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let place = |row: &GainRow| names.iter().position(|name| Some(name) == row.subject.as_ref());
    let of: Option<Vec<usize>> = rows.iter().map(place).collect();
    match of {
        Some(of) if names.len() > 1 => {
            let count = names.len();
            (names, Some((of, count)))
        }
        _ => (Vec::new(), None),
    }
}

/// A fold for each row, of like sizes.
fn folds(rows: usize, seed: u64) -> Vec<usize> {
    let mut folds: Vec<usize> = (0..rows).map(|row| row % FOLDS).collect();
    folds.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    folds
}

/// Takes training rows out whose prompt is in dev too. Returns how many.
fn drop_leaks(rows: &mut Vec<GainRow>, dev: &[GainRow]) -> usize {
    let key = |row: &GainRow| crate::dataset::normalise(&row.prompt).to_lowercase();
    let held: HashSet<String> = dev.iter().map(key).collect();
    let before = rows.len();
    rows.retain(|row| !held.contains(&key(row)));
    before - rows.len()
}

fn quantiles(mut gains: Vec<f32>) -> Vec<f32> {
    gains.sort_by(f32::total_cmp);
    let last = gains.len().saturating_sub(1);
    (0..=QUANTILES)
        .filter_map(|step| gains.get(last * step / QUANTILES).copied())
        .collect()
}
