use super::*;
use crate::policy::{Candidate, PolicyError, PolicySettings, Reason};
use proptest::prelude::*;
use std::sync::Mutex;
use std::time::Duration;

/// Refers a query to the expert that it names after this router's own name, "a:b c:d": router a refers it to b.
/// "a:b?" leaves it unsure, "a:!" makes it fail.
struct Scripted {
    name: &'static str,
    experts: Vec<String>,
    batches: Mutex<Vec<usize>>,
}

fn scripted(name: &'static str, experts: &[&str]) -> Arc<Scripted> {
    Arc::new(Scripted {
        name,
        experts: experts.iter().map(|name| (*name).to_owned()).collect(),
        batches: Mutex::default(),
    })
}

impl Decider for Scripted {
    fn experts(&self) -> &[String] {
        &self.experts
    }
    fn version(&self) -> &str {
        self.name
    }
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        self.batches.lock().unwrap().push(queries.len());
        let routing = |query: &&str| {
            let own = |word: &str| {
                Some(
                    word.split_once(':')
                        .filter(|(name, _)| *name == self.name)?
                        .1
                        .to_owned(),
                )
            };
            let word = query.split(' ').find_map(own).unwrap();
            if word == "!" {
                return Err(RouterError::Invalid {
                    field: "query",
                    value: word,
                    fix: "mend it".to_owned(),
                });
            }
            let name = word.trim_end_matches('?');
            let confidence = if word.ends_with('?') { 0.3 } else { 0.8 };
            let others = self.experts.iter().filter(|expert| *expert != name);
            let share = (1.0 - confidence) / (self.experts.len() - 1).max(1) as f32;
            Ok(Routing {
                probabilities: [(name.to_owned(), confidence)]
                    .into_iter()
                    .chain(others.map(|expert| (expert.clone(), share)))
                    .collect(),
                confidence,
                in_scope: 1.0,
                out_of_scope: false,
                abstained: confidence < 0.5,
                windowed: false,
                latency: Duration::ZERO,
            })
        };
        queries.iter().map(routing).collect()
    }
}

fn node(decider: &Arc<Scripted>, otherwise: &str) -> Node {
    Node {
        name: decider.name.to_owned(),
        decider: decider.clone(),
        otherwise: otherwise.to_owned(),
        min_confidence: None,
    }
}

/// top → pharmacy, heart; heart → rhythm, failure, valves; valves → aortic, mitral.
struct Ward {
    graph: Graph,
    heart: Arc<Scripted>,
}

fn ward() -> Ward {
    let top = scripted("top", &["pharmacy", "heart"]);
    let heart = scripted("heart", &["rhythm", "failure", "valves"]);
    let valves = scripted("valves", &["aortic", "mitral"]);
    let nodes = vec![node(&heart, "internist"), node(&valves, "internist")];
    Ward {
        graph: Graph::new(top, None, nodes, 3).unwrap(),
        heart,
    }
}

const WORKERS: [&str; 7] = [
    "generalist",
    "internist",
    "pharmacy",
    "rhythm",
    "failure",
    "aortic",
    "mitral",
];

fn candidates(unready: &[&str]) -> Vec<Candidate> {
    let candidate = |id: &&str| Candidate {
        id: (*id).to_owned(),
        is_ready: !unready.contains(id),
        is_external: false,
    };
    WORKERS.iter().map(candidate).collect()
}

fn settings() -> PolicySettings {
    PolicySettings {
        generalist: "generalist".to_owned(),
        min_confidence: None,
        allow_external: false,
    }
}

fn referral(graph: &Graph, query: &str, unready: &[&str]) -> Referral {
    let descent = graph.route(&[query]).unwrap().remove(0);
    graph
        .decide(Some(&descent), None, &candidates(unready), &settings())
        .unwrap()
}

#[test]
fn a_query_descends_to_a_worker_and_its_confidences_multiply() {
    let Ward { graph, .. } = ward();
    let descent = graph
        .route(&["top:heart heart:valves valves:mitral"])
        .unwrap()
        .remove(0);
    assert_eq!(descent.depth(), 3);
    assert_eq!(descent.path(), ["heart", "valves", "mitral"]);
    assert!((descent.confidence() - 0.8 * 0.8 * 0.8).abs() < 1e-6);
    let found = graph
        .decide(Some(&descent), None, &candidates(&[]), &settings())
        .unwrap();
    assert_eq!(found.choice.order, ["mitral", "internist", "generalist"]);
    assert_eq!(found.choice.reasons, [Reason::Routed]);
    assert!(!found.choice.abstained);
    assert_eq!(found.path("mitral"), ["heart", "valves", "mitral"]);
    assert_eq!(found.path("internist"), ["heart", "valves", "internist"]);
    assert_eq!(found.path("generalist"), ["generalist"]);
    assert_eq!(
        found.path("mitral_professor"),
        ["heart", "valves", "mitral_professor"]
    );
}

