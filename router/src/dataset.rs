//! Labelled and unlabelled queries: JSON Lines files, plain or gzip, read one row at a time.
//!
//! A file may be larger than memory and may come from anybody, so rows are streamed, lines have a
//! bound, and each error names the file and the line. Which experts exist is not decided here: any
//! set of names will do, and whoever needs a closed set passes it to [`check_labels`].
//!
//! [`normalise`] is the one definition of "the same query": the router reads normalised text, and the
//! gateway's decision cache uses it as its key.

mod fields;

pub use fields::{Fields, LabelMap};

use crate::RouterError;
use flate2::read::MultiGzDecoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use unicode_normalization::UnicodeNormalization;

/// Longest line accepted, in bytes: far beyond any query, small enough that a file without line
/// breaks cannot fill the memory.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// A query and the expert that should answer it. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Row {
    /// Identifies the row; unique among the files read together.
    #[serde(deserialize_with = "string_or_integer")]
    pub id: String,
    /// The query as it was typed.
    pub query: String,
    /// The expert that should answer.
    pub expert: String,
    /// A second expert that would be right too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// The disease or drug that the query is about, where the source says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub focus: Option<String>,
    /// The situation; rows about the same one share it and must stay in one split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
}

/// A query without a label: a row of `route --input`. Unknown keys (`expert` among them) are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Query {
    /// Comes back beside the answer.
    #[serde(deserialize_with = "string_or_integer")]
    pub id: String,
    /// The query as it was typed.
    pub query: String,
}

/// What a data file may hold.
pub trait Record: DeserializeOwned {
    /// Says what is wrong with the record, if anything.
    fn fault(&self) -> Option<String>;
}

impl Record for Row {
    fn fault(&self) -> Option<String> {
        blank("id", &self.id)
            .or_else(|| blank("query", &self.query))
            .or_else(|| blank("expert", &self.expert))
            .or_else(|| {
                (self.expert.trim() != self.expert)
                    .then(|| format!("expert {:?} has spaces around it: remove them", self.expert))
            })
    }
}

impl Record for Query {
    fn fault(&self) -> Option<String> {
        blank("id", &self.id).or_else(|| blank("query", &self.query))
    }
}

pub(crate) fn blank(field: &str, text: &str) -> Option<String> {
    text.trim()
        .is_empty()
        .then(|| format!("{field} is empty: each row needs one"))
}

pub(crate) fn string_or_integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "id must be a string or an integer")]
    enum Id {
        Text(String),
        Integer(i64),
    }
    Ok(match Id::deserialize(deserializer)? {
        Id::Text(text) => text,
        Id::Integer(number) => number.to_string(),
    })
}

/// The canonical form of a query: Unicode NFC, runs of white space made one space, ends trimmed.
///
/// Letter case stays, because it carries meaning (`US` and `us`, `ALL` and `all`, `MS` and `ms`).
pub fn normalise(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    for word in query.split_whitespace() {
        if !text.is_empty() {
            text.push(' ');
        }
        text.extend(word.nfc());
    }
    text
}

/// Streams the records of one file.
pub struct Reader<T> {
    path: PathBuf,
    /// `None` where rows have this crate's names already.
    fields: Option<Fields>,
    input: Box<dyn BufRead + Send>,
    line: usize,
    buffer: Vec<u8>,
    is_done: bool,
    record: PhantomData<fn() -> T>,
}

impl<T: Record> Reader<T> {
    /// Opens a file; gzip is recognised by its first two bytes, whatever the name.
    pub fn open(path: &Path) -> Result<Self, RouterError> {
        Self::open_as(path, &Fields::default())
    }

