//! What a fit is worth on the dev files: the objective of the search, calibration, and the figures of the report.

use super::search::Lab;
use super::{Report, SourceFile};
use crate::calibrate::{self, Outcome};
use crate::evaluate::Accumulator;
use crate::functional::{self, EXPERT_END};
use crate::{Evaluation, RouterError};
use std::collections::BTreeMap;
use std::time::Duration;

impl Lab<'_> {
    /// Whether a dev row has an expert.
    fn is_answerable(&self, row: usize) -> bool {
        self.held
            .labels
            .get(row)
            .is_some_and(|label| *label < self.experts.len())
    }

    /// Mean over the dev files of accuracy and macro-F1.
    pub(super) fn objective(&self, logits: &[Vec<f32>]) -> Result<f64, RouterError> {
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
    pub(super) fn calibrate(&self, logits: &[Vec<f32>], max_error: f64) -> (f32, f32) {
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

    pub(super) fn report(
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
