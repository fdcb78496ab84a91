//! Named tensors of a trained head's file: read with every check, and turned into bytes.

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// A file of tensors that belongs to a settings file.
pub(crate) struct TensorFile<'a> {
    pub(crate) tensors: SafeTensors<'a>,
    name: &'static str,
    settings: &'static str,
    remedy: &'static str,
}

impl<'a> TensorFile<'a> {
    /// Opens a file's bytes. `name` and `settings` are the two files' names, `remedy` what to do about a bad one.
    ///
    /// # Errors
    /// Here and below: what is wrong, with the file's name before it.
    pub(crate) fn open(
        bytes: &'a [u8],
        name: &'static str,
        settings: &'static str,
        remedy: &'static str,
    ) -> Result<Self, String> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| format!("{name}: {error}"))?;
        Ok(Self {
            tensors,
            name,
            settings,
            remedy,
        })
    }

    /// Finite numbers of this shape, F16 or F32.
    pub(crate) fn read(&self, tensor: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let Self {
            name,
            settings,
            remedy,
            ..
        } = self;
        let view = self
            .tensors
            .tensor(tensor)
            .map_err(|error| format!("{name}: {error}"))?;
        if view.shape() != shape {
            return Err(format!(
                "{name}: {tensor} has the shape {:?}, {settings} wants {shape:?}",
                view.shape()
            ));
        }
        let values = floats(&view)
            .ok_or_else(|| format!("{name}: {tensor} is {:?}: write F16 or F32", view.dtype()))?;
        match values.iter().all(|x| x.is_finite()) {
            true => Ok(values),
            false => Err(format!(
                "{name}: {tensor} holds a value that is not finite: {remedy}"
            )),
        }
    }

    /// The same for numbers that are divided by.
    pub(crate) fn read_positive(&self, tensor: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let values = self.read(tensor, shape)?;
        match values.iter().all(|x| *x > 0.0) {
            true => Ok(values),
            false => Err(format!(
                "{}: {tensor} holds a value that is not positive: {}",
                self.name, self.remedy
            )),
        }
    }
}

/// A tensor's numbers; `None` if it is neither F16 nor F32.
fn floats(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    match tensor.dtype() {
        Dtype::F16 => Some(
            tensor
                .data()
                .as_chunks::<2>()
                .0
                .iter()
                .map(|x| f16::from_le_bytes(*x).to_f32())
                .collect(),
        ),
        Dtype::F32 => Some(
            tensor
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|x| f32::from_le_bytes(*x))
                .collect(),
        ),
        _ => None,
    }
}

/// Numbers as F16.
pub(crate) fn halved(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|x| f16::from_f32(*x).to_le_bytes())
        .collect()
}

/// Numbers as F32.
pub(crate) fn whole(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
