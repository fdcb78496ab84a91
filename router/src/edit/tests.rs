use super::add::clauses;
use super::*;
use crate::Router;
use crate::tiny;
use crate::train::{TrainRouterOptions, train_router};
use indicatif::ProgressBar;

const EXPERTS: [(&str, &str); 4] = [
    ("drugs", "xylo zyx dose"),
    ("heart", "bub bab beat"),
    ("skin", "quq qoq wart"),
    (EXPERT_END, "ooo uuu"),
];

fn write_rows(path: &Path, from: usize, to: usize, but: &str) {
    let mut text = String::new();
    for i in from..to {
        for (expert, words) in EXPERTS.iter().filter(|(expert, _)| *expert != but) {
            text +=
                &format!("{{\"id\":\"{expert}-{i}\",\"query\":\"{words} {i}\",\"expert\":\"{expert}\"}}\n");
        }
    }
    std::fs::write(path, text).unwrap();
}

/// A router that knows all the experts but one.
fn trained(directory: &Path, but: &str) -> PathBuf {
    let (data, dev) = (directory.join("train.jsonl"), directory.join("dev.jsonl"));
    write_rows(&data, 0, 30, but);
    write_rows(&dev, 100, 120, but);
    let out = directory.join("router");
    let options = TrainRouterOptions::new(vec![data], vec![dev], out.clone());
    train_router(&tiny::model(), None, &options, &ProgressBar::hidden()).unwrap();
    out
}

fn skin(examples: usize) -> NewExpert {
    NewExpert {
        name: "skin".into(),
        description: "quq, qoq and wart".into(),
        examples: (200..200 + examples)
            .map(|i| format!("quq qoq wart {i}"))
            .collect(),
    }
}

#[test]
fn a_new_expert_gets_its_queries_and_the_old_ones_keep_theirs() {
    let directory = tempfile::tempdir().unwrap();
    let old = RouterDirectory::open(Some(&trained(directory.path(), "skin"))).unwrap();
    let out = directory.path().join("more");
    let report = old.add(&tiny::model(), &skin(20), &out).unwrap();
    assert_eq!(
        (report.examples, report.held_examples, report.held_rows),
        (15, 5, 40)
    );
    assert!(
        report.taught_won > 0.9 && report.held_won.unwrap() > 0.7 && !report.costs_too_much(),
        "{report:?}"
    );

    let router = Router::load(&out, tiny::model()).unwrap();
    assert_eq!(router.experts(), ["drugs", "heart", "skin"]);
    for (query, expert) in [
        ("quq qoq wart 7", "skin"),
        ("xylo zyx dose 8", "drugs"),
        ("bub bab beat 9", "heart"),
    ] {
        assert_eq!(router.route(&[query]).unwrap()[0].expert(), expert, "{query}");
    }
    let known = RouterDirectory::open(Some(&out)).unwrap().experts().unwrap();
    assert_eq!(
        (known[2].name.as_str(), known[2].bank_rows, known[2].held_rows),
        ("skin", 15, 5)
    );
    assert_eq!((known[0].bank_rows, known[0].held_rows), (30, 20));
    // The old tokens are as they were, and so are the logits.
    let rows = |directory: &Path| {
        RouterDirectory::open(Some(directory))
            .unwrap()
            .parse_for_its_model()
            .unwrap()
            .0
            .head
            .rows
    };
    let (before, after) = (rows(&directory.path().join("router")), rows(&out));
    let width = before.len() / 3;
    assert_eq!(before[..2 * width], after[..2 * width]);
    assert_eq!(before[2 * width..], after[3 * width..]);
}

#[test]
fn a_description_alone_makes_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let old = RouterDirectory::open(Some(&trained(directory.path(), "skin"))).unwrap();
    let out = directory.path().join("more");
    let report = old.add(&tiny::model(), &skin(0), &out).unwrap();
    assert_eq!(report.examples, 0);
    assert!(report.clauses >= 3 && !report.costs_too_much(), "{report:?}");
    assert_eq!(Router::load(&out, tiny::model()).unwrap().experts().len(), 3);
}

