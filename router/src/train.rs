//! Training of a router: features once, then a convex fit, choices and calibration on dev data.
//!
//! 1. Features of every row, for all candidate read-outs in one pass ([`extract`](features)).
//! 2. The functional tokens' rows by logistic regression. A row of a file weighs `n_file^(γ-1)`, so that
//!    a few natural queries count beside many template questions, times `n_class^-β` within its file, so that
//!    rare experts count beside frequent ones.
//! 3. Read-out, `l2`, `β` and `γ` by coordinate search on the dev objective: the mean, over the dev files, of accuracy
//!    and macro-F1. Each dev file counts the same, however long.
//! 4. Temperature by dev likelihood, then the abstention threshold: the lowest at which at most `max_error`
//!    of the accepted dev rows are wrong. Rows labelled [`EXPERT_END`] are wrong whenever they are accepted.
//!
//! The fit is convex and starts from zero; the seed only chooses which rows stay when `max_per_expert` drops some.

mod card;
mod features;
mod regression;

pub(crate) use card::write_json;
pub use card::{Choices, Report, SourceFile};
pub(crate) use regression::Head;

use crate::calibrate::{self, Outcome};
use crate::dataset::{self, DataFile, Row};
use crate::evaluate::Accumulator;
use crate::functional::{
    self, EXPERT_END, Feature, ModelIdentity, PROMPT, Pooling, ReadOut, ReadOutSpec, RouterFile, Window,
};
use crate::{Evaluation, RouterError};
use candle_core::{Device, Tensor};
use half::f16;
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use referral_lm::{LanguageModel, LmError};
use regression::Problem;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

/// Most steps of one fit.
const ITERATIONS: usize = 120;

/// What to train on and how.
#[derive(Debug, Clone)]
pub struct TrainRouterOptions {
    /// Training files; each is a source with a weight of its own.
    pub data: Vec<PathBuf>,
    /// Files that choices and calibration are made on.
    pub dev: Vec<PathBuf>,
    /// Directory to write; created if missing.
    pub out: PathBuf,
    /// The deepest layer read; `None` tries two and chooses on dev.
    pub layer: Option<usize>,
    /// Chooses the rows that stay when `max_per_expert` drops some.
    pub seed: u64,
    /// Most rows of one expert taken from one training file; `None` takes all.
    pub max_per_expert: Option<usize>,
    /// Share of accepted dev rows that may be wrong; sets the threshold.
    pub max_error: f64,
    /// File that keeps features from run to run; `None` computes them anew.
    pub feature_cache: Option<PathBuf>,
}

impl TrainRouterOptions {
    /// The defaults for these files.
    pub fn new(data: Vec<PathBuf>, dev: Vec<PathBuf>, out: PathBuf) -> Self {
        Self {
            data,
            dev,
            out,
            layer: None,
            seed: 0,
            max_per_expert: None,
            max_error: 0.15,
            feature_cache: None,
        }
    }
}

/// Features and labels of some rows.
struct Split {
    features: Vec<Vec<f16>>,
    /// Index of the expert; the number of experts for [`EXPERT_END`].
    labels: Vec<usize>,
    /// Index of the file.
    files: Vec<usize>,
}

