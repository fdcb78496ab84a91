//! The search: read-out, regulariser and weights that read the dev files best, one coordinate at a time.

use super::regression::Problem;
use super::split::Split;
use super::{Choices, Head};
use crate::RouterError;
use crate::dataset::DataFile;
use crate::functional::{Feature, Pooling};
use crate::scope::Scored;
use candle_core::{Device, Tensor};
use indicatif::ProgressBar;
use referral_lm::LmError;
use referral_lm::train::pooled::moments;

/// Most steps of one fit.
const ITERATIONS: usize = 120;

/// Read-outs to try. Each lays side by side: the mean over the query after the first layer (the words), after half
/// the depth read and after all of it, and the last position there. Unless a layer is named, four and six
/// fifteenths of the model are tried: deeper costs more and reads natural queries no better.
pub(crate) fn candidate_features(depth: usize, layer: Option<usize>) -> Vec<Vec<Feature>> {
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

/// A fitted head with what it was fitted with.
#[derive(Clone)]
pub(super) struct Fit {
    pub(super) choices: Choices,
    pub(super) head: Head,
    pub(super) mean: Vec<f32>,
    pub(super) scale: Vec<f32>,
}

/// All that fits are made from and judged by.
pub(super) struct Lab<'a> {
    pub(super) width: usize,
    pub(super) union: &'a [Feature],
    pub(super) train: &'a Split,
    pub(super) held: &'a Split,
    pub(super) dev: &'a [DataFile],
    pub(super) experts: &'a [String],
}

impl Lab<'_> {
    /// Standardised training matrix, with the mean and scale of its columns.
    fn standardised(&self, features: &[Feature]) -> Result<(Tensor, Vec<f32>, Vec<f32>), RouterError> {
        let columns = features.len() * self.width;
        let mut matrix = self.train.matrix(self.width, self.union, features);
        let n = matrix.len() / columns.max(1);
        let (mean, scale) = moments(matrix.chunks_exact(columns.max(1)), features.len());
        for row in matrix.chunks_exact_mut(columns) {
            for ((x, mean), scale) in row.iter_mut().zip(&mean).zip(&scale) {
                *x = (*x - mean) / scale;
            }
        }
        let matrix = Tensor::from_vec(matrix, (n, columns), &Device::Cpu).map_err(LmError::from)?;
        Ok((matrix, mean, scale))
    }

    /// Coordinate search: read-out, then `l2`, then class balance, then source exponent.
    pub(super) fn search(
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
            for l2 in [1e-3, 3e-3, 3e-2] {
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
            for source_exponent in [0.1, 0.5] {
                let fit = self.fit(
                    &matrix,
                    &mean,
                    &scale,
                    Choices {
                        source_exponent,
                        ..base.clone()
                    },
                    &mut grid,
                    progress,
                )?;
                here = better(here, fit);
            }
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
        let weights = self.train.weights(&choices);
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
        choices.objective = self.objective(&self.scored(&fit)?)?;
        fit.choices = choices.clone();
        progress.set_message(format!("fitting: objective {:.4}", choices.objective));
        grid.push(choices);
        Ok(fit)
    }

    /// What the dev rows' features say.
    pub(super) fn scored(&self, fit: &Fit) -> Result<Vec<Scored>, RouterError> {
        let mut matrix = self.held.matrix(self.width, self.union, &fit.choices.features);
        let rows = matrix.chunks_exact_mut(fit.mean.len());
        Ok(rows
            .map(|row| {
                for ((x, mean), scale) in row.iter_mut().zip(&fit.mean).zip(&fit.scale) {
                    *x = (*x - mean) / scale;
                }
                Scored::new(fit.head.logits(row), row, fit.choices.features.len())
            })
            .collect())
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
