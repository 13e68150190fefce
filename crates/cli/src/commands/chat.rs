//! `lapidary chat`: a conversation in the terminal, or one reply.

use super::chat_file;
use super::generate::{SamplingArgs, read_stdin, stream, tell_speed};
use crate::args::ModelArgs;
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::generate::{Finish, GenerateOptions, Sequence};
use lapidary::text::Message;
use lapidary::{Error, Lapidary};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{IsTerminal as _, stdin};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const EXAMPLES: &str = "\
Examples:
  lapidary chat                                      talk; /help shows the commands
  lapidary chat \"What is the capital of France?\"     one reply
  lapidary chat --system \"Answer in one word.\" --temperature 0.7 --top-p 0.9
  echo \"Explain rain.\" | lapidary chat --max-new-tokens 100 --verbose
  lapidary chat --input queries.txt --output pairs.jsonl --max-new-tokens 32   a reply to each line, to train on";

const HELP: &str = "\
/reset  forget the conversation (the --system message stays)
/exit   leave (Ctrl-D too)
/help   show this
Ctrl-C ends a reply, not the program. A message that begins with a slash is written with two.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ChatArgs {
    /// Reply to this and end [default: talk, or reply to what stdin has]
    #[arg(value_name = "MESSAGE")]
    message: Option<String>,
    /// What the model is told before the conversation [default: what its template says]
    #[arg(long, value_name = "TEXT")]
    pub(super) system: Option<String>,
    /// Reply to each text of these data files or globs instead
    #[arg(long, short, value_name = "FILE", num_args = 1.., help_heading = "Many texts", requires = "output", conflicts_with = "message")]
    pub(super) input: Vec<String>,
    /// Column of the text in data files [default: text, else the only text column]
    #[arg(long, value_name = "NAME", requires = "input", help_heading = "Many texts")]
    pub(super) column: Option<String>,
    /// The first N texts alone; 0: all
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Many texts")]
    pub(super) limit: usize,
    /// Where the pairs go, as JSON Lines with text and positive; what is there already is kept
    #[arg(long, short, value_name = "FILE", requires = "input", help_heading = "Many texts")]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// What a line of the user asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Help,
    Reset,
    Exit,
    Unknown(&'a str),
    Say(&'a str),
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Self {
        let line = line.trim();
        match line {
            "" => Self::Nothing,
            "/help" => Self::Help,
            "/reset" => Self::Reset,
            "/exit" | "/quit" => Self::Exit,
            _ if line.starts_with("//") => Self::Say(&line[1..]),
            _ if line.starts_with('/') => Self::Unknown(line),
            _ => Self::Say(line),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded or has no chat template, an option is out of range, or the conversation does not fit.
pub(crate) fn run(args: &ChatArgs, context: &Context) -> Result<()> {
    if let Some(output) = &args.output {
        let gem = context.load_model(&args.model)?;
        let options = args.sampling.options(gem.generate_options())?;
        return chat_file::run(args, output, &gem, &options, context);
    }
    let message = match &args.message {
        Some(message) => Some(message.clone()),
        None if stdin().is_terminal() => None,
        None => Some(read_stdin()?),
    };
    if message.as_ref().is_some_and(|message| message.trim().is_empty()) {
        bail!("expected a message, found an empty one");
    }
    let gem = context.load_model(&args.model)?;
    let options = args.sampling.options(gem.generate_options())?;
    let start: Vec<Message> = args.system.iter().map(|text| said("system", text)).collect();
    let Some(message) = message else { return talk(args, context, &gem, options, &start) };
    let ids = gem.chat_ids(&[start, vec![said("user", &message)]].concat())?;
    let generator = gem.generator();
    let reply = stream(&generator, &mut generator.sequence(), &ids, &options, &mut || false)?;
    if args.sampling.verbose {
        tell_speed(&reply);
    }
    Ok(())
}

pub(super) fn said(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

/// A conversation in progress.
struct Conversation<'a> {
    gem: &'a Lapidary,
    options: GenerateOptions,
    verbose: bool,
    /// What runs it; keeps what has run for the next turn.
    sequence: Sequence<'a>,
    messages: Vec<Message>,
    /// Set by Ctrl-C.
    interrupted: Arc<AtomicBool>,
}

impl Conversation<'_> {
    /// Replies to `text`, piece by piece on stdout. A message that the model cannot take is told and forgotten.
    fn reply(&mut self, text: &str, context: &Context) -> Result<()> {
        self.messages.push(said("user", text));
        self.interrupted.store(false, Ordering::Relaxed);
        let (flag, generator) = (Arc::clone(&self.interrupted), self.gem.generator());
        let mut interrupted = || flag.load(Ordering::Relaxed);
        let reply = match self.gem.chat_ids(&self.messages) {
            Ok(ids) => stream(&generator, &mut self.sequence, &ids, &self.options, &mut interrupted),
            Err(error) => Err(error.into()),
        };
        match reply {
            Ok(reply) => {
                if self.verbose {
                    tell_speed(&reply);
                } else if reply.finish == Finish::Context {
                    context.note("The model's context is full; /reset starts anew.");
                }
                self.messages.push(said("assistant", &reply.text));
                Ok(())
            }
            Err(error) if error.is::<Error>() => {
                self.messages.pop();
                eprintln!("error: {error:#}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn talk(args: &ChatArgs, context: &Context, gem: &Lapidary, options: GenerateOptions, start: &[Message]) -> Result<()> {
    if gem.base().chat_template.is_none() {
        return Err(Error::NoChatTemplate.into());
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot listen for Ctrl-C")?;
    let mut editor = DefaultEditor::new().context("cannot edit lines on this terminal")?;
    let sequence = gem.generator().sequence();
    let mut conversation =
        Conversation { gem, options, verbose: args.sampling.verbose, sequence, messages: start.to_vec(), interrupted };
    context.note("/help shows the commands, /exit leaves.");
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("cannot read from the terminal"),
        };
        match Line::read(&line) {
            Line::Nothing => {}
            Line::Exit => return Ok(()),
            Line::Help => eprintln!("{HELP}"),
            Line::Reset => {
                conversation.messages = start.to_vec();
                context.note("The conversation is forgotten.");
            }
            Line::Unknown(command) => eprintln!("{command}: no such command; /help shows them"),
            Line::Say(text) => {
                editor.add_history_entry(&line).context("cannot keep the history")?;
                conversation.reply(text, context)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_messages() {
        let cases = [
            ("  ", Line::Nothing),
            (" /help ", Line::Help),
            ("/reset", Line::Reset),
            ("/quit", Line::Exit),
            ("/exit", Line::Exit),
            ("/what now", Line::Unknown("/what now")),
            ("//etc is a path", Line::Say("/etc is a path")),
            (" Hello / there ", Line::Say("Hello / there")),
        ];
        for (line, expected) in cases {
            assert_eq!(Line::read(line), expected);
        }
    }
}
