//! The thread and the queue.

use super::*;
use crate::engine::scheduler::Row;
use crate::tokenize::Tokenizer;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

/// The scripted model, one step for each permit; remembers that it was dropped.
struct Gated {
    model: Scripted,
    permits: Mutex<mpsc::Receiver<()>>,
    entered: mpsc::Sender<()>,
    dropped: Arc<AtomicBool>,
}

struct Gate {
    permits: mpsc::Sender<()>,
    entered: mpsc::Receiver<()>,
    dropped: Arc<AtomicBool>,
}

fn gated() -> (Gated, Gate) {
    let (give, take) = mpsc::channel();
    let (enter, entered) = mpsc::channel();
    let dropped = Arc::new(AtomicBool::new(false));
    let model = Scripted::new(&Log::default());
    let gated = Gated {
        model,
        permits: Mutex::new(take),
        entered: enter,
        dropped: Arc::clone(&dropped),
    };
    (
        gated,
        Gate {
            permits: give,
            entered,
            dropped,
        },
    )
}

impl Drop for Gated {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

impl Backend for Gated {
    type Cache = Vec<u32>;
    type Prefix = Vec<u32>;
    fn tokenizer(&self) -> &Tokenizer {
        self.model.tokenizer()
    }
    fn kv_bytes(&self, tokens: usize) -> usize {
        self.model.kv_bytes(tokens)
    }
    fn new_cache(&self, prefix: Option<&Vec<u32>>, capacity: usize) -> Result<Vec<u32>> {
        // Outside of a step: the thread dies.
        assert_ne!(capacity, 4 + 13, "scripted death");
        self.model.new_cache(prefix, capacity)
    }
    fn to_prefix(&self, cache: &Vec<u32>, tokens: &[u32]) -> Result<Vec<u32>> {
        self.model.to_prefix(cache, tokens)
    }
    fn forward(&self, rows: Vec<Row<'_, Vec<u32>>>) -> Result<Vec<Option<Vec<f32>>>> {
        self.entered.send(()).ok();
        // A gate thrown away stands open.
        self.permits.lock().unwrap().recv().ok();
        self.model.forward(rows)
    }
}

fn start<B: Backend + Send + 'static>(backend: B, max_batch: usize, queue_capacity: usize) -> Worker {
    let options = EngineOptions {
        max_batch,
        queue_capacity,
        ..EngineOptions::default()
    };
    let limits = Limits {
        tokens: 200,
        vocabulary: 300,
    };
    Worker::start("worker", backend, limits, options, &prometheus::Registry::new()).unwrap()
}

#[test]
fn the_thread_answers_more_than_fit_at_once() {
    let worker = start(Scripted::new(&Log::default()), 3, 64);
    let mut open: Vec<_> = (0..40)
        .map(|i| {
            (
                format!("query {i}"),
                worker.generate(request(&format!("query {i}:"))).unwrap(),
            )
        })
        .collect();
    for (text, generation) in &mut open {
        assert_eq!(&answer(generation).text, text);
    }
    assert_eq!(worker.metrics.count(Outcome::Completed), 40);
}

#[test]
fn the_queue_is_bounded_and_its_places_are_freed() {
    let (backend, gate) = gated();
    let worker = start(backend, 1, 2);
    let mut running = worker.generate(request("a:")).unwrap();
    gate.entered.recv().unwrap();
    let gone = worker.generate(request("b:")).unwrap();
    let mut waiting = worker.generate(request("c:")).unwrap();
    assert_eq!(worker.queue.load(), (2, 1));
    let refused = worker.generate(request("d:")).err().unwrap();
    assert!(matches!(refused, LmError::QueueFull { capacity: 2 }));
    assert_eq!(worker.metrics.count(Outcome::Refused), 1);
    drop(gone);
    gate.permits.send(()).unwrap();
    // Before the second step the queue was looked through.
    gate.entered.recv().unwrap();
    assert_eq!(worker.queue.load(), (1, 1));
    let mut later = worker.generate(request("d:")).unwrap();
    drop(gate);
    let texts = [&mut running, &mut waiting, &mut later].map(|generation| answer(generation).text);
    assert_eq!(texts, ["a", "c", "d"]);
    assert_eq!(worker.metrics.count(Outcome::Cancelled), 1);
}

