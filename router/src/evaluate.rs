//! How good a router is: accuracy, macro-F1, calibration, risk against coverage, confusion, latency.
//!
//! Accuracy, F1 and confusion take the likeliest expert whether or not the router abstained; abstention has its own
//! figures, coverage (share not abstained) and selective accuracy (accuracy on those). Macro-F1 is the mean
//! over the experts that the data holds. Rows labelled [`EXPERT_END`] call for nobody: they count for nothing but
//! how well they are told from the others. Rows are streamed; what stays is some twenty bytes a row, for curves and ranks.

mod statistics;
mod text;

use crate::dataset::{self, Fields, Row};
use crate::functional::EXPERT_END;
use crate::{Router, RouterError, Routing};
use serde::Serialize;
use statistics::{aurc, auroc, bin_of, percentile, right_among, risk_coverage, share};
use std::path::{Path, PathBuf};

/// Bins of the expected calibration error.
pub const ECE_BINS: usize = 15;
/// Points of the risk–coverage curve.
const CURVE_POINTS: usize = 20;

/// Figures of one expert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpertFigures {
    /// Its name.
    pub expert: String,
    /// Of the queries sent to it, the share that were its own; 0 if none was sent.
    pub precision: f64,
    /// Of its own queries, the share that were sent to it; 0 if it has none.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Its own queries.
    pub support: usize,
}

/// A bin of the reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// Rows in the bin.
    pub count: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// The share that was right.
    pub accuracy: f64,
}

/// A point of the risk–coverage curve: accuracy on the surest queries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CoveragePoint {
    /// Share of queries kept, the surest first.
    pub coverage: f64,
    /// Accuracy on them.
    pub accuracy: f64,
}

/// Rows by right expert and by chosen expert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Confusion {
    /// The experts, in the order of rows and columns.
    pub experts: Vec<String>,
    /// `counts[right][chosen]`.
    pub counts: Vec<Vec<usize>>,
}

/// How queries that call for no expert are told from those that do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutOfScope {
    /// Rows labelled [`EXPERT_END`].
    pub n: usize,
    /// Share of them on which the router abstains.
    pub abstained: f64,
    /// Probability that a query in scope has a higher `in_scope` than one that is not (ties count half).
    pub ood_auroc: f64,
    /// The same of the plain confidence.
    pub ood_auroc_confidence: f64,
}

/// The figures of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Rows.
    pub n: usize,
    /// Share with the right expert on top.
    pub accuracy: f64,
    /// Mean F1 over the experts in the data.
    pub macro_f1: f64,
    /// Expected calibration error of the confidence, [`ECE_BINS`] equal bins.
    pub ece: f64,
    /// Mean negative log-likelihood of the right expert, nats.
    pub nll: f64,
    /// Share not abstained.
    pub coverage: f64,
    /// Accuracy on the rows not abstained; 1 if there are none (nothing was wrong).
    pub selective_accuracy: f64,
    /// Accuracy on the 60% of rows with the highest confidence.
    pub accuracy_at_60: f64,
    /// Area under the risk–coverage curve: the mean, over all shares of the surest rows, of the share that is wrong.
    pub aurc: f64,
    /// On rows that call for no expert, if there are any.
    pub out_of_scope: Option<OutOfScope>,
    /// Accuracy where a row's `second` expert counts as right too.
    pub accuracy_with_second: f64,
    /// Median latency of a routing, microseconds.
    pub latency_p50_us: u64,
    /// 95th percentile of the latency, microseconds.
    pub latency_p95_us: u64,
    /// By expert, in token order.
    pub experts: Vec<ExpertFigures>,
    /// Who was taken for whom.
    pub confusion: Confusion,
    /// The reliability diagram.
    pub reliability: Vec<ReliabilityBin>,
    /// The risk–coverage curve.
    pub risk_coverage: Vec<CoveragePoint>,
}