#[test]
fn a_router_that_abstains_leaves_it_to_its_stand_in() {
    let Ward { graph, .. } = ward();
    let descent = graph.route(&["top:heart heart:valves?"]).unwrap().remove(0);
    assert_eq!(descent.depth(), 2, "an unsure router refers nobody on");
    assert!((descent.confidence() - 0.8 * 0.3).abs() < 1e-6);
    let found = referral(&graph, "top:heart heart:valves?", &[]);
    assert_eq!(found.choice.order[0], "internist");
    assert_eq!(found.choice.reasons, [Reason::Routed, Reason::Abstained]);
    assert!(found.choice.abstained);
    assert_eq!(found.path("internist"), ["heart", "internist"]);
    let top = referral(&graph, "top:heart?", &[]);
    assert_eq!(top.choice.order[0], "generalist");
    assert_eq!(top.choice.reasons, [Reason::Abstained]);
}

#[test]
fn a_nodes_own_threshold_counts() {
    let top = scripted("top", &["heart", "pharmacy"]);
    let heart = scripted("heart", &["rhythm", "failure"]);
    let with = |least| {
        let heart = Node {
            min_confidence: Some(least),
            ..node(&heart, "internist")
        };
        let graph = Graph::new(top.clone(), None, vec![heart], 2).unwrap();
        referral(&graph, "top:heart heart:rhythm", &[]).choice.order[0].clone()
    };
    assert_eq!((with(0.9).as_str(), with(0.7).as_str()), ("internist", "rhythm"));
}

#[test]
fn who_cannot_be_asked_is_replaced_within_the_node_first() {
    let Ward { graph, .. } = ward();
    let query = "top:heart heart:rhythm";
    let found = referral(&graph, query, &["rhythm"]);
    assert_eq!(found.choice.order, ["internist", "generalist"]);
    assert_eq!(found.choice.reasons, [Reason::Routed, Reason::Unhealthy]);
    let found = referral(&graph, query, &["rhythm", "internist"]);
    assert_eq!(
        found.choice.order[0], "failure",
        "the likeliest usable expert of the node"
    );
    let all_of_heart = ["rhythm", "failure", "internist", "aortic", "mitral"];
    assert_eq!(
        referral(&graph, query, &all_of_heart).choice.order,
        ["generalist"]
    );
    let all_but_pharmacy = [&all_of_heart[..], &["generalist"]].concat();
    assert_eq!(
        referral(&graph, query, &all_but_pharmacy).choice.order,
        ["pharmacy"]
    );
    let descent = graph.route(&[query]).unwrap().remove(0);
    assert_eq!(
        graph.decide(Some(&descent), None, &candidates(&WORKERS), &settings()),
        Err(PolicyError::NobodyAvailable)
    );
}

#[test]
fn a_router_that_did_not_read_the_query_is_replaced_by_its_stand_in() {
    let top = scripted("top", &["pharmacy", "heart"]);
    let heart = scripted("heart", &["rhythm", "failure"]);
    let graph = Graph::new(top, Some(0.2), vec![node(&heart, "internist")], 2).unwrap();
    let mut descent = graph.route(&["top:pharmacy?"]).unwrap().remove(0);
    descent.routing.probabilities = vec![("pharmacy".to_owned(), 0.5), ("heart".to_owned(), 0.5)];
    let settings = PolicySettings {
        min_confidence: Some(0.2),
        ..settings()
    };
    let found = graph
        .decide(Some(&descent), None, &candidates(&["pharmacy"]), &settings)
        .unwrap();
    assert_eq!(found.choice.order, ["internist", "generalist"]);
    assert_eq!(found.choice.reasons, [Reason::Unhealthy, Reason::Routed]);
}

