//! Adding an expert to a trained router: one more functional token.
//!
//! All other rows stay as they are, so the new token's logit `w·x + b` only has to be told from what the others say
//! together: with `L(x)` the log of their summed exponentials, the new token's probability is `σ(w·x + b - L(x))`, a
//! logistic regression with an offset, fitted to its examples against the router's feature bank (`crate::bank`). The
//! description joins the examples clause by clause, and alone makes a start where there are none. Then the bias is
//! lowered, if need be, until the old experts lose at most [`MOST_LOST`] of their accuracy on the bank's held-out rows.
//!
//! Scope, temperature and thresholds stay as they were fitted. They do depend on who the experts are: a new token adds to
//! the energy that the scope reads, so more queries pass for in scope. The report therefore says how many of the held-out
//! rows that call for nobody the router abstains from, before and after.

use super::{RouterDirectory, check_new_name, invalid};
use crate::bank::Bank;
use crate::dataset::normalise;
use crate::functional::{self, ModelIdentity, RouterFile};
use crate::scope::Scored;
use crate::train::{Head, dot32, fit_against};
use crate::{Router, RouterError, Routing};
use referral_lm::LanguageModel;
use serde::Serialize;
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most of their accuracy that the old experts may lose to a new one: half a point.
pub const MOST_LOST: f64 = 0.005;
/// What an example of the description weighs beside a query.
const CLAUSE_WEIGHT: f32 = 0.5;
/// Fewest letters of a clause that says anything.
const LEAST_CLAUSE: usize = 3;
/// Fewest examples of which some are kept for measuring.
const LEAST_TO_HOLD_OUT: usize = 8;

/// The expert to add.
#[derive(Debug, Clone)]
pub struct NewExpert {
    /// Its name.
    pub name: String,
    /// What it is for; its clauses are examples too.
    pub description: String,
    /// Queries for it; may be empty if there is a description.
    pub examples: Vec<String>,
}

/// What adding an expert did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AddReport {
    /// The new expert.
    pub name: String,
    /// Queries it was taught with.
    pub examples: usize,
    /// Clauses of its description that it was taught with.
    pub clauses: usize,
    /// Rows of the bank that the old experts were measured on.
    pub held_rows: usize,
    /// The old experts' accuracy on them before.
    pub before: f64,
    /// And after.
    pub after: f64,
    /// Share of the examples taught (of the clauses, where there are none) that the changed router refers to the new
    /// expert, without abstaining. They were fitted to: it flatters.
    pub taught_won: f64,
    /// Examples that were not taught but kept for measuring.
    pub held_examples: usize,
    /// Share of those that the changed router refers to the new expert, without abstaining; none without any.
    pub held_won: Option<f64>,
    /// Held-out rows of the bank that call for no expert.
    pub end_rows: usize,
    /// Share of them that the router abstained from before; none without any.
    pub end_abstained_before: Option<f64>,
    /// And after.
    pub end_abstained_after: Option<f64>,
    /// By how much the token's bias was lowered for the old experts' sake.
    pub bias_lowered: f32,
    /// Time to read the examples through the model.
    pub reading: Duration,
    /// Time of everything else.
    pub fitting: Duration,
}

impl AddReport {
    /// Whether the old experts lost more than [`MOST_LOST`] all the same.
    pub fn costs_too_much(&self) -> bool {
        self.before - self.after > MOST_LOST + 1e-9
    }
}

