//! What the demonstration prints: a row as each query ends, then a summary.

use super::queries::DemoQuery;
use crate::cli::failure::Failure;
use crate::cli::output::{FAINT, GOOD, HEADING, NOTICE, stdout};
use crate::http::json;
use referral_proto::v1;
use serde_json::json;
use std::io::Write as _;
use std::time::Duration;

const QUERY_WIDTH: usize = 44;
const TEXT_WIDTH: usize = 44;

/// One query and what came back.
pub(super) struct Row {
    pub(super) query: DemoQuery,
    pub(super) decision: Option<v1::Decision>,
    pub(super) text: String,
    pub(super) tokens: u32,
    /// From sending to the decision's arrival.
    pub(super) to_decision: Option<Duration>,
    /// From sending to the first text's arrival.
    pub(super) to_first_token: Option<Duration>,
    pub(super) error: Option<String>,
}

impl Row {
    /// A query that was not sent yet.
    pub(super) fn new(query: DemoQuery) -> Self {
        Self {
            query,
            decision: None,
            text: String::new(),
            tokens: 0,
            to_decision: None,
            to_first_token: None,
            error: None,
        }
    }

    fn expert(&self) -> &str {
        self.decision.as_ref().map_or("", |decision| &decision.expert)
    }

    /// Whether a reader would agree; `None` if nobody said.
    fn is_as_expected(&self) -> Option<bool> {
        let expected = &self.query.expected;
        (!expected.is_empty()).then(|| expected.iter().any(|name| name == self.expert()))
    }

    fn has_abstained(&self) -> bool {
        self.decision.as_ref().is_some_and(|decision| decision.abstained)
    }
}

/// The rows so far.
pub(super) struct Report {
    is_json: bool,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(is_json: bool) -> Self {
        Self {
            is_json,
            rows: Vec::new(),
        }
    }

    /// Prints the headings.
    pub(super) fn head(&self) -> Result<(), Failure> {
        if !self.is_json {
            let line = columns("QUERY", "EXPERT", "CONF", "DECIDED", "1ST TOKEN", "ANSWER");
            writeln!(stdout(), "{HEADING}{line}{HEADING:#}")?;
        }
        Ok(())
    }

    /// Prints a row.
    pub(super) fn row(&mut self, row: Row) -> Result<(), Failure> {
        let mut out = stdout();
        if self.is_json {
            writeln!(out, "{}", row_json(&row))?;
        } else {
            let confidence = row
                .decision
                .as_ref()
                .map_or(String::new(), |d| format!("{:.2}", d.confidence));
            let expert = if row.has_abstained() {
                format!("not sure → {}", row.expert())
            } else {
                row.expert().to_owned()
            };
            let answer = row
                .error
                .clone()
                .unwrap_or_else(|| row.text.split_whitespace().collect::<Vec<_>>().join(" "));
            let query = cut(&row.query.query, QUERY_WIDTH);
            let (decided, first) = (milliseconds(row.to_decision), milliseconds(row.to_first_token));
            let line = columns(
                &query,
                &expert,
                &confidence,
                &decided,
                &first,
                &cut(&answer, TEXT_WIDTH),
            );
            match row.is_as_expected() {
                _ if row.error.is_some() => writeln!(out, "{NOTICE}{line}{NOTICE:#}")?,
                Some(false) => writeln!(
                    out,
                    "{line} {NOTICE}(expected {}){NOTICE:#}",
                    row.query.expected.join(" or ")
                )?,
                _ => writeln!(out, "{line}")?,
            }
        }
        self.rows.push(row);
        Ok(())
    }

