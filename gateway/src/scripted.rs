//! Scripted experts and a scripted router, for tests of whatever lies around them.

use crate::compute::Gains;
use crate::config::{Settings, Variables};
use crate::log::DecisionLog;
use crate::metrics::Metrics;
use crate::pipeline::{PairPart, Parts, Pipeline, Reformatter, RouterCard};
use async_trait::async_trait;
use futures::StreamExt as _;
use referral_experts::{
    AnswerStream, Card, Chunk, Expert, ExpertError, ExpertErrorKind, ExpertId, ExpertKind, Finish, Health,
    Modality, Query, Residency, TokenUsage,
};
use referral_router::graph::{Decider, Node};
use referral_router::policy::pair::Pair;
use referral_router::{Graph, RouterError, Routing};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What an expert does next.
#[derive(Clone)]
pub(crate) enum Step {
    Say(&'static str),
    End(Finish),
    Fail(ExpertErrorKind),
    /// Nothing, for ever.
    Hang,
    /// Waits for a permit of the expert's gate.
    Gate,
    Panic,
}

/// An expert that follows the same script for each query.
pub(crate) struct ScriptedExpert {
    id: ExpertId,
    card: Card,
    script: Vec<Step>,
    pub(crate) gate: Arc<tokio::sync::Semaphore>,
    pub(crate) asked: AtomicUsize,
    /// Answers on their way.
    pub(crate) running: Arc<AtomicUsize>,
    pub(crate) queries: Mutex<Vec<Query>>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ScriptedExpert {
    pub(crate) fn new(name: &str, script: &[Step]) -> Arc<Self> {
        Arc::new(Self {
            id: ExpertId::try_from(name).unwrap(),
            card: Card {
                model: "scripted".into(),
                licence: "Apache-2.0".into(),
                description: String::new(),
                languages: vec!["en".into()],
                modality: Modality::Text,
                price_per_million_input: 0.0,
                price_per_million_output: 0.0,
                residency: Residency::OnPremises,
            },
            script: script.to_vec(),
            gate: Arc::new(tokio::sync::Semaphore::new(0)),
            asked: AtomicUsize::new(0),
            running: Arc::default(),
            queries: Mutex::default(),
        })
    }
}

#[async_trait]
impl Expert for ScriptedExpert {
    fn id(&self) -> &ExpertId {
        &self.id
    }
    fn kind(&self) -> ExpertKind {
        if self.id.as_str() == "generalist" {
            ExpertKind::Generalist
        } else {
            ExpertKind::Specialist
        }
    }
    fn card(&self) -> &Card {
        &self.card
    }
    async fn health(&self) -> Health {
        Health::Ready
    }
    async fn answer(&self, query: Query, _deadline: Instant) -> Result<AnswerStream, ExpertError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
        self.queries.lock().unwrap().push(query);
        let running = Running(Arc::clone(&self.running));
        let failure = {
            let id = self.id.clone();
            move |kind| ExpertError {
                expert: id.clone(),
                kind,
                detail: "as scripted".to_owned(),
            }
        };
        // A script that begins with a failure fails before the stream.
        if let Some(Step::Fail(kind)) = self.script.first() {
            return Err(failure(*kind));
        }
        let state = (
            VecDeque::from(self.script.clone()),
            Arc::clone(&self.gate),
            running,
        );
        let stream = futures::stream::unfold(state, move |(mut script, gate, running)| {
            let failure = failure.clone();
            async move {
                loop {
                    let item = match script.pop_front()? {
                        Step::Say(text) => Ok(Chunk::Text(text.to_owned())),
                        Step::End(finish) => Ok(Chunk::End {
                            finish,
                            usage: TokenUsage {
                                prompt: 5,
                                completion: 2,
                            },
                            mean_log_probability: Some(-0.5),
                        }),
                        Step::Fail(kind) => Err(failure(kind)),
                        Step::Hang => futures::future::pending().await,
                        Step::Gate => {
                            gate.acquire().await.unwrap().forget();
                            continue;
                        }
                        Step::Panic => panic!("as scripted"),
                    };
                    return Some((item, (script, gate, running)));
                }
            }
        });
        Ok(stream.boxed())
    }
}

/// A router that refers "pharmacy …" to pharmacy with 0.9, abstains on "vague …" and fails on "broken …".
#[derive(Default)]
pub(crate) struct ScriptedDecider {
    pub(crate) asked: AtomicUsize,
}

impl Decider for ScriptedDecider {
    fn experts(&self) -> &[String] {
        static NAMES: std::sync::LazyLock<Vec<String>> =
            std::sync::LazyLock::new(|| vec!["pharmacy".to_owned(), "oncology".to_owned()]);
        &NAMES
    }
    fn version(&self) -> &str {
        "scripted-1"
    }
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        self.asked.fetch_add(queries.len(), Ordering::SeqCst);
        let routing = |query: &&str| {
            if query.starts_with("broken") {
                return Err(RouterError::Invalid {
                    field: "query",
                    value: "broken".into(),
                    fix: "mend it".into(),
                });
            }
            let out_of_scope = query.starts_with("nonsense");
            let abstained = out_of_scope || query.starts_with("vague");
            let confidence = if abstained { 0.3 } else { 0.9 };
            let (first, second) = if query.starts_with("oncology") {
                ("oncology", "pharmacy")
            } else {
                ("pharmacy", "oncology")
            };
            Ok(Routing {
                probabilities: vec![
                    (first.to_owned(), confidence),
                    (second.to_owned(), 1.0 - confidence),
                ],
                confidence,
                in_scope: if out_of_scope { 0.05 } else { 0.95 },
                out_of_scope,
                abstained,
                windowed: false,
                latency: Duration::from_micros(7),
            })
        };
        queries.iter().map(routing).collect()
    }
}