/// Trains a router on `model` and writes it, its report and its card into `options.out`.
///
/// # Errors
/// [`RouterError::BadRow`] and [`RouterError::BadFile`] for the data, [`RouterError::Invalid`] for options.
pub fn train_router(
    model: &LanguageModel,
    options: &TrainRouterOptions,
    progress: &ProgressBar,
) -> Result<Report, RouterError> {
    check_options(options)?;
    let mut data = dataset::read_files(&options.data)?;
    let dev = dataset::read_files(&options.dev)?;
    let experts = experts_of(&data)?;
    let known: Vec<String> = experts.iter().cloned().chain([EXPERT_END.to_owned()]).collect();
    dev.iter()
        .try_for_each(|file| dataset::check_labels(file, &known))?;
    let sources = SourceFile::of(&data, &dev);
    let dropped_rows = drop_leaks(&mut data, &dev);
    if let Some(most) = options.max_per_expert {
        thin(&mut data, most, options.seed);
    }

    let candidates = candidate_features(model.info().layers, options.layer);
    let mut union: Vec<Feature> = Vec::new();
    for feature in candidates.iter().flatten() {
        if !union.contains(feature) {
            union.push(*feature);
        }
    }
    let spec = |features: Vec<Feature>| ReadOutSpec {
        prompt: PROMPT.to_owned(),
        window: Window::default(),
        features,
    };
    let read_out = ReadOut::new(model.clone(), spec(union.clone()))?;
    let queries: Vec<&str> = data
        .iter()
        .chain(&dev)
        .flat_map(|file| &file.rows)
        .map(|row| row.query.as_str())
        .collect();
    let mut all = features::extract(
        model,
        &read_out,
        &queries,
        options.feature_cache.as_deref(),
        progress,
    )?;
    let dev_features = all.split_off(data.iter().map(|file| file.rows.len()).sum());
    let train = split(&data, &known, all);
    let held = split(&dev, &known, dev_features);

    progress.set_message("fitting");
    let lab = Lab {
        width: model.info().width,
        union: &union,
        train: &train,
        held: &held,
        dev: &dev,
        experts: &experts,
    };
    let (fit, grid) = lab.search(&candidates, progress)?;
    let logits = lab.logits(&fit)?;
    let (temperature, threshold) = lab.calibrate(&logits, options.max_error);

    let file = RouterFile {
        settings: functional::Settings {
            format: functional::FORMAT,
            model: ModelIdentity::of(model),
            read_out: spec(fit.choices.features.clone()),
            experts: experts.clone(),
            temperature,
            threshold,
        },
        head: fit.head.clone(),
        mean: fit.mean.clone(),
        scale: fit.scale.clone(),
    };
    let mut report = Report {
        experts: experts.clone(),
        sources,
        seed: options.seed,
        max_per_expert: options.max_per_expert,
        max_error: options.max_error,
        trained_rows: train.labels.len(),
        dropped_rows,
        choices: fit.choices,
        temperature,
        threshold,
        grid,
        dev: BTreeMap::new(),
        unanswerable: 0,
        unanswerable_abstained: 0,
    };
    lab.report(&file.settings, &logits, &mut report)?;
    std::fs::create_dir_all(&options.out).map_err(|source| RouterError::Io {
        path: options.out.clone(),
        source,
    })?;
    file.save(&options.out)?;
    report.save(&options.out, &file.settings.model)?;
    Ok(report)
}

fn check_options(options: &TrainRouterOptions) -> Result<(), RouterError> {
    let invalid = |field, value: String, fix: &str| {
        Err(RouterError::Invalid {
            field,
            value,
            fix: fix.to_owned(),
        })
    };
    if options.data.is_empty() {
        return invalid("data", "none".to_owned(), "name at least one training file");
    }
    if options.dev.is_empty() {
        return invalid(
            "dev",
            "none".to_owned(),
            "name at least one dev file: choices and calibration need it",
        );
    }
    if options.max_per_expert == Some(0) {
        return invalid("max_per_expert", "0".to_owned(), "at least 1");
    }
    if !(0.0..1.0).contains(&options.max_error) {
        return invalid("max_error", options.max_error.to_string(), "between 0 and 1");
    }
    Ok(())
}

/// The experts in the data, by name; each needs at least two different queries.
fn experts_of(data: &[DataFile]) -> Result<Vec<String>, RouterError> {
    let mut queries: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in data
        .iter()
        .flat_map(|file| &file.rows)
        .filter(|row| row.expert != EXPERT_END)
    {
        queries
            .entry(&row.expert)
            .or_default()
            .insert(dataset::normalise(&row.query));
    }
    let invalid = |value: String, fix: &str| {
        Err(RouterError::Invalid {
            field: "data",
            value,
            fix: fix.to_owned(),
        })
    };
    if let Some((expert, _)) = queries.iter().find(|(_, queries)| queries.len() < 2) {
        return invalid(
            format!("expert {expert:?} with one distinct query"),
            "give each expert at least two different queries",
        );
    }
    if queries.len() < 2 {
        return invalid(
            format!("{} expert(s)", queries.len()),
            "a router needs at least two experts",
        );
    }
    Ok(queries.into_keys().map(str::to_owned).collect())
}

/// Takes training rows out whose query is also in dev, which would make every figure a lie. Returns how many.
fn drop_leaks(data: &mut [DataFile], dev: &[DataFile]) -> usize {
    let key = |row: &Row| dataset::normalise(&row.query).to_lowercase();
    let held: HashSet<String> = dev.iter().flat_map(|file| &file.rows).map(key).collect();
    let mut dropped = 0;
    for file in data {
        let before = file.rows.len();
        file.rows.retain(|row| !held.contains(&key(row)));
        dropped += before - file.rows.len();
    }
    dropped
}