#[test]
fn experts_are_removed_and_renamed() {
    let directory = tempfile::tempdir().unwrap();
    let old = RouterDirectory::open(Some(&trained(directory.path(), ""))).unwrap();
    let out = directory.path().join("fewer");
    old.remove("heart", &out).unwrap();
    let fewer = RouterDirectory::open(Some(&out)).unwrap();
    fewer.rename("skin", "dermatology", &out).unwrap();
    let router = Router::load(&out, tiny::model()).unwrap();
    assert_eq!(router.experts(), ["drugs", "dermatology"]);
    assert_eq!(
        router.route(&["quq qoq wart 7"]).unwrap()[0].expert(),
        "dermatology"
    );
    let known = RouterDirectory::open(Some(&out)).unwrap().experts().unwrap();
    assert!(
        known
            .iter()
            .all(|known| known.bank_rows == 30 && known.held_rows == 20),
        "{known:?}"
    );

    let says = |result: Result<(), RouterError>, words: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error} does not say {words:?}");
    };
    says(fewer.remove("heart", &out), "the router knows drugs, skin");
    let last = RouterDirectory::open(Some(&out)).unwrap();
    says(last.remove("heart", &out), "the router knows drugs, dermatology");
    says(last.remove("drugs", &out), "at least two experts");
    says(last.rename("drugs", "dermatology", &out), "knows it already");
    for name in [
        "",
        " x",
        "Drugs",
        "7days",
        "drugs.old",
        "médecine",
        &"x".repeat(65),
    ] {
        says(
            last.rename("drugs", name, &out),
            "1 to 64 letters a-z, digits, _ or -",
        );
    }
    says(last.rename("drugs", EXPERT_END, &out), "is reserved");
    last.rename("drugs", &"x".repeat(64), &directory.path().join("long"))
        .unwrap();
}

#[test]
fn what_cannot_be_added_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = trained(directory.path(), "skin");
    let old = RouterDirectory::open(Some(&path)).unwrap();
    let fails = |router: &RouterDirectory, expert: NewExpert, words: &str| {
        let out = directory.path().join("bad");
        let error = router.add(&tiny::model(), &expert, &out).unwrap_err().to_string();
        assert!(error.contains(words), "{error} does not say {words:?}");
        assert!(!out.exists(), "nothing is written");
    };
    fails(
        &old,
        NewExpert {
            name: "heart".into(),
            ..skin(3)
        },
        "knows it already",
    );
    fails(
        &old,
        NewExpert {
            name: "Skin care".into(),
            ..skin(3)
        },
        "1 to 64 letters a-z",
    );
    fails(
        &old,
        NewExpert {
            name: EXPERT_END.into(),
            ..skin(3)
        },
        "is reserved",
    );
    for description in ["", " ", "a, b; 12."] {
        fails(
            &old,
            NewExpert {
                description: description.into(),
                ..skin(0)
            },
            "without examples",
        );
    }
    std::fs::remove_file(path.join(BANK)).unwrap();
    fails(
        &RouterDirectory::open(Some(&path)).unwrap(),
        skin(3),
        "trained without one",
    );
    assert!(RouterDirectory::open(Some(&directory.path().join("nowhere"))).is_err());
}

#[test]
fn unusable_examples_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("examples.jsonl");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read_examples(&path, "skin")
    };
    let fails = |bytes: &[u8], words: &str| {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{error} does not say {words:?}");
    };
    let row = |id: &str, query: &str| format!("{{\"id\":\"{id}\",\"query\":\"{query}\"}}\n");
    assert_eq!(
        read((row("1", "rash") + &row("2", "a mole")).as_bytes()).unwrap(),
        ["rash", "a mole"]
    );
    fails(b"", "it has no rows");
    fails(
        (row("1", "rash") + &row("2", "RASH ")).as_bytes(),
        "all the same query",
    );
    fails((row("1", "rash") + &row("1", "mole")).as_bytes(), "came before");
    fails(
        b"{\"id\":1,\"query\":\"rash\",\"expert\":\"heart\"}\n",
        "of the expert \"heart\"",
    );
    fails(b"{\"id\":1,\"query\":\" \"}\n", "query is empty");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut packed, row("1", "rash").repeat(200).as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    fails(&packed[..packed.len() / 2], "truncated");
}

