//! Figures of an evaluation as SVG: reliability, risk against coverage, confusion.
//!
//! Written by hand, because three plain figures are a few dozen elements: no drawing crate, no fonts to find, the same
//! bytes on every machine. Each names the source and the number of rows; marks carry their values as data attributes and
//! tooltips, so that the figure can be read by machines too.

use crate::{Evaluation, RouterError};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Left, top, width and height of the plotting area.
const AREA: (f64, f64, f64, f64) = (70.0, 60.0, 420.0, 420.0);
const BLUE: &str = "#2563a8";
const GREY: &str = "#8a8f98";

/// Writes `reliability.svg`, `risk_coverage.svg` and `confusion.svg` into a directory, made if missing; `source` is what
/// was measured on. Returns their paths.
///
/// # Errors
/// [`RouterError::Io`] if they cannot be written.
pub fn write(evaluation: &Evaluation, source: &str, directory: &Path) -> Result<Vec<PathBuf>, RouterError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RouterError::Io { path, source }
    };
    std::fs::create_dir_all(directory).map_err(io(directory))?;
    let figures = [
        ("reliability.svg", reliability(evaluation, source)),
        ("risk_coverage.svg", risk_coverage(evaluation, source)),
        ("confusion.svg", confusion(evaluation, source)),
    ];
    let mut paths = Vec::new();
    for (name, text) in figures {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(io(&path))?;
        paths.push(path);
    }
    Ok(paths)
}

/// Share that was right by confidence: bars for the bins, the diagonal for perfect calibration, the number of rows above each bar.
pub fn reliability(evaluation: &Evaluation, source: &str) -> String {
    let mut figure = Figure::new(
        "Reliability",
        source,
        evaluation.n,
        &format!("ECE {:.3}", evaluation.ece),
    );
    figure.axes("confidence", "share right");
    let bins = evaluation.reliability.len().max(1) as f64;
    for (i, bin) in evaluation
        .reliability
        .iter()
        .enumerate()
        .filter(|(_, bin)| bin.count > 0)
    {
        let (x, y) = place(i as f64 / bins, bin.accuracy);
        let (width, height) = (AREA.2 / bins, AREA.3 * bin.accuracy);
        figure.add(&format!(
            "<rect class=\"bin\" x=\"{:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{height:.2}\" fill=\"{BLUE}\" fill-opacity=\"0.75\" \
             data-count=\"{}\" data-confidence=\"{:.4}\" data-accuracy=\"{:.4}\"><title>{} rows, confidence {:.3}, right {:.3}</title></rect>",
            x + 1.0, width - 2.0, bin.count, bin.confidence, bin.accuracy, bin.count, bin.confidence, bin.accuracy
        ));
        figure.text(x + width / 2.0, y - 4.0, "middle", 9, &bin.count.to_string());
    }
    let ((x1, y1), (x2, y2)) = (place(0.0, 0.0), place(1.0, 1.0));
    figure.add(&format!(
        "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"{GREY}\" stroke-dasharray=\"5 4\"/>"
    ));
    figure.finish()
}

/// Share that is wrong among the surest queries, by how many are kept.
pub fn risk_coverage(evaluation: &Evaluation, source: &str) -> String {
    let note = format!(
        "AURC {:.3}, accuracy at 60% {:.3}",
        evaluation.aurc, evaluation.accuracy_at_60
    );
    let mut figure = Figure::new("Risk by coverage", source, evaluation.n, &note);
    figure.axes("coverage (the surest queries)", "risk (share wrong)");
    let mut line = String::new();
    let mut marks = String::new();
    for point in &evaluation.risk_coverage {
        let risk = 1.0 - point.accuracy;
        let (x, y) = place(point.coverage, risk);
        let _ = write!(line, "{x:.2},{y:.2} ");
        let _ = writeln!(
            marks,
            "<circle class=\"point\" cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"3.5\" fill=\"{BLUE}\" data-coverage=\"{:.4}\" data-risk=\"{risk:.4}\">\
             <title>coverage {:.2}, risk {risk:.3}</title></circle>",
            point.coverage, point.coverage
        );
    }
    figure.add(&format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{BLUE}\" stroke-width=\"2\"/>",
        line.trim()
    ));
    figure.add(&marks);
    figure.finish()
}