    /// Opens a file that has other names for query and label.
    pub fn open_as(path: &Path, fields: &Fields) -> Result<Self, RouterError> {
        let io = |source| RouterError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let is_gzip = file.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead + Send> = if is_gzip {
            Box::new(BufReader::new(MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        Ok(Self {
            path: path.to_owned(),
            fields: (*fields != Fields::default()).then(|| fields.clone()),
            input,
            line: 0,
            buffer: Vec::new(),
            is_done: false,
            record: PhantomData,
        })
    }

    /// The 1-based line of the record read last.
    pub fn line(&self) -> usize {
        self.line
    }

    fn bad_row(&self, detail: String) -> RouterError {
        RouterError::BadRow {
            path: self.path.clone(),
            line: self.line,
            detail,
        }
    }

    fn parse(&self, text: &str) -> Result<T, RouterError> {
        let bad = |error: serde_json::Error| self.bad_row(error.to_string());
        let Some(fields) = &self.fields else {
            return serde_json::from_str(text).map_err(bad);
        };
        let row = serde_json::from_str(text).map_err(bad)?;
        let row = fields.rename(row).map_err(|detail| self.bad_row(detail))?;
        let has_label = row.contains_key("expert");
        serde_json::from_value(row.into()).map_err(|error| match has_label {
            true => bad(error),
            false => self.bad_row(format!("{error} (read from the field {:?})", fields.label)),
        })
    }

    fn read(&mut self) -> Result<Option<T>, RouterError> {
        loop {
            self.buffer.clear();
            let mut bounded = Read::take(&mut self.input, MAX_LINE_BYTES as u64 + 1);
            let read =
                bounded
                    .read_until(b'\n', &mut self.buffer)
                    .map_err(|source| RouterError::BadFile {
                        path: self.path.clone(),
                        what: "a JSON Lines file",
                        detail: format!("after line {}: {source}; is the file truncated?", self.line),
                    })?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(self.bad_row(format!(
                    "is longer than {MAX_LINE_BYTES} bytes: write one row a line"
                )));
            }
            let text = std::str::from_utf8(&self.buffer)
                .map_err(|error| self.bad_row(format!("is not UTF-8: {error}")))?
                .trim_start_matches('\u{feff}')
                .trim();
            if text.is_empty() {
                continue;
            }
            let record: T = self.parse(text)?;
            if let Some(fault) = record.fault() {
                return Err(self.bad_row(fault));
            }
            return Ok(Some(record));
        }
    }
}

impl<T: Record> Iterator for Reader<T> {
    type Item = Result<T, RouterError>;

    /// The next record; after an error nothing more comes.
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let item = self.read().transpose();
        self.is_done = !matches!(item, Some(Ok(_)));
        item
    }
}

/// The labelled rows of one file, its size and its digest for the card.
#[derive(Debug, Clone)]
pub struct DataFile {
    /// Where it came from.
    pub path: PathBuf,
    /// Hex SHA-256 of the file as it is on disk.
    pub sha256: String,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// Reads whole files of labelled rows; no row may come twice among them all, and no file may be empty.
///
/// A row comes twice if its id and its normalised query do. An id alone may repeat: public data numbers
/// the questions of a page, and pages sometimes share a number.
pub fn read_files(paths: &[PathBuf]) -> Result<Vec<DataFile>, RouterError> {
    read_files_as(paths, &Fields::default())
}

/// The same for files that have other names for query and label. Where a mapping gives the labels, two rows of one query
/// must not get two experts by it.
pub fn read_files_as(paths: &[PathBuf], fields: &Fields) -> Result<Vec<DataFile>, RouterError> {
    let mut mapped: HashMap<String, (String, String)> = HashMap::new();
    let mut seen: HashMap<(String, String), (PathBuf, usize)> = HashMap::new();
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let mut reader = Reader::<Row>::open_as(path, fields)?;
        let mut rows = Vec::new();
        while let Some(row) = reader.next() {
            let row = row?;
            let here = (path.clone(), reader.line());
            if let Some((first, line)) = seen.insert((row.id.clone(), normalise(&row.query)), here) {
                let first = first.display();
                let detail = format!(
                    "row {:?} came before, in {first} line {line}, with the same query: keep one",
                    row.id
                );
                return Err(reader.bad_row(detail));
            }
            if fields.labels.is_some() {
                let own = (row.id.clone(), row.expert.clone());
                let (id, expert) = mapped.entry(normalise(&row.query)).or_insert(own);
                if *expert != row.expert {
                    let detail = format!(
                        "row {:?} maps to {:?}, but row {id:?} with the same query maps to {expert:?}: keep one",
                        row.id, row.expert
                    );
                    return Err(reader.bad_row(detail));
                }
            }
            rows.push(row);
        }
        if rows.is_empty() {
            return Err(RouterError::BadFile {
                path: path.clone(),
                what: "routing data",
                detail: "it has no rows; write one JSON object {id, query, expert} a line".to_owned(),
            });
        }
        files.push(DataFile {
            path: path.clone(),
            sha256: crate::digest::file_sha256(path)?,
            rows,
        });
    }
    Ok(files)
}

/// Fails if a row's label is not among `experts`.
pub fn check_labels(file: &DataFile, experts: &[String]) -> Result<(), RouterError> {
    let known: HashSet<&str> = experts.iter().map(String::as_str).collect();
    match file.rows.iter().find(|row| !known.contains(row.expert.as_str())) {
        None => Ok(()),
        Some(row) => Err(RouterError::BadFile {
            path: file.path.clone(),
            what: "routing data",
            detail: unknown_label(&row.id, &row.expert, experts),
        }),
    }
}

/// The sentence about a label that has no functional token.
pub(crate) fn unknown_label(id: &str, expert: &str, experts: &[String]) -> String {
    format!(
        "row {id:?} has the expert {expert:?}, which has no token; known are {}",
        experts.join(", ")
    )
}

#[cfg(test)]
mod tests;
