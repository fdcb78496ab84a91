//! Adapters that are built into the binary, so that the default configuration needs no files.

/// Name and file (see `referral_lm::adapter`) of each; its card stands beside the file in `experts/data`.
const ADAPTERS: [(&str, &[u8]); 1] = [("medical", include_bytes!("../data/medical/medical.safetensors"))];

/// Their names.
pub fn adapter_names() -> impl Iterator<Item = &'static str> {
    ADAPTERS.iter().map(|(name, _)| *name)
}

/// The bytes of the adapter called `name`.
pub fn adapter(name: &str) -> Option<&'static [u8]> {
    ADAPTERS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, bytes)| *bytes)
}