/// Right expert by row, chosen by column; darker for a larger share of the row.
pub fn confusion(evaluation: &Evaluation, source: &str) -> String {
    let experts = &evaluation.confusion.experts;
    let note = format!(
        "accuracy {:.3}, macro-F1 {:.3}",
        evaluation.accuracy, evaluation.macro_f1
    );
    let side = (460.0 / experts.len().max(1) as f64).clamp(18.0, 60.0);
    let size = side * experts.len() as f64;
    let mut figure = Figure::sized(
        "Confusion",
        source,
        evaluation.n,
        &note,
        170.0 + size + 30.0,
        60.0 + size + 170.0,
    );
    let (left, top) = (170.0, 60.0);
    for (row, (expert, counts)) in experts.iter().zip(&evaluation.confusion.counts).enumerate() {
        let all: usize = counts.iter().sum();
        let y = top + row as f64 * side;
        figure.text(left - 8.0, y + side / 2.0 + 4.0, "end", 11, expert);
        for (column, (chosen, count)) in experts.iter().zip(counts).enumerate() {
            let share = *count as f64 / all.max(1) as f64;
            let x = left + column as f64 * side;
            figure.add(&format!(
                "<rect class=\"cell\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{side:.2}\" height=\"{side:.2}\" fill=\"{BLUE}\" fill-opacity=\"{:.3}\" \
                 stroke=\"#e3e6ea\" data-count=\"{count}\"><title>{} taken for {}: {count} of {all}</title></rect>",
                0.02 + 0.9 * share, escape(expert), escape(chosen)
            ));
            if *count > 0 {
                let colour = if share > 0.5 { "#ffffff" } else { "#20242a" };
                figure.coloured(
                    x + side / 2.0,
                    y + side / 2.0 + 4.0,
                    "middle",
                    11,
                    &count.to_string(),
                    colour,
                );
            }
        }
    }
    for (column, expert) in experts.iter().enumerate() {
        let (x, y) = (left + (column as f64 + 0.5) * side, top + size + 10.0);
        figure.add(&format!(
            "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"11\" text-anchor=\"end\" fill=\"#20242a\" transform=\"rotate(-50 {x:.2} {y:.2})\">{}</text>",
            escape(expert)
        ));
    }
    figure.text(
        left + size / 2.0,
        top + size + 150.0,
        "middle",
        12,
        "chosen expert",
    );
    figure.text(left - 8.0, top - 8.0, "end", 12, "right expert");
    figure.finish()
}

/// Where a point of the unit square lies in the plotting area.
fn place(x: f64, y: f64) -> (f64, f64) {
    (AREA.0 + x * AREA.2, AREA.1 + (1.0 - y) * AREA.3)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

struct Figure(String);

impl Figure {
    fn new(title: &str, source: &str, n: usize, note: &str) -> Self {
        Self::sized(
            title,
            source,
            n,
            note,
            AREA.0 + AREA.2 + 30.0,
            AREA.1 + AREA.3 + 60.0,
        )
    }

    fn sized(title: &str, source: &str, n: usize, note: &str, width: f64, height: f64) -> Self {
        let mut figure = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
             font-family=\"sans-serif\" role=\"img\">\n<title>{title}: {}, n = {n}</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
            escape(source)
        ));
        figure.text(20.0, 24.0, "start", 16, title);
        figure.coloured(
            20.0,
            42.0,
            "start",
            11,
            &format!("{source}, n = {n}; {note}"),
            "#5a6069",
        );
        figure
    }

    /// Both axes from 0 to 1, with a grid and labels.
    fn axes(&mut self, x_label: &str, y_label: &str) {
        for tick in 0..=5 {
            let at = f64::from(tick) / 5.0;
            let ((x, bottom), (left, y)) = (place(at, 0.0), place(0.0, at));
            let ((_, top), (right, _)) = (place(0.0, 1.0), place(1.0, 0.0));
            self.add(&format!(
                "<path d=\"M{x:.1} {bottom:.1}V{top:.1}M{left:.1} {y:.1}H{right:.1}\" stroke=\"#e3e6ea\" fill=\"none\"/>"
            ));
            self.text(x, bottom + 18.0, "middle", 11, &format!("{at:.1}"));
            self.text(left - 8.0, y + 4.0, "end", 11, &format!("{at:.1}"));
        }
        let (x, y) = place(0.5, 0.0);
        self.text(x, y + 42.0, "middle", 12, x_label);
        let (x, y) = (22.0, place(0.0, 0.5).1);
        self.add(&format!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"12\" text-anchor=\"middle\" fill=\"#20242a\" transform=\"rotate(-90 {x} {y})\">{}</text>",
            escape(y_label)
        ));
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
        self.coloured(x, y, anchor, size, text, "#20242a");
    }

    fn coloured(&mut self, x: f64, y: f64, anchor: &str, size: u32, text: &str, colour: &str) {
        self.add(&format!(
            "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>",
            escape(text)
        ));
    }

    fn add(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }

    fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

#[cfg(test)]
mod tests;
