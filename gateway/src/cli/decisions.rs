//! `referral decisions`: reads the decision log, also beside a running gateway.

use super::failure::Failure;
use super::options::ConfigOptions;
use super::output::{FAINT, NOTICE, Output, print_json, stdout};
use crate::log::{DecisionStore, StoredDecision};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time between two looks for new rows.
const POLL: Duration = Duration::from_millis(300);

/// Arguments of `referral decisions`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Decision log to read instead of the configuration's
    #[arg(long, value_name = "FILE", global = true)]
    log: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the last decisions, a line each
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: usize,
        /// Go on with new decisions until Ctrl-C
        #[arg(short, long)]
        follow: bool,
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Print one decision with its feedback, as JSON
    Show {
        /// Id of the decision
        id: String,
    },
    /// Write all decisions, oldest first
    Export {
        /// Only those received since: a time (2026-01-31T08:00:00Z) or an age (24h, 7d)
        #[arg(long, value_name = "TIME|AGE", value_parser = parse_since)]
        since: Option<SystemTime>,
        /// How to write them
        #[arg(long, default_value = "jsonl")]
        format: Format,
        /// File to write instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    let path = match &arguments.log {
        Some(path) => path.clone(),
        None => config.load()?.settings.log.path,
    };
    let store = DecisionStore::open(&path)?;
    match &arguments.command {
        Command::Tail { lines, follow, json } => tail(&store, *lines, *follow, *json),
        Command::Show { id } => {
            let (decision, feedback) = store.get(id)?.ok_or_else(|| {
                Failure::new(format!("decision {id:?} is not in {}", path.display()))
                    .with_hint("`referral decisions tail` lists the last ones")
            })?;
            let mut shown = serde_json::to_value(&decision)?;
            if let Some(fields) = shown.as_object_mut() {
                fields.insert("feedback".to_owned(), serde_json::to_value(&feedback)?);
            }
            print_json(&shown)
        }
        Command::Export {
            since,
            format,
            output,
        } => {
            let since = since.unwrap_or(UNIX_EPOCH);
            match output {
                Some(path) => {
                    let named = |error| Failure::new(format!("cannot write {}: {error}", path.display()));
                    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(named)?);
                    export(&store, since, *format, &mut file)?;
                    file.flush().map_err(named)
                }
                None => export(&store, since, *format, &mut std::io::BufWriter::new(stdout())),
            }
        }
    }
}

fn tail(store: &DecisionStore, lines: usize, follow: bool, json: bool) -> Result<(), Failure> {
    let mut out = stdout();
    let mut print = |rows: &[StoredDecision]| -> Result<(), Failure> {
        for row in rows {
            if json {
                writeln!(out, "{}", serde_json::to_string(row)?)?
            } else {
                print_line(&mut out, row)?
            }
        }
        Ok(out.flush()?)
    };
    let rows = store.last(lines.max(1))?;
    let mut last = rows.last().map_or(0, |row| row.row);
    print(if lines == 0 { &[] } else { &rows })?;
    if follow {
        loop {
            // Nobody unparks this thread: it is a wait before the next look.
            std::thread::park_timeout(POLL);
            let rows = store.after(last)?;
            last = rows.last().map_or(last, |row| row.row);
            print(&rows)?;
        }
    }
    Ok(())
}

fn print_line(out: &mut Output, row: &StoredDecision) -> std::io::Result<()> {
    let confidence = row
        .confidence
        .map_or_else(|| "   -".to_owned(), |confidence| format!("{confidence:4.2}"));
    let style = if matches!(row.outcome.as_str(), "answered" | "routed") {
        FAINT
    } else {
        NOTICE
    };
    writeln!(
        out,
        "{FAINT}{}  {}{FAINT:#}  {:<20}  {confidence}  {style}{:<9}{style:#}  {:>7} ms{}",
        row.received,
        row.id,
        row.expert.as_deref().unwrap_or("-"),
        row.outcome,
        row.total_us / 1000,
        if row.abstained { "  abstained" } else { "" },
    )
}

fn export(
    store: &DecisionStore,
    since: SystemTime,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut heading = format == Format::Csv;
    store.each_since(since, |row| {
        let value = serde_json::to_value(&row)?;
        let fields = value.as_object().into_iter().flatten();
        match format {
            Format::Jsonl => writeln!(out, "{value}")?,
            Format::Csv => {
                let (names, cells): (Vec<_>, Vec<_>) =
                    fields.map(|(name, value)| (name.as_str(), cell(value))).unzip();
                if std::mem::take(&mut heading) {
                    writeln!(out, "{}", names.join(","))?;
                }
                writeln!(out, "{}", cells.join(","))?;
            }
        }
        Ok::<(), Failure>(())
    })
}

/// A field of a CSV file (RFC 4180); lists and mappings as JSON.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

fn parse_since(text: &str) -> Result<SystemTime, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return SystemTime::now()
            .checked_sub(age)
            .ok_or_else(|| format!("{text} is too long ago"));
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| "write a time such as 2026-01-31T08:00:00Z or an age such as 24h or 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_needed() {
        let row = [
            Value::Null,
            "plain".into(),
            1.into(),
            "a,\"b\"\nc".into(),
            serde_json::json!({ "x": 1 }),
        ];
        let cells: Vec<String> = row.iter().map(cell).collect();
        assert_eq!(
            cells,
            ["", "plain", "1", "\"a,\"\"b\"\"\nc\"", "\"{\"\"x\"\":1}\""]
        );
    }

    #[test]
    fn since_is_a_time_or_an_age() {
        assert_eq!(
            parse_since("1970-01-02T00:00:00Z").unwrap(),
            UNIX_EPOCH + Duration::from_secs(86_400)
        );
        let age = SystemTime::now()
            .duration_since(parse_since("2h").unwrap())
            .unwrap();
        assert!((7_199..7_260).contains(&age.as_secs()), "{age:?}");
        assert!(parse_since("yesterday").is_err());
    }
}
