//! `lapidary serve`: chat and embeddings over HTTP, from one set of weights in one process.

use crate::args::{ModelArgs, Weights};
use crate::context::Context;
use crate::serve::{self, Limits, Server, run_engine};
use anyhow::{Context as _, Result, anyhow, bail};
use axum::http::StatusCode;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use lapidary::engine::{Engine, EngineOptions};
use lapidary::{Lapidary, has_bf16_units, physical_memory};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::Notify;

const EXAMPLES: &str = "\
Examples:
  lapidary serve                                  # the GEM that comes with this program, on port 8080
  lapidary serve --model runs/gem/model --weights bf16 --listen 127.0.0.1:9000
  lapidary serve --api-key \"$KEY\" --served-model-name my/gem
  curl localhost:8080/v1/embeddings -d '{\"input\": \"A man plays a guitar.\"}'
  curl localhost:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'";

/// Keys, separated by commas, for those who do not want them in the list of processes.
const KEYS: &str = "LAPIDARY_API_KEY";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address and port; only this machine can reach the default
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Name that clients ask for [default: that of the model's file or directory]
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Ask for this key on every route but /v1/models, /health, /ping, /metrics and those for people (the page, /docs,
    /// /openapi.json); may be repeated, and others may be in $LAPIDARY_API_KEY, separated by commas
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    api_key: Vec<String>,
    /// Tokens whose keys and values are held at most, all conversations together
    #[arg(long, value_name = "N", default_value_t = 16384)]
    kv_tokens: usize,
    /// Tokens of one pass
    #[arg(long, value_name = "N", default_value_t = 512)]
    batch_tokens: usize,
    /// Share of a pass that texts to embed get while prompts wait too
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    embed_share: f32,
    /// Tokens of requests that may be on their way, beyond which the answer is that of --overload-status
    #[arg(long, value_name = "N", default_value_t = 300_000)]
    max_waiting_tokens: usize,
    /// Texts or prompts of one request
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_inputs: usize,
    /// Refuse token ids as inputs: clients that send those of another tokenizer would get vectors of other words
    #[arg(long)]
    reject_token_ids: bool,
    /// Bytes of compressed texts (/v1/compress) that are kept; those not asked for longest go first
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    max_compressed_bytes: usize,
    /// Bytes of one request
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    max_body_bytes: usize,
    /// Connections at a time; more wait
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    max_connections: usize,
    /// Status of the answer when too much waits; some clients try again after 503 but not after 429
    #[arg(long, value_name = "STATUS", default_value = "429", value_parser = ["429", "503"])]
    overload_status: String,
    /// Seconds within which the head of a request has to be there
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    header_timeout: Duration,
    /// Seconds within which a body has to be there, and a client has to read some of what it is sent
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    client_timeout: Duration,
    /// Seconds that requests on their way are given to end when the process is asked to
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    drain_timeout: Duration,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded, the address is taken, or an option is out of range.
pub(crate) fn run(args: &ServeArgs, context: &Context) -> Result<()> {
    let (model, weights) = load(args, context)?;
    let model = Arc::new(model);
    let options =
        EngineOptions { kv_tokens: args.kv_tokens, batch_tokens: args.batch_tokens, embed_share: args.embed_share };
    let longest_row = Engine::new(&model, options)?.longest_row();
    let asked = args.model.name();
    let file_name = Path::new(&asked).file_stem().map(|name| name.to_string_lossy().into_owned());
    let name = args.served_model_name.clone().or(file_name).unwrap_or(asked);
    let (jobs, to_do) = mpsc::channel();
    let state = Arc::default();
    let limits = Limits {
        is_local: args.listen.ip().is_loopback(),
        body_bytes: args.max_body_bytes,
        inputs: args.max_inputs,
        waiting_tokens: args.max_waiting_tokens,
        reject_token_ids: args.reject_token_ids,
        compressed_bytes: args.max_compressed_bytes,
        batch_tokens: args.batch_tokens,
        connections: args.max_connections,
        weights: weights.name(),
        header_timeout: args.header_timeout,
        client_timeout: args.client_timeout,
        overload_status: StatusCode::from_bytes(args.overload_status.as_bytes())?,
    };
    let keys = keys(&args.api_key, std::env::var_os(KEYS))?;
    let server = Server::new(Arc::clone(&model), (name, &keys), (limits, longest_row), jobs, Arc::clone(&state))?;
    let (metrics, server) = (Arc::clone(&server.metrics), Arc::new(server));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(args.listen))
        .with_context(|| format!("--listen {}", args.listen))?;
    // Before it is said that the server is there: who has read that may ask it to end.
    let asked = Arc::new(Notify::new());
    let asking = Arc::clone(&asked);
    runtime.block_on(async move { watch_signals(asking) })?;
    context.note(&format!("{} on http://{}", server.name, listener.local_addr()?));
    let engine_ends = Arc::new(Notify::new());
    let engine_ended = Arc::clone(&engine_ends);
    std::thread::scope(|scope| {
        // However the engine ends, by a bug too, so does the server: one that cannot answer is to be started again.
        let told = Told(engine_ends);
        let web = scope.spawn(move || {
            let asked_to_end = async || {
                tokio::select! {
                    () = asked.notified() => {}
                    () = engine_ended.notified() => {}
                }
            };
            runtime.block_on(serve::serve(listener, Arc::clone(&server), args.drain_timeout, asked_to_end));
            // Not by dropping what leads to it: a request that is at work on a thread may hold it for long.
            server.end();
            runtime.shutdown_background();
        });
        let ran = run_engine(&model, options, to_do, (&state, &metrics));
        drop(told);
        web.join().map_err(|_| anyhow!("the web server has ended by itself"))?;
        Ok(ran?)
    })
}

/// The model in the format asked for, or in the one that suits the machine.
fn load(args: &ServeArgs, context: &Context) -> Result<(Lapidary, Weights)> {
    let mut model = context.load_model(&args.model)?;
    if args.model.weights.is_some() || !bf16_suits(&model) {
        return Ok((model, args.model.weights()));
    }
    model.set_weight_format(Weights::Bf16.into())?;
    context.note("weights as bf16, for which this CPU has units; --weights stored leaves them as the file has them");
    Ok((model, Weights::Bf16))
}

/// Whether products of bf16 numbers are faster here, and weights so rounded take no more than a quarter of the memory.
fn bf16_suits(model: &Lapidary) -> bool {
    let decoder = &model.base().decoder;
    let has_room = memory().is_some_and(|bytes| decoder.num_frozen_numbers() <= bytes / 4 / size_of::<u16>());
    decoder.device().is_cpu() && has_bf16_units() && has_room
}

/// Bytes that this process may use: the machine's, or what its container is allowed.
fn memory() -> Option<usize> {
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let allowed = limits.iter().filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<usize>().ok());
    allowed.chain(physical_memory()).min()
}