/// Writes what a query says behind "as: ", hangs on "slow", fails on anything else.
struct ScriptedReformatter;

#[async_trait]
impl Reformatter for ScriptedReformatter {
    async fn write(&self, expert: &str, query: &str, _deadline: Instant) -> Option<String> {
        if query.contains("slow") {
            return futures::future::pending().await;
        }
        let (_, argument) = query.split_once("as: ")?;
        Some(format!("{argument} ({expert})')"))
    }
}

/// A router below: refers "… lung …" to lung with 0.8, the rest to breast, and abstains on "… unclear …".
pub(crate) struct ScriptedNode;

impl Decider for ScriptedNode {
    fn experts(&self) -> &[String] {
        static NAMES: std::sync::LazyLock<Vec<String>> =
            std::sync::LazyLock::new(|| vec!["breast".to_owned(), "lung".to_owned()]);
        &NAMES
    }
    fn version(&self) -> &str {
        "scripted-2"
    }
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        let routing = |query: &&str| {
            let abstained = query.contains("unclear");
            let confidence = if abstained { 0.6 } else { 0.8 };
            let (first, second) = if query.contains("lung") {
                ("lung", "breast")
            } else {
                ("breast", "lung")
            };
            Routing {
                probabilities: vec![
                    (first.to_owned(), confidence),
                    (second.to_owned(), 1.0 - confidence),
                ],
                confidence,
                in_scope: 0.9,
                out_of_scope: false,
                abstained,
                windowed: false,
                latency: Duration::from_micros(3),
            }
        };
        Ok(queries.iter().map(routing).collect())
    }
}

/// Predicts a gain of 0.75 for "… hard …", fails on "… odd …", and 0 for the rest.
#[derive(Default)]
pub(crate) struct ScriptedGains {
    pub(crate) asked: AtomicUsize,
}

impl Gains for ScriptedGains {
    fn gains(&self, queries: &[&str]) -> Result<Vec<f32>, RouterError> {
        self.asked.fetch_add(queries.len(), Ordering::SeqCst);
        if queries.iter().any(|query| query.contains("odd")) {
            return Err(RouterError::Invalid {
                field: "query",
                value: "odd".into(),
                fix: "make it even".into(),
            });
        }
        let gain = |query: &&str| if query.contains("hard") { 0.75 } else { 0.0 };
        Ok(queries.iter().map(gain).collect())
    }
}

/// A pipeline of scripted parts.
pub(crate) struct Bench {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) pharmacy: Arc<ScriptedExpert>,
    pub(crate) generalist: Arc<ScriptedExpert>,
    pub(crate) decider: Arc<ScriptedDecider>,
    pub(crate) settings: Settings,
    _directory: TempDir,
}