#[test]
fn a_batch_takes_one_pass_of_each_router_and_keeps_its_order() {
    let Ward { graph, heart } = ward();
    let queries = [
        "top:heart heart:failure",
        "top:pharmacy",
        "top:heart heart:valves valves:aortic",
        "top:heart?",
    ];
    let descents = graph.route(&queries).unwrap();
    let last: Vec<&str> = descents.iter().map(|descent| descent.last().expert()).collect();
    assert_eq!(last, ["failure", "pharmacy", "aortic", "heart"]);
    assert_eq!(*heart.batches.lock().unwrap(), [2]);
    assert!(graph.route(&["top:heart heart:!"]).is_err());
}

#[test]
fn circles_are_refused_with_their_path() {
    let top = scripted("top", &["a", "x"]);
    let (a, b) = (scripted("a", &["b", "y"]), scripted("b", &["z", "a"]));
    let nodes = vec![node(&a, "y"), node(&b, "z")];
    let error = Graph::new(top.clone(), None, nodes, 9).err().unwrap();
    assert_eq!(
        error,
        GraphError::Cycle {
            path: ["a", "b", "a"].map(str::to_owned).to_vec()
        }
    );
    assert!(
        error
            .to_string()
            .contains("a → b → a: take a out of the router of b"),
        "{error}"
    );
    let own = scripted("a", &["a", "y"]);
    assert!(matches!(
        Graph::new(top, None, vec![node(&own, "y")], 9).err().unwrap(),
        GraphError::Cycle { path } if path == ["a", "a"]
    ));
    let elsewhere = scripted("top", &["x", "y"]);
    let apart = vec![node(&a, "y"), node(&b, "z")];
    assert!(matches!(
        Graph::new(elsewhere, None, apart, 9),
        Err(GraphError::Cycle { .. })
    ));
}

#[test]
fn depth_is_bounded_and_a_stand_in_answers() {
    let heart = scripted("heart", &["rhythm", "valves"]);
    let valves = scripted("valves", &["aortic", "mitral"]);
    let top = scripted("top", &["heart", "pharmacy"]);
    let nodes = |otherwise| vec![node(&heart, "internist"), node(&valves, otherwise)];
    assert!(Graph::new(top.clone(), None, nodes("aortic"), 3).is_ok());
    let error = Graph::new(top.clone(), None, nodes("aortic"), 2).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("heart → valves passes 3 routers, policy.max_depth is 2"),
        "{error}"
    );
    let error = Graph::new(top, None, nodes("heart"), 3).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("experts.valves.router.otherwise: heart is a router"),
        "{error}"
    );
}

#[test]
fn what_is_reached_is_known_with_its_path() {
    let Ward { graph, .. } = ward();
    let reached = graph.reached();
    assert_eq!(reached["mitral"], ["heart", "valves", "mitral"]);
    assert_eq!(reached["internist"], ["heart", "internist"]);
    assert!(!reached.contains_key("generalist"));
    let below: Vec<String> = graph.workers_below("valves").into_iter().collect();
    assert_eq!(below, ["aortic", "internist", "mitral"]);
    assert_ne!(graph.version(), "top");
    assert_eq!(Graph::single(scripted("top", &["a"])).version(), "top");
}

proptest! {
    /// Whoever cannot be asked, the order holds usable workers only, each once, and each has a path that ends with it.
    #[test]
    fn an_order_is_of_usable_workers(
        ready in proptest::array::uniform7(any::<bool>()),
        query in prop::sample::select(vec![
            "top:pharmacy",
            "top:heart heart:rhythm",
            "top:heart heart:failure?",
            "top:heart heart:valves valves:mitral",
            "top:heart heart:valves valves:aortic?",
            "top:heart?",
        ]),
    ) {
        let Ward { graph, .. } = ward();
        let unready: Vec<&str> = WORKERS.into_iter().zip(ready).filter(|(_, ready)| !ready).map(|(name, _)| name).collect();
        let descent = graph.route(&[query]).unwrap().remove(0);
        let found = graph.decide(Some(&descent), None, &candidates(&unready), &settings());
        if unready.len() == WORKERS.len() {
            prop_assert_eq!(found, Err(PolicyError::NobodyAvailable));
        } else {
            let found = found.unwrap();
            let order = &found.choice.order;
            prop_assert!(!order.is_empty());
            prop_assert!(order.iter().all(|name| WORKERS.contains(&name.as_str()) && !unready.contains(&name.as_str())));
            let distinct: BTreeSet<&String> = order.iter().collect();
            prop_assert_eq!(distinct.len(), order.len());
            for name in order {
                let path = found.path(name);
                prop_assert_eq!(path.last(), Some(name));
            }
        }
    }
}
