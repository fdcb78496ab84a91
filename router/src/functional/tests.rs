use super::*;
use crate::tiny;
use crate::train::Head;

fn scope(threshold: f32) -> Scope {
    Scope {
        weights: [1.0, 0.1, -0.5],
        bias: 0.0,
        threshold,
    }
}

fn router_file(model: &LanguageModel) -> RouterFile {
    let features = [(1, Pooling::Mean), (2, Pooling::Mean), (2, Pooling::Last)];
    let features = features
        .map(|(layer, pooling)| Feature { layer, pooling })
        .to_vec();
    let width = features.len() * model.info().width;
    let rows = (0..3 * width).map(|i| (i as f32 * 0.37).sin()).collect();
    RouterFile {
        settings: Settings {
            format: FORMAT,
            model: ModelIdentity::of(model),
            read_out: ReadOutSpec {
                prompt: PROMPT.to_owned(),
                window: Window { head: 8, tail: 16 },
                features,
            },
            experts: vec!["heart".into(), "lungs".into()],
            temperature: 2.0,
            temperature_slope: 0.5,
            threshold: 0.5,
            lexical_weight: 0.0,
            scope: Some(scope(0.4)),
            adapter_sha256: None,
        },
        head: Head {
            rows,
            bias: vec![0.1, 0.2, -0.3],
        },
        mean: vec![0.01; width],
        scale: vec![0.5; width],
        lexical: None,
    }
}

fn saved(model: &LanguageModel) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    router_file(model).save(directory.path()).unwrap();
    directory
}

#[test]
fn what_is_saved_is_loaded() {
    let model = tiny::model();
    let directory = saved(&model);
    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    let file = RouterFile::parse(
        directory.path(),
        &read(file::SETTINGS),
        &read(file::TOKENS),
        &ModelIdentity::of(&model),
    )
    .unwrap();
    let original = router_file(&model);
    assert_eq!(
        (&file.settings, &file.mean, &file.scale, &file.head.bias),
        (
            &original.settings,
            &original.mean,
            &original.scale,
            &original.head.bias
        )
    );
    let pairs = file.head.rows.iter().zip(&original.head.rows);
    assert!(
        pairs.clone().all(|(a, b)| (a - b).abs() < 1e-3),
        "f16 keeps three digits"
    );
}

#[test]
fn a_batch_routes_as_its_queries_do_alone() {
    let model = tiny::model();
    let router = Router::load(saved(&model).path(), model).unwrap();
    let long = "chest pain on the stairs ".repeat(40);
    let queries = ["is my pulse high", "x", long.as_str(), "", "  is my\tpulse high"];
    let together = router.route(&queries).unwrap();
    for (query, routing) in queries.iter().zip(&together) {
        let alone = &router.route(&[query]).unwrap()[0];
        assert_eq!(alone.expert(), routing.expert());
        assert!((alone.confidence - routing.confidence).abs() < 1e-4);
        let sum: f32 = routing.probabilities.iter().map(|(_, p)| p).sum();
        assert!((sum - 1.0).abs() < 1e-5 && routing.probabilities[0].1 == routing.confidence);
    }
    assert_eq!(
        together[0].probabilities, together[4].probabilities,
        "white space is not part of the query"
    );
    assert!(router.route(&[]).unwrap().is_empty());
}

