//! Times the forward pass: `cargo run --release -p referral-lm --example bench -- MODEL [q8_0|q4_0|q4_1|q4_k|f32|as_is]`.
//! Every figure is the best of several runs, since anything else on the machine only adds time.
#![allow(
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "a program for the terminal"
)]

use referral_lm::load::{LoadOptions, Quantization};
use referral_lm::model::Step;
use referral_lm::{LanguageModel, LmError, Result};
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), quantization) = (arguments.next(), arguments.next()) else {
        return Err(usage("path", "(missing)"));
    };
    let quantization = match quantization.as_deref().unwrap_or("q8_0") {
        "q8_0" => Quantization::Q8_0,
        "q4_0" => Quantization::Q4_0,
        "q4_1" => Quantization::Q4_1,
        "q4_k" => Quantization::Q4K,
        "f32" => Quantization::F32,
        "as_is" => Quantization::AsIs,
        other => return Err(usage("quantization", other)),
    };
    let start = Instant::now();
    let model = LanguageModel::load(
        Path::new(&path),
        &LoadOptions {
            quantization,
            ..Default::default()
        },
    )?;
    let info = model.info();
    println!(
        "{}, {quantization:?}: {} MiB, loaded in {:.2} s",
        info.name,
        info.weight_bytes >> 20,
        start.elapsed().as_secs_f64()
    );
    for count in [32, 128, 512] {
        let time = best(|| {
            let mut cache = model.new_cache(None, count as usize)?;
            step(&model, std::slice::from_mut(&mut cache), &tokens(count))
        })?;
        println!("prefill {count:3}: {:7.1} ms", time.as_secs_f64() * 1e3);
    }
    for batch in [1, 8] {
        let mut caches = Vec::new();
        for _ in 0..batch {
            let mut cache = model.new_cache(None, 256)?;
            step(&model, std::slice::from_mut(&mut cache), &tokens(64))?;
            caches.push(cache);
        }
        const STEPS: u32 = 16;
        let time = best(|| (0..STEPS).try_for_each(|_| step(&model, &mut caches, &[42])))? / STEPS;
        println!(
            "decode, batch {batch}: {:6.1} tok/s",
            f64::from(batch) / time.as_secs_f64()
        );
    }
    let prefix = model.prefix(&tokens(64), None, None)?;
    for layer in [10, 15].into_iter().filter(|&l| l <= info.layers) {
        for batch in [1, 8] {
            let row = tokens(32);
            let time = best(|| {
                model
                    .hidden_states(Some(&prefix), &vec![row.as_slice(); batch], &[layer], None)
                    .map(drop)
            })?;
            println!(
                "router, {layer} layers, {batch} x 32 tokens: {:6.1} ms",
                time.as_secs_f64() * 1e3
            );
        }
    }
    Ok(())
}

fn step(model: &LanguageModel, caches: &mut [referral_lm::model::KvCache], tokens: &[u32]) -> Result<()> {
    let mut steps: Vec<_> = caches
        .iter_mut()
        .map(|cache| Step {
            cache,
            tokens,
            adapter: None,
            wants_logits: true,
        })
        .collect();
    model.forward(&mut steps).map(drop)
}

fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| 1000 + 7 * i).collect()
}

fn best(mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

fn usage(field: &'static str, value: &str) -> LmError {
    LmError::Invalid {
        field,
        value: value.to_owned(),
        fix: "usage: bench MODEL [q8_0|q4_0|q4_1|q4_k|f32|as_is]".to_owned(),
    }
}
