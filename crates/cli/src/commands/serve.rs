//! `lapidary serve`: chat and embeddings over HTTP, from one set of weights in one process.

use crate::args::ModelArgs;
use crate::context::Context;
use crate::serve::{Limits, Server, router, run_engine};
use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use lapidary::engine::{Engine, EngineOptions};
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

/// Requests that are running are given so long to end.
const DRAIN: Duration = Duration::from_secs(30);

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
    /// Ask for this key on every route but /v1/models and /health; may be repeated
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
    /// Tokens of requests that may be on their way, beyond which the answer is 429
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
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded, the address is taken, or an option is out of range.
pub(crate) fn run(args: &ServeArgs, context: &Context) -> Result<()> {
    let model = Arc::new(context.load_model(&args.model)?);
    let options =
        EngineOptions { kv_tokens: args.kv_tokens, batch_tokens: args.batch_tokens, embed_share: args.embed_share };
    let longest_row = Engine::new(&model, options)?.longest_row();
    let asked = args.model.name();
    let file_name = Path::new(&asked).file_stem().map(|name| name.to_string_lossy().into_owned());
    let name = args.served_model_name.clone().or(file_name).unwrap_or(asked);
    let (jobs, to_do) = mpsc::channel();
    let state = Arc::default();
    let limits = Limits {
        body_bytes: args.max_body_bytes,
        inputs: args.max_inputs,
        waiting_tokens: args.max_waiting_tokens,
        reject_token_ids: args.reject_token_ids,
        compressed_bytes: args.max_compressed_bytes,
    };
    let keys = (name, &args.api_key[..]);
    let server = Arc::new(Server::new(Arc::clone(&model), keys, (limits, longest_row), jobs, Arc::clone(&state)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(args.listen))
        .with_context(|| format!("--listen {}", args.listen))?;
    context.note(&format!("{} on http://{}", server.name, listener.local_addr()?));
    let engine_ends = Arc::new(Notify::new());
    let engine_ended = Arc::clone(&engine_ends);
    std::thread::scope(|scope| {
        // However the engine ends, by a bug too, so does the server: one that cannot answer is to be started again.
        let told = Told(engine_ends);
        let web = scope.spawn(move || {
            let result = runtime.block_on(serve(listener, server, &engine_ended));
            // Requests that are still on their way are dropped, and with them the last way to the engine.
            runtime.shutdown_background();
            result
        });
        let ran = run_engine(&model, options, to_do, &state);
        drop(told);
        let served = web.join().map_err(|_| anyhow!("the web server has ended by itself"))?;
        ran?;
        served
    })
}

/// Tells the web server when it is dropped.
struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Answers until the process is asked to end, or the engine has ended, then gives what runs some time; asked again, none.
async fn serve(listener: tokio::net::TcpListener, server: Arc<Server>, engine_ended: &Notify) -> Result<()> {
    let ends = Arc::new(Notify::new());
    let drains = Arc::clone(&ends);
    let drained = axum::serve(listener, router(server)).with_graceful_shutdown(async move { drains.notified().await });
    let too_late = async {
        tokio::select! {
            () = asked_to_end() => {}
            () = engine_ended.notified() => {}
        }
        ends.notify_one();
        tokio::select! {
            () = asked_to_end() => {}
            () = tokio::time::sleep(DRAIN) => {}
        }
    };
    tokio::select! {
        result = drained => result.context("the web server"),
        () = too_late => Ok(()),
    }
}

async fn asked_to_end() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}
