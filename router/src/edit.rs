//! Changing who a trained router knows, in seconds and without its training data: add, remove, rename, list.
//!
//! A new expert is one more functional token. All other rows stay as they are, so its logit `w·x + b` only has to be told
//! from what the others say together: with `L(x)` the log of their summed exponentials, the new token's probability is
//! `σ(w·x + b - L(x))`, a logistic regression with an offset, fitted to its examples against the router's feature bank
//! (`crate::bank`). The description joins the examples clause by clause, and alone makes a start where there are none.
//! Then the bias is lowered, if need be, until the old experts lose at most [`MOST_LOST`] of their accuracy on the
//! bank's rows that nothing was fitted to. Scope, temperature and thresholds stay: they speak of queries, not of experts.

use crate::bank::{BANK, Bank};
use crate::dataset::{self, Reader, Record, normalise};
use crate::functional::{self, EXPERT_END, ModelIdentity, RouterFile};
use crate::train::{Head, fit_against};
use crate::{Router, RouterError};
use referral_lm::LanguageModel;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most of their accuracy that the old experts may lose to a new one: half a point.
pub const MOST_LOST: f64 = 0.005;
/// What an example of the description weighs beside a query.
const CLAUSE_WEIGHT: f32 = 0.5;
/// Fewest letters of a clause that says anything.
const LEAST_CLAUSE: usize = 3;

/// The files of the router in this binary. A bank of no bytes is none.
const SHIPPED: &[(&str, &[u8])] = &[
    (
        functional::SETTINGS,
        include_bytes!("../data/shipped/router.json"),
    ),
    (
        functional::TOKENS,
        include_bytes!("../data/shipped/tokens.safetensors"),
    ),
    (BANK, include_bytes!("../data/shipped/bank.safetensors")),
];

/// A router's files in memory, from its directory or from this binary.
#[derive(Debug, Clone)]
pub struct RouterDirectory {
    /// For messages.
    path: PathBuf,
    is_shipped: bool,
    files: BTreeMap<String, Vec<u8>>,
}

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
    /// Share of the examples that now go to the new expert.
    pub examples_won: f64,
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

/// An expert that a router knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Rows of it in the bank that are learnt from; 0 without a bank.
    pub bank_rows: usize,
    /// Rows that are measured on.
    pub held_rows: usize,
}

/// A row of an examples file; the label may be left out.
#[derive(Debug, Clone, Deserialize)]
struct ExampleRow {
    #[serde(flatten)]
    query: dataset::Query,
    expert: Option<String>,
}

impl Record for ExampleRow {
    fn fault(&self) -> Option<String> {
        self.query.fault()
    }
}

/// Reads the examples of one expert: rows {id, query}, whose `expert`, if it is there, must be this one.
///
/// # Errors
/// [`RouterError::BadFile`] for a file without rows, with one query over and over, or a truncated one;
/// [`RouterError::BadRow`] for an id that comes twice and for another expert's row.
pub fn read_examples(path: &Path, name: &str) -> Result<Vec<String>, RouterError> {
    let bad = |detail: String| RouterError::BadFile {
        path: path.to_owned(),
        what: "examples of an expert",
        detail,
    };
    let mut reader = Reader::<ExampleRow>::open(path)?;
    let (mut ids, mut texts, mut examples) = (HashSet::new(), HashSet::new(), Vec::new());
    while let Some(row) = reader.next() {
        let row = row?;
        let fault = match &row.expert {
            Some(expert) if expert != name => Some(format!(
                "row {:?} is of the expert {expert:?}, not of {name:?}: leave the label out or mend it",
                row.query.id
            )),
            _ if !ids.insert(row.query.id.clone()) => Some(format!(
                "the id {:?} came before: give each row its own",
                row.query.id
            )),
            _ => None,
        };
        if let Some(detail) = fault {
            let line = reader.line();
            return Err(RouterError::BadRow {
                path: path.to_owned(),
                line,
                detail,
            });
        }
        if texts.insert(normalise(&row.query.query).to_lowercase()) {
            examples.push(row.query.query);
        }
    }
    match (ids.len(), examples.len()) {
        (0, _) => Err(bad(
            "it has no rows: write one JSON object {id, query} a line, or leave --examples out to start from the description"
                .to_owned(),
        )),
        (rows, 1) if rows > 1 => Err(bad(format!("its {rows} rows are all the same query: give different ones"))),
        _ => Ok(examples),
    }
}

