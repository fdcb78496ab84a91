//! Losses, gradients and learning rates, against differences, single rows and the engine.

use super::*;

fn batch() -> Batch {
    let mut batch = Batch::default();
    for (answer, tokens) in [
        (2, vec![5, 9, 11, 40, 3, 1]),
        (1, vec![7, 8, 90]),
        (3, vec![250, 4, 4, 17]),
    ] {
        batch.push(Sequence { tokens, answer });
    }
    batch
}

/// Directional derivatives of the mean loss by central differences, for every adapter matrix.
#[test]
fn gradients_are_those_of_finite_differences() {
    for tied in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        write_model(directory.path(), &config(tied));
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let decoder = Decoder::load(&checkpoint, 16).unwrap();
        let batch = batch();
        let mut lora = Lora::new(checkpoint.config(), 2, &Projection::ALL, 3, 6.0, 1);
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let mut noise =
            |n: usize| -> Vec<f32> { (0..n).map(|_| 0.2 * (random.random::<f32>() - 0.5)).collect() };
        for parameter in &mut lora.parameters {
            // B is zero at the start, which would leave A without a gradient.
            parameter.values = noise(parameter.values.len());
        }
        let workers = Workers::new(None).unwrap();
        let gradients = step(&decoder, &lora, &batch, &workers).unwrap().gradients;
        let mean = |lora: &Lora| {
            let adapted = decoder.adapt(lora).unwrap();
            decoder.losses(&batch, &adapted).unwrap().1 / batch.targets.len() as f64
        };
        assert_eq!(lora.parameters.len(), 2 * 2 * 7);
        for (index, gradient) in gradients.into_iter().enumerate() {
            let gradient = gradient.unwrap().flatten_all().unwrap();
            let gradient: Vec<f32> = gradient.to_vec1().unwrap();
            let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
            // Along the gradient itself, where the slope is steepest, mixed with a random direction.
            let direction: Vec<f32> = gradient
                .iter()
                .zip(noise(gradient.len()))
                .map(|(g, n)| g / norm + 0.5 * n)
                .collect();
            let expected: f64 = gradient
                .iter()
                .zip(&direction)
                .map(|(g, d)| f64::from(*g) * f64::from(*d))
                .sum();
            let before = lora.parameters[index].values.clone();
            let step = 2e-3_f32;
            let mut shifted = |sign: f32| {
                let moved = before.iter().zip(&direction).map(|(v, d)| v + sign * step * d);
                lora.parameters[index].values = moved.collect();
                mean(&lora)
            };
            let slope = (shifted(1.0) - shifted(-1.0)) / (2.0 * f64::from(step));
            lora.parameters[index].values = before;
            let name = &lora.parameters[index].name;
            assert!(
                (slope - expected).abs() < 0.01 * expected.abs() + 1e-4,
                "{name}: {slope} by differences, {expected} by the backward pass"
            );
        }
    }
}

#[test]
fn packed_rows_lose_what_single_rows_lose() {
    let fixture = Fixture::new();
    let decoder = Decoder::load(&fixture.checkpoint, 16).unwrap();
    let rows = [(2, vec![5, 9, 11, 40, 3, 1]), (1, vec![7, 8, 90])];
    let mut lora = Lora::new(fixture.checkpoint.config(), 2, &Projection::ALL, 2, 4.0, 0);
    lora.parameters
        .iter_mut()
        .for_each(|parameter| parameter.values.fill(0.05));
    let adapted = decoder.adapt(&lora).unwrap();
    let mut packed = Batch::default();
    let mut sum = 0.0;
    for (answer, tokens) in rows {
        let sequence = Sequence { tokens, answer };
        let mut single = Batch::default();
        single.push(sequence.clone());
        sum += decoder.losses(&single, &adapted).unwrap().1;
        packed.push(sequence);
    }
    let (base, adapted) = decoder.losses(&packed, &adapted).unwrap();
    assert!((adapted - sum).abs() < 1e-4, "{adapted} packed, {sum} one by one");
    assert!((base - adapted).abs() > 1e-2, "the adapter changes the loss");
}

/// The written file, read by the engine, gives the answers the probability that the trainer saw.
#[test]
fn the_engine_agrees_with_the_trainer() {
    let fixture = Fixture::new();
    let options = TrainAdapterOptions {
        dev: Some(fixture.directory.path().join("rows.jsonl")),
        systems: Vec::new(),
        ..fixture.options("engine.safetensors")
    };
    let dev = fixture.train(&options).0.dev.unwrap();
    let load = LoadOptions {
        quantization: Quantization::F32,
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(fixture.directory.path(), &load).unwrap();
    let adapter = Adapter::load(&options.out, &model).unwrap();
    let perplexity = |adapter: Option<(&Adapter, f32)>| {
        let mut log_probabilities = Vec::new();
        for (question, answer) in ROWS {
            let prompt = model.encode_chat(&single_turn(None, question), true).unwrap();
            let answer = fixture.tokenizer.encode_answer(answer).unwrap();
            log_probabilities.extend(model.log_probabilities(&prompt, &answer, adapter).unwrap());
        }
        assert_eq!(log_probabilities.len(), dev.answer_tokens);
        f64::from(-log_probabilities.iter().sum::<f32>() / log_probabilities.len() as f32).exp()
    };
    let (base, adapted) = (perplexity(None), perplexity(Some((&adapter, 1.0))));
    assert!((base / dev.base_perplexity - 1.0).abs() < 1e-3, "{base}, {dev:?}");
    // The file holds f16 values.
    assert!(
        (adapted / dev.adapter_perplexity - 1.0).abs() < 5e-3,
        "{adapted}, {dev:?}"
    );
    assert!(adapted < 0.9 * base);
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let fixture = Fixture::new();
    let decoder = Decoder::load(&fixture.checkpoint, 16).unwrap();
    let lora = Lora::new(fixture.checkpoint.config(), 3, &Projection::ALL, 4, 8.0, 0);
    let adapted = decoder.adapt(&lora).unwrap();
    let (base, adapted) = decoder.losses(&batch(), &adapted).unwrap();
    assert_eq!(base, adapted);
}

#[test]
fn the_learning_rate_warms_up_and_decays() {
    let rate = |step| optimiser::learning_rate(step, 100, 10, 1.0);
    assert_eq!(rate(0), 0.1);
    assert_eq!(rate(9), 1.0);
    assert_eq!(rate(10), 1.0);
    assert!((rate(55) - 0.55).abs() < 1e-9);
    assert!(rate(99) < 0.101);
}
