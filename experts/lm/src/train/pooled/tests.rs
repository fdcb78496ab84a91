use super::*;
use crate::LanguageModel;
use crate::adapter::Adapter;
use crate::load::{LoadOptions, Quantization};
use crate::train::tests::{config, write_model};
use tempfile::TempDir;

const CLASSES: usize = 3;

fn model() -> (TempDir, Checkpoint) {
    let directory = tempfile::tempdir().unwrap();
    write_model(directory.path(), &config(true));
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    (directory, checkpoint)
}

/// Class `k` has the token `10 + k` somewhere among others.
fn examples(seed: u64, count: usize) -> Vec<PooledExample> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|index| {
            let class = index % CLASSES;
            let length = random.random_range(3..9);
            let mut tokens: Vec<u32> = (0..length).map(|_| random.random_range(20..250)).collect();
            let at = random.random_range(1..length);
            tokens[at] = 10 + class as u32;
            PooledExample {
                pooled: 1..tokens.len(),
                tokens,
                target: (0..CLASSES).map(|k| f32::from(u8::from(k == class))).collect(),
                weight: 1.0,
            }
        })
        .collect()
}

fn options(out: PathBuf) -> TrainPooledOptions {
    let feature = |layer, pooling| PooledFeature { layer, pooling };
    TrainPooledOptions {
        out,
        start: None,
        features: vec![
            feature(1, Pooling::Mean),
            feature(2, Pooling::Mean),
            feature(2, Pooling::Last),
        ],
        rank: 4,
        alpha: 8.0,
        targets: Projection::ALL.to_vec(),
        epochs: 12,
        batch_rows: 16,
        learning_rate: 5e-3,
        head_learning_rate: 1e-2,
        weight_decay: 0.01,
        clip: 1.0,
        dropout: 0.1,
        seed: 7,
        threads: Some(2),
    }
}

fn right(
    model: &LanguageModel,
    adapter: &Adapter,
    trained: &PooledClassifier,
    examples: &[PooledExample],
) -> usize {
    let width = model.info().width;
    let is_right = |example: &&PooledExample| {
        let states = model
            .hidden_states(None, &[&example.tokens], &[1, 2], Some((adapter, 1.0)))
            .unwrap()
            .remove(0);
        let mean = |hidden: &[f32]| -> Vec<f32> {
            let tokens: Vec<&[f32]> = hidden.chunks_exact(width).skip(1).collect();
            (0..width)
                .map(|i| tokens.iter().map(|t| t[i]).sum::<f32>() / tokens.len() as f32)
                .collect()
        };
        let last = states.layers[1][states.layers[1].len() - width..].to_vec();
        let mut x = [mean(&states.layers[0]), mean(&states.layers[1]), last].concat();
        for ((x, mean), scale) in x.iter_mut().zip(&trained.mean).zip(&trained.scale) {
            *x = (*x - mean) / scale;
        }
        let logit = |k: usize| {
            let row = &trained.rows[k * x.len()..][..x.len()];
            trained.bias[k] + row.iter().zip(&x).map(|(a, b)| a * b).sum::<f32>()
        };
        let best = (0..CLASSES)
            .max_by(|&a, &b| logit(a).total_cmp(&logit(b)))
            .unwrap();
        example.target[best] == 1.0
    };
    examples.iter().filter(is_right).count()
}