/// Collects routings with their labels, one at a time.
#[derive(Debug)]
pub struct Accumulator {
    experts: Vec<String>,
    counts: Vec<Vec<usize>>,
    bins: Vec<(usize, f64, usize)>,
    rows: Vec<(f32, bool)>,
    latencies: Vec<u32>,
    nll: f64,
    kept: usize,
    kept_right: usize,
    right_with_second: usize,
    /// In-scope score and confidence of the rows with an expert, and of those without.
    scopes: [Vec<(f32, f32)>; 2],
    outsiders_abstained: usize,
}

impl Accumulator {
    /// For a router that knows these experts.
    pub fn new(experts: &[String]) -> Self {
        Self {
            experts: experts.to_vec(),
            counts: vec![vec![0; experts.len()]; experts.len()],
            bins: vec![(0, 0.0, 0); ECE_BINS],
            rows: Vec::new(),
            latencies: Vec::new(),
            nll: 0.0,
            kept: 0,
            kept_right: 0,
            right_with_second: 0,
            scopes: [Vec::new(), Vec::new()],
            outsiders_abstained: 0,
        }
    }

    /// Adds one row. Fails if its label, or the routing's choice, is not among the experts.
    pub fn push(&mut self, row: &Row, routing: &Routing) -> Result<(), RouterError> {
        let scope = (routing.in_scope, routing.confidence);
        if row.expert == EXPERT_END {
            self.scopes[1].push(scope);
            self.outsiders_abstained += usize::from(routing.abstained);
            return Ok(());
        }
        let index = |name: &str| {
            self.experts
                .iter()
                .position(|expert| expert == name)
                .ok_or_else(|| RouterError::Invalid {
                    field: "expert",
                    value: name.to_owned(),
                    fix: dataset::unknown_label(&row.id, name, &self.experts),
                })
        };
        let (right, chosen) = (index(&row.expert)?, index(routing.expert())?);
        self.scopes[0].push(scope);
        let is_right = right == chosen;
        if let Some(count) = self
            .counts
            .get_mut(right)
            .and_then(|counts| counts.get_mut(chosen))
        {
            *count += 1;
        }
        if let Some(bin) = self.bins.get_mut(bin_of(routing.confidence)) {
            *bin = (
                bin.0 + 1,
                bin.1 + f64::from(routing.confidence),
                bin.2 + usize::from(is_right),
            );
        }
        let own = routing
            .probabilities
            .iter()
            .find(|(name, _)| *name == row.expert)
            .map_or(0.0, |(_, p)| *p);
        self.nll -= f64::from(own.max(f32::MIN_POSITIVE)).ln();
        self.rows.push((routing.confidence, is_right));
        self.latencies
            .push(u32::try_from(routing.latency.as_micros()).unwrap_or(u32::MAX));
        self.kept += usize::from(!routing.abstained);
        self.kept_right += usize::from(!routing.abstained && is_right);
        self.right_with_second += usize::from(is_right || row.second.as_deref() == Some(routing.expert()));
        Ok(())
    }

    /// The figures of all rows; all zero if there are none.
    pub fn finish(mut self) -> Evaluation {
        let n = self.rows.len();
        let experts: Vec<ExpertFigures> = (0..self.experts.len()).map(|i| self.figures(i)).collect();
        let present: Vec<f64> = experts
            .iter()
            .filter(|figures| figures.support > 0)
            .map(|figures| figures.f1)
            .collect();
        let reliability: Vec<ReliabilityBin> = self
            .bins
            .iter()
            .map(|&(count, confidence, right)| ReliabilityBin {
                count,
                confidence: if count > 0 { confidence / count as f64 } else { 0.0 },
                accuracy: share(right, count),
            })
            .collect();
        let ece = reliability
            .iter()
            .map(|bin| share(bin.count, n) * (bin.accuracy - bin.confidence).abs())
            .sum();
        self.latencies.sort_unstable();
        self.rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        let out_of_scope = self.out_of_scope();
        Evaluation {
            n,
            accuracy: share(self.rows.iter().filter(|(_, is_right)| *is_right).count(), n),
            macro_f1: if present.is_empty() {
                0.0
            } else {
                present.iter().sum::<f64>() / present.len() as f64
            },
            ece,
            nll: if n > 0 { self.nll / n as f64 } else { 0.0 },
            coverage: share(self.kept, n),
            selective_accuracy: if self.kept > 0 {
                share(self.kept_right, self.kept)
            } else {
                1.0
            },
            accuracy_at_60: right_among(&self.rows, (3 * n).div_ceil(5)),
            aurc: aurc(&self.rows),
            out_of_scope,
            accuracy_with_second: share(self.right_with_second, n),
            latency_p50_us: percentile(&self.latencies, 0.50),
            latency_p95_us: percentile(&self.latencies, 0.95),
            experts,
            risk_coverage: risk_coverage(&self.rows),
            confusion: Confusion {
                experts: self.experts,
                counts: self.counts,
            },
            reliability,
        }
    }