/// Tells the web server when it is dropped.
struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let expected = || "expected seconds, more than 0".to_owned();
    let seconds: f64 = text.parse().map_err(|_| expected())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero()).ok_or_else(expected)
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number from 1".to_owned())
}

/// The keys of the command line and of the environment.
fn keys(given: &[String], of_environment: Option<OsString>) -> Result<Vec<String>> {
    let mut keys = given.to_vec();
    if let Some(text) = of_environment {
        // A server that was to have a key does not start without one.
        let text = text.into_string().map_err(|_| anyhow!("{KEYS}: expected text"))?;
        let all: Vec<&str> = text.split(',').map(str::trim).collect();
        if all.contains(&"") {
            bail!("{KEYS}: expected keys, separated by commas, found an empty one");
        }
        keys.extend(all.into_iter().map(str::to_owned));
    }
    Ok(keys)
}

/// From now on each signal that asks the process to end is told, and does nothing else.
fn watch_signals(asked: Arc<Notify>) -> std::io::Result<()> {
    #[cfg(unix)]
    for kind in [tokio::signal::unix::SignalKind::interrupt(), tokio::signal::unix::SignalKind::terminate()] {
        let (mut signals, asked) = (tokio::signal::unix::signal(kind)?, Arc::clone(&asked));
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                asked.notify_one();
            }
        });
    }
    #[cfg(not(unix))]
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            asked.notify_one();
        }
    });
    Ok(())
}