#[test]
fn learns_what_the_engine_then_reads() {
    let (directory, checkpoint) = model();
    let out = directory.path().join("router.safetensors");
    let mut steps = 0;
    let mut epoch = |_| examples(1, 120);
    let trained = train_pooled(
        &checkpoint,
        CLASSES,
        &mut epoch,
        &options(out.clone()),
        &mut |step| {
            steps = step.step;
            assert_eq!(step.steps, 12 * 8);
        },
    )
    .unwrap();
    assert_eq!((steps, trained.steps), (96, 96));
    assert!(trained.last_loss < 0.5, "{}", trained.last_loss);
    let load = LoadOptions {
        quantization: Quantization::F32,
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(directory.path(), &load).unwrap();
    let adapter = Adapter::load(&out, &model).unwrap();
    let unseen = examples(2, 60);
    let count = right(&model, &adapter, &trained, &unseen);
    assert!(count >= 48, "{count} of 60 unseen examples");
    // Without the adapter the rows read something else: the two belong together.
    let base: Vec<f32> = model
        .hidden_states(None, &[&unseen[0].tokens], &[2], None)
        .unwrap()[0]
        .layers[0]
        .clone();
    let adapted = model
        .hidden_states(None, &[&unseen[0].tokens], &[2], Some((&adapter, 1.0)))
        .unwrap()[0]
        .layers[0]
        .clone();
    assert!(base.iter().zip(&adapted).any(|(a, b)| (a - b).abs() > 1e-3));
}

#[test]
fn a_run_goes_on_from_an_earlier_adapter() {
    let (directory, checkpoint) = model();
    let file = |name: &str| directory.path().join(name);
    let run = |options: &TrainPooledOptions| {
        train_pooled(
            &checkpoint,
            CLASSES,
            &mut |_| examples(1, 40),
            options,
            &mut |_| {},
        )
    };
    let first = TrainPooledOptions {
        epochs: 1,
        ..options(file("first.safetensors"))
    };
    run(&first).unwrap();
    let next = TrainPooledOptions {
        out: file("next.safetensors"),
        start: Some(first.out.clone()),
        seed: 8,
        // Too small to change a half-precision number.
        learning_rate: 1e-12,
        weight_decay: 0.0,
        ..first.clone()
    };
    run(&next).unwrap();
    let values = |path: &PathBuf| {
        let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        let mut names: Vec<_> = tensors.keys().cloned().collect();
        names.sort_unstable();
        let flat = |name: &String| {
            tensors[name]
                .flatten_all()
                .unwrap()
                .to_dtype(candle_core::DType::F32)
                .unwrap()
        };
        names
            .iter()
            .flat_map(|name| flat(name).to_vec1::<f32>().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(values(&first.out), values(&next.out));
    let other = TrainPooledOptions { rank: 2, ..next };
    let error = run(&other).unwrap_err().to_string();
    assert!(error.contains("same rank"), "{error}");
}

#[test]
fn a_seed_decides() {
    let (directory, checkpoint) = model();
    let run = |name: &str, threads| {
        let options = TrainPooledOptions {
            epochs: 1,
            threads: Some(threads),
            ..options(directory.path().join(name))
        };
        train_pooled(
            &checkpoint,
            CLASSES,
            &mut |_| examples(1, 48),
            &options,
            &mut |_| (),
        )
        .unwrap()
    };
    let (one, two) = (run("a", 1), run("b", 2));
    assert_eq!(one, two);
    let tensors = |name: &str| {
        let tensors =
            candle_core::safetensors::load(directory.path().join(name), &candle_core::Device::Cpu).unwrap();
        let mut values: Vec<_> = tensors
            .into_iter()
            .map(|(name, t)| {
                (
                    name,
                    t.to_dtype(candle_core::DType::F32)
                        .unwrap()
                        .flatten_all()
                        .unwrap()
                        .to_vec1::<f32>()
                        .unwrap(),
                )
            })
            .collect();
        values.sort_by(|a, b| a.0.cmp(&b.0));
        values
    };
    assert!(
        tensors("a") == tensors("b"),
        "the same adapter on one thread and on two"
    );
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (directory, checkpoint) = model();
    let options = options(directory.path().join("unused"));
    let decoder = Decoder::load_first(&checkpoint, 128, 2).unwrap();
    let mut lora = Lora::new(decoder.config(), 2, &Projection::ALL, 2, 4.0, 3);
    let mut random = ChaCha8Rng::seed_from_u64(5);
    // B is zero at the start, which would leave A without a gradient.
    for parameter in &mut lora.parameters {
        parameter
            .values
            .iter_mut()
            .for_each(|x| *x += 0.1 * (random.random::<f32>() - 0.5));
    }
    let columns = options.features.len() * decoder.config().width;
    let values =
        |random: &mut ChaCha8Rng, n| (0..n).map(|_| random.random::<f32>() - 0.5).collect::<Vec<f32>>();
    let mut head_rows = values(&mut random, CLASSES * columns);
    let bias = values(&mut random, CLASSES);
    let (mean, scale) = (values(&mut random, columns), vec![0.7; columns]);
    let data = examples(4, 5);
    let evaluate = |lora: &Lora, head_rows: &[f32]| {
        let matrix = Tensor::from_slice(head_rows, (CLASSES, columns), &candle_core::Device::Cpu).unwrap();
        let head = PooledHead {
            features: &options.features,
            mean: &mean,
            scale: &scale,
            rows: &matrix,
            bias: &bias,
        };
        let mut batch = pack(data.iter().collect());
        batch.masks = data
            .iter()
            .map(|_| (0..columns).map(|i| (i % 3) as f32).collect())
            .collect();
        let adapted = decoder.adapt(lora).unwrap();
        decoder
            .pooled_gradients(&batch, lora, &adapted, &head, 1.0)
            .unwrap()
    };
    let result = evaluate(&lora, &head_rows);
    let agrees = |numeric: f64, analytic: f32, name: &str| {
        let near = (numeric - f64::from(analytic)).abs() <= 0.03 * numeric.abs().max(0.05);
        assert!(near, "{name}: finite difference {numeric}, gradient {analytic}");
    };
    let step = 1e-2;
    for index in 0..lora.parameters.len() {
        let analytic = result.adapter[index]
            .as_ref()
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        let at = random.random_range(0..analytic.len());
        let start = lora.parameters[index].values[at];
        let mut loss = |x: f32| {
            lora.parameters[index].values[at] = x;
            evaluate(&lora, &head_rows).loss
        };
        let numeric = (loss(start + step) - loss(start - step)) / f64::from(2.0 * step);
        lora.parameters[index].values[at] = start;
        agrees(numeric, analytic[at], &lora.parameters[index].name.clone());
    }
    let analytic = result.rows.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for at in [0, columns + 3, 2 * columns + 40] {
        let start = head_rows[at];
        let mut loss = |x: f32| {
            head_rows[at] = x;
            evaluate(&lora, &head_rows).loss
        };
        let numeric = (loss(start + step) - loss(start - step)) / f64::from(2.0 * step);
        head_rows[at] = start;
        agrees(numeric, analytic[at], "rows");
    }
}

#[test]
fn faults_are_named() {
    let (directory, checkpoint) = model();
    let good = options(directory.path().join("unused"));
    let run = |options: &TrainPooledOptions, examples: Vec<PooledExample>| {
        train_pooled(
            &checkpoint,
            CLASSES,
            &mut |_| examples.clone(),
            options,
            &mut |_| (),
        )
        .unwrap_err()
        .to_string()
    };
    let deep = PooledFeature {
        layer: 9,
        pooling: Pooling::Last,
    };
    let bad = TrainPooledOptions {
        features: vec![deep],
        ..good.clone()
    };
    assert!(
        run(&bad, examples(1, 4)).contains("layer"),
        "{}",
        run(&bad, examples(1, 4))
    );
    let bad = TrainPooledOptions {
        dropout: 1.0,
        ..good.clone()
    };
    assert!(run(&bad, examples(1, 4)).contains("dropout"));
    let bad = TrainPooledOptions {
        rank: 0,
        ..good.clone()
    };
    assert!(run(&bad, examples(1, 4)).contains("rank"));
    assert!(run(&good, Vec::new()).contains("examples"));
    let mut wrong = examples(1, 4);
    wrong[2].target.pop();
    assert!(run(&good, wrong).contains("example"));
}