impl RouterDirectory {
    /// The files of a directory written by `referral train router`; `None` is the router in this binary.
    ///
    /// # Errors
    /// [`RouterError::Io`] if the directory cannot be read.
    pub fn open(directory: Option<&Path>) -> Result<Self, RouterError> {
        let Some(path) = directory else {
            let files = SHIPPED
                .iter()
                .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
            return Ok(Self {
                path: PathBuf::from("the shipped router"),
                is_shipped: true,
                files: files.collect(),
            });
        };
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| RouterError::Io { path, source }
        };
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(path).map_err(io(path))? {
            let file = entry.map_err(io(path))?.path();
            // The reports speak of the router as it was trained.
            let is_report = ["README.md", "report.json", "report.txt"]
                .iter()
                .any(|name| file.ends_with(name));
            if let (true, false, Some(name)) = (file.is_file(), is_report, file.file_name()) {
                let bytes = std::fs::read(&file).map_err(io(&file))?;
                files.insert(name.to_string_lossy().into_owned(), bytes);
            }
        }
        Ok(Self {
            path: path.to_owned(),
            is_shipped: false,
            files,
        })
    }

    fn file(&self, name: &str) -> &[u8] {
        self.files.get(name).map_or(&[], Vec::as_slice)
    }

    fn parse(&self, model: &ModelIdentity) -> Result<(RouterFile, Result<Bank, RouterError>), RouterError> {
        let (settings, tokens) = (self.file(functional::SETTINGS), self.file(functional::TOKENS));
        let file = RouterFile::parse(&self.path, settings, tokens, model)?;
        let classes = file.settings.experts.len() + 1;
        let bank = Bank::parse(&self.path, self.file(BANK), file.mean.len(), classes);
        Ok((file, bank))
    }

    /// The router's own word for its model: enough to change files without loading a model.
    fn parse_for_its_model(&self) -> Result<(RouterFile, Result<Bank, RouterError>), RouterError> {
        let settings: functional::Settings = serde_json::from_slice(self.file(functional::SETTINGS))
            .map_err(|error| RouterError::BadFile {
                path: self.path.clone(),
                what: "a router",
                detail: format!("{}: {error}", functional::SETTINGS),
            })?;
        self.parse(&settings.model)
    }

    /// Writes a changed router into `out`, with all files that did not change.
    fn save(
        &self,
        out: &Path,
        file: &RouterFile,
        bank: Option<&Bank>,
        change: &str,
    ) -> Result<(), RouterError> {
        let io = |path: PathBuf| move |source| RouterError::Io { path, source };
        std::fs::create_dir_all(out).map_err(io(out.to_owned()))?;
        for (name, bytes) in &self.files {
            std::fs::write(out.join(name), bytes).map_err(io(out.join(name)))?;
        }
        file.save(out)?;
        if let Some(bank) = bank {
            bank.save(out)?;
        }
        let readme = format!(
            "# Router\n\nMade from {} by `{change}`; nothing else was trained again.\n\nExperts: {}.\n",
            self.path.display(),
            file.settings.experts.join(", ")
        );
        std::fs::write(out.join("README.md"), readme).map_err(io(out.join("README.md")))
    }

    /// The experts that the router knows, in token order.
    ///
    /// # Errors
    /// [`RouterError::BadFile`] for an unusable router.
    pub fn experts(&self) -> Result<Vec<Known>, RouterError> {
        let (file, bank) = self.parse_for_its_model()?;
        let counts = bank
            .map(|bank| bank.counts(file.settings.experts.len()))
            .unwrap_or_default();
        let experts = file.settings.experts.into_iter().enumerate();
        Ok(experts
            .map(|(i, name)| {
                let [bank_rows, held_rows] = counts.get(i).copied().unwrap_or_default();
                Known {
                    name,
                    bank_rows,
                    held_rows,
                }
            })
            .collect())
    }

    /// Gives an expert another name, and writes the router into `out`.
    ///
    /// # Errors
    /// [`RouterError::Invalid`] if `from` is not known, or `to` is taken or no name.
    pub fn rename(&self, from: &str, to: &str, out: &Path) -> Result<(), RouterError> {
        let (mut file, bank) = self.parse_for_its_model()?;
        let at = position(&file, from)?;
        check_new_name(&file, to)?;
        to.clone_into(&mut file.settings.experts[at]);
        self.save(
            out,
            &file,
            bank.ok().as_ref(),
            &format!("router rename --from {from} --to {to}"),
        )
    }

    /// Takes an expert's token out, and writes the router into `out`.
    ///
    /// # Errors
    /// [`RouterError::Invalid`] if the expert is not known or one of the last two.
    pub fn remove(&self, name: &str, out: &Path) -> Result<(), RouterError> {
        let (mut file, bank) = self.parse_for_its_model()?;
        let at = position(&file, name)?;
        if file.settings.experts.len() <= 2 {
            return Err(invalid(
                name,
                "a router needs at least two experts: add another one first",
            ));
        }
        file.settings.experts.remove(at);
        let width = file.mean.len();
        file.head.rows.drain(at * width..(at + 1) * width);
        file.head.bias.remove(at);
        if let Some(lexical) = &mut file.lexical {
            lexical.remove_class(at);
        }
        let bank = bank.ok().map(|mut bank| {
            bank.remove_class(at);
            bank
        });
        self.save(
            out,
            &file,
            bank.as_ref(),
            &format!("router remove-expert --name {name}"),
        )
    }

    /// Adds an expert and writes the router into `out`.
    ///
    /// # Errors
    /// [`RouterError::Invalid`] for a name that is taken or an expert without examples and description,
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
        let clauses = clauses(&expert.name, &expert.description);
        if expert.examples.is_empty() && expert.description.trim().is_empty() {
            return Err(invalid(
                &format!("expert {:?} without examples", expert.name),
                "give --examples with about 20 queries, or at least a --description",
            ));
        }
        let router = if self.is_shipped {
            Router::shipped(model.clone())?
        } else {
            Router::load(&self.path, model.clone())?
        };
        let texts: Vec<&str> = expert
            .examples
            .iter()
            .chain(&clauses)
            .map(String::as_str)
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
        let mut token = fit_token(&bank, file.head.bias.len(), queries, of_description)?;
        let before = accuracy(None, &bank);
        let mut lowered = 0.0f32;
        while accuracy(Some(&token), &bank) < before - MOST_LOST && lowered < 20.0 {
            lowered += 0.1;
            token.bias[0] -= 0.1;
        }
        let after = accuracy(Some(&token), &bank);
        let judged = if queries.is_empty() {
            of_description
        } else {
            queries
        };
        let won = judged
            .iter()
            .filter(|row| wins(&token, &row.logits, &row.features))
            .count();

        let at = file.settings.experts.len();
        let held = bank.held.iter().zip(&bank.labels);
        let held_rows = held
            .filter(|(is_held, label)| **is_held && (**label as usize) < at)
            .count();
        bank.insert_class(at, |x| token.logits(x).first().copied().unwrap_or(0.0));
        for (i, row) in queries.iter().enumerate() {
            let logits = [&row.logits[..at], &token.logits(&row.features), &row.logits[at..]].concat();
            bank.push(
                &row.features,
                &logits,
                u32::try_from(at).unwrap_or(u32::MAX),
                i % 4 == 3,
            );
        }
        if let Some(lexical) = &mut file.lexical {
            lexical.insert_class(at);
        }
        file.settings.experts.push(expert.name.clone());
        file.head
            .rows
            .splice(at * file.mean.len()..at * file.mean.len(), token.rows);
        file.head.bias.insert(at, token.bias[0]);
        self.save(
            out,
            &file,
            Some(&bank),
            &format!("router add-expert --name {}", expert.name),
        )?;
        Ok(AddReport {
            name: expert.name.clone(),
            examples: queries.len(),
            clauses: of_description.len(),
            held_rows,
            before,
            after,
            examples_won: won as f64 / judged.len().max(1) as f64,
            bias_lowered: lowered,
            reading,
            fitting: started.elapsed().saturating_sub(reading),
        })
    }
}

