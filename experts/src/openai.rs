//! OpenAI-compatible HTTP servers as experts.