    /// Prints the summary; returns how many queries have no answer.
    pub(super) fn summary(&self, took: Duration, grpc: &str, http: &str) -> Result<usize, Failure> {
        let rows = &self.rows;
        let judged = rows.iter().filter_map(Row::is_as_expected);
        let (right, judged) = judged.fold((0, 0), |(right, all), is_right| {
            (right + usize::from(is_right), all + 1)
        });
        let abstained = rows.iter().filter(|row| row.has_abstained()).count();
        let unanswered = rows.iter().filter(|row| row.error.is_some()).count();
        let mut decided: Vec<Duration> = rows.iter().filter_map(|row| row.to_decision).collect();
        let mut first: Vec<Duration> = rows.iter().filter_map(|row| row.to_first_token).collect();
        let tokens: u32 = rows.iter().map(|row| row.tokens).sum();
        let rate = f64::from(tokens) / took.as_secs_f64().max(f64::EPSILON);
        decided.sort_unstable();
        first.sort_unstable();
        let [d50, d95, f50, f95] = [(&decided, 50), (&decided, 95), (&first, 50), (&first, 95)]
            .map(|(times, percent)| percentile(times, percent));
        let mut out = stdout();
        if self.is_json {
            let micros = |time: Option<Duration>| time.map(|time| time.as_micros() as u64);
            let summary = json!({"summary": {
                "queries": rows.len(), "judged": judged, "as_expected": right, "abstained": abstained,
                "unanswered": unanswered, "seconds": took.as_secs_f64(),
                "decision_p50_us": micros(d50), "decision_p95_us": micros(d95),
                "first_token_p50_us": micros(f50), "first_token_p95_us": micros(f95),
                "tokens": tokens, "tokens_per_second": rate,
                "grpc": grpc, "http": http,
            }});
            writeln!(out, "{summary}")?;
            return Ok(unanswered);
        }
        let style = if unanswered == 0 { GOOD } else { NOTICE };
        writeln!(out)?;
        writeln!(
            out,
            "{style}{} queries, {unanswered} unanswered{style:#}, in {:.1} s",
            rows.len(),
            took.as_secs_f64()
        )?;
        writeln!(
            out,
            "referred as a reader would: {right} of {judged}; not sure, left to the generalist: {abstained}"
        )?;
        writeln!(
            out,
            "time to decision     p50 {}, p95 {}",
            milliseconds(d50),
            milliseconds(d95)
        )?;
        writeln!(
            out,
            "time to first token  p50 {}, p95 {}",
            milliseconds(f50),
            milliseconds(f95)
        )?;
        writeln!(out, "answers              {tokens} tokens, {rate:.0} tokens/s")?;
        writeln!(out)?;
        writeln!(out, "metrics   http://{http}/metrics")?;
        writeln!(out, "gRPC      {grpc} (referral.v1, reflection, health)")?;
        writeln!(
            out,
            "ask       referral ask --address {grpc} \"Can I take ibuprofen with warfarin?\""
        )?;
        writeln!(
            out,
            "{FAINT}Referral is not a medical device; the demonstration model is small and often wrong.{FAINT:#}"
        )?;
        Ok(unanswered)
    }
}

fn row_json(row: &Row) -> serde_json::Value {
    let micros = |time: Option<Duration>| time.map(|time| time.as_micros() as u64);
    json!({
        "id": row.query.id,
        "query": row.query.query,
        "expected": row.query.expected,
        "as_expected": row.is_as_expected(),
        "expert": row.expert(),
        "confidence": row.decision.as_ref().map(|decision| decision.confidence),
        "abstained": row.has_abstained(),
        "decision_us": micros(row.to_decision),
        "first_token_us": micros(row.to_first_token),
        "tokens": row.tokens,
        "text": row.text,
        "error": row.error,
        "decision": row.decision.as_ref().map(json::decision),
    })
}

fn columns(query: &str, expert: &str, confidence: &str, decided: &str, first: &str, answer: &str) -> String {
    format!("{query:<QUERY_WIDTH$}  {expert:<21}  {confidence:>4}  {decided:>8}  {first:>9}  {answer}")
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn milliseconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{} ms", time.as_millis()))
}

/// Nearest rank in sorted times.
fn percentile(times: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<Duration> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Some(Duration::from_millis(10)));
        assert_eq!(percentile(&times, 95), Some(Duration::from_millis(19)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn long_texts_are_cut_at_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö…");
    }
}
