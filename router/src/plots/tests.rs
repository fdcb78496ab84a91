use super::*;
use crate::Routing;
use crate::dataset::Row;
use crate::evaluate::Accumulator;
use std::collections::BTreeMap;
use std::time::Duration;

/// Elements with their attributes, of the XML that the figures are written in; panics on what is not well formed.
fn elements(svg: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let (mut open, mut all) = (Vec::new(), Vec::new());
    for piece in svg.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').expect("a tag ends");
        assert!(
            !text.contains('>')
                && !text
                    .replace("&amp;", "")
                    .replace("&lt;", "")
                    .replace("&gt;", "")
                    .replace("&quot;", "")
                    .contains('&'),
            "{text}"
        );
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "tags nest");
            continue;
        }
        let body = tag.strip_suffix('/').unwrap_or(tag);
        let (name, mut rest) = body.split_once(' ').unwrap_or((body, ""));
        let mut attributes = BTreeMap::new();
        while !rest.trim().is_empty() {
            let (key, after) = rest
                .trim_start()
                .split_once("=\"")
                .expect("an attribute has a value");
            let (value, after) = after.split_once('"').expect("a value ends");
            assert!(
                attributes.insert(key.to_owned(), value.to_owned()).is_none(),
                "{key} comes twice"
            );
            rest = after;
        }
        if !tag.ends_with('/') {
            open.push(name.to_owned());
        }
        all.push((name.to_owned(), attributes));
    }
    assert!(open.is_empty(), "{open:?}");
    all
}

fn evaluation() -> Evaluation {
    let experts = ["a&b".to_owned(), "c".to_owned()];
    let mut accumulator = Accumulator::new(&experts);
    for (truth, chosen, confidence) in [(0, 0, 0.95), (0, 0, 0.9), (0, 1, 0.6), (1, 1, 0.55)] {
        let row = Row {
            id: "r".into(),
            query: "q".into(),
            expert: experts[truth].clone(),
            second: None,
            focus: None,
            scenario: None,
        };
        let routing = Routing {
            probabilities: vec![
                (experts[chosen].clone(), confidence),
                (experts[1 - chosen].clone(), 1.0 - confidence),
            ],
            confidence,
            in_scope: 1.0,
            out_of_scope: false,
            abstained: false,
            windowed: false,
            latency: Duration::ZERO,
        };
        accumulator.push(&row, &routing).unwrap();
    }
    accumulator.finish()
}

fn marks(svg: &str, class: &str) -> Vec<BTreeMap<String, String>> {
    let marked = elements(svg).into_iter().map(|(_, attributes)| attributes);
    marked
        .filter(|attributes| attributes.get("class").is_some_and(|c| c == class))
        .collect()
}

#[test]
fn reliability_has_a_bar_for_each_bin_with_rows() {
    let svg = reliability(&evaluation(), "dev <1>.jsonl");
    let bars = marks(&svg, "bin");
    let counts: Vec<&str> = bars.iter().map(|bar| bar["data-count"].as_str()).collect();
    // Fifteen bins: 0.55 in the ninth, 0.6 in the tenth (15 · 0.6 = 9), 0.9 in the fourteenth, 0.95 in the fifteenth.
    assert_eq!(
        counts.iter().map(|c| c.parse::<usize>().unwrap()).sum::<usize>(),
        4
    );
    // Each bar begins a unit right of its bin, of which fifteen share the area's 420 from 70 on.
    let places: Vec<(&str, &str)> = bars
        .iter()
        .map(|bar| (bar["data-confidence"].as_str(), bar["x"].as_str()))
        .collect();
    assert_eq!(
        places,
        [
            ("0.5500", "295.00"),
            ("0.6000", "323.00"),
            ("0.9000", "435.00"),
            ("0.9500", "463.00")
        ]
    );
    assert!(bars.iter().all(|bar| bar["width"] == "26.00"), "{bars:?}");
    let wrong = bars
        .iter()
        .find(|bar| bar["data-confidence"] == "0.6000")
        .unwrap();
    assert_eq!(
        (wrong["data-accuracy"].as_str(), wrong["height"].as_str()),
        ("0.0000", "0.00")
    );
    let right = bars
        .iter()
        .find(|bar| bar["data-confidence"] == "0.5500")
        .unwrap();
    assert_eq!(
        (right["y"].as_str(), right["height"].as_str()),
        ("60.00", "420.00")
    );
    assert!(svg.contains("dev &lt;1&gt;.jsonl, n = 4; ECE"), "{svg}");
}

#[test]
fn risk_falls_to_its_place_at_each_coverage() {
    let svg = risk_coverage(&evaluation(), "dev");
    let points = marks(&svg, "point");
    assert_eq!(points.len(), 20);
    let last = points.last().unwrap();
    assert_eq!(
        (last["data-coverage"].as_str(), last["data-risk"].as_str()),
        ("1.0000", "0.2500")
    );
    // A quarter wrong lies a quarter of the way up the area's 420, at its right edge.
    assert_eq!((last["cx"].as_str(), last["cy"].as_str()), ("490.00", "375.00"));
    for words in ["coverage", "risk", "AURC", "n = 4"] {
        assert!(svg.contains(words), "{words}");
    }
}

#[test]
fn the_confusion_has_every_cell_and_escapes_names() {
    let svg = confusion(&evaluation(), "dev");
    let counts: Vec<String> = marks(&svg, "cell")
        .iter()
        .map(|cell| cell["data-count"].clone())
        .collect();
    assert_eq!(counts, ["2", "1", "0", "1"]);
    assert!(svg.contains(">a&amp;b</text>"));
}

#[test]
fn three_files_are_written_and_an_empty_evaluation_draws_too() {
    let directory = tempfile::tempdir().unwrap();
    let empty = Accumulator::new(&[]).finish();
    for evaluation in [evaluation(), empty] {
        let paths = write(&evaluation, "dev", &directory.path().join("plots")).unwrap();
        assert_eq!(paths.len(), 3);
        for path in paths {
            let svg = std::fs::read_to_string(path).unwrap();
            assert_eq!(elements(&svg)[0].0, "svg");
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }
}