#[test]
fn the_mean_is_over_the_query_and_the_last_position_after_it() {
    let model = tiny::model();
    let spec = |layer, pooling| ReadOutSpec {
        prompt: PROMPT.into(),
        window: Window::default(),
        features: vec![Feature { layer, pooling }],
    };
    let message = |role, content: &str| ChatMessage {
        role,
        content: content.to_owned(),
    };
    use referral_lm::tokenize::{ChatMessage, Role};
    let chat = model
        .encode_chat(&[message(Role::System, PROMPT), message(Role::User, "abc")], true)
        .unwrap();
    let states = model.hidden_states(None, &[&chat], &[2], None).unwrap().remove(0);
    let width = model.info().width;
    let state = |token: usize| &states.layers[0][token * width..(token + 1) * width];
    let start = chat
        .windows(3)
        .position(|three| three == model.encode("abc", false).unwrap())
        .unwrap();

    let read = |pooling| {
        let read_out = ReadOut::new(model.clone(), spec(2, pooling), None).unwrap();
        read_out
            .read(&[read_out.tokens("abc").unwrap()])
            .unwrap()
            .remove(0)
    };
    let mean: Vec<f32> = (0..width)
        .map(|d| (start..start + 3).map(|token| state(token)[d]).sum::<f32>() / 3.0)
        .collect();
    for (got, want) in read(Pooling::Mean)
        .iter()
        .zip(&mean)
        .chain(read(Pooling::Last).iter().zip(state(chat.len() - 1)))
    {
        assert!((got - want).abs() < 1e-4, "{got} is not {want}");
    }
}

#[test]
fn the_end_token_flattens_the_distribution() {
    let settings = Settings {
        threshold: 0.6,
        ..Settings::untrained(&["a".into(), "b".into()])
    };
    let routing = |logits: [f32; 3]| {
        let logits = logits.to_vec();
        decide(
            &settings,
            &Scored {
                logits,
                distance: 0.0,
            },
            Duration::ZERO,
        )
    };
    let sure = routing([3.0, 0.0, -9.0]);
    let vague = routing([3.0, 0.0, 5.0]);
    assert!(!sure.abstained && vague.abstained && !vague.out_of_scope);
    assert_eq!((sure.expert(), vague.expert()), ("a", "a"));
    let end = 5f32.exp() / (3f32.exp() + 1.0 + 5f32.exp());
    assert!((vague.confidence - (3f32.exp() / 5f32.exp() * end + end / 2.0)).abs() < 1e-5);
    assert!((vague.in_scope - (1.0 - end)).abs() < 1e-5);
}