/// The shipped settings, with a decision log of the test's own.
pub(crate) fn settings() -> (Settings, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = crate::config::load(None, &Variables::default()).unwrap().settings;
    settings.log.path = directory.path().join("decisions.sqlite");
    (settings, directory)
}

impl Bench {
    /// With a pharmacist and a generalist that follow these scripts.
    pub(crate) async fn new(pharmacy: &[Step], generalist: &[Step]) -> Self {
        Self::with(pharmacy, generalist, |_| {}).await
    }

    pub(crate) async fn with(
        pharmacy: &[Step],
        generalist: &[Step],
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Self::build(
            pharmacy,
            generalist,
            Vec::new(),
            Vec::new(),
            Graph::single,
            change,
        )
        .await
    }

    /// Where pharmacy has a strong expert beside it, asked from a predicted gain of 0.5 on.
    pub(crate) async fn with_strong(
        pharmacy: &[Step],
        strong: &Arc<ScriptedExpert>,
        gains: &Arc<ScriptedGains>,
        cascade: Option<f32>,
    ) -> Self {
        let part = PairPart {
            pair: Pair {
                strong: strong.id.to_string(),
                weak: "pharmacy".to_owned(),
                threshold: 0.5,
            },
            gains: gains.clone(),
            cascade,
        };
        let generalist = [Step::Say("Ask them."), Step::End(Finish::Stop)];
        Self::build(
            pharmacy,
            &generalist,
            vec![strong.clone()],
            vec![part],
            Graph::single,
            |_| {},
        )
        .await
    }

    /// Where oncology is a router of breast and lung, with pharmacy as its stand-in.
    pub(crate) async fn with_node(workers: &[Arc<ScriptedExpert>]) -> Self {
        let good = [Step::Say("Ask them."), Step::End(Finish::Stop)];
        let node = Node {
            name: "oncology".to_owned(),
            decider: Arc::new(ScriptedNode),
            otherwise: "pharmacy".to_owned(),
            min_confidence: None,
        };
        let graph = |top| Graph::new(top, None, vec![node], 2).unwrap();
        Self::build(&good, &good, workers.to_vec(), Vec::new(), graph, |_| {}).await
    }

    async fn build(
        pharmacy: &[Step],
        generalist: &[Step],
        more: Vec<Arc<ScriptedExpert>>,
        pairs: Vec<PairPart>,
        graph: impl FnOnce(Arc<dyn Decider>) -> Graph,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let (mut settings, directory) = settings();
        change(&mut settings);
        let pharmacy = ScriptedExpert::new("pharmacy", pharmacy);
        let generalist = ScriptedExpert::new("generalist", generalist);
        let mut experts: Vec<Arc<dyn Expert>> = vec![pharmacy.clone(), generalist.clone()];
        experts.extend(more.into_iter().map(|expert| expert as Arc<dyn Expert>));
        let decider = Arc::new(ScriptedDecider::default());
        let graph = graph(decider.clone());
        let graph_nodes = graph.nodes().map(|node| RouterCard {
            id: ExpertId::try_from(node.name.as_str()).unwrap(),
            kind: ExpertKind::Specialist,
            card: Card {
                model: "router: breast, lung".into(),
                ..pharmacy.card.clone()
            },
        });
        let graph_nodes = graph_nodes.collect();
        let names: Vec<&str> = experts.iter().map(|expert| expert.id().as_str()).collect();
        let metrics = Metrics::register(&prometheus::Registry::new(), &names).unwrap();
        let parts = Parts {
            experts,
            graph,
            nodes: graph_nodes,
            pairs,
            reformatter: Some(Arc::new(ScriptedReformatter)),
            log: DecisionLog::open(&settings.log).unwrap(),
            metrics,
        };
        let pipeline = Pipeline::start(&settings, parts).await.unwrap();
        Self {
            pipeline,
            pharmacy,
            generalist,
            decider,
            settings,
            _directory: directory,
        }
    }

    /// The value of a series, written as in a scrape.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = self.pipeline.metrics().render().unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}"))
            .parse()
            .unwrap()
    }
}

/// Polls until `condition` holds: for what ends soon after, but not with, the call that is awaited.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