#[test]
fn a_description_falls_into_its_clauses() {
    let pieces = clauses("skin_care", "Skin: rashes, moles and warts. (a)");
    assert_eq!(
        pieces,
        [
            "skin care",
            "Skin: rashes, moles and warts. (a)",
            "Skin",
            "rashes",
            "moles",
            "warts"
        ]
    );
}

#[test]
fn few_examples_are_all_taught_with() {
    let directory = tempfile::tempdir().unwrap();
    let old = RouterDirectory::open(Some(&trained(directory.path(), "skin"))).unwrap();
    for (examples, taught, held) in [(7, 7, 0), (8, 6, 2)] {
        let out = directory.path().join(examples.to_string());
        let report = old.add(&tiny::model(), &skin(examples), &out).unwrap();
        assert_eq!((report.examples, report.held_examples), (taught, held));
        assert_eq!(report.held_won.is_some(), held > 0);
        let known = RouterDirectory::open(Some(&out)).unwrap().experts().unwrap();
        assert_eq!((known[2].bank_rows, known[2].held_rows), (taught, held));
    }
}

#[test]
fn the_report_counts_what_the_changed_router_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = trained(directory.path(), "skin");
    let add = |threshold: f32| {
        let mut settings = RouterDirectory::open(Some(&path))
            .unwrap()
            .parse_for_its_model()
            .unwrap()
            .0
            .settings;
        settings.threshold = threshold;
        crate::train::write_json(&path.join(functional::SETTINGS), &settings).unwrap();
        let out = directory.path().join(format!("more-{threshold}"));
        let old = RouterDirectory::open(Some(&path)).unwrap();
        let report = old.add(&tiny::model(), &skin(20), &out).unwrap();
        (report, Router::load(&out, tiny::model()).unwrap())
    };
    let (report, router) = add(0.0);
    assert_eq!(report.end_rows, 20);
    let before = Router::load(&path, tiny::model()).unwrap();
    // The bank's held-out rows are the dev file's twenty.
    let queries: Vec<String> = (100..120).map(|i| format!("ooo uuu {i}")).collect();
    let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
    for (router, reported) in [
        (&before, report.end_abstained_before),
        (&router, report.end_abstained_after),
    ] {
        let routings = router.route(&queries).unwrap();
        let abstained = routings.iter().filter(|routing| routing.abstained).count();
        // A row on the edge may fall otherwise by the bank's eight bits.
        assert!(
            (reported.unwrap() - abstained as f64 / 20.0).abs() < 0.11,
            "{report:?}"
        );
    }
    // Who always abstains refers nothing to anybody.
    let (report, _) = add(1.0);
    assert_eq!(
        (report.taught_won, report.held_won),
        (0.0, Some(0.0)),
        "{report:?}"
    );
    assert_eq!(report.end_abstained_after, Some(1.0));
}

#[test]
fn an_edit_of_the_shipped_router_writes_all_that_it_is_loaded_from() {
    let out = tempfile::tempdir().unwrap();
    let shipped = RouterDirectory::open(None).unwrap();
    let expert = shipped.experts().unwrap()[0].name.clone();
    shipped.rename(&expert, "renamed", out.path()).unwrap();
    let source = include_str!("../functional.rs");
    let loaded: Vec<&str> = source
        .split("../data/shipped/")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(loaded.contains(&functional::TOKENS), "{loaded:?}");
    for name in loaded {
        assert!(out.path().join(name).is_file(), "{name} is missing");
    }
    let edited = RouterDirectory::open(Some(out.path())).unwrap();
    let (file, _) = edited.parse_for_its_model().unwrap();
    let adapter = edited.file(functional::ADAPTER);
    assert_eq!(file.settings.adapter_sha256, Some(crate::digest::sha256(adapter)));
    assert_eq!(edited.experts().unwrap()[0].name, "renamed");
}
