//! Chat templates: the Jinja text that a model brings to turn messages into one prompt.
//!
//! Rendered as `transformers` does: blocks are trimmed, `raise_exception` and `tojson` exist, Python's string methods
//! work. A template comes from the model alone, never from a request, and runs with bounded steps and bounded output.

mod functions;
#[cfg(test)]
mod tests;

use std::io::{self, Write};

use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

pub use functions::Date;
use functions::Raised;

use super::guard::caught;

/// Longest template, in bytes.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Longest rendered prompt, in bytes.
pub const MAX_PROMPT_BYTES: usize = 16 << 20;
/// Most steps a template may take.
pub const MAX_STEPS: u64 = 20_000_000;

const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What can go wrong with a chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template's own text is too long.
    #[error("chat template: expected at most {limit} bytes, found {found}")]
    TooLong {
        /// Most bytes allowed.
        limit: usize,
        /// Bytes found.
        found: usize,
    },
    /// The template is no Jinja that this program understands.
    #[error("chat template, line {line}: {message}")]
    Syntax {
        /// Line of the template, from 1; 0 if unknown.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The template refuses the messages, in its author's words.
    #[error("the chat template refuses the messages: {message}")]
    Refused {
        /// The words.
        message: String,
    },
    /// The template needs the date of today.
    #[error(
        "chat template, line {line}: expected a date from the caller (the template calls strftime_now), found none"
    )]
    DateNeeded {
        /// Line of the template, from 1; 0 if unknown.
        line: usize,
    },
    /// The template does not end.
    #[error("chat template: expected at most {limit} steps, found more")]
    OutOfSteps {
        /// Most steps allowed.
        limit: u64,
    },
    /// The prompt is too long.
    #[error("chat template: expected a prompt of at most {limit} bytes, found more")]
    PromptTooLong {
        /// Most bytes allowed.
        limit: usize,
    },
    /// The template fails on these messages.
    #[error("chat template, line {line}: {message}")]
    Render {
        /// Line of the template, from 1; 0 if unknown.
        line: usize,
        /// What went wrong there.
        message: String,
    },
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the strings it knows as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// When the template is longer than [`MAX_TEMPLATE_BYTES`] or not valid.
    pub fn new(source: &str, bos: Option<String>, eos: Option<String>) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLong { limit: MAX_TEMPLATE_BYTES, found: source.len() });
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", functions::raise_exception);
        environment.add_filter("tojson", functions::to_json);
        let added = environment.add_template_owned(NAME, without_generation_tags(source));
        added.map_err(|error| TemplateError::Syntax { line: error.line().unwrap_or(0), message: describe(&error) })?;
        Ok(Self { environment, bos, eos })
    }

    /// The date that the template's `strftime_now` is to format; without one the function does not exist, and many
    /// templates then fall back to a date of their own.
    #[must_use]
    pub fn with_date(mut self, date: Date) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| date.format(format));
        self
    }

    /// The prompt for `messages`; `add_generation_prompt` ends it with the head of the assistant's reply.
    ///
    /// # Errors
    /// When the template refuses the messages, fails on them, or exceeds [`MAX_STEPS`] or [`MAX_PROMPT_BYTES`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let none = Value::from(());
        let token = |token: &Option<String>| token.clone().map_or(Value::UNDEFINED, Value::from);
        let values = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            bos_token => token(&self.bos),
            eos_token => token(&self.eos),
            tools => none.clone(),
            documents => none,
        };
        let mut prompt = Bounded { bytes: Vec::new(), full: false };
        let rendered = caught(|| {
            let template = self.environment.get_template(NAME)?;
            template.render_captured_to(values, &mut prompt).map(|_| ())
        });
        if prompt.full {
            return Err(TemplateError::PromptTooLong { limit: MAX_PROMPT_BYTES });
        }
        rendered.map_err(|message| TemplateError::Render { line: 0, message })?.map_err(|error| explain(&error))?;
        String::from_utf8(prompt.bytes)
            .map_err(|_| TemplateError::Render { line: 0, message: "the prompt is not UTF-8".to_owned() })
    }
}

/// Collects output up to [`MAX_PROMPT_BYTES`].
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_PROMPT_BYTES {
            self.full = true;
            return Err(io::Error::other("the prompt is full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

fn explain(error: &minijinja::Error) -> TemplateError {
    let line = error.line().unwrap_or(0);
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        source = cause.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::OutOfSteps { limit: MAX_STEPS },
        ErrorKind::UnknownFunction if error.detail().is_some_and(|detail| detail.contains("strftime_now")) => {
            TemplateError::DateNeeded { line }
        }
        _ => TemplateError::Render { line, message: describe(error) },
    }
}

/// The template with `{% generation %}` blocks, which mark the assistant's words for training and print their
/// content, as plain blocks that are always taken.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        let Some((tag, behind)) = after.split_once("%}") else { break };
        out.push_str(before);
        let word = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let tag = match word {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        out.push_str("{%");
        out.push_str(&tag);
        out.push_str("%}");
        rest = behind;
    }
    out.push_str(rest);
    out
}