/// Keeps at most `most` rows of an expert in each file, chosen by the seed, in their order.
fn thin(files: &mut [DataFile], most: usize, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for file in files {
        let mut by_expert: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, row) in file.rows.iter().enumerate() {
            by_expert.entry(&row.expert).or_default().push(i);
        }
        let mut keep = BTreeSet::new();
        for rows in by_expert.values_mut() {
            rows.shuffle(&mut random);
            keep.extend(rows.iter().take(most).copied());
        }
        let mut i = 0;
        file.rows.retain(|_| {
            i += 1;
            keep.contains(&(i - 1))
        });
    }
}

/// Read-outs to try. Each lays side by side: the mean over the query after the first layer (the words), after half
/// the depth read and after all of it, and the last position there. Unless a layer is named, four and six
/// fifteenths of the model are tried: deeper costs more and reads natural queries no better.
fn candidate_features(depth: usize, layer: Option<usize>) -> Vec<Vec<Feature>> {
    let deepest = layer.map_or_else(
        || vec![(depth * 4 / 15).max(1), (depth * 6 / 15).max(1)],
        |layer| vec![layer],
    );
    deepest
        .into_iter()
        .map(|layer| {
            let mut features: Vec<Feature> = Vec::new();
            for at in [1, (layer / 2).max(1), layer] {
                let mean = Feature {
                    layer: at,
                    pooling: Pooling::Mean,
                };
                if !features.contains(&mean) {
                    features.push(mean);
                }
            }
            features.push(Feature {
                layer,
                pooling: Pooling::Last,
            });
            features
        })
        .collect()
}

fn split(files: &[DataFile], known: &[String], features: Vec<Vec<f16>>) -> Split {
    let mut labels = Vec::new();
    let mut indices = Vec::new();
    for (index, file) in files.iter().enumerate() {
        for row in &file.rows {
            labels.push(
                known
                    .iter()
                    .position(|expert| *expert == row.expert)
                    .unwrap_or(known.len()),
            );
            indices.push(index);
        }
    }
    Split {
        features,
        labels,
        files: indices,
    }
}

/// A fitted head with what it was fitted with.
#[derive(Clone)]
struct Fit {
    choices: Choices,
    head: Head,
    mean: Vec<f32>,
    scale: Vec<f32>,
}

/// All that fits are made from and judged by.
struct Lab<'a> {
    width: usize,
    union: &'a [Feature],
    train: &'a Split,
    held: &'a Split,
    dev: &'a [DataFile],
    experts: &'a [String],
}