#[test]
fn an_out_of_scope_query_is_abstained_on_and_flat() {
    let settings = Settings {
        scope: Some(scope(0.4)),
        ..Settings::untrained(&["a".into(), "b".into()])
    };
    let routing = |distance, end| {
        let logits = vec![3.0, 0.0, end];
        decide(&settings, &Scored { logits, distance }, Duration::ZERO)
    };
    let (near, far, vague) = (routing(0.0, 0.0), routing(9.0, 0.0), routing(0.0, 6.0));
    assert!(
        !near.out_of_scope && !near.abstained && near.in_scope > 0.9,
        "{near:?}"
    );
    for routing in [far, vague] {
        assert!(
            routing.out_of_scope && routing.abstained && routing.in_scope < 0.4,
            "{routing:?}"
        );
        assert!(routing.confidence < near.confidence);
        assert!((routing.probabilities.iter().map(|(_, p)| p).sum::<f32>() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn the_version_follows_the_files() {
    let model = tiny::model();
    let directory = saved(&model);
    let version = || {
        Router::load(directory.path(), model.clone())
            .unwrap()
            .version()
            .to_owned()
    };
    let before = version();
    assert_eq!(before.len(), 64);
    assert_eq!(before, version());
    let mut changed = router_file(&model);
    changed.settings.threshold = 0.51;
    changed.save(directory.path()).unwrap();
    assert_ne!(before, version());
}

#[test]
fn unusable_files_are_named() {
    let model = tiny::model();
    let fails = |spoil: &dyn Fn(&Path), says: &str| {
        let directory = saved(&model);
        spoil(directory.path());
        let error = Router::load(directory.path(), model.clone())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(says), "{error} does not say {says:?}");
    };
    let edit = |change: &'static dyn Fn(&mut RouterFile)| {
        let mut file = router_file(&model);
        change(&mut file);
        move |directory: &Path| file.save(directory).unwrap()
    };
    fails(
        &|d| std::fs::remove_file(d.join(file::TOKENS)).unwrap(),
        "tokens.safetensors",
    );
    fails(
        &|d| std::fs::write(d.join(file::SETTINGS), "{").unwrap(),
        "router.json: EOF",
    );
    fails(
        &|d| std::fs::write(d.join(file::TOKENS), b"not tensors").unwrap(),
        "tokens.safetensors:",
    );
    let truncate = |d: &Path| {
        let bytes = std::fs::read(d.join(file::TOKENS)).unwrap();
        std::fs::write(d.join(file::TOKENS), &bytes[..bytes.len() - 4]).unwrap();
    };
    fails(&truncate, "tokens.safetensors:");
    fails(&edit(&|f| f.settings.format = 9), "format 9 is not supported");
    fails(&edit(&|f| f.settings.model.width = 64), "train a router for it");
    fails(
        &edit(&|f| f.settings.model.vocabulary = 1),
        "train a router for it",
    );
    fails(
        &edit(&|f| f.settings.experts = vec!["a".into(), "a".into()]),
        "at least two, each once",
    );
    fails(
        &edit(&|f| f.settings.experts.push("third".into())),
        "has the shape",
    );
    fails(&edit(&|f| f.settings.temperature = 0.0), "temperature");
    fails(&edit(&|f| f.settings.threshold = 1.5), "threshold");
    fails(&edit(&|f| f.settings.scope = Some(scope(2.0))), "scope: weights");
    fails(
        &edit(&|f| f.settings.read_out.features[1].layer = 7),
        "layers 1 to 3",
    );
    fails(&edit(&|f| f.head.bias[0] = f32::NAN), "not finite");
    fails(&edit(&|f| f.scale[0] = 0.0), "not positive");
}

#[test]
fn the_shipped_files_are_whole_and_know_the_eleven_experts() {
    let settings = include_bytes!("../../data/shipped/router.json");
    let tokens = include_bytes!("../../data/shipped/tokens.safetensors");
    let smollm2 = serde_json::from_slice::<Settings>(settings).unwrap().model;
    let file = RouterFile::parse(Path::new("shipped"), settings, tokens, &smollm2).unwrap();
    assert_eq!(
        (smollm2.layers, smollm2.width, smollm2.vocabulary),
        (30, 576, 49_152)
    );
    assert_eq!(file.settings.experts.len(), 11);
    assert!(
        Router::shipped(tiny::model())
            .err()
            .unwrap()
            .to_string()
            .contains("train a router for it")
    );
}

#[test]
fn a_query_beyond_the_window_is_marked() {
    let model = tiny::model();
    let directory = saved(&model);
    let router = Router::load(directory.path(), model).unwrap();
    // The tiny tokenizer makes a token of each byte; the window is 8 and 16.
    let routings = router
        .route(&["x".repeat(24).as_str(), "x".repeat(25).as_str()])
        .unwrap();
    assert_eq!((routings[0].windowed, routings[1].windowed), (false, true));
}

/// On the real weights, where a machine has them.
#[test]
fn the_shipped_router_refers_plain_queries_and_abstains_on_vague_ones() {
    let Some(path) = std::env::var_os("REFERRAL_TEST_GGUF") else {
        return;
    };
    let model = LanguageModel::load(Path::new(&path), &referral_lm::load::LoadOptions::default()).unwrap();
    let router = Router::shipped(model).unwrap();
    let queries = [
        (
            "my pacemaker clinic letter says 9% paced, what is that",
            "cardiopulmonary",
        ),
        ("is it safe to take omeprazole with clopidogrel", "pharmacy"),
        (
            "randomised trials of early mobilisation after stroke",
            "research_evidence",
        ),
        ("how do I book the meeting room on level 3", "general"),
    ];
    let texts: Vec<&str> = queries.iter().map(|(query, _)| *query).collect();
    for (routing, (query, expert)) in router.route(&texts).unwrap().iter().zip(queries) {
        assert_eq!((routing.expert(), routing.abstained), (expert, false), "{query}");
    }
    assert!(router.route(&["it's happening again"]).unwrap()[0].abstained);
}
