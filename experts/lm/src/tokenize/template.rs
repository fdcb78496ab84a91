//! Rendering a chat with the Jinja template that a model brings along.
//!
//! Templates are written for Python's Jinja2 with the settings of Hugging Face transformers
//! (`trim_blocks`, `lstrip_blocks`, `raise_exception`, `strftime_now`) and call methods of Python's
//! strings and dictionaries; those that templates in use call are given here.

use super::{ChatMessage, Role};
use crate::{LmError, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, context};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// ChatML, for files without a template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                      + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
                      {{ '<|im_start|>assistant\n' }}{% endif %}";

const NAME: &str = "chat";

/// A compiled template.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template (ChatML if there is none).
    pub(super) fn new(source: Option<&str>, bos: String, eos: String) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(failed)?;
        environment.set_syntax(syntax);
        environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_function("strftime_now", |format: String| {
            strftime(&format, SystemTime::now())
        });
        environment.set_unknown_method_callback(python_method);
        environment
            .add_template_owned(NAME, source.unwrap_or(CHATML).to_owned())
            .map_err(failed)?;
        Ok(Self {
            environment,
            bos,
            eos,
        })
    }

    /// The chat as text, special tokens written out. Without a system message the template's own
    /// default system text is left out.
    pub(super) fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        if messages.iter().any(|message| message.role == Role::System) {
            return self.render_as_is(messages, add_generation_prompt);
        }
        // Written with a system block, which is then cut off. Where the template doesn't put it in
        // a block of its own (or knows no system messages) there is nothing to cut.
        let system = ChatMessage::new(Role::System, "system");
        let block = self.render_as_is(std::slice::from_ref(&system), false).ok();
        let all: Vec<ChatMessage> = [system].into_iter().chain(messages.iter().cloned()).collect();
        let whole = block
            .as_ref()
            .and_then(|_| self.render_as_is(&all, add_generation_prompt).ok());
        let body = whole
            .as_deref()
            .zip(block.as_deref())
            .and_then(|(whole, block)| whole.strip_prefix(block));
        match body.filter(|body| !body.is_empty()) {
            Some(body) if block.is_some_and(|block| !self.bos.is_empty() && block.starts_with(&self.bos)) => {
                // ChatML's "beginning" is the head of every block and stands in the body already.
                let bos = if body.starts_with(&self.bos) {
                    ""
                } else {
                    self.bos.as_str()
                };
                Ok(format!("{bos}{body}"))
            }
            Some(body) => Ok(body.to_owned()),
            None => self.render_as_is(messages, add_generation_prompt),
        }
    }

    fn render_as_is(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                let content = Value::from(message.content.as_str());
                Value::from(BTreeMap::from([
                    ("role", Value::from(message.role.as_str())),
                    ("content", content),
                ]))
            })
            .collect();
        let context = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(failed)
    }
}

fn failed(error: Error) -> LmError {
    LmError::Tokenizer(format!("chat template: {error:#}"))
}

/// Methods of Python's `str` and `dict` that chat templates call.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let unknown = || Err(Error::from(ErrorKind::UnknownMethod));
    if value.kind() == ValueKind::Map {
        return match method {
            "get" => {
                let (key, default): (Value, Option<Value>) = from_args(args)?;
                let found = value.get_item(&key)?;
                Ok(if found.is_undefined() {
                    default.unwrap_or_else(|| Value::from(()))
                } else {
                    found
                })
            }
            "items" => state.apply_filter("items", std::slice::from_ref(value)),
            "keys" => Ok(Value::from(value.try_iter()?.collect::<Vec<_>>())),
            _ => unknown(),
        };
    }
    let Some(text) = value.as_str() else {
        return unknown();
    };
    let listed = |argument: &Value| -> Vec<String> {
        match argument.as_str() {
            Some(one) => vec![one.to_owned()],
            None => argument
                .try_iter()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect(),
        }
    };
    Ok(match method {
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "title" => state.apply_filter("title", std::slice::from_ref(value))?,
        "capitalize" => state.apply_filter("capitalize", std::slice::from_ref(value))?,
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<String>,) = from_args(args)?;
            let cut = |c: char| {
                set.as_ref()
                    .map_or_else(|| c.is_whitespace(), |set| set.contains(c))
            };
            match method {
                "strip" => text.trim_matches(cut),
                "lstrip" => text.trim_start_matches(cut),
                _ => text.trim_end_matches(cut),
            }
            .into()
        }
        "startswith" | "endswith" => {
            let (ends,): (Value,) = from_args(args)?;
            let test = |end: &String| {
                if method == "startswith" {
                    text.starts_with(end)
                } else {
                    text.ends_with(end)
                }
            };
            listed(&ends).iter().any(test).into()
        }
        "replace" => {
            let (from, to): (String, String) = from_args(args)?;
            text.replace(&from, &to).into()
        }
        "split" => {
            let (separator, _): (Option<String>, Kwargs) = from_args(args)?;
            let parts: Vec<Value> = match separator {
                Some(separator) => text.split(separator.as_str()).map(Value::from).collect(),
                None => text.split_whitespace().map(Value::from).collect(),
            };
            parts.into()
        }
        _ => return unknown(),
    })
}

