//! A weight matrix as it is held in memory, and its product with activations.
//!
//! On x86, candle's run-time-detected tile kernels take Q8_0 and Q4_K matrices whose rows are a multiple
//! of 256 values long; any other length falls back to code several times slower. Weights are therefore
//! padded with zero columns when they are re-quantised, and activations likewise: no result changes.

use super::Quantization;
use super::checkpoint::{Checkpoint, TensorName};
use crate::Result;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// Row length that the CPU kernels want: candle's `QK_K`.
const CPU_ROW_MULTIPLE: usize = 256;

/// `y = x Wᵀ` without bias; `W` is `outputs × inputs`.
#[derive(Clone)]
pub(crate) struct Linear {
    weight: Weight,
    padded_inputs: usize,
}

#[derive(Clone)]
enum Weight {
    /// `outputs × inputs`.
    Dense(Tensor),
    /// `outputs × padded_inputs`.
    Quantised(Arc<QTensor>),
}

impl Linear {
    /// Reads a matrix and holds it on `device` in the form asked for. The kernels' own rearranged copy is
    /// made here too, or the first query would wait for it.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        name: TensorName,
        quantization: Quantization,
        device: &Device,
    ) -> Result<Self> {
        let as_held = match quantization {
            Quantization::AsIs if device.is_cpu() => checkpoint.quantised(name)?,
            _ => None,
        };
        let linear = match as_held {
            Some(weight) => Self::from_quantised(weight)?,
            None => Self::new(&checkpoint.tensor(name)?, quantization, device)?,
        };
        linear.multiply(&Tensor::zeros((1, linear.padded_inputs), DType::F32, device)?)?;
        Ok(linear)
    }

    /// Holds `weight` (`outputs × inputs`, f32, on the CPU) on `device` in the form asked for;
    /// `AsIs` of a dense matrix means f32.
    pub(crate) fn new(weight: &Tensor, quantization: Quantization, device: &Device) -> Result<Self> {
        let (_, inputs) = weight.dims2()?;
        let dtype = match quantization {
            Quantization::Q8_0 => GgmlDType::Q8_0,
            Quantization::Q4K => GgmlDType::Q4K,
            Quantization::F32 | Quantization::AsIs => {
                let weight = Weight::Dense(weight.to_device(device)?);
                return Ok(Self {
                    weight,
                    padded_inputs: inputs,
                });
            }
        };
        let multiple = if device.is_cpu() {
            CPU_ROW_MULTIPLE
        } else {
            dtype.block_size()
        };
        let padded_inputs = inputs.next_multiple_of(multiple);
        let padded = pad_columns(weight, padded_inputs)?;
        let weight = Weight::Quantised(Arc::new(QTensor::quantize_onto(&padded, dtype, device)?));
        Ok(Self {
            weight,
            padded_inputs,
        })
    }

    /// Holds a matrix as the file has it; f16 and bf16 become f32.
    pub(crate) fn from_quantised(weight: QTensor) -> Result<Self> {
        let (_, inputs) = weight.shape().dims2()?;
        let weight = match weight.dtype() {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => {
                Weight::Dense(weight.dequantize(&weight.device())?.to_dtype(DType::F32)?)
            }
            _ => Weight::Quantised(Arc::new(weight)),
        };
        Ok(Self {
            weight,
            padded_inputs: inputs,
        })
    }

    /// The width that inputs are padded to; inputs of this width are taken as they are.
    pub(crate) fn padded_inputs(&self) -> usize {
        self.padded_inputs
    }

    /// `x` is `rows × inputs` or `rows × padded_inputs`; the result `rows × outputs`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = pad_columns(x, self.padded_inputs)?;
        self.multiply(&x)
    }

    /// The products of several matrices with the same input, which is padded and quantised only once
    /// where the device's kernels can.
    pub(crate) fn forward_shared<const N: usize>(linears: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let width = linears.iter().map(|l| l.padded_inputs).max().unwrap_or(0);
        let x = pad_columns(x, width)?;
        if let Some(quantised) = linears.iter().map(|l| l.quantised()).collect::<Option<Vec<_>>>()
            && let Some(products) = QTensor::gemv_fused_shared_lhs(&quantised, &x)?
            && let Ok(products) = products.try_into()
        {
            return Ok(products);
        }
        let products = linears
            .iter()
            .map(|l| l.multiply(&x))
            .collect::<Result<Vec<_>>>()?;
        products
            .try_into()
            .map_err(|_| candle_core::Error::Msg("one product for each matrix".to_owned()).into())
    }

    /// Bytes in memory, without the copies that kernels rearrange for themselves.
    pub(crate) fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Dense(w) => w.elem_count() * w.dtype().size_in_bytes(),
            Weight::Quantised(w) => w.storage_size_in_bytes(),
        }
    }

    fn quantised(&self) -> Option<&QTensor> {
        match &self.weight {
            Weight::Dense(_) => None,
            Weight::Quantised(w) => Some(w),
        }
    }

    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.weight {
            Weight::Dense(w) => x.matmul(&w.t()?)?,
            Weight::Quantised(w) => x.contiguous()?.apply_op1_no_bwd(w.as_ref())?,
        })
    }
}

/// `x` with zero columns appended up to `width`.
fn pad_columns(x: &Tensor, width: usize) -> candle_core::Result<Tensor> {
    let columns = x.dim(1)?;
    if columns >= width {
        Ok(x.clone())
    } else {
        x.pad_with_zeros(1, 0, width - columns)
    }
}
