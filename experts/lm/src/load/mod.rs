//! From files to weights.
//!
//! [`Checkpoint`] opens a model file of either format and hands out its tensors under one naming
//! and one rotary convention, so that nothing above it knows which format the weights came in.
//! Placing and quantising weights for inference is built on top of it.

pub mod checkpoint;
mod device;
mod gguf;
pub(crate) mod linear;
mod safetensors;

pub(crate) use gguf::header as gguf_header;
pub(crate) use safetensors::SafetensorsDirectory;

pub use checkpoint::{Checkpoint, LayerTensor, ModelConfig, TensorName};

/// Where the arithmetic runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceSpec {
    /// CUDA, then Metal, then CPU: the first that this build and machine have.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by index.
    Cuda(usize),
    /// Apple Metal.
    Metal,
}

/// How weights are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quantization {
    /// 8 bits: blocks of Q8_0 files as they are, others re-quantised.
    #[default]
    Q8_0,
    /// 4 bits with a scale: blocks of Q4_0 files as they are, others re-quantised. The vocabulary, which suffers
    /// most, has 8.
    Q4_0,
    /// 4 bits with a scale and a minimum: blocks of Q4_1 and Q4_0 files as they are, others re-quantised; the
    /// vocabulary as in [`Self::Q4_0`].
    Q4_1,
    /// Re-quantised to Q4_K, rows zero-padded to a multiple of 256 (candle's fast CPU path).
    Q4K,
    /// Dequantised to f32.
    F32,
    /// As the file holds them.
    AsIs,
}

/// How to load a model.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Where the arithmetic runs.
    pub device: DeviceSpec,
    /// How weights are held in memory.
    pub quantization: Quantization,
}