/// `strftime` in UTC, of the fields that chat templates use.
fn strftime(format: &str, now: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil_date(seconds / 86_400);
    let name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let fields = [
        ("%Y", year.to_string()),
        ("%m", format!("{month:02}")),
        ("%d", format!("{day:02}")),
        ("%B", name.to_owned()),
        ("%b", name.chars().take(3).collect()),
        ("%H", format!("{:02}", seconds / 3_600 % 24)),
        ("%M", format!("{:02}", seconds / 60 % 60)),
        ("%S", format!("{:02}", seconds % 60)),
    ];
    fields.iter().fold(format.to_owned(), |text, (field, value)| {
        text.replace(field, value)
    })
}

/// Year, month and day of a day since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn user(text: &str) -> Vec<ChatMessage> {
        vec![ChatMessage::new(Role::User, text)]
    }

    #[test]
    fn methods_and_functions_of_python() {
        let source = "{%- set parts = messages[0].content.split('|') -%}\n{{ parts[-1].strip() }} \
                      {{ messages[0].get('tools', 'none') }} {{ 'abc'.startswith(('x', 'a')) }} \
                      {{ messages[0]['content'] | trim | length }} {{ strftime_now('%Y') | length }} \
                      {{ '<' ~ 'x\n'.rstrip('\n') ~ '>' }}";
        let template = ChatTemplate::new(Some(source), String::new(), String::new()).unwrap();
        assert_eq!(
            template.render_as_is(&user(" a| b "), false).unwrap(),
            "b none True 4 4 <x>"
        );
    }

    #[test]
    fn refusal_of_a_template_is_told() {
        let source = "{{ raise_exception('only users may speak') }}";
        let template = ChatTemplate::new(Some(source), String::new(), String::new()).unwrap();
        let error = template.render(&user("a"), true).unwrap_err().to_string();
        assert!(error.contains("only users may speak"), "{error}");
        assert!(ChatTemplate::new(Some("{% for %}"), String::new(), String::new()).is_err());
    }

    #[test]
    fn dates() {
        let leap_day = UNIX_EPOCH + Duration::from_secs(951_782_400 + 3_661);
        assert_eq!(
            strftime("%d %b %Y %B %m %H:%M:%S", leap_day),
            "29 Feb 2000 February 02 01:01:01"
        );
    }

    #[test]
    fn system_block_is_cut_also_behind_a_beginning_token() {
        let source = "{{ bos_token }}{% if messages[0].role != 'system' %}<h>system<e>You are Default.<t>{% endif %}\
                      {% for m in messages %}<h>{{ m.role }}<e>{{ m.content }}<t>{% endfor %}\
                      {% if add_generation_prompt %}<h>assistant<e>{% endif %}";
        let template = ChatTemplate::new(Some(source), "<s>".to_owned(), String::new()).unwrap();
        assert_eq!(
            template.render(&user("hi"), true).unwrap(),
            "<s><h>user<e>hi<t><h>assistant<e>"
        );
    }

    #[test]
    fn a_template_without_system_role_is_left_alone() {
        let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
                      [{{ messages[0].content }}]";
        let template = ChatTemplate::new(Some(source), String::new(), String::new()).unwrap();
        assert_eq!(template.render(&user("hi"), true).unwrap(), "[hi]");
    }
}
