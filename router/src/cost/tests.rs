use super::train::{TrainGainOptions, train_gain};
use super::*;
use crate::tiny;
use indicatif::ProgressBar;
use std::fmt::Write as _;

/// Queries whose words say which model can answer them; every seventh row lies.
fn write_rows(path: &Path, from: usize, to: usize) {
    let mut text = String::new();
    for i in from..to {
        for (subject, words, strong, weak) in [
            ("hard", "integral of zyx", true, i % 7 == 0),
            ("easy", "capital of bub", i % 7 != 0, true),
            ("mean", "both fail ooo", i % 7 == 0, false),
        ] {
            writeln!(
                text,
                r#"{{"id":"{subject}-{i}","prompt":"{words} {i}","subject":"{subject}","strong_correct":{strong},"weak_correct":{weak}}}"#
            )
            .unwrap();
        }
    }
    std::fs::write(path, text).unwrap();
}

fn options(directory: &Path) -> TrainGainOptions {
    let (data, dev) = (directory.join("train.jsonl"), directory.join("dev.jsonl"));
    write_rows(&data, 0, 40);
    write_rows(&dev, 100, 130);
    TrainGainOptions {
        data,
        dev,
        out: directory.join("cost"),
        layer: 3,
        seed: 0,
        feature_cache: None,
    }
}

#[test]
fn a_trained_head_ranks_repeats_and_says_what_it_was_made_from() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let model = tiny::model();
    let report = train_gain(&model, &options, &ProgressBar::hidden()).unwrap();
    assert!(report.dev.router.apgr.value > 0.8, "{report}");
    assert!(report.dev.router.cpt50.value < 0.3, "{report}");
    assert_eq!((report.dev.n, report.dropped_rows), (90, 0));
    let card = std::fs::read_to_string(options.out.join("README.md")).unwrap();
    assert!(card.contains("--layer 3") && card.contains("APGR"), "{card}");

    let head = GainModel::load(&options.out, model.clone()).unwrap();
    let rows = read_file(&options.dev).unwrap();
    let gains = evaluate::predict(&head, &rows, |_| {}).unwrap();
    let again = evaluate::figures(&rows, &gains, 100, 0).unwrap();
    assert!((again.router.apgr.value - report.dev.router.apgr.value).abs() < 0.01);
    assert!(gains.iter().all(|gain| (-1.0..=1.0).contains(gain)));
    let found = head
        .gains(&["integral of zyx 300", "capital of bub 300", ""])
        .unwrap();
    assert!(found[0] > found[1], "{found:?}");
    // A third of the dev rows is worth the strong model.
    let threshold = head.threshold_for_share(1.0 / 3.0);
    let sent = gains.iter().filter(|gain| **gain >= threshold).count();
    assert!((28..=32).contains(&sent), "{sent}");

    let other = TrainGainOptions {
        out: directory.path().join("again"),
        ..options
    };
    assert_eq!(
        train_gain(&model, &other, &ProgressBar::hidden()).unwrap(),
        report
    );
}

#[test]
fn unusable_data_and_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let model = tiny::model();
    let train = |text: &str| {
        std::fs::write(&options.data, text).unwrap();
        train_gain(&model, &options, &ProgressBar::hidden())
            .unwrap_err()
            .to_string()
    };
    let row = |id: usize, strong: &str, weak: &str| {
        format!(
            "{{\"id\":{id},\"prompt\":\"why {id}?\",\"strong_correct\":{strong},\"weak_correct\":{weak}}}\n"
        )
    };
    let many = |strong: &str, weak: &str| (0..20).map(|id| row(id, strong, weak)).collect::<String>();
    for (text, words) in [
        (String::new(), "no rows"),
        (row(1, "true", "false"), "too few"),
        (row(1, "true", "false") + &row(1, "true", "false"), "came before"),
        (many("true", "true"), "swapped"),
        (many("2", "0"), "must be true or false"),
        (many("true", "null"), "must be true or false"),
        (
            many("true", "false").replace(",\"weak_correct\":false", ""),
            "without one of them",
        ),
    ] {
        let error = train(&text);
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(GainModel::load(&directory.path().join("nothing"), model.clone()).is_err());
    write_rows(&options.data, 0, 40);
    train_gain(&model, &options, &ProgressBar::hidden()).unwrap();
    let settings = options.out.join("cost.json");
    let text = std::fs::read_to_string(&settings).unwrap();
    for (from, to) in [
        ("\"format\": 1", "\"format\": 9"),
        ("\"name\": \"tiny\"", "\"name\": \"big\""),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&settings, text.replace(from, to)).unwrap();
        let error = GainModel::load(&options.out, model.clone())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("cost.json"), "{error}");
    }
    std::fs::write(&settings, text).unwrap();
    std::fs::write(options.out.join("cost.safetensors"), b"junk").unwrap();
    assert!(GainModel::load(&options.out, model).is_err());
}

#[test]
fn thresholds_send_the_share_that_was_asked_for() {
    let quantiles = [0.0, 0.1, 0.2, 0.3, 0.4];
    for (share, expected) in [
        (0.0, f32::INFINITY),
        (1.0, f32::NEG_INFINITY),
        (0.25, 0.3),
        (0.5, 0.2),
        (0.625, 0.15),
    ] {
        let found = threshold_for_share(&quantiles, share);
        assert!(
            found == expected || (found - expected).abs() < 1e-6,
            "{share}: {found}"
        );
    }
}

#[test]
fn gains_are_those_of_the_softmax() {
    // Outcomes 0, 1, 2, 3 with odds 1 : 2 : 4 : 1.
    let gain = outcome_gain(&[0.0, 2f32.ln(), 4f32.ln(), 0.0]);
    assert!((gain - 0.25).abs() < 1e-6);
    assert!((group_gain(&[0.0, 3f32.ln()], &[0.4, 0.0]) - 0.1).abs() < 1e-6);
}

#[test]
fn the_shipped_head_is_whole() {
    let settings = include_bytes!("../../data/shipped_cost/cost.json");
    let tensors = include_bytes!("../../data/shipped_cost/cost.safetensors");
    let identity = serde_json::from_slice::<file::Settings>(settings).unwrap().model;
    let file = GainFile::parse(Path::new("shipped"), settings, tensors, &identity).unwrap();
    assert_eq!(file.settings.groups.len(), 57);
    assert!(file.gain(&vec![0.0; file.mean.len()]).abs() < 1.0);
    let other = ModelIdentity {
        layers: identity.layers + 1,
        ..identity
    };
    assert!(GainFile::parse(Path::new("shipped"), settings, tensors, &other).is_err());
}
