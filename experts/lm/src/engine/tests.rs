//! The scheduler against a scripted model: every step is seen, no clock is waited for.

mod real;
mod scripted;
mod worker;

use super::*;
use proptest::prelude::*;
use scripted::{Log, Scripted, request};
use std::collections::HashSet;

/// A scheduler over the scripted model, stepped by hand.
struct Bench {
    scheduler: Scheduler<Scripted>,
    log: Log,
    metrics: Arc<Metrics>,
    now: Instant,
}

impl Bench {
    fn new(options: EngineOptions) -> Self {
        let log = Log::default();
        let metrics = Arc::new(Metrics::register("test", &prometheus::Registry::new()).unwrap());
        let scheduler = Scheduler::new(Scripted::new(&log), options, Arc::clone(&metrics));
        Self {
            scheduler,
            log,
            metrics,
            now: Instant::now(),
        }
    }

    fn job(&self, request: GenerateRequest) -> (Job, Generation) {
        Job::new(request, self.now)
    }

    fn step(&mut self, jobs: Vec<Job>) {
        let now = self.now;
        self.scheduler.step(jobs, move || now);
    }

    /// Lets the request join, alone or beside what runs, and steps until nothing runs.
    fn run(&mut self, requests: Vec<GenerateRequest>) -> Vec<Answer> {
        let (jobs, mut generations): (Vec<_>, Vec<_>) = requests.into_iter().map(|r| self.job(r)).unzip();
        self.step(jobs);
        self.run_out();
        generations.iter_mut().map(answer).collect()
    }

    fn run_out(&mut self) {
        for _ in 0..10_000 {
            if self.scheduler.running() == 0 {
                return;
            }
            self.step(Vec::new());
        }
        panic!("the scheduler does not come to an end");
    }
}

struct Answer {
    text: String,
    text_tokens: usize,
    end: Event,
}

impl Answer {
    fn finished(&self) -> (FinishReason, Usage) {
        match self.end {
            Event::Finished { reason, usage } => (reason, usage),
            ref other => panic!("{other:?}"),
        }
    }

