//! What a fit is worth on the dev files: the objective of the search, calibration, and the figures of the report.

use super::search::Lab;
use super::{Report, SourceFile};
use crate::calibrate::{self, Outcome};
use crate::evaluate::Accumulator;
use crate::functional::{self, EXPERT_END};
use crate::lexical::Lexical;
use crate::scope::{self, Scope, Scored};
use crate::{Evaluation, RouterError, dataset};
use std::collections::BTreeMap;
use std::time::Duration;

/// Weights of the n-gram model that are tried.
const LEXICAL_WEIGHTS: [f32; 10] = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0];

impl Lab<'_> {
    /// Whether a dev row has an expert.
    fn is_answerable(&self, row: usize) -> bool {
        self.held
            .labels
            .get(row)
            .is_some_and(|label| *label < self.experts.len())
    }

    /// Mean over the dev files of accuracy and macro-F1.
    pub(super) fn objective(&self, scored: &[Scored]) -> Result<f64, RouterError> {
        let settings = functional::Settings::untrained(self.experts);
        let files = self.evaluations(&settings, scored)?;
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
        scored: &[Scored],
    ) -> Result<BTreeMap<String, Evaluation>, RouterError> {
        let mut by_file = BTreeMap::new();
        let mut rest = scored;
        for file in self.dev {
            let (own, later) = rest.split_at(file.rows.len());
            rest = later;
            let mut accumulator = Accumulator::new(self.experts);
            for (row, scored) in file
                .rows
                .iter()
                .zip(own)
                .filter(|(row, _)| row.expert != EXPERT_END)
            {
                accumulator.push(row, &functional::decide(settings, scored, Duration::ZERO))?;
            }
            let figures = accumulator.finish();
            if figures.n > 0 {
                by_file.insert(SourceFile::name(&file.path), figures);
            }
        }
        Ok(by_file)
    }

    /// Weights of the dev rows: each file's answerable rows count the same together, however many; so do all rows
    /// without an expert.
    fn weights(&self) -> Vec<f32> {
        // Rows without an expert are counted behind the last file.
        let group = |row: usize| match self.is_answerable(row) {
            true => self.held.files.get(row).copied().unwrap_or(0),
            false => self.dev.len(),
        };
        let mut sizes = vec![0usize; self.dev.len() + 1];
        for row in 0..self.held.labels.len() {
            if let Some(size) = sizes.get_mut(group(row)) {
                *size += 1;
            }
        }
        (0..self.held.labels.len())
            .map(|row| 1.0 / sizes.get(group(row)).copied().unwrap_or(1).max(1) as f32)
            .collect()
    }

    /// Fills in scope, temperature and thresholds, in this order, each made with those before it. Each dev file counts the
    /// same, however long, as it does for the objective; all rows without an expert count as one file.
    pub(super) fn calibrate(&self, scored: &[Scored], max_error: f64, settings: &mut functional::Settings) {
        let weights = self.weights();
        let weight = |row: usize| weights.get(row).copied().unwrap_or(0.0);
        let examples: Vec<scope::Example<'_>> = scored
            .iter()
            .enumerate()
            .map(|(row, scored)| scope::Example {
                scored,
                is_in_scope: self.is_answerable(row),
                weight: f64::from(weight(row)),
            })
            .collect();
        settings.scope = Scope::fit(&examples);

        let rows = scored.iter().zip(&self.held.labels).enumerate();
        let examples: Vec<_> = rows
            .clone()
            .filter(|(row, _)| self.is_answerable(*row))
            .filter_map(|(row, (scored, label))| {
                let (_, logits) = scored.logits.split_last()?;
                Some(calibrate::Example {
                    logits,
                    distance: scored.distance,
                    in_scope: functional::in_scope(settings.scope.as_ref(), scored),
                    label: *label,
                    weight: weight(row),
                })
            })
            .collect();
        let temperature = calibrate::fit_temperature(&examples);
        (settings.temperature, settings.temperature_slope) = (temperature.base, temperature.slope);
        settings.threshold = 0.0;
        let outcomes: Vec<Outcome> = rows
            .filter_map(|(row, (scored, label))| {
                let routing = functional::decide(settings, scored, Duration::ZERO);
                (!routing.out_of_scope).then(|| Outcome {
                    confidence: routing.confidence,
                    is_right: self
                        .experts
                        .get(*label)
                        .is_some_and(|expert| expert == routing.expert()),
                    weight: weight(row),
                })
            })
            .collect();
        settings.threshold = calibrate::threshold_for_error(&outcomes, max_error);
    }

    /// Adds the n-gram model's logits of the dev rows with the weight under which, at the best temperature, the dev labels
    /// are likeliest; each dev file counts the same. Returns the weight (0: the model does not help) and the sums.
    pub(super) fn with_words(&self, scored: Vec<Scored>, lexical: &Lexical) -> (f32, Vec<Scored>) {
        let words: Vec<Vec<f32>> = self
            .dev
            .iter()
            .flat_map(|file| &file.rows)
            .map(|row| lexical.logits(&dataset::normalise(&row.query)))
            .collect();
        let sum = |weight: f32| -> Vec<Scored> {
            let mut sums = scored.clone();
            for (scored, words) in sums.iter_mut().zip(&words) {
                scored
                    .logits
                    .iter_mut()
                    .zip(words)
                    .for_each(|(z, w)| *z += weight * w);
            }
            sums
        };
        let weights = self.weights();
        let cost = |weight: f32| {
            let sums = sum(weight);
            let rows = sums.iter().zip(&self.held.labels).zip(&weights).enumerate();
            let examples: Vec<_> = rows
                .filter(|(row, _)| self.is_answerable(*row))
                .filter_map(|(_, ((scored, label), weight))| {
                    let (_, logits) = scored.logits.split_last()?;
                    Some(calibrate::Example {
                        logits,
                        distance: scored.distance,
                        in_scope: 1.0,
                        label: *label,
                        weight: *weight,
                    })
                })
                .collect();
            calibrate::negative_log_likelihood(&examples, calibrate::fit_temperature(&examples))
        };
        let best = LEXICAL_WEIGHTS
            .into_iter()
            .map(|weight| (cost(weight), weight))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let weight = best.map_or(0.0, |(_, weight)| weight);
        (weight, sum(weight))
    }

    pub(super) fn report(
        &self,
        settings: &functional::Settings,
        scored: &[Scored],
        report: &mut Report,
    ) -> Result<(), RouterError> {
        report.dev = self.evaluations(settings, scored)?;
        for (_, scored) in scored
            .iter()
            .enumerate()
            .filter(|(row, _)| !self.is_answerable(*row))
        {
            report.unanswerable += 1;
            let routing = functional::decide(settings, scored, Duration::ZERO);
            report.unanswerable_abstained += usize::from(routing.abstained);
        }
        Ok(())
    }
}
