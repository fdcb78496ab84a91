//! A decoder layer on the CPU's own kernels.
//!
//! Queries, keys and values are one product, and so are gate and up: their matrices stand below one another. Each
//! input is normalised and quantised once. The products behind attention and gate are added to the residual stream
//! where it stands, and a pass uses the same memory for every layer.

use super::forward::{AdapterGroup, Row};
use super::weights::vector;
use crate::Result;
use crate::adapter::Projection;
use crate::kernels::{
    Activations, Angles, Columns, Format, Heads, Level, Packed, PageShape, Sequence, attend, rms_norm,
    silu_product,
};
use crate::load::Quantization;
use crate::load::checkpoint::{Checkpoint, LayerTensor, ModelConfig, TensorName};
use crate::load::linear::pad_columns;
use candle_core::quantized::{GgmlDType, QTensor};

/// One decoder layer.
pub(super) struct PackedLayer {
    attention_norm: Vec<f32>,
    qkv: Packed,
    output: Packed,
    ffn_norm: Vec<f32>,
    gate_up: Packed,
    down: Packed,
}

/// What is the same for all layers of a pass, and the memory they share.
pub(super) struct PackedPass<'a> {
    level: Level,
    config: &'a ModelConfig,
    angles: Angles,
    groups: Vec<AdapterGroup<'a>>,
    input: Vec<f32>,
    quantised: Activations,
    wide: Vec<f32>,
    inner: Vec<f32>,
}

impl<'a> PackedPass<'a> {
    pub(super) fn new(config: &'a ModelConfig, angles: Angles, groups: Vec<AdapterGroup<'a>>) -> Self {
        Self {
            level: Level::best(),
            config,
            angles,
            groups,
            input: Vec::new(),
            quantised: Activations::default(),
            wide: Vec::new(),
            inner: Vec::new(),
        }
    }
}

