use super::*;
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
    assert_eq!((report.examples, report.held_rows), (20, 40));
    assert!(
        report.examples_won > 0.9 && !report.costs_too_much(),
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
    says(fewer.remove("heart", &out), "");
    let last = RouterDirectory::open(Some(&out)).unwrap();
    says(last.remove("heart", &out), "the router knows drugs, dermatology");
    says(last.remove("drugs", &out), "at least two experts");
    says(last.rename("drugs", "dermatology", &out), "knows it already");
    says(last.rename("drugs", " x", &out), "without spaces");
    says(last.rename("drugs", EXPERT_END, &out), "give a name");
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
            description: " ".into(),
            ..skin(0)
        },
        "without examples",
    );
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