#[test]
fn a_request_without_memory_waits_and_those_behind_it_keep_their_turn() {
    let (backend, gate) = gated();
    let options = EngineOptions {
        // Two requests of 64 new tokens and their prompts, not three.
        kv_memory_bytes: 160,
        ..EngineOptions::default()
    };
    let limits = Limits {
        tokens: 160,
        vocabulary: 300,
    };
    let worker = Worker::start("worker", backend, limits, options, &prometheus::Registry::new()).unwrap();
    let mut first = worker.generate(request("a:")).unwrap();
    gate.entered.recv().unwrap();
    let mut others: Vec<_> = ["bc:", "de:", "fg:"]
        .iter()
        .map(|text| worker.generate(request(text)).unwrap())
        .collect();
    gate.permits.send(()).unwrap();
    gate.entered.recv().unwrap();
    // The batch has places for all; the memory has not.
    assert_eq!(worker.queue.load(), (2, 2));
    assert_eq!(worker.metrics.kv_used.get(), 66 + 67);
    assert!(worker.metrics.kv_waits.get() > 0);
    assert_eq!(worker.metrics.kv_capacity.get(), 160);
    drop(gate);
    assert_eq!(answer(&mut first).text, "a");
    let texts: Vec<String> = others
        .iter_mut()
        .map(|generation| answer(generation).text)
        .collect();
    assert_eq!(texts, ["bc", "de", "fg"]);
    let metrics = Arc::clone(&worker.metrics);
    drop(worker);
    assert_eq!(metrics.kv_used.get(), 0);
}

#[test]
fn deadlines_count_while_waiting() {
    let (backend, gate) = gated();
    let worker = start(backend, 1, 2);
    let mut running = worker.generate(request("a:")).unwrap();
    gate.entered.recv().unwrap();
    let mut late = worker
        .generate(GenerateRequest {
            deadline: Some(Instant::now()),
            ..request("b:")
        })
        .unwrap();
    gate.permits.send(()).unwrap();
    assert_eq!(
        answer(&mut late).error(),
        LmError::DeadlineExceeded { generated: 0 }.to_string()
    );
    drop(gate);
    assert_eq!(answer(&mut running).text, "a");
}

#[test]
fn dropping_the_engine_ends_its_thread_and_tells_the_callers() {
    let (backend, gate) = gated();
    let worker = start(backend, 1, 2);
    let mut running = worker.generate(request("*a:")).unwrap();
    gate.entered.recv().unwrap();
    let mut waiting = worker.generate(request("b:")).unwrap();
    let dropped = Arc::clone(&gate.dropped);
    let dropping = std::thread::spawn(move || drop(worker));
    // Told as the queue closes, while the running one still stands at the gate.
    assert_eq!(answer(&mut waiting).error(), LmError::Stopped.to_string());
    drop(gate);
    assert_eq!(answer(&mut running).error(), LmError::Stopped.to_string());
    dropping.join().unwrap();
    assert!(
        dropped.load(Ordering::SeqCst),
        "the thread has ended and dropped the model"
    );
}

#[test]
fn a_dead_thread_leaves_nobody_waiting() {
    let (backend, gate) = gated();
    drop(gate);
    let worker = start(backend, 2, 2);
    let mut deadly = worker
        .generate(GenerateRequest {
            max_new_tokens: 13,
            ..request("abc:")
        })
        .unwrap();
    assert_eq!(answer(&mut deadly).error(), LmError::Stopped.to_string());
    // The queue closes as the thread ends; until then requests are taken and then told.
    let refused = loop {
        match worker.generate(request("a:")) {
            Ok(mut generation) => assert_eq!(answer(&mut generation).error(), LmError::Stopped.to_string()),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LmError::Stopped));
}

#[test]
fn names_are_unique_on_a_registry() {
    let registry = prometheus::Registry::new();
    let begin = |name: &str| {
        let limits = Limits {
            tokens: 9,
            vocabulary: 9,
        };
        Worker::start(
            name,
            Scripted::new(&Log::default()),
            limits,
            EngineOptions::default(),
            &registry,
        )
    };
    let (_one, _other) = (begin("one").unwrap(), begin("other").unwrap());
    let error = begin("one").err().unwrap().to_string();
    assert!(error.starts_with("engine name: one"), "{error}");
}