impl Lab<'_> {
    /// The columns of some features, as an `n × width` matrix.
    fn matrix(&self, split: &Split, features: &[Feature]) -> Vec<f32> {
        let slots: Vec<usize> = features
            .iter()
            .filter_map(|f| self.union.iter().position(|u| u == f))
            .collect();
        let mut matrix = Vec::with_capacity(split.features.len() * slots.len() * self.width);
        for row in &split.features {
            for slot in &slots {
                matrix.extend(
                    row.iter()
                        .skip(slot * self.width)
                        .take(self.width)
                        .map(|x| x.to_f32()),
                );
            }
        }
        matrix
    }

    /// Standardised training matrix, with the mean and scale of its columns.
    fn standardised(&self, features: &[Feature]) -> Result<(Tensor, Vec<f32>, Vec<f32>), RouterError> {
        let columns = features.len() * self.width;
        let mut matrix = self.matrix(self.train, features);
        let n = matrix.len() / columns.max(1);
        let mut sums = vec![(0.0f64, 0.0f64); columns];
        for row in matrix.chunks_exact(columns) {
            for ((sum, squares), x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x);
                *squares += f64::from(*x) * f64::from(*x);
            }
        }
        let mean: Vec<f32> = sums.iter().map(|(sum, _)| (sum / n as f64) as f32).collect();
        // Dividing by the number of vectors too keeps the logits' size, so that one `l2` suits all read-outs.
        let spread = (features.len() as f64).sqrt();
        let variance = |(sum, squares): &(f64, f64)| (squares / n as f64 - (sum / n as f64).powi(2)).max(0.0);
        let scale: Vec<f32> = sums
            .iter()
            .map(|s| (spread * variance(s).sqrt().max(1e-6)) as f32)
            .collect();
        for row in matrix.chunks_exact_mut(columns) {
            for ((x, mean), scale) in row.iter_mut().zip(&mean).zip(&scale) {
                *x = (*x - mean) / scale;
            }
        }
        let matrix = Tensor::from_vec(matrix, (n, columns), &Device::Cpu).map_err(LmError::from)?;
        Ok((matrix, mean, scale))
    }

    /// Weights of the training rows, adding up to 1.
    fn weights(&self, choices: &Choices) -> Vec<f32> {
        let mut of_file: HashMap<usize, f64> = HashMap::new();
        let mut of_class: HashMap<(usize, usize), f64> = HashMap::new();
        for (file, label) in self.train.files.iter().zip(&self.train.labels) {
            *of_file.entry(*file).or_default() += 1.0;
            *of_class.entry((*file, *label)).or_default() += 1.0;
        }
        let class_weight =
            |key: &(usize, usize)| of_class.get(key).map_or(0.0, |n| n.powf(-choices.class_balance));
        let mut total: HashMap<usize, f64> = HashMap::new();
        for (key, n) in &of_class {
            *total.entry(key.0).or_default() += n * class_weight(key);
        }
        let shares: f64 = of_file.values().map(|n| n.powf(choices.source_exponent)).sum();
        let keys = self
            .train
            .files
            .iter()
            .copied()
            .zip(self.train.labels.iter().copied());
        keys.map(|key| {
            let share = of_file
                .get(&key.0)
                .map_or(0.0, |n| n.powf(choices.source_exponent))
                / shares;
            (share * class_weight(&key) / total.get(&key.0).copied().unwrap_or(1.0)) as f32
        })
        .collect()
    }

    /// Coordinate search: read-out, then `l2`, then class balance, then source exponent.
    fn search(
        &self,
        candidates: &[Vec<Feature>],
        progress: &ProgressBar,
    ) -> Result<(Fit, Vec<Choices>), RouterError> {
        let mut grid = Vec::new();
        let mut best: Option<Fit> = None;
        for features in candidates {
            let (matrix, mean, scale) = self.standardised(features)?;
            let start = Choices {
                features: features.clone(),
                l2: 1e-2,
                class_balance: 0.5,
                source_exponent: 0.25,
                objective: 0.0,
            };
            let mut here = self.fit(&matrix, &mean, &scale, start, &mut grid, progress)?;
            let base = here.choices.clone();
            for l2 in [3e-3, 3e-2] {
                let fit = self.fit(
                    &matrix,
                    &mean,
                    &scale,
                    Choices { l2, ..base.clone() },
                    &mut grid,
                    progress,
                )?;
                here = better(here, fit);
            }
            let base = here.choices.clone();
            for class_balance in [0.25, 0.75] {
                let fit = self.fit(
                    &matrix,
                    &mean,
                    &scale,
                    Choices {
                        class_balance,
                        ..base.clone()
                    },
                    &mut grid,
                    progress,
                )?;
                here = better(here, fit);
            }
            let base = here.choices.clone();
            let fit = self.fit(
                &matrix,
                &mean,
                &scale,
                Choices {
                    source_exponent: 0.5,
                    ..base
                },
                &mut grid,
                progress,
            )?;
            here = better(here, fit);
            best = Some(match best {
                Some(best) => better(best, here),
                None => here,
            });
        }
        let fix = "name a layer of the model".to_owned();
        let best = best.ok_or(RouterError::Invalid {
            field: "layer",
            value: "none".to_owned(),
            fix,
        })?;
        Ok((best, grid))
    }

    fn fit(
        &self,
        matrix: &Tensor,
        mean: &[f32],
        scale: &[f32],
        mut choices: Choices,
        grid: &mut Vec<Choices>,
        progress: &ProgressBar,
    ) -> Result<Fit, RouterError> {
        let weights = self.weights(&choices);
        let problem = Problem {
            features: matrix,
            labels: &self.train.labels,
            weights: &weights,
            classes: self.experts.len() + 1,
            l2: choices.l2,
        };
        let head = problem.solve(ITERATIONS).map_err(LmError::from)?;
        let mut fit = Fit {
            choices: choices.clone(),
            head,
            mean: mean.to_vec(),
            scale: scale.to_vec(),
        };
        choices.objective = self.objective(&self.logits(&fit)?)?;
        fit.choices = choices.clone();
        progress.set_message(format!("fitting: objective {:.4}", choices.objective));
        grid.push(choices);
        Ok(fit)
    }

    /// Logits of the dev rows.
    fn logits(&self, fit: &Fit) -> Result<Vec<Vec<f32>>, RouterError> {
        let mut matrix = self.matrix(self.held, &fit.choices.features);
        let rows = matrix.chunks_exact_mut(fit.mean.len());
        Ok(rows
            .map(|row| {
                for ((x, mean), scale) in row.iter_mut().zip(&fit.mean).zip(&fit.scale) {
                    *x = (*x - mean) / scale;
                }
                fit.head.logits(row)
            })
            .collect())
    }

    /// Whether a dev row has an expert.
    fn is_answerable(&self, row: usize) -> bool {
        self.held
            .labels
            .get(row)
            .is_some_and(|label| *label < self.experts.len())
    }

    /// Mean over the dev files of accuracy and macro-F1.
    fn objective(&self, logits: &[Vec<f32>]) -> Result<f64, RouterError> {
        let settings = functional::Settings::untrained(self.experts);
        let files = self.evaluations(&settings, logits)?;
        let sum: f64 = files
            .values()
            .map(|figures| 0.5 * (figures.accuracy + figures.macro_f1))
            .sum();
        Ok(sum / files.len().max(1) as f64)
    }

    /// Figures of each dev file that has answerable rows.
    fn evaluations(
        &self,
        settings: &functional::Settings,
        logits: &[Vec<f32>],
    ) -> Result<BTreeMap<String, Evaluation>, RouterError> {
        let mut by_file = BTreeMap::new();
        let mut rest = logits;
        for file in self.dev {
            let (own, later) = rest.split_at(file.rows.len());
            rest = later;
            let mut accumulator = Accumulator::new(self.experts);
            for (row, logits) in file
                .rows
                .iter()
                .zip(own)
                .filter(|(row, _)| row.expert != EXPERT_END)
            {
                accumulator.push(row, &functional::decide(settings, logits, Duration::ZERO))?;
            }
            let figures = accumulator.finish();
            if figures.n > 0 {
                by_file.insert(SourceFile::name(&file.path), figures);
            }
        }
        Ok(by_file)
    }

    /// Temperature and threshold. Each dev file counts the same, however long, as it does for the objective.
    fn calibrate(&self, logits: &[Vec<f32>], max_error: f64) -> (f32, f32) {
        let sizes: Vec<f32> = self.dev.iter().map(|file| file.rows.len() as f32).collect();
        let weight = |row: usize| {
            let file = self.held.files.get(row).and_then(|file| sizes.get(*file));
            1.0 / file.copied().unwrap_or(1.0)
        };
        let rows = logits.iter().zip(&self.held.labels).enumerate();
        let examples: Vec<_> = rows
            .clone()
            .filter(|(row, _)| self.is_answerable(*row))
            .map(|(row, (logits, label))| calibrate::Example {
                logits,
                label: *label,
                weight: weight(row),
            })
            .collect();
        let temperature = calibrate::fit_temperature(&examples);
        let outcomes: Vec<Outcome> = rows
            .map(|(row, (logits, label))| {
                let p = functional::probabilities(logits, temperature);
                let top = p.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                let (chosen, confidence) = top.map_or((0, 0.0), |(chosen, p)| (chosen, *p));
                Outcome {
                    confidence,
                    is_right: chosen == *label,
                    weight: weight(row),
                }
            })
            .collect();
        (temperature, calibrate::threshold_for_error(&outcomes, max_error))
    }

    fn report(
        &self,
        settings: &functional::Settings,
        logits: &[Vec<f32>],
        report: &mut Report,
    ) -> Result<(), RouterError> {
        report.dev = self.evaluations(settings, logits)?;
        for (_, logits) in logits
            .iter()
            .enumerate()
            .filter(|(row, _)| !self.is_answerable(*row))
        {
            report.unanswerable += 1;
            let routing = functional::decide(settings, logits, Duration::ZERO);
            report.unanswerable_abstained += usize::from(routing.abstained);
        }
        Ok(())
    }
}

/// The fit with the higher objective; the earlier one if they are equal.
fn better(a: Fit, b: Fit) -> Fit {
    if b.choices.objective > a.choices.objective {
        b
    } else {
        a
    }
}

#[cfg(test)]
mod tests;
