//! Training of a router: features once, then a convex fit, choices and calibration on dev data.
//!
//! 0. If asked for, a low-rank adapter of the layers that are read (`adapter`); all features are then read through it.
//! 1. Features of every row, for all candidate read-outs in one pass (`features`).
//! 2. The functional tokens' rows by logistic regression. A row of a file weighs `n_file^(γ-1)`, so that
//!    a few natural queries count beside many template questions, times `n_class^-β` within its file, so that
//!    rare experts count beside frequent ones.
//! 3. Read-out, `l2`, `β` and `γ` by coordinate search on the dev objective: the mean, over the dev files, of accuracy
//!    and macro-F1. Each dev file counts the same, however long.
//! 4. An n-gram model (`lexical`), whose logits join the functional tokens' with the weight that dev likelihood chooses.
//! 5. Scope (`crate::scope`) from dev rows with and without an expert; temperature by dev likelihood; then the abstention
//!    threshold: the lowest at which at most `max_error` of the accepted dev rows are wrong. Rows labelled [`EXPERT_END`] are
//!    wrong whenever they are accepted.
//!
//! The fit is convex and starts from zero; the seed only chooses which rows stay when `max_per_expert` drops some.

mod adapter;
mod against;
mod augment;
mod bank;
mod card;
mod features;
mod judge;
mod lexical;
mod regression;
mod search;
mod split;

pub use adapter::AdapterTraining;
pub(crate) use against::fit_against;
pub(crate) use card::write_json;
pub use card::{Choices, Report, SourceFile};
pub(crate) use features::extract;
pub(crate) use regression::{Head, Problem, dot32};
pub(crate) use search::candidate_features;

use crate::RouterError;
use crate::dataset::{self, Fields};
use crate::functional::{
    self, EXPERT_END, Feature, ModelIdentity, PROMPT, ReadOut, ReadOutSpec, RouterFile, Window,
};
use crate::lexical::Lexical;
use indicatif::ProgressBar;
use referral_lm::LanguageModel;
use referral_lm::adapter::Adapter;
use referral_lm::load::Checkpoint;
use search::Lab;
use split::{Split, drop_leaks, experts_of, thin};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to train on and how.
#[derive(Debug, Clone)]
pub struct TrainRouterOptions {
    /// Training files; each is a source with a weight of its own.
    pub data: Vec<PathBuf>,
    /// Files that choices and calibration are made on.
    pub dev: Vec<PathBuf>,
    /// Under which names the files hold query and label.
    pub fields: Fields,
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
    /// Also trains a low-rank adapter for the layers that are read; needs `layer`.
    pub adapter: Option<AdapterTraining>,
    /// Uses an adapter that was trained before instead.
    pub adapter_from: Option<PathBuf>,
}

impl TrainRouterOptions {
    fn has_adapter(&self) -> bool {
        self.adapter.is_some() || self.adapter_from.is_some()
    }

    /// The default of [`Self::max_error`].
    pub const MAX_ERROR: f64 = 0.15;

    /// The defaults for these files.
    pub fn new(data: Vec<PathBuf>, dev: Vec<PathBuf>, out: PathBuf) -> Self {
        Self {
            data,
            dev,
            fields: Fields::default(),
            out,
            layer: None,
            seed: 0,
            max_per_expert: None,
            max_error: Self::MAX_ERROR,
            feature_cache: None,
            adapter: None,
            adapter_from: None,
        }
    }
}

