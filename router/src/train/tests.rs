use super::*;
use crate::functional::decide;
use crate::{Router, tiny};
use std::path::Path;
use std::time::Duration;

/// Queries whose words betray their expert; `<expert_end>` rows have none of them.
fn write_rows(path: &Path, from: usize, to: usize) {
    let mut text = String::new();
    for i in from..to {
        for (expert, words) in [
            ("drugs", "xylo zyx dose"),
            ("heart", "bub bab beat"),
            (EXPERT_END, "ooo uuu"),
        ] {
            text +=
                &format!("{{\"id\":\"{expert}-{i}\",\"query\":\"{words} {i}\",\"expert\":\"{expert}\"}}\n");
        }
    }
    std::fs::write(path, text).unwrap();
}

fn options(directory: &Path) -> TrainRouterOptions {
    let (data, dev) = (directory.join("train.jsonl"), directory.join("dev.jsonl"));
    write_rows(&data, 0, 30);
    write_rows(&dev, 100, 120);
    TrainRouterOptions::new(vec![data], vec![dev], directory.join("router"))
}

#[test]
fn a_trained_router_routes_repeats_and_says_what_it_was_made_from() {
    let directory = tempfile::tempdir().unwrap();
    let options = TrainRouterOptions {
        feature_cache: Some(directory.path().join("cache")),
        ..options(directory.path())
    };
    let model = tiny::model();
    let report = train_router(&model, None, &options, &ProgressBar::hidden()).unwrap();
    assert_eq!(report.experts, ["drugs", "heart"]);
    assert_eq!(report.dev["dev.jsonl"].n, 40);
    assert!(report.dev["dev.jsonl"].accuracy > 0.9, "{report}");
    assert_eq!(
        (report.unanswerable, report.sources.len(), report.trained_rows),
        (20, 2, 90)
    );

    let router = Router::load(&options.out, model.clone()).unwrap();
    let routings = router
        .route(&["xylo zyx dose 300", " bub  bab beat 301", ""])
        .unwrap();
    assert_eq!((routings[0].expert(), routings[1].expert()), ("drugs", "heart"));
    assert_eq!(routings.len(), 3);
    assert!(report.scope.is_some(), "{report}");
    let vague = &router.route(&["ooo uuu 7"]).unwrap()[0];
    assert!(
        vague.out_of_scope && vague.in_scope < 0.5 && routings[0].in_scope > 0.5,
        "{vague:?}"
    );
    for name in ["report.json", "report.txt", "README.md"] {
        let text = std::fs::read_to_string(options.out.join(name)).unwrap();
        assert!(text.contains("heart"), "{name}: {text}");
    }
    let card = std::fs::read_to_string(options.out.join("README.md")).unwrap();
    assert!(
        card.contains(&report.sources[0].sha256) && card.contains("--seed 0"),
        "{card}"
    );

    // From the cache this time, and another directory: the same router to the byte.
    let again = TrainRouterOptions {
        out: directory.path().join("again"),
        ..options
    };
    assert_eq!(
        train_router(&model, None, &again, &ProgressBar::hidden()).unwrap(),
        report
    );
    assert_eq!(
        Router::load(&again.out, model).unwrap().version(),
        router.version()
    );
}

#[test]
fn unusable_data_and_options_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let model = tiny::model();
    let good = options(directory.path());
    let fails = |options: &TrainRouterOptions, says: &str| {
        let error = train_router(&model, None, options, &ProgressBar::hidden())
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error} does not say {says:?}");
    };
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        vec![path]
    };
    let row = |id: u32, query: &str, expert: &str| {
        format!("{{\"id\":{id},\"query\":\"{query}\",\"expert\":\"{expert}\"}}\n")
    };
    fails(
        &TrainRouterOptions {
            data: vec![],
            ..good.clone()
        },
        "at least one training file",
    );
    fails(
        &TrainRouterOptions {
            dev: vec![],
            ..good.clone()
        },
        "at least one dev file",
    );
    fails(
        &TrainRouterOptions {
            layer: Some(9),
            ..good.clone()
        },
        "layers 1 to 3",
    );
    fails(
        &TrainRouterOptions {
            max_per_expert: Some(0),
            ..good.clone()
        },
        "max_per_expert",
    );
    fails(
        &TrainRouterOptions {
            max_error: 1.5,
            ..good.clone()
        },
        "max_error",
    );
    let one = row(1, "a", "x") + &row(2, "b", "x");
    fails(
        &TrainRouterOptions {
            data: file("one", &one),
            ..good.clone()
        },
        "at least two experts",
    );
    let same = one.clone() + &row(3, "c", "y") + &row(4, " c", "y");
    fails(
        &TrainRouterOptions {
            data: file("same", &same),
            ..good.clone()
        },
        "one distinct query",
    );
    let alien = TrainRouterOptions {
        dev: file("alien", &row(1, "a", "skin")),
        ..good.clone()
    };
    fails(&alien, "known are drugs, heart, <expert_end>");
}