impl RouterDirectory {
    /// Adds an expert and writes the router into `out`.
    ///
    /// # Errors
    /// [`RouterError::Invalid`] for a name that is taken or that the gateway cannot configure, and for an expert without
    /// examples whose description says nothing,
    /// [`RouterError::BadFile`] for a router without a bank.
    pub fn add(
        &self,
        model: &LanguageModel,
        expert: &NewExpert,
        out: &Path,
    ) -> Result<AddReport, RouterError> {
        let started = Instant::now();
        let (mut file, bank) = self.parse(&ModelIdentity::of(model))?;
        let mut bank = bank?;
        check_new_name(&file, &expert.name)?;
        // The name alone is no start.
        if expert.examples.is_empty() && clauses("", &expert.description).is_empty() {
            return Err(invalid(
                &format!(
                    "{:?} without examples, described as {:?},",
                    expert.name, expert.description
                ),
                &format!(
                    "give --examples with about 20 queries, or a --description with a clause of {LEAST_CLAUSE} letters or more"
                ),
            ));
        }
        let clauses = clauses(&expert.name, &expert.description);
        let router = if self.is_shipped {
            Router::shipped(model.clone())?
        } else {
            Router::load(&self.path, model.clone())?
        };
        let texts: Vec<String> = expert
            .examples
            .iter()
            .chain(&clauses)
            .map(|text| normalise(text))
            .collect();
        let read = Instant::now();
        let features = router.features(&texts)?;
        let reading = read.elapsed();
        if features.windows(2).all(|pair| pair[0] == pair[1]) && features.len() > 1 {
            return Err(invalid(
                "examples that all read the same",
                "give different queries",
            ));
        }

        let rows: Vec<Row> = features
            .into_iter()
            .zip(&texts)
            .map(|(features, text)| {
                let logits = file.score(&features, &normalise(text)).logits;
                Row { features, logits }
            })
            .collect();
        let (queries, of_description) = rows.split_at(expert.examples.len());
        let (taught, held) = hold_out(queries);
        let at = file.settings.experts.len();
        let mut token = fit_token(&bank, at + 1, &taught, of_description)?;
        let before = accuracy(None, &bank);
        let mut lowered = 0.0f32;
        while accuracy(Some(&token), &bank) < before - MOST_LOST && lowered < 20.0 {
            lowered += 0.1;
            token.bias[0] -= 0.1;
        }
        let after = accuracy(Some(&token), &bank);
        let held_rows = bank.counts(at).iter().map(|[_, held]| held).sum();
        let (end_rows, end_abstained_before) = end_abstained(&file, &bank);

        bank.insert_class(at, |x| token.logits(x).first().copied().unwrap_or(0.0));
        if let Some(lexical) = &mut file.lexical {
            lexical.insert_class(at);
        }
        file.settings.experts.push(expert.name.clone());
        let width = file.mean.len();
        file.head.rows.splice(at * width..at * width, token.rows);
        file.head.bias.insert(at, token.bias[0]);
        // From here on the file and the bank are those of the changed router.
        let (_, end_abstained_after) = end_abstained(&file, &bank);
        let label = u32::try_from(at).unwrap_or(u32::MAX);
        let bias = file.head.bias[at];
        let own = &file.head.rows[at * width..(at + 1) * width];
        let changed = |row: &Row| {
            let new = bias + dot32(own, &row.features);
            [&row.logits[..at], &[new], &row.logits[at..]].concat()
        };
        let won = |rows: &[&Row]| {
            let won = rows.iter().filter(|row| {
                let routing = routing(&file, changed(row), &row.features);
                routing.expert() == expert.name && !routing.abstained
            });
            won.count()
        };
        let clauses: Vec<&Row> = of_description.iter().collect();
        let judged = if taught.is_empty() { &clauses } else { &taught };
        let (taught_won, held_won) = (won(judged), won(&held));
        for (rows, is_held) in [(&taught, false), (&held, true)] {
            for row in rows {
                bank.push(&row.features, &changed(row), label, is_held);
            }
        }
        self.save(
            out,
            &file,
            Some(&bank),
            &format!("router add-expert --name {}", expert.name),
        )?;
        Ok(AddReport {
            name: expert.name.clone(),
            examples: taught.len(),
            clauses: clauses.len(),
            held_rows,
            before,
            after,
            taught_won: taught_won as f64 / judged.len().max(1) as f64,
            held_examples: held.len(),
            held_won: share(held_won, held.len()),
            end_rows,
            end_abstained_before,
            end_abstained_after,
            bias_lowered: lowered,
            reading,
            fitting: started.elapsed().saturating_sub(reading),
        })
    }
}

/// What a description says, piece by piece, with the name in words and the whole.
pub(super) fn clauses(name: &str, description: &str) -> Vec<String> {
    let pieces = description
        .split(['.', ',', ';', ':', '\n', '(', ')'])
        .flat_map(|piece| piece.split(" and "));
    let mut clauses = vec![name.replace(['_', '-'], " "), description.to_owned()];
    clauses.extend(pieces.map(|piece| piece.trim().to_owned()));
    let mut seen = HashSet::new();
    clauses.retain(|clause| {
        clause.chars().filter(|c| c.is_alphabetic()).count() >= LEAST_CLAUSE && seen.insert(normalise(clause))
    });
    clauses
}

