//! A command's failure: what is shown and which exit code follows.

use crate::config::ConfigError;
use anstyle::{AnsiColor, Style};
use std::error::Error;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

/// Exit code of an unusable configuration: EX_CONFIG of sysexits.h.
const EX_CONFIG: u8 = 78;

/// Anything that ends a command. Any error becomes one by `?`.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Box<dyn Error + Send + Sync>,
    /// What to do next.
    hint: Option<String>,
}

impl Failure {
    /// A failure in words.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            error: message.into().into(),
            hint: None,
        }
    }

    /// Adds what to do next.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it to stderr and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        // Whoever read our output has seen enough.
        if self
            .error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
        {
            return ExitCode::SUCCESS;
        }
        let style = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        let is_config = self.error.downcast_ref::<ConfigError>().is_some();
        let hint = self.hint.or_else(|| {
            is_config.then(|| {
                "`referral config schema` says what is allowed, `referral config show` what the defaults are".to_owned()
            })
        });
        let mut stderr = anstream::stderr();
        // Nobody is left to tell if stderr is closed.
        let _ = writeln!(stderr, "{style}error:{style:#} {}", chain(self.error.as_ref()));
        if let Some(hint) = hint {
            let _ = writeln!(stderr, "{hint}");
        }
        ExitCode::from(if is_config { EX_CONFIG } else { 1 })
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            error: Box::new(error),
            hint: None,
        }
    }
}

/// The error and its causes, without a cause that its parent already quotes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
