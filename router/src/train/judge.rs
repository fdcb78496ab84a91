//! What a fit is worth on the dev files: the objective of the search, calibration, and the figures of the report.

use super::search::Lab;
use super::{Report, SourceFile};
use crate::calibrate::{self, Outcome, Temperature};
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

    /// Fills in scope, temperature and thresholds, in this order, each made with those before it. Each dev file counts the
    /// same, however long, as it does for the objective; all rows without an expert count as one file.
    pub(super) fn calibrate(&self, scored: &[Scored], max_error: f64, settings: &mut functional::Settings) {
        let mut sizes = vec![0usize; self.dev.len()];
        let mut unanswerable = 0;
        for (row, file) in self.held.files.iter().enumerate() {
            if self.is_answerable(row) {
                if let Some(size) = sizes.get_mut(*file) {
                    *size += 1;
                }
            } else {
                unanswerable += 1;
            }
        }
        let weight = |row: usize| {
            let file = self.held.files.get(row).and_then(|file| sizes.get(*file));
            let size = if self.is_answerable(row) {
                file.copied().unwrap_or(1)
            } else {
                unanswerable
            };
            1.0 / size.max(1) as f32
        };
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
                    in_scope: functional::in_scope(settings.scope.as_ref(), Temperature::ONE, scored),
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
        let cost = |weight: f32| {
            let sums = sum(weight);
            let examples: Vec<_> = sums
                .iter()
                .zip(&self.held.labels)
                .enumerate()
                .filter(|(row, _)| self.is_answerable(*row))
                .filter_map(|(row, (scored, label))| {
                    let (_, logits) = scored.logits.split_last()?;
                    let file = self.held.files.get(row).and_then(|file| self.dev.get(*file))?;
                    Some(calibrate::Example {
                        logits,
                        distance: scored.distance,
                        in_scope: 1.0,
                        label: *label,
                        weight: 1.0 / file.rows.len() as f32,
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
