//! Reads what Octopus v4 writes: `<nexa_4>('Determine the derivative of x^3 at x = 2.')<nexa_end>`.
//!
//! The published code looks for `'([^']*)'`, which cuts an argument at its first apostrophe ("patient's") and fails on a
//! line break before `<nexa_end>`, though its own README shows one. Here the argument goes from the first `('` to the
//! last `')`, and there may be white space around the token.

use super::{END, FUNCTIONS, GENERAL};

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The place in [`FUNCTIONS`].
    pub function: usize,
    /// The query as the model puts it to the expert; `None` if it wrote none that can be read.
    pub argument: Option<String>,
}

impl Call {
    /// What stands for an answer that is no call.
    pub fn general() -> Self {
        Self {
            function: GENERAL,
            argument: None,
        }
    }

    /// The function's name.
    pub fn name(&self) -> &'static str {
        FUNCTIONS.get(self.function).copied().unwrap_or("general")
    }
}

/// The call in a text that begins with a functional token; `None` if the text does not, or has no argument.
pub fn parse(text: &str) -> Option<Call> {
    let (number, rest) = text.trim_start().strip_prefix("<nexa_")?.split_once('>')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let function: usize = number.parse().ok().filter(|_| is_number)?;
    FUNCTIONS.get(function)?;
    let call = rest.split_once(END).map_or(rest, |(call, _)| call).trim();
    let inner = call.split_once("('")?.1.rsplit_once("')")?.0;
    let argument = inner.trim();
    (!argument.is_empty()).then(|| Call {
        function,
        argument: Some(argument.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn calls_as_the_checkpoint_writes_them_are_read() {
        for (text, name, argument) in [
            (
                "<nexa_4>('Determine the derivative of the function f(x) = x^3 at the point where x equals 2.')<nexa_end>",
                "math",
                "Determine the derivative of the function f(x) = x^3 at the point where x equals 2.",
            ),
            (
                "<nexa_15> ('Is the patient's INR of 3.5 safe?')<nexa_end>",
                "health",
                "Is the patient's INR of 3.5 safe?",
            ),
            (
                "<nexa_15>('What is 'dry' cough?')\n<nexa_end>",
                "health",
                "What is 'dry' cough?",
            ),
            (
                "<nexa_0>('Two\nlines')\n <nexa_end> and more('x')",
                "physics",
                "Two\nlines",
            ),
            (" <nexa_16>('f('a') is what?')", "general", "f('a') is what?"),
        ] {
            let call = parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (call.name(), call.argument.as_deref()),
                (name, Some(argument)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_call_is_none() {
        for text in [
            "",
            "The derivative is 12.",
            "<nexa_17>('x')<nexa_end>",
            "<nexa_+1>('x')<nexa_end>",
            "<nexa_>('x')<nexa_end>",
            "<nexa_4>",
            "<nexa_4><nexa_end>",
            "<nexa_4>('')<nexa_end>",
            "<nexa_4>('cut off at two hundred tok",
            "<nexa_end>",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(Call::general().name(), "general");
    }

    proptest! {
        #[test]
        fn any_argument_comes_back(function in 0usize..17, argument in "[^<]{0,30}[a-z'(]") {
            let trimmed = argument.trim();
            let call = parse(&format!("<nexa_{function}>('{argument}')<nexa_end>"));
            prop_assert_eq!(call, Some(Call { function, argument: Some(trimmed.to_owned()) }));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _any = parse(&text);
        }
    }
}
