//! AdamW (Loshchilov and Hutter 2019, algorithm 2) with a warm-up and cosine learning rate, and
//! clipping by the global norm.

use super::kernels::Values;
use super::lora::tensor;
use crate::Result;
use candle_core::Tensor;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// A trained matrix with its two moments.
#[derive(Debug, Clone)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) shape: (usize, usize),
    pub(super) values: Vec<f32>,
    pub(super) mean: Vec<f32>,
    pub(super) square: Vec<f32>,
}

impl Parameter {
    pub(super) fn new(name: String, shape: (usize, usize), values: Vec<f32>) -> Self {
        let zeros = vec![0.0; values.len()];
        Self {
            name,
            shape,
            mean: zeros.clone(),
            square: zeros,
            values,
        }
    }

    pub(super) fn tensor(&self) -> Result<Tensor> {
        tensor(&self.values, self.shape)
    }
}

/// Learning rate of a step (from 0): linear over `warmup` steps, then half a cosine down to a
/// tenth of the peak.
pub(super) fn learning_rate(step: usize, steps: usize, warmup: usize, peak: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    peak * (0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
}

/// One update of all parameters; `step` counts from 0. Returns the gradients' global norm before
/// clipping. A parameter without a gradient stays as it is.
pub(super) fn update(
    parameters: &mut [Parameter],
    gradients: &[Option<Tensor>],
    step: usize,
    rate: f64,
    weight_decay: f64,
    clip: f64,
) -> Result<f64> {
    let mut square = 0.0;
    for gradient in gradients.iter().flatten() {
        square += Values::of(gradient)?
            .iter()
            .map(|&g| f64::from(g) * f64::from(g))
            .sum::<f64>();
    }
    let norm = square.sqrt();
    let factor = if norm > clip { (clip / norm) as f32 } else { 1.0 };
    let power = i32::try_from(step + 1).unwrap_or(i32::MAX);
    let (unbias_1, unbias_2) = (1.0 - BETA_1.powi(power), 1.0 - BETA_2.powi(power));
    let size = (rate / unbias_1) as f32;
    let (keep_1, keep_2) = (BETA_1 as f32, BETA_2 as f32);
    let decay = (rate * weight_decay) as f32;
    for (parameter, gradient) in parameters.iter_mut().zip(gradients) {
        let Some(gradient) = gradient else { continue };
        let gradient = Values::of(gradient)?;
        let moments = parameter.mean.iter_mut().zip(&mut parameter.square);
        for ((value, (mean, square)), gradient) in
            parameter.values.iter_mut().zip(moments).zip(gradient.iter())
        {
            let gradient = gradient * factor;
            *mean = keep_1 * *mean + (1.0 - keep_1) * gradient;
            *square = keep_2 * *square + (1.0 - keep_2) * gradient * gradient;
            let root = (*square / unbias_2 as f32).sqrt() + EPSILON as f32;
            *value -= decay * *value + size * *mean / root;
        }
    }
    Ok(norm)
}