fn invalid(value: &str, fix: &str) -> RouterError {
    RouterError::Invalid {
        field: "expert",
        value: value.to_owned(),
        fix: fix.to_owned(),
    }
}

fn position(file: &RouterFile, name: &str) -> Result<usize, RouterError> {
    let experts = &file.settings.experts;
    experts
        .iter()
        .position(|known| known == name)
        .ok_or_else(|| invalid(name, &format!("the router knows {}", experts.join(", "))))
}

fn check_new_name(file: &RouterFile, name: &str) -> Result<(), RouterError> {
    if name.trim() != name || name.is_empty() || name == EXPERT_END {
        return Err(invalid(name, "give a name without spaces around it"));
    }
    if file.settings.experts.iter().any(|known| known == name) {
        return Err(invalid(
            name,
            "the router knows it already: remove or rename that one first",
        ));
    }
    Ok(())
}

/// What a description says, piece by piece, with the name in words and the whole.
fn clauses(name: &str, description: &str) -> Vec<String> {
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

/// An example: standardised features, and what all old tokens and the words say of it.
struct Row {
    features: Vec<f32>,
    logits: Vec<f32>,
}

/// One row and one bias, fitted against what the other tokens say; each class weighs the same, the new one like another.
fn fit_token(bank: &Bank, classes: usize, queries: &[Row], clauses: &[Row]) -> Result<Head, RouterError> {
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
    for (row, weight) in queries.iter().chain(clauses).zip(weights) {
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

#[cfg(test)]
mod tests;