#[test]
fn training_rows_that_are_in_dev_are_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path());
    let leaky = directory.path().join("leaky.jsonl");
    std::fs::write(
        &leaky,
        "{\"id\":\"leak\",\"query\":\"XYLO zyx  dose 100\",\"expert\":\"drugs\"}\n",
    )
    .unwrap();
    options.data.push(leaky);
    let report = train_router(&tiny::model(), None, &options, &ProgressBar::hidden()).unwrap();
    assert_eq!((report.dropped_rows, report.trained_rows), (1, 90));
}

#[test]
fn thinning_keeps_at_most_so_many_and_follows_the_seed() {
    let directory = tempfile::tempdir().unwrap();
    let files = dataset::read_files(&options(directory.path()).data).unwrap();
    let ids = |seed| {
        let mut files = files.clone();
        thin(&mut files, 7, seed);
        files[0].rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(1).len(), 21);
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
}

#[test]
fn the_default_candidates_suit_any_depth() {
    for depth in 1..40 {
        for features in candidate_features(depth, None) {
            assert!(
                features
                    .iter()
                    .all(|feature| (1..=depth).contains(&feature.layer)),
                "{depth}: {features:?}"
            );
        }
    }
    let layers: Vec<usize> = candidate_features(30, Some(8))[0]
        .iter()
        .map(|feature| feature.layer)
        .collect();
    assert_eq!(layers, [1, 4, 8, 8]);
}

/// Routes queries from the trainer's features, computed and then cached, and holds them against [`Router::route`]. The
/// trainer keeps them as f16, whose rounding may move a probability by `tolerance`.
fn assert_features_route_as_the_router_does(
    directory: &Path,
    model: &LanguageModel,
    queries: &[&str],
    tolerance: f32,
) {
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let identity = ModelIdentity::of(model);
    let (settings, tokens) = (read("router.json"), read("tokens.safetensors"));
    let file = RouterFile::parse(directory, &settings, &tokens, &identity).unwrap();
    let adapter = file.settings.adapter_sha256.as_ref().map(|_| {
        let path = directory.join(functional::ADAPTER);
        Arc::new(Adapter::load(&path, model).unwrap())
    });
    let read_out = ReadOut::new(model.clone(), file.settings.read_out.clone(), adapter).unwrap();
    let routed = Router::load(directory, model.clone())
        .unwrap()
        .route(queries)
        .unwrap();

    let scratch = tempfile::tempdir().unwrap();
    let cache = scratch.path().join("features");
    let extract = || {
        let hidden = ProgressBar::hidden();
        features::extract(model, &read_out, queries, Some(&cache), &hidden).unwrap()
    };
    let computed = extract();
    assert_eq!(computed, extract(), "the cache keeps what was computed");
    let tokens = queries
        .iter()
        .map(|query| read_out.tokens(&dataset::normalise(query)));
    let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_, _>>().unwrap();
    let exact = read_out.read(&tokens).unwrap();
    for (((query, vector), exact), want) in queries.iter().zip(&computed).zip(&exact).zip(&routed) {
        let mut vector: Vec<f32> = vector.iter().map(|x| x.to_f32()).collect();
        for (x, exact) in vector.iter().zip(exact) {
            assert!(
                (x - exact).abs() < 1e-3 * exact.abs().max(1.0),
                "{query}: {x} {exact}"
            );
        }
        file.standardise(&mut vector);
        let got = decide(
            &file.settings,
            &file.score(&vector, &dataset::normalise(query)),
            Duration::ZERO,
        );
        for (expert, p) in &want.probabilities {
            let (_, other) = got.probabilities.iter().find(|(name, _)| name == expert).unwrap();
            assert!((p - other).abs() < tolerance, "{query}: {expert} {p} {other}");
        }
    }
}