    fn error(&self) -> String {
        match &self.end {
            Event::Failed(error) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

/// All events of a generation that has ended.
fn answer(generation: &mut Generation) -> Answer {
    let (mut text, mut text_tokens) = (String::new(), 0);
    loop {
        match generation.blocking_next().unwrap() {
            Event::Text { text: piece, tokens } => {
                assert!(!piece.is_empty());
                text.push_str(&piece);
                text_tokens += tokens;
            }
            end => {
                assert!(generation.blocking_next().is_none());
                return Answer {
                    text,
                    text_tokens,
                    end,
                };
            }
        }
    }
}

#[test]
fn answers_end_by_token_text_or_length() {
    let mut bench = Bench::new(EngineOptions::default());
    let answers = bench.run(vec![
        request("abc:"),
        GenerateRequest {
            stop: vec!["de".into()],
            ..request("abcdefg:")
        },
        GenerateRequest {
            max_new_tokens: 2,
            stop: vec!["bc".into()],
            ..request("abcdefg:")
        },
        request(":"),
    ]);
    let texts: Vec<&str> = answers.iter().map(|a| a.text.as_str()).collect();
    assert_eq!(texts, ["abc", "abc", "ab", ""]);
    let reasons: Vec<FinishReason> = answers.iter().map(|a| a.finished().0).collect();
    assert_eq!(
        reasons,
        [
            FinishReason::Stop,
            FinishReason::Stop,
            FinishReason::Length,
            FinishReason::Stop
        ]
    );
    let tokens: Vec<usize> = answers.iter().map(|a| a.finished().1.completion_tokens).collect();
    assert_eq!(tokens, [4, 5, 2, 1]);
    let text_tokens: Vec<usize> = answers.iter().map(|a| a.text_tokens).collect();
    assert_eq!(text_tokens, [3, 3, 2, 0]);
    assert_eq!(answers[0].finished().1.prompt_tokens, 4);
    // The scripted model is sure of every token but for the rest of its vocabulary.
    let sure = answers[0].finished().1.mean_log_probability.unwrap();
    assert!((-0.1..0.0).contains(&sure), "{sure}");
    assert_eq!(bench.metrics.count(Outcome::Completed), 4);
    assert_eq!(bench.metrics.generated_tokens.get(), 12);
}

#[test]
fn answering_sequences_take_part_in_every_step() {
    let mut bench = Bench::new(EngineOptions {
        prefill_chunk: 4,
        ..EngineOptions::default()
    });
    let (first, mut early) = bench.job(request("abcdefghij:"));
    bench.step(vec![first]);
    bench.step(Vec::new());
    bench.step(Vec::new());
    let long = "x".repeat(30);
    let (second, mut late) = bench.job(request(&format!("{long}:")));
    bench.step(vec![second]);
    bench.run_out();
    assert_eq!(answer(&mut early).text, "abcdefghij");
    assert_eq!(answer(&mut late).text, long);
    let steps = bench.log.steps();
    assert_eq!(steps[..3], [vec![4], vec![4], vec![3]]);
    // The long prompt is read four tokens at a time, beside one token of the answer.
    assert_eq!(steps[3..10], vec![vec![1, 4]; 7]);
}

#[test]
fn short_prompts_are_not_delayed_by_long_ones() {
    let mut bench = Bench::new(EngineOptions {
        prefill_chunk: 8,
        ..EngineOptions::default()
    });
    let (long, mut slow) = bench.job(request(&format!("{}:", "x".repeat(40))));
    let (short, mut quick) = bench.job(request("ab:"));
    bench.step(vec![long, short]);
    assert_eq!(bench.log.steps(), [vec![5, 3]]);
    bench.run_out();
    assert_eq!(answer(&mut quick).text, "ab");
    assert_eq!(answer(&mut slow).text.len(), 40);
}

#[test]
fn dropping_the_generation_frees_its_place() {
    let mut bench = Bench::new(EngineOptions::default());
    let (endless, generation) = bench.job(request("*a:"));
    let (other, mut kept) = bench.job(request("abc:"));
    bench.step(vec![endless, other]);
    assert_eq!(bench.scheduler.running(), 2);
    drop(generation);
    bench.step(Vec::new());
    assert_eq!(bench.scheduler.running(), 1);
    bench.run_out();
    assert_eq!(answer(&mut kept).text, "abc");
    assert_eq!(bench.metrics.count(Outcome::Cancelled), 1);
}

#[test]
fn deadlines_end_an_answer_between_steps() {
    let mut bench = Bench::new(EngineOptions::default());
    let deadline = Some(bench.now + Duration::from_secs(1));
    let (job, mut generation) = bench.job(GenerateRequest {
        deadline,
        stop: vec!["aab".into()],
        ..request("*a:")
    });
    bench.step(vec![job]);
    bench.step(Vec::new());
    bench.now += Duration::from_secs(1);
    bench.step(Vec::new());
    assert_eq!(bench.scheduler.running(), 0);
    let answer = answer(&mut generation);
    assert_eq!(
        answer.error(),
        LmError::DeadlineExceeded { generated: 2 }.to_string()
    );
    // What was held back as the beginning of a stop text is not lost.
    assert_eq!(answer.text, "aa");
    assert_eq!(bench.metrics.count(Outcome::Deadline), 1);
}

#[test]
fn a_failing_step_ends_its_sequences_and_no_others() {
    for (sign, said) in [('!', "scripted failure"), ('?', "scripted panic")] {
        let mut bench = Bench::new(EngineOptions::default());
        let (bad, mut failed) = bench.job(request(&format!("a{sign}:")));
        let (beside, mut caught) = bench.job(request("*b:"));
        bench.step(vec![bad, beside]);
        for generation in [&mut failed, &mut caught] {
            let error = answer(generation).error();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(bench.run(vec![request("still here:")])[0].text, "still here");
        assert_eq!(bench.metrics.count(Outcome::Failed), 2);
    }
}

#[test]
fn broken_logits_end_only_their_own_sequence() {
    let mut bench = Bench::new(EngineOptions::default());
    let answers = bench.run(vec![request("~:"), request("abc:")]);
    assert!(answers[0].error().contains("logits"));
    assert_eq!(answers[1].text, "abc");
}

#[test]
fn a_shared_prefix_is_computed_once() {
    let mut bench = Bench::new(EngineOptions {
        prefill_chunk: 4,
        ..EngineOptions::default()
    });
    let requests = [
        "shared head a:",
        "shared head b:",
        "shared head c:",
        "other head:",
    ];
    let shared = |text: &str| GenerateRequest {
        shared_prefix: 11,
        ..request(text)
    };
    let answers = bench.run(requests.iter().map(|text| shared(text)).collect());
    for (answer, text) in answers.iter().zip(requests) {
        assert_eq!(format!("{}:", answer.text), text);
    }
    let cached: Vec<usize> = answers.iter().map(|a| a.finished().1.cached_tokens).collect();
    // Of "other head:" the last token has to be computed, so its own head is one token shorter.
    assert_eq!(cached, [0, 11, 11, 0]);
    assert_eq!(
        (bench.metrics.prefix_hits.get(), bench.metrics.prefix_misses.get()),
        (2, 2)
    );
    let again = bench.run(vec![shared(requests[3])]);
    assert_eq!(again[0].finished().1.cached_tokens, 8);
    let prompts: usize = requests.iter().map(|text| request(text).prompt.len()).sum();
    assert_eq!(bench.metrics.prompt_tokens.get() as usize, prompts - 22 + 1);
}

#[test]
fn a_kept_prefix_gives_way_to_a_request_that_needs_its_memory() {
    let mut bench = Bench::new(EngineOptions {
        kv_memory_bytes: 100,
        ..EngineOptions::default()
    });
    let shared = |text: &str, new: usize| GenerateRequest {
        shared_prefix: 11,
        max_new_tokens: new,
        ..request(text)
    };
    bench.run(vec![shared("shared head a:", 30)]);
    assert_eq!(
        (bench.metrics.kv_used.get(), bench.metrics.prefix_entries.get()),
        (11, 1)
    );
    let (mut long, mut generation) = bench.job(shared("shared head b:", 87));
    assert!(bench.scheduler.admit(&mut long));
    assert_eq!(
        (bench.metrics.kv_used.get(), bench.metrics.prefix_entries.get()),
        (100, 0)
    );
    let (mut other, _gone) = bench.job(shared("shared head c:", 1));
    assert!(!bench.scheduler.admit(&mut other));
    assert_eq!(bench.metrics.kv_waits.get(), 1);
    bench.step(vec![long]);
    bench.run_out();
    assert_eq!(answer(&mut generation).text, "shared head b");
    // There was no memory to keep its head either.
    assert_eq!(
        (bench.metrics.kv_used.get(), bench.metrics.prefix_entries.get()),
        (0, 0)
    );
    assert!(bench.scheduler.admit(&mut other));
}

#[test]
fn whoever_waits_for_a_prefix_goes_on_when_its_maker_is_gone() {
    let mut bench = Bench::new(EngineOptions {
        prefill_chunk: 2,
        ..EngineOptions::default()
    });
    let shared = |text: &str| GenerateRequest {
        shared_prefix: 6,
        ..request(text)
    };
    let (maker, gone) = bench.job(shared("abcdefg:"));
    let (waiting, mut kept) = bench.job(shared("abcdefh:"));
    bench.step(vec![maker, waiting]);
    assert_eq!(bench.log.steps(), [vec![2]]);
    drop(gone);
    bench.run_out();
    assert_eq!(answer(&mut kept).text, "abcdefh");
}

#[test]
fn seeds_reproduce() {
    let mut bench = Bench::new(EngineOptions::default());
    let sampled = |seed| GenerateRequest {
        sampling: SamplingParams {
            temperature: 2.0,
            seed,
            ..SamplingParams::default()
        },
        ..request("%noise:")
    };
    let answers = bench.run(vec![sampled(1), sampled(2), sampled(1)]);
    assert_eq!(answers[0].text, answers[2].text);
    assert_ne!(answers[0].text, answers[1].text);
}

proptest! {
    /// Whoever joins when, with whatever batch and chunk, gets the answer it would get alone, or,
    /// having gone away, frees its place.
    #[test]
    fn any_traffic_is_answered_right(
        texts in proptest::collection::vec(("[a-e]{0,12}", 0usize..6, 0usize..10, any::<bool>()), 1..12),
        chunk in 1usize..9, entries in 0usize..3,
    ) {
        let options = EngineOptions { prefill_chunk: chunk, prefix_cache_entries: entries, ..EngineOptions::default() };
        let mut bench = Bench::new(options);
        let mut open = Vec::new();
        for (text, steps, shared, leaves) in &texts {
            let shared_prefix = (*shared).min(text.len());
            let (job, generation) = bench.job(GenerateRequest { shared_prefix, ..request(&format!("{text}:")) });
            bench.step(vec![job]);
            if *leaves { drop(generation) } else { open.push((text, generation)) }
            for _ in 0..*steps {
                bench.step(Vec::new());
            }
        }
        bench.run_out();
        for (text, mut generation) in open {
            prop_assert_eq!(&answer(&mut generation).text, text);
        }
        for step in bench.log.steps() {
            let read: usize = step.iter().filter(|share| **share > 1).sum();
            prop_assert!(read <= chunk.max(2));
        }
        let ended: u64 = [Outcome::Completed, Outcome::Cancelled].iter().map(|o| bench.metrics.count(*o)).sum();
        prop_assert_eq!(ended, texts.len() as u64);
    }
}

#[test]
fn what_a_request_must_keep_to() {
    let limits = Limits {
        tokens: 10,
        vocabulary: 300,
    };
    let field = |request: GenerateRequest| match limits.check(&request) {
        Err(LmError::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let fine = || GenerateRequest {
        max_new_tokens: 5,
        ..request("abc:")
    };
    assert!(limits.check(&fine()).is_ok());
    let fields = [
        field(GenerateRequest {
            prompt: Vec::new(),
            ..fine()
        }),
        field(GenerateRequest {
            prompt: vec![1, 300],
            ..fine()
        }),
        field(GenerateRequest {
            max_new_tokens: 0,
            ..fine()
        }),
        field(GenerateRequest {
            shared_prefix: 5,
            ..fine()
        }),
        field(GenerateRequest {
            stop: vec!["a".into(), String::new()],
            ..fine()
        }),
        field(GenerateRequest {
            sampling: SamplingParams {
                top_p: 0.0,
                ..SamplingParams::default()
            },
            ..fine()
        }),
    ];
    assert_eq!(
        fields,
        [
            "prompt",
            "prompt",
            "max_new_tokens",
            "shared_prefix",
            "stop",
            "top_p"
        ]
    );
    for new in [7, usize::MAX] {
        let long = limits.check(&GenerateRequest {
            max_new_tokens: new,
            ..fine()
        });
        assert!(matches!(
            long,
            Err(LmError::TooLong {
                prompt: 4,
                limit: 10,
                ..
            })
        ));
    }
    let fields: HashSet<String> = [
        "max_batch",
        "queue_capacity",
        "prefill_chunk",
        "max_sequence_tokens",
    ]
    .iter()
    .map(|name| {
        let mut options = EngineOptions::default();
        match *name {
            "max_batch" => options.max_batch = 0,
            "queue_capacity" => options.queue_capacity = 0,
            "prefill_chunk" => options.prefill_chunk = 0,
            _ => options.max_sequence_tokens = 1,
        }
        let error = options.validate().unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
        error
    })
    .collect();
    assert_eq!(fields.len(), 4);
}