/// Adds the adapters' shares of a projection of `input` (rows of `width` values) to `output` at `columns`.
fn adapt(
    groups: &[AdapterGroup<'_>],
    (layer, projection): (usize, Projection),
    (input, width): (&[f32], usize),
    output: &mut [f32],
    columns: Columns,
) -> Result<()> {
    groups.iter().try_for_each(|group| {
        let rows = (group.rows.as_slice(), group.scales.as_slice());
        let place = (layer, projection);
        group
            .adapter
            .add_share(place, (input, width), rows, output, columns)
    })
}

impl PackedLayer {
    /// Reads a layer; `None` if there are no kernels for the form asked for.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        index: usize,
        quantization: Quantization,
    ) -> Result<Option<Self>> {
        let name = |tensor| TensorName::Layer(index, tensor);
        let stack = |tensors: &[LayerTensor]| {
            let names: Vec<_> = tensors.iter().map(|t| name(*t)).collect();
            pack(checkpoint, &names, quantization)
        };
        let (Some(qkv), Some(output), Some(gate_up), Some(down)) = (
            stack(&[
                LayerTensor::AttentionQ,
                LayerTensor::AttentionK,
                LayerTensor::AttentionV,
            ])?,
            stack(&[LayerTensor::AttentionOutput])?,
            stack(&[LayerTensor::FfnGate, LayerTensor::FfnUp])?,
            stack(&[LayerTensor::FfnDown])?,
        ) else {
            return Ok(None);
        };
        Ok(Some(Self {
            attention_norm: vector(checkpoint, name(LayerTensor::AttentionNorm))?,
            qkv,
            output,
            ffn_norm: vector(checkpoint, name(LayerTensor::FfnNorm))?,
            gate_up,
            down,
        }))
    }

    pub(super) fn bytes(&self) -> usize {
        let matrices = [&self.qkv, &self.output, &self.gate_up, &self.down];
        matrices.into_iter().map(Packed::bytes).sum::<usize>()
            + size_of_val(self.attention_norm.as_slice())
            + size_of_val(self.ffn_norm.as_slice())
    }

    /// Takes the residual stream `x` (`tokens × width`) through the layer.
    pub(super) fn run(
        &self,
        index: usize,
        x: &mut [f32],
        rows: &mut [Row<'_>],
        pass: &mut PackedPass<'_>,
    ) -> Result<()> {
        let (level, config) = (pass.level, pass.config);
        let (width, ffn) = (config.width, config.ffn_width);
        let epsilon = config.rms_epsilon as f32;
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let tokens = x.len() / width;
        let residual = Columns {
            stride: width,
            first: 0,
        };
        rms_norm(level, x, &self.attention_norm, epsilon, &mut pass.input);
        pass.quantised.quantise(level, &pass.input, width);
        let stride = queries + 2 * keys;
        pass.wide.resize(tokens * stride, 0.0);
        self.qkv.multiply(level, &pass.quantised, &mut pass.wide, false)?;
        for (projection, first) in [
            (Projection::AttnQ, 0),
            (Projection::AttnK, queries),
            (Projection::AttnV, queries + keys),
        ] {
            let columns = Columns { stride, first };
            adapt(
                &pass.groups,
                (index, projection),
                (&pass.input, width),
                &mut pass.wide,
                columns,
            )?;
        }
        let heads = Heads {
            queries: config.heads,
            keys: PageShape {
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
            },
        };
        let mut start = 0;
        let mut sequences = Vec::with_capacity(rows.len());
        for row in rows.iter_mut() {
            let (past, count) = (row.cache.len(), row.tokens.len());
            sequences.push(Sequence {
                pages: row.cache.pages(index)?,
                past,
                start,
                count,
            });
            start += count;
        }
        attend(
            level,
            heads,
            &pass.wide,
            &pass.angles,
            &mut sequences,
            &mut pass.inner,
        )?;
        pass.quantised.quantise(level, &pass.inner, queries);
        self.output.multiply(level, &pass.quantised, x, true)?;
        adapt(
            &pass.groups,
            (index, Projection::AttnOutput),
            (&pass.inner, queries),
            x,
            residual,
        )?;

        rms_norm(level, x, &self.ffn_norm, epsilon, &mut pass.input);
        pass.quantised.quantise(level, &pass.input, width);
        pass.wide.resize(tokens * 2 * ffn, 0.0);
        self.gate_up
            .multiply(level, &pass.quantised, &mut pass.wide, false)?;
        for (projection, first) in [(Projection::FfnGate, 0), (Projection::FfnUp, ffn)] {
            let columns = Columns {
                stride: 2 * ffn,
                first,
            };
            adapt(
                &pass.groups,
                (index, projection),
                (&pass.input, width),
                &mut pass.wide,
                columns,
            )?;
        }
        silu_product(level, &pass.wide, ffn, &mut pass.inner);
        pass.quantised.quantise(level, &pass.inner, ffn);
        self.down.multiply(level, &pass.quantised, x, true)?;
        adapt(
            &pass.groups,
            (index, Projection::FfnDown),
            (&pass.inner, ffn),
            x,
            residual,
        )
    }
}

/// Matrices of a checkpoint below one another, for the CPU's own kernels. Blocks that the file holds in a form that is
/// good enough are taken as they are, the others re-quantised; `None` if there are no kernels for the form asked for.
pub(super) fn pack(
    checkpoint: &Checkpoint,
    names: &[TensorName],
    quantization: Quantization,
) -> Result<Option<Packed>> {
    let (wanted, is_good): (GgmlDType, fn(Format) -> bool) = match quantization {
        Quantization::Q8_0 => (GgmlDType::Q8_0, |held| held == Format::Q8_0),
        Quantization::Q4_0 => (GgmlDType::Q4_0, |held| held == Format::Q4_0),
        Quantization::Q4_1 => (GgmlDType::Q4_1, |held| held != Format::Q8_0),
        // What is not as the kernels want it is not re-quantised.
        Quantization::AsIs => (GgmlDType::F32, |_| true),
        Quantization::Q4K | Quantization::F32 => return Ok(None),
    };
    let held = names
        .iter()
        .map(|name| checkpoint.quantised(*name))
        .collect::<Result<Option<Vec<_>>>>()?;
    if let Some(held) = held
        && held.iter().all(|t| Format::of(t.dtype()).is_some_and(is_good))
        && let Some(packed) = Packed::stack(&held)?
    {
        return Ok(Some(packed));
    }
    if Format::of(wanted).is_none() {
        return Ok(None);
    }
    let quantised = names
        .iter()
        .map(|name| {
            let dense = checkpoint.tensor(*name)?;
            let columns = dense.dim(1)?.next_multiple_of(wanted.block_size());
            Ok(QTensor::quantize(&pad_columns(&dense, columns)?, wanted)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Packed::stack(&quantised)?)
}

/// The vocabulary, in which 4 bits would cost most: the file's own blocks if there are kernels for them, else 8 bits.
pub(super) fn pack_vocabulary(
    checkpoint: &Checkpoint,
    name: TensorName,
    quantization: Quantization,
) -> Result<Option<Packed>> {
    match quantization {
        Quantization::Q4_0 | Quantization::Q4_1 => match pack(checkpoint, &[name], Quantization::AsIs)? {
            Some(packed) => Ok(Some(packed)),
            None => pack(checkpoint, &[name], Quantization::Q8_0),
        },
        _ => pack(checkpoint, &[name], quantization),
    }
}