/// Trains a router on `model` and writes it, its report and its card into `options.out`.
///
/// # Errors
/// [`RouterError::BadRow`] and [`RouterError::BadFile`] for the data, [`RouterError::Invalid`] for options.
/// `checkpoint` is the model's file, which training an adapter reads; it may be left out without one.
pub fn train_router(
    model: &LanguageModel,
    checkpoint: Option<&Checkpoint>,
    options: &TrainRouterOptions,
    progress: &ProgressBar,
) -> Result<Report, RouterError> {
    check_options(options)?;
    let mut data = dataset::read_files_as(&options.data, &options.fields)?;
    let dev = dataset::read_files_as(&options.dev, &options.fields)?;
    let sources = SourceFile::of(&data, &dev);
    let dropped_rows = drop_leaks(&mut data, &dev);
    let experts = experts_of(&data).map_err(|error| with_dropped(error, dropped_rows))?;
    let known: Vec<String> = experts.iter().cloned().chain([EXPERT_END.to_owned()]).collect();
    dev.iter()
        .try_for_each(|file| dataset::check_labels(file, &known))?;
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
        prompt: match options.has_adapter() {
            true => String::new(),
            false => PROMPT.to_owned(),
        },
        window: Window::default(),
        features,
    };
    create_dir(&options.out)?;
    let mut read_out = ReadOut::new(model.clone(), spec(union.clone()), None)?;
    let path = options.out.join(functional::ADAPTER);
    if let Some(from) = &options.adapter_from {
        take_over(from, &path)?;
    } else if let Some(training) = &options.adapter {
        let checkpoint = checkpoint.ok_or(RouterError::Invalid {
            field: "adapter",
            value: "no checkpoint".to_owned(),
            fix: "give the model's file, which training reads".to_owned(),
        })?;
        let draw = adapter::Draw {
            read_out: &read_out,
            data: &data,
            known: &known,
            training,
            seed: options.seed,
        };
        adapter::train(checkpoint, &draw, &path, progress)?;
    }
    let (mut adapter_sha256, mut adapter_card) = (None, None);
    if options.has_adapter() {
        let adapter = Adapter::load(&path, model)?;
        adapter_sha256 = Some(crate::digest::file_sha256(&path)?);
        adapter_card = adapter::card(&path)?;
        read_out = ReadOut::new(model.clone(), spec(union.clone()), Some(Arc::new(adapter)))?;
    }
    let queries: Vec<&str> = data
        .iter()
        .chain(&dev)
        .flat_map(|file| &file.rows)
        .map(|row| row.query.as_str())
        .collect();
    let mut all = extract(
        model,
        &read_out,
        &queries,
        options.feature_cache.as_deref(),
        progress,
    )?;
    let dev_features = all.split_off(data.iter().map(|file| file.rows.len()).sum());
    let train = Split::new(&data, &known, all);
    let held = Split::new(&dev, &known, dev_features);

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
    progress.set_message("fitting words");
    let lexical = lexical::train(&data, &known, options.seed);
    let (lexical_weight, scored) = lab.with_words(lab.scored(&fit)?, &lexical);
    let mut file = RouterFile {
        settings: functional::Settings {
            format: functional::FORMAT,
            model: ModelIdentity::of(model),
            read_out: spec(fit.choices.features.clone()),
            experts: experts.clone(),
            adapter_sha256: adapter_sha256.clone(),
            lexical_weight,
            ..functional::Settings::untrained(&experts)
        },
        head: fit.head.clone(),
        mean: fit.mean.clone(),
        scale: fit.scale.clone(),
        lexical: (lexical_weight > 0.0).then_some(lexical),
    };
    lab.calibrate(&scored, options.max_error, &mut file.settings);
    let mut report = Report {
        experts: experts.clone(),
        sources,
        seed: options.seed,
        max_per_expert: options.max_per_expert,
        max_error: options.max_error,
        trained_rows: train.labels.len(),
        dropped_rows,
        choices: fit.choices,
        temperature: file.settings.temperature(),
        threshold: file.settings.threshold,
        scope: file.settings.scope.clone(),
        lexical_weight,
        lexical_features: file.lexical.as_ref().map_or(0, Lexical::features),
        adapter: options.adapter.clone().filter(|_| options.adapter_from.is_none()),
        adapter_from: options.adapter_from.as_deref().map(SourceFile::name),
        adapter_sha256,
        adapter_card,
        query_field: options.fields.query.clone(),
        label_field: options.fields.label.clone(),
        is_mapped: options.fields.labels.is_some(),
        grid,
        dev: BTreeMap::new(),
        unanswerable: 0,
        unanswerable_abstained: 0,
    };
    lab.report(&file.settings, &scored, &mut report)?;
    file.save(&options.out)?;
    lab.bank(&file, &data)?.save(&options.out)?;
    report.save(&options.out, &file.settings.model)?;
    Ok(report)
}

/// Says of an error about the rows how many of them were left out.
fn with_dropped(error: RouterError, dropped: usize) -> RouterError {
    match error {
        RouterError::Invalid { field, value, fix } if dropped > 0 => RouterError::Invalid {
            field,
            value,
            fix: format!("{fix} ({dropped} rows were left out because a dev file has the same query)"),
        },
        error => error,
    }
}

/// Copies an adapter; the two paths may be one file.
fn take_over(from: &Path, to: &Path) -> Result<(), RouterError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RouterError::Io { path, source }
    };
    let bytes = std::fs::read(from).map_err(io(from))?;
    std::fs::write(to, bytes).map_err(io(to))
}

fn create_dir(path: &Path) -> Result<(), RouterError> {
    std::fs::create_dir_all(path).map_err(|source| RouterError::Io {
        path: path.to_owned(),
        source,
    })
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
    let mut names = std::collections::HashSet::new();
    if let Some(twice) = options.dev.iter().find(|path| !names.insert(path.file_name())) {
        return invalid(
            "dev",
            twice.display().to_string(),
            "two files have this name: rename one, the report tells them apart by it",
        );
    }
    if options.max_per_expert == Some(0) {
        return invalid("max_per_expert", "0".to_owned(), "at least 1");
    }
    if !(0.0..1.0).contains(&options.max_error) {
        return invalid("max_error", options.max_error.to_string(), "between 0 and 1");
    }
    if let Some(training) = &options.adapter {
        training.check()?;
    }
    if options.has_adapter() && options.layer.is_none() {
        return invalid(
            "adapter",
            "without a layer".to_owned(),
            "name the layer up to which it is trained",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