#[test]
fn the_trainers_features_are_the_routers() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let model = tiny::model();
    train_router(&model, None, &options, &ProgressBar::hidden()).unwrap();
    let long = "xylo bub zyx bab ".repeat(60);
    // A fit of toy data is steep, and so magnifies the rounding.
    let queries = ["bub xylo 7", " zyx   bab\t", long.as_str(), "", "beat"];
    assert_features_route_as_the_router_does(&options.out, &model, &queries, 1e-2);
}

#[test]
fn an_adapter_belongs_to_its_router() {
    let directory = tempfile::tempdir().unwrap();
    let (_weights, checkpoint) = tiny::checkpoint();
    let model = tiny::model();
    let options = TrainRouterOptions {
        layer: Some(2),
        adapter: Some(AdapterTraining {
            rank: 2,
            epochs: 2,
            ..AdapterTraining::default()
        }),
        ..options(directory.path())
    };
    let hidden = ProgressBar::hidden();
    let report = train_router(&model, Some(&checkpoint), &options, &hidden).unwrap();
    assert!(report.dev["dev.jsonl"].accuracy > 0.9, "{report}");
    let card = std::fs::read_to_string(options.out.join("README.md")).unwrap();
    assert!(
        card.contains("--adapter --adapter-rank 2 --adapter-epochs 2"),
        "{card}"
    );
    let queries = ["bub xylo 7", "", "beat"];
    assert_features_route_as_the_router_does(&options.out, &model, &queries, 1e-2);

    // The same adapter taken over gives the same router.
    let over = TrainRouterOptions {
        adapter: None,
        adapter_from: Some(options.out.join(functional::ADAPTER)),
        out: directory.path().join("over"),
        ..options.clone()
    };
    train_router(&model, None, &over, &hidden).unwrap();
    let version = |out: &Path| Router::load(out, model.clone()).unwrap().version().to_owned();
    assert_eq!(version(&over.out), version(&options.out));

    let refused = || Router::load(&over.out, model.clone()).err().unwrap().to_string();
    let adapter = over.out.join(functional::ADAPTER);
    let mut bytes = std::fs::read(&adapter).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&adapter, &bytes).unwrap();
    assert!(refused().contains("SHA-256"), "{}", refused());
    std::fs::remove_file(&adapter).unwrap();
    assert!(refused().contains("missing"), "{}", refused());
    let plain = TrainRouterOptions {
        adapter_from: None,
        ..over.clone()
    };
    train_router(&model, None, &plain, &hidden).unwrap();
    std::fs::write(&adapter, &bytes).unwrap();
    assert!(refused().contains("trained without one"), "{}", refused());

    let fault = |options: &TrainRouterOptions, checkpoint| {
        train_router(&model, checkpoint, options, &hidden)
            .unwrap_err()
            .to_string()
    };
    let without_layer = TrainRouterOptions {
        layer: None,
        ..options.clone()
    };
    assert!(fault(&without_layer, Some(&checkpoint)).contains("layer"));
    assert!(fault(&options, None).contains("checkpoint"));
    let elsewhere = TrainRouterOptions {
        adapter_from: Some(directory.path().join("nowhere")),
        ..over
    };
    assert!(fault(&elsewhere, None).contains("nowhere"));
}

/// On the real weights, where a machine has them.
#[test]
fn the_trainers_features_are_the_shipped_routers() {
    let Some(path) = std::env::var_os("REFERRAL_TEST_GGUF") else {
        return;
    };
    let model = LanguageModel::load(Path::new(&path), &referral_lm::load::LoadOptions::default()).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/shipped");
    let long = "she was admitted with chest pain and a raised troponin ".repeat(40);
    let queries = [
        "is it safe to take omeprazole with clopidogrel",
        "Which gene is on chromosome 7?",
        long.as_str(),
        "help",
    ];
    assert_features_route_as_the_router_does(&shipped, &model, &queries, 1e-3);
}
