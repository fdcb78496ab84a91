//! What the trainer accepts.

use super::super::options::invalid;
use super::{PooledExample, TrainPooledOptions};
use crate::Result;
use crate::load::{Checkpoint, ModelConfig};

/// The depth to train.
pub(super) fn check(checkpoint: &Checkpoint, options: &TrainPooledOptions) -> Result<usize> {
    let layers = checkpoint.config().layers;
    let depth = options
        .features
        .iter()
        .map(|feature| feature.layer)
        .max()
        .unwrap_or(0);
    let fault = options
        .features
        .iter()
        .find(|feature| !(1..=layers).contains(&feature.layer));
    if depth == 0 || fault.is_some() {
        let value = fault.map_or_else(|| "none".to_owned(), |feature| feature.layer.to_string());
        return Err(invalid(
            "layer",
            value,
            format!("the model has layers 1 to {layers}"),
        ));
    }
    for (field, value) in [
        ("rank", options.rank),
        ("epochs", options.epochs),
        ("batch_rows", options.batch_rows),
        ("targets", options.targets.len()),
    ] {
        if value == 0 {
            return Err(invalid(field, value, "at least 1".to_owned()));
        }
    }
    for (field, value) in [
        ("learning_rate", options.learning_rate),
        ("head_learning_rate", options.head_learning_rate),
        ("clip", options.clip),
        ("alpha", f64::from(options.alpha)),
    ] {
        if !(value.is_finite() && value > 0.0) {
            return Err(invalid(field, value, "a positive number".to_owned()));
        }
    }
    if !(0.0..1.0).contains(&options.dropout) {
        return Err(invalid(
            "dropout",
            options.dropout,
            "at least 0 and below 1".to_owned(),
        ));
    }
    Ok(depth)
}

/// Whether the trainer can work with the examples.
pub(super) fn check_examples(examples: &[PooledExample], classes: usize, config: &ModelConfig) -> Result<()> {
    let (vocabulary, context) = (config.vocabulary, config.context_length);
    if examples.is_empty() {
        return Err(invalid("examples", 0, "give at least one".to_owned()));
    }
    for (index, example) in examples.iter().enumerate() {
        let range = &example.pooled;
        let is_whole =
            !range.is_empty() && range.end <= example.tokens.len() && example.tokens.len() <= context;
        let in_vocabulary = example.tokens.iter().all(|&token| (token as usize) < vocabulary);
        if !is_whole || !in_vocabulary {
            let fix = format!("give at most {context} tokens below {vocabulary}, pooled ones among them");
            return Err(invalid("example", index, fix));
        }
        let sum: f32 = example.target.iter().sum();
        let is_distribution = example.target.iter().all(|p| *p >= 0.0) && (sum - 1.0).abs() < 1e-3;
        if example.target.len() != classes
            || !is_distribution
            || !(example.weight.is_finite() && example.weight >= 0.0)
        {
            let fix = format!("give {classes} probabilities that add up to 1, and a weight of at least 0");
            return Err(invalid("example", index, fix));
        }
    }
    Ok(())
}