/// Those to teach with and those to measure on: every fourth, if there are enough to spare any.
fn hold_out(queries: &[Row]) -> (Vec<&Row>, Vec<&Row>) {
    let is_taught = |i: usize| queries.len() < LEAST_TO_HOLD_OUT || i % 4 != 3;
    let (taught, held): (Vec<_>, Vec<_>) = queries.iter().enumerate().partition(|(i, _)| is_taught(*i));
    (
        taught.into_iter().map(|(_, row)| row).collect(),
        held.into_iter().map(|(_, row)| row).collect(),
    )
}

/// An example: standardised features, and what all old tokens and the words say of it.
struct Row {
    features: Vec<f32>,
    logits: Vec<f32>,
}

/// One row and one bias, fitted against what the other tokens say; each class weighs the same, the new one like another.
fn fit_token(bank: &Bank, classes: usize, queries: &[&Row], clauses: &[Row]) -> Result<Head, RouterError> {
    let counts = bank.counts(classes);
    let (mut rows, mut offsets) = (Vec::new(), Vec::new());
    for row in (0..bank.len()).filter(|row| !bank.held[*row]) {
        let class = counts.get(bank.labels[row] as usize).map_or(1, |count| count[0]);
        rows.push((bank.row(row), false, 1.0 / class.max(1) as f32));
        offsets.push(log_sum(bank.logits(row)));
    }
    let weights = queries
        .iter()
        .map(|_| 1.0)
        .chain(clauses.iter().map(|_| CLAUSE_WEIGHT));
    let total: f32 = weights.clone().sum();
    for (row, weight) in queries.iter().copied().chain(clauses).zip(weights) {
        rows.push((row.features.clone(), true, weight / total));
        offsets.push(log_sum(&row.logits));
    }
    fit_against(&rows, &offsets)
}

fn log_sum(logits: &[f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    top + logits.iter().map(|z| (z - top).exp()).sum::<f32>().ln()
}

/// Accuracy of the experts in the bank on the rows that are only measured on, with a new token among them or not.
fn accuracy(token: Option<&Head>, bank: &Bank) -> f64 {
    let (mut right, mut all) = (0usize, 0usize);
    for row in (0..bank.len()).filter(|row| bank.held[*row]) {
        let (logits, label) = (bank.logits(row), bank.labels[row] as usize);
        let experts = logits.len().saturating_sub(1);
        if label >= experts {
            continue;
        }
        let best = logits
            .iter()
            .take(experts)
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1));
        let is_right = best.is_some_and(|(i, _)| i == label);
        all += 1;
        right += usize::from(is_right && !token.is_some_and(|token| wins(token, logits, &bank.row(row))));
    }
    if all == 0 { 1.0 } else { right as f64 / all as f64 }
}

/// Whether the new token is likelier than every old expert's.
fn wins(token: &Head, logits: &[f32], x: &[f32]) -> bool {
    let new = token.logits(x).first().copied().unwrap_or(f32::MIN);
    let experts = logits.len().saturating_sub(1);
    logits.iter().take(experts).all(|z| *z < new)
}

/// Number of held-out rows that call for no expert, and the share that the router abstains from.
fn end_abstained(file: &RouterFile, bank: &Bank) -> (usize, Option<f64>) {
    let end = file.settings.experts.len();
    let rows = (0..bank.len()).filter(|row| bank.held[*row] && bank.labels[*row] as usize == end);
    let abstained: Vec<bool> = rows
        .map(|row| routing(file, bank.logits(row).to_vec(), &bank.row(row)).abstained)
        .collect();
    let count = abstained.iter().filter(|abstained| **abstained).count();
    (abstained.len(), share(count, abstained.len()))
}

/// What the router makes of a query with these logits and standardised features.
fn routing(file: &RouterFile, logits: Vec<f32>, features: &[f32]) -> Routing {
    let scored = Scored::new(logits, features, file.settings.read_out.features.len());
    functional::decide(&file.settings, &scored, Duration::ZERO)
}

fn share(count: usize, all: usize) -> Option<f64> {
    (all > 0).then(|| count as f64 / all as f64)
}
