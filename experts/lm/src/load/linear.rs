//! A weight matrix as it is held in memory, and its product with activations.
//!
//! On the CPU, Q8_0, Q4_0 and Q4_1 go through kernels of our own ([`crate::kernels`]); the rest is candle's. Its
//! run-time-detected tile kernels take Q4_K matrices whose rows are a multiple of 256 values long; any
//! other length falls back to code several times slower. Weights are therefore padded with zero columns when they
//! are re-quantised, and activations likewise: no result changes.

use super::Quantization;
use super::checkpoint::{Checkpoint, TensorName};
use crate::Result;
use crate::kernels::{Activations, Format, Level, Packed};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use std::sync::Arc;

/// Row length that candle's CPU kernels want: its `QK_K`.
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
    /// `outputs × padded_inputs`, on the CPU, for our own kernels.
    Packed(Arc<Packed>),
}

impl Linear {
    /// A matrix for our own kernels.
    pub(crate) fn packed(weight: Arc<Packed>) -> Self {
        let padded_inputs = weight.inputs();
        Self {
            weight: Weight::Packed(weight),
            padded_inputs,
        }
    }

    /// Whether its weights are `packed` itself.
    pub(crate) fn shares(&self, packed: &Arc<Packed>) -> bool {
        matches!(&self.weight, Weight::Packed(own) if Arc::ptr_eq(own, packed))
    }

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
            Quantization::Q4_0 => GgmlDType::Q4_0,
            Quantization::Q4_1 => GgmlDType::Q4_1,
            Quantization::Q4K => GgmlDType::Q4K,
            Quantization::F32 | Quantization::AsIs => {
                let weight = Weight::Dense(weight.to_device(device)?);
                return Ok(Self {
                    weight,
                    padded_inputs: inputs,
                });
            }
        };
        let multiple = if device.is_cpu() && Format::of(dtype).is_none() {
            CPU_ROW_MULTIPLE
        } else {
            dtype.block_size()
        };
        let padded_inputs = inputs.next_multiple_of(multiple);
        let padded = pad_columns(weight, padded_inputs)?;
        Self::from_quantised(QTensor::quantize_onto(&padded, dtype, device)?)
    }

    /// Holds a matrix as the file has it; f16 and bf16 become f32.
    pub(crate) fn from_quantised(weight: QTensor) -> Result<Self> {
        let (_, inputs) = weight.shape().dims2()?;
        let weight = if weight.device().is_cpu() {
            let parts = [weight];
            if let Some(packed) = Packed::stack(&parts)? {
                return Ok(Self::packed(Arc::new(packed)));
            }
            let [weight] = parts;
            weight
        } else {
            weight
        };
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
            Weight::Packed(w) => w.bytes(),
        }
    }

    fn quantised(&self) -> Option<&QTensor> {
        match &self.weight {
            Weight::Dense(_) | Weight::Packed(_) => None,
            Weight::Quantised(w) => Some(w),
        }
    }

    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.weight {
            Weight::Dense(w) => x.matmul(&w.t()?)?,
            Weight::Quantised(w) => x.contiguous()?.apply_op1_no_bwd(w.as_ref())?,
            Weight::Packed(w) => {
                let (rows, width) = x.dims2()?;
                let mut output = vec![0f32; rows * w.outputs()];
                with_values(x, |x| {
                    let level = Level::best();
                    let mut activations = Activations::default();
                    activations.quantise(level, x, width);
                    w.multiply(level, &activations, &mut output, false)
                })?;
                Tensor::from_vec(output, (rows, w.outputs()), &Device::Cpu)?
            }
        })
    }
}

/// Calls `use_values` with the values of a tensor on the CPU.
pub(crate) fn with_values<T>(
    x: &Tensor,
    use_values: impl FnOnce(&[f32]) -> candle_core::Result<T>,
) -> candle_core::Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => {
            use_values(values.get(start..end).unwrap_or_default())
        }
        _ => candle_core::bail!("values must be f32 and on the CPU"),
    }
}

/// `x` with zero columns appended up to `width`.
pub(crate) fn pad_columns(x: &Tensor, width: usize) -> candle_core::Result<Tensor> {
    let columns = x.dim(1)?;
    if columns >= width {
        Ok(x.clone())
    } else {
        x.pad_with_zeros(1, 0, width - columns)
    }
}
