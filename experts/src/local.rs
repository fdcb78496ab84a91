//! The local engine as an expert.
