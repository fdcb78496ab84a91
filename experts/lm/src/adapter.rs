//! Low-rank adapters: `W' = W + scale * (alpha / rank) * B * A`.

use crate::Result;
use std::path::Path;

/// A low-rank adapter of one base model.
#[derive(Debug)]
pub struct Adapter {}

impl Adapter {
    /// Reads an adapter (safetensors) and checks it against the model's shapes.
    pub fn load(_path: &Path, _model: &crate::LanguageModel) -> Result<Self> {
        Err(crate::LmError::Stopped)
    }
}
