//! Changing who a trained router knows, in seconds and without its training data: add, remove, rename, list.
//!
//! All files are read, changed in memory and written elsewhere: the router that is changed stays as it was. Adding has
//! a file of its own, `add.rs`.

mod add;

pub use add::{AddReport, MOST_LOST, NewExpert};

use crate::RouterError;
use crate::bank::{BANK, Bank};
use crate::dataset::{self, Reader, Record, normalise};
use crate::functional::{self, EXPERT_END, ModelIdentity, RouterFile};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

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
    (
        functional::ADAPTER,
        include_bytes!("../data/shipped/adapter.safetensors"),
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
    /// [`RouterError::Invalid`] if `from` is not known, or `to` is taken or not a name that the gateway can configure.
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

/// Whether a new expert may have this name. The rule is that of the ids under `experts` in the gateway's
/// configuration, where a token by another name could never be configured; names that were trained may differ.
fn check_new_name(file: &RouterFile, name: &str) -> Result<(), RouterError> {
    if name == EXPERT_END {
        return Err(invalid(
            name,
            "the name is reserved for \"no expert is called for\": give another",
        ));
    }
    let is_id = (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if !is_id {
        return Err(invalid(
            &format!("{name:?}"),
            "give a name of 1 to 64 letters a-z, digits, _ or -, that begins with a letter",
        ));
    }
    if file.settings.experts.iter().any(|known| known == name) {
        return Err(invalid(
            name,
            "the router knows it already: remove or rename that one first",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
