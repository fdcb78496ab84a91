//! The prompt of the published checkpoint, word for word: Phi-3's turns without line breaks.

use crate::functional::PROMPT;

/// Before the query.
pub fn before() -> String {
    format!("<|system|>{PROMPT}<|end|><|user|>")
}

/// Behind the query.
pub const AFTER: &str = "<|end|><|assistant|>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_the_checkpoints() {
        let query = "Tell me the result of derivative of x^3 when x is 2?";
        assert_eq!(
            format!("{}{query}{AFTER}", before()),
            "<|system|>You are a router. Below is the query from the users, please call the correct function and \
             generate the parameters to call the function.<|end|><|user|>Tell me the result of derivative of x^3 when x \
             is 2?<|end|><|assistant|>"
        );
    }
}
