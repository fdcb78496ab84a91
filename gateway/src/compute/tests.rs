use super::*;
use prometheus::HistogramOpts;
use referral_router::Routing;
use referral_router::graph::Decider;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Refers every query to the expert it names; "bad" fails its batch, "boom" panics.
struct Scripted {
    batches: Mutex<Vec<usize>>,
    gate: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    is_at_gate: AtomicBool,
}

impl Decider for Scripted {
    fn experts(&self) -> &[String] {
        &[]
    }
    fn version(&self) -> &str {
        "scripted"
    }
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        if let Some(gate) = self.gate.lock().unwrap().take() {
            self.is_at_gate.store(true, Ordering::SeqCst);
            gate.recv().unwrap();
        }
        self.batches.lock().unwrap().push(queries.len());
        assert!(!queries.contains(&"boom"), "as scripted");
        if queries.contains(&"bad") {
            return Err(RouterError::Invalid {
                field: "query",
                value: "bad".into(),
                fix: "be good".into(),
            });
        }
        let routing = |query: &&str| Routing {
            probabilities: vec![((*query).to_owned(), 1.0)],
            confidence: 1.0,
            in_scope: 1.0,
            out_of_scope: false,
            abstained: false,
            windowed: false,
            latency: Duration::ZERO,
        };
        Ok(queries.iter().map(routing).collect())
    }
}

/// As many gains as a query has letters, in hundredths; fails on "bad".
impl Gains for Scripted {
    fn gains(&self, queries: &[&str]) -> Result<Vec<f32>, RouterError> {
        self.route(
            &queries
                .iter()
                .filter(|text| **text == "bad")
                .copied()
                .collect::<Vec<_>>(),
        )?;
        Ok(queries.iter().map(|text| text.len() as f32 / 100.0).collect())
    }
}

fn start(limits: RouterLimits) -> (Arc<RouterThread>, Arc<Scripted>, std::sync::mpsc::Sender<()>) {
    let (open, gate) = std::sync::mpsc::channel();
    let scripted = Arc::new(Scripted {
        batches: Mutex::default(),
        gate: Mutex::new(Some(gate)),
        is_at_gate: AtomicBool::new(false),
    });
    let waiting = IntGauge::new("waiting", "waiting").unwrap();
    let batches = Histogram::with_opts(HistogramOpts::new("batches", "batches")).unwrap();
    let thread = RouterThread::start(
        Arc::new(Graph::single(scripted.clone())),
        vec![scripted.clone()],
        limits,
        waiting,
        batches,
    )
    .unwrap();
    (Arc::new(thread), scripted, open)
}

type Call = tokio::task::JoinHandle<Result<Descent, RouteError>>;

/// Puts queries in the queue, one after the other, and waits until they are there.
async fn queue(thread: &Arc<RouterThread>, texts: &[&str]) -> Vec<Call> {
    let mut calls = Vec::new();
    for text in texts {
        let (caller, text) = (Arc::clone(thread), (*text).to_owned());
        calls.push(tokio::spawn(async move { caller.route(text).await }));
        while thread.waiting.get() < calls.len() as i64 {
            tokio::task::yield_now().await;
        }
    }
    calls
}

/// Occupies the thread with one query that waits at the gate.
async fn occupy(thread: &Arc<RouterThread>, scripted: &Scripted) -> Call {
    let caller = Arc::clone(thread);
    let call = tokio::spawn(async move { caller.route("first".to_owned()).await });
    while !scripted.is_at_gate.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    call
}

#[tokio::test]
async fn what_waits_is_routed_together_and_a_full_queue_refuses() {
    let (thread, scripted, open) = start(RouterLimits {
        queue_capacity: 3,
        max_batch: 8,
    });
    let first = occupy(&thread, &scripted).await;
    let calls = queue(&thread, &["a", "b", "c"]).await;
    assert_eq!(
        thread.route("d".to_owned()).await,
        Err(RouteError::QueueFull { capacity: 3 })
    );
    open.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap().last().expert(), "first");
    for (call, name) in calls.into_iter().zip(["a", "b", "c"]) {
        assert_eq!(call.await.unwrap().unwrap().last().expert(), name);
    }
    assert_eq!(*scripted.batches.lock().unwrap(), [1, 3]);
    assert_eq!(thread.waiting.get(), 0);
}

#[tokio::test]
async fn one_bad_query_fails_alone_and_a_panic_ends_nothing() {
    let (thread, scripted, open) = start(RouterLimits {
        queue_capacity: 8,
        max_batch: 8,
    });
    let first = occupy(&thread, &scripted).await;
    let calls = queue(&thread, &["a", "bad", "boom", "c"]).await;
    open.send(()).unwrap();
    first.await.unwrap().unwrap();
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await.unwrap());
    }
    assert_eq!(results[0].as_ref().unwrap().last().expert(), "a");
    assert!(matches!(&results[1], Err(RouteError::Failed(text)) if text.contains("be good")));
    assert_eq!(results[2], Err(RouteError::Failed("it panicked".to_owned())));
    assert_eq!(results[3].as_ref().unwrap().last().expert(), "c");
    assert_eq!(
        thread.route("after".to_owned()).await.unwrap().last().expert(),
        "after"
    );
}

#[tokio::test]
async fn a_caller_that_went_away_is_not_routed() {
    let (thread, scripted, open) = start(RouterLimits {
        queue_capacity: 8,
        max_batch: 8,
    });
    let first = occupy(&thread, &scripted).await;
    let calls = queue(&thread, &["gone", "here"]).await;
    calls[0].abort();
    while !calls[0].is_finished() {
        tokio::task::yield_now().await;
    }
    open.send(()).unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(
        calls
            .into_iter()
            .nth(1)
            .unwrap()
            .await
            .unwrap()
            .unwrap()
            .last()
            .expert(),
        "here"
    );
    assert_eq!(*scripted.batches.lock().unwrap(), [1, 1]);
}

#[tokio::test]
async fn gains_are_predicted_beside_routings_and_fail_alone() {
    let (thread, scripted, open) = start(RouterLimits {
        queue_capacity: 8,
        max_batch: 8,
    });
    let first = occupy(&thread, &scripted).await;
    let calls = queue(&thread, &["a"]).await;
    let gain = |pair, text: &str| {
        let (caller, text) = (Arc::clone(&thread), text.to_owned());
        tokio::spawn(async move { caller.gain(pair, text).await })
    };
    let gains = [gain(0, "four"), gain(0, "bad"), gain(1, "nobody's")];
    while thread.waiting.get() < 4 {
        tokio::task::yield_now().await;
    }
    open.send(()).unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(
        calls
            .into_iter()
            .next()
            .unwrap()
            .await
            .unwrap()
            .unwrap()
            .last()
            .expert(),
        "a"
    );
    let [good, bad, nobody] = gains;
    assert_eq!(good.await.unwrap(), Ok(0.04));
    assert!(matches!(bad.await.unwrap(), Err(RouteError::Failed(text)) if text.contains("be good")));
    assert!(matches!(nobody.await.unwrap(), Err(RouteError::Failed(text)) if text.contains("no pair 1")));
}
