//! The lapidary command: cut a language model into a GEM, and chat, embed and measure with it.

mod args;
mod commands;
mod context;
mod failure;
mod fetch;
mod interrupt;
mod progress;
mod serve;
mod table;

use args::DeviceName;
use clap::{Parser, Subcommand};
use commands::{
    certify, chat, embed, eval, fetch_model, generate, inspect, quickstart, reconstruct, report,
    serve as serve_command, similarity, sweep, train,
};
use context::Context;
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: lapidary::Allocator = lapidary::Allocator;

/// Cut any decoder-only language model into a GEM: one set of weights that chats, embeds and reads compressed
/// documents.
#[derive(Debug, Parser)]
#[command(name = "lapidary", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Use only what is on this machine
    #[arg(long, global = true, help_heading = "Everywhere")]
    offline: bool,
    /// What models run on: cpu, or cuda or cuda:N for an NVIDIA GPU, in a program built with the feature cuda
    #[arg(long, global = true, value_name = "DEVICE", default_value = "cpu", help_heading = "Everywhere")]
    device: DeviceName,
    /// Print results and errors only
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    quiet: bool,
    /// Directory of fetched models [default: $LAPIDARY_CACHE, else lapidary in the user's cache directory]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    cache: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch a model, train it for some minutes, and report what has changed and what has not
    Quickstart(quickstart::QuickstartArgs),
    /// Train a model by a recipe
    Train(train::TrainArgs),
    /// Train variants of a recipe with several seeds, and compare them
    Sweep(sweep::SweepArgs),
    /// Turn texts into vectors
    Embed(embed::EmbedArgs),
    /// Show how similar texts are
    Similarity(similarity::SimilarityArgs),
    /// Talk with a model
    Chat(chat::ChatArgs),
    /// Continue a text
    Generate(generate::GenerateArgs),
    /// Write a text again from its compressed form alone
    Reconstruct(reconstruct::ReconstructArgs),
    /// Chat and embed over HTTP, for the clients of OpenAI's interface
    Serve(serve_command::ServeArgs),
    /// Look into a model, or at the rows that a method makes of a text
    Inspect(inspect::InspectArgs),
    /// Measure a model
    Eval(eval::EvalArgs),
    /// Put the results of evaluations side by side
    Report(report::ReportArgs),
    /// Show what a GEM has cost its base model, and refuse one that cost too much
    Certify(certify::CertifyArgs),
    /// Bring a model's files to this machine
    Fetch(fetch_model::FetchArgs),
}

fn main() -> ExitCode {
    lapidary::prepare_process();
    let cli = Cli::parse();
    lapidary::on_pool(|| failure::exit_code_of(|| run(cli)))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let context = Context { cache: cli.cache, offline: cli.offline, quiet: cli.quiet, device: cli.device.open()? };
    match &cli.command {
        Command::Quickstart(args) => quickstart::run(args, &context),
        Command::Train(args) => train::run(args, &context),
        Command::Sweep(args) => sweep::run(args, &context),
        Command::Embed(args) => embed::run(args, &context),
        Command::Similarity(args) => similarity::run(args, &context),
        Command::Chat(args) => chat::run(args, &context),
        Command::Generate(args) => generate::run(args, &context),
        Command::Reconstruct(args) => reconstruct::run(args, &context),
        Command::Serve(args) => serve_command::run(args, &context),
        Command::Inspect(args) => inspect::run(args, &context),
        Command::Eval(args) => eval::run(args, &context),
        Command::Report(args) => report::run(args, &context),
        Command::Certify(args) => certify::run(args, &context),
        Command::Fetch(args) => fetch_model::run(args, &context),
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_examples() {
        Cli::command().debug_assert();
        for mut command in Cli::command().get_subcommands().cloned() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{help}");
        }
    }
}