    fn out_of_scope(&self) -> Option<OutOfScope> {
        let [inside, outside] = &self.scopes;
        let of = |number: fn(&(f32, f32)) -> f32| {
            let numbers = |rows: &[(f32, f32)]| rows.iter().map(number).collect();
            auroc(numbers(inside), numbers(outside))
        };
        (!outside.is_empty()).then(|| OutOfScope {
            n: outside.len(),
            abstained: share(self.outsiders_abstained, outside.len()),
            ood_auroc: of(|row| row.0),
            ood_auroc_confidence: of(|row| row.1),
        })
    }

    fn figures(&self, i: usize) -> ExpertFigures {
        let support: usize = self.counts.get(i).map_or(0, |row| row.iter().sum());
        let sent: usize = self.counts.iter().filter_map(|row| row.get(i)).sum();
        let hits = self
            .counts
            .get(i)
            .and_then(|row| row.get(i))
            .copied()
            .unwrap_or(0);
        ExpertFigures {
            expert: self.experts.get(i).cloned().unwrap_or_default(),
            precision: share(hits, sent),
            recall: share(hits, support),
            f1: share(2 * hits, support + sent),
            support,
        }
    }
}

/// Routes every row, one query a forward pass as a gateway would meet them, and measures.
/// `progress` hears the number of rows done.
pub fn evaluate(
    router: &Router,
    rows: impl IntoIterator<Item = Result<Row, RouterError>>,
    mut progress: impl FnMut(usize),
) -> Result<Evaluation, RouterError> {
    let mut accumulator = Accumulator::new(router.experts());
    for (done, row) in rows.into_iter().enumerate() {
        let row = row?;
        if row.expert != EXPERT_END && !router.experts().contains(&row.expert) {
            let fix = dataset::unknown_label(&row.id, &row.expert, router.experts());
            return Err(RouterError::Invalid {
                field: "expert",
                value: row.expert,
                fix,
            });
        }
        for routing in router.route(&[row.query.as_str()])? {
            accumulator.push(&row, &routing)?;
        }
        progress(done + 1);
    }
    Ok(accumulator.finish())
}

/// Evaluates files together; that one is empty, or that no row has an expert, is an error.
pub fn evaluate_files(
    router: &Router,
    paths: &[PathBuf],
    fields: &Fields,
    progress: impl FnMut(usize),
) -> Result<Evaluation, RouterError> {
    let none = |path: &Path, detail: &str| RouterError::BadFile {
        path: path.to_owned(),
        what: "routing data",
        detail: format!("{detail}; write one JSON object {{id, query, expert}} a line"),
    };
    let mut readers = Vec::with_capacity(paths.len());
    for path in paths {
        let mut reader = dataset::Reader::<Row>::open_as(path, fields)?.peekable();
        if reader.peek().is_none() {
            return Err(none(path, "it has no rows"));
        }
        readers.push(reader);
    }
    let evaluation = evaluate(router, readers.into_iter().flatten(), progress)?;
    match paths.first() {
        Some(path) if evaluation.n == 0 => {
            Err(none(path, "no row has an expert: give a file with such rows too"))
        }
        _ => Ok(evaluation),
    }
}

#[cfg(test)]
mod tests;
