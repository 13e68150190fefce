//! What all requests share: the model, the way to its engine, and how much waits there.

use super::api_error::ApiError;
use super::compress::Store;
use super::metrics::{Metrics, Reply};
use axum::http::StatusCode;
use lapidary::Lapidary;
use lapidary::embed::EmbedOptions;
use lapidary::engine::{
    Compressed, EmbedRequest, Embedded, Engine, EngineOptions, Event, GenerateRequest, IsGone, Load, Watch,
};
use lapidary::generate::{Grammar, Grammars};
use lapidary::layout::TokenId;
use sha2::{Digest as _, Sha256};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc as events, oneshot};

/// Tokens a second until the first pass has shown how many there are.
const UNKNOWN_RATE: usize = 1000;

/// What a request may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Whether this machine alone can reach the server.
    pub(crate) is_local: bool,
    /// Bytes of a body.
    pub(crate) body_bytes: usize,
    /// Texts of one request.
    pub(crate) inputs: usize,
    /// Tokens that wait, all requests together.
    pub(crate) waiting_tokens: usize,
    /// Whether inputs have to be texts.
    pub(crate) reject_token_ids: bool,
    /// Bytes of compressed texts that are kept.
    pub(crate) compressed_bytes: usize,
    /// Tokens of one pass.
    pub(crate) batch_tokens: usize,
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Number format of the weights.
    pub(crate) weights: &'static str,
    /// Within which the head of a request has to be there.
    pub(crate) header_timeout: Duration,
    /// Within which a body has to be there, and a client has to read something of what it is sent.
    pub(crate) client_timeout: Duration,
    /// The status where too much waits.
    pub(crate) overload_status: StatusCode,
}

/// A text that is read.
#[derive(Default)]
pub(crate) struct Reading {
    pub(crate) ids: Vec<TokenId>,
    /// What it is read after.
    pub(crate) before: Vec<Arc<Compressed>>,
    /// What happens to its vector.
    pub(crate) options: EmbedOptions,
    /// Whether its special tokens' keys and values are kept.
    pub(crate) compress: bool,
    /// Whether the states of its tokens, end to end, stand for its vector.
    pub(crate) each_token: bool,
}

/// Something for the engine; it is told at once whether it was taken.
pub(crate) enum Job {
    Generate(Box<GenerateRequest>, oneshot::Sender<Result<(), lapidary::Error>>),
    Embed(EmbedRequest, oneshot::Sender<Result<(), lapidary::Error>>),
    /// The engine ends, whoever could still send it something.
    End,
}

pub(crate) struct Server {
    pub(crate) model: Arc<Lapidary>,
    /// Under which clients ask for it.
    pub(crate) name: String,
    pub(crate) limits: Limits,
    /// Unix seconds of the start.
    pub(crate) created: u64,
    pub(crate) longest_row: usize,
    pub(crate) compressed: Store,
    /// Made when first asked for: its tokens take a while to sort.
    grammars: OnceLock<Result<Grammars, String>>,
    pub(crate) metrics: Arc<Metrics>,
    is_draining: AtomicBool,
    keys: Vec<[u8; 32]>,
    jobs: mpsc::Sender<Job>,
    waiting: AtomicUsize,
    engine: Arc<EngineState>,
}

/// What the engine's thread tells.
#[derive(Debug, Default)]
pub(crate) struct EngineState {
    load: Mutex<Load>,
    /// Tokens a second, lately.
    rate: AtomicUsize,
    has_ended: AtomicBool,
}

impl EngineState {
    pub(crate) fn load(&self) -> Load {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens a second of the last passes; 0 before the first.
    pub(crate) fn rate(&self) -> usize {
        self.rate.load(Ordering::Relaxed)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }
}

/// Tokens that wait as long as this lives: with the engine, until it has forgotten them.
pub(crate) struct Ticket {
    server: Arc<Server>,
    tokens: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.server.waiting.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or(Duration::ZERO).as_secs()
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

impl Server {
    pub(crate) fn new(
        model: Arc<Lapidary>,
        (name, keys): (String, &[String]),
        (limits, longest_row): (Limits, usize),
        jobs: mpsc::Sender<Job>,
        engine: Arc<EngineState>,
    ) -> prometheus::Result<Self> {
        Ok(Self {
            metrics: Arc::new(Metrics::new(&name)?),
            is_draining: AtomicBool::new(false),
            model,
            name,
            limits,
            created: unix_now(),
            longest_row,
            compressed: Store::new(limits.compressed_bytes),
            grammars: OnceLock::new(),
            keys: keys.iter().map(|key| digest(key)).collect(),
            jobs,
            waiting: AtomicUsize::new(0),
            engine,
        })
    }

    /// Ends the engine, with all that is on its way.
    pub(crate) fn end(&self) {
        // It may have ended by itself.
        let _ = self.jobs.send(Job::End);
    }

    /// From now on nothing new is taken.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Tokens of requests on their way.
    pub(crate) fn waiting_tokens(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A grammar of the JSON that a schema allows.
    ///
    /// # Errors
    /// 400 for a schema that cannot be followed.
    pub(crate) fn json_schema(&self, schema: serde_json::Value) -> Result<Grammar, ApiError> {
        let made = self.grammars.get_or_init(|| Grammars::new(self.model.base()).map_err(|error| error.to_string()));
        let grammars =
            made.as_ref().map_err(|error| ApiError::field("response_format", "none for this model", error))?;
        Ok(grammars.json_schema(schema)?)
    }

    pub(crate) fn engine(&self) -> &EngineState {
        &self.engine
    }

    /// Whether a request needs a key.
    pub(crate) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whether a request with this key may pass. Digests are compared: how long it takes tells nothing of a key.
    pub(crate) fn admits(&self, key: &str) -> bool {
        let found = digest(key);
        self.keys.is_empty() || self.keys.iter().fold(false, |any, key| any | (*key == found))
    }

    /// # Errors
    /// 400 for vectors of another width than the model's: a part of one that was not trained for it says less.
    pub(crate) fn check_dimensions(&self, asked: Option<usize>) -> Result<(), ApiError> {
        let width = self.model.base().decoder.config().hidden_size;
        match asked.filter(|dimensions| *dimensions != width) {
            None => Ok(()),
            Some(dimensions) => {
                let expected = format!("{width}, because the model was not trained for fewer,");
                Err(ApiError::field("dimensions", &expected, dimensions))
            }
        }
    }

    /// # Errors
    /// 404 for another model than this one.
    pub(crate) fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if asked != self.name => {
                let message = format!("model: expected {}, found {asked}", self.name);
                Err(ApiError::new(StatusCode::NOT_FOUND, message))
            }
            _ => Ok(()),
        }
    }

    /// Most tokens that a text to embed can have.
    ///
    /// # Errors
    /// 500 when the model's method cannot lay a text out.
    pub(crate) fn longest_text(&self) -> Result<usize, ApiError> {
        Ok(self.model.embedder().longest_text(self.longest_row)?)
    }

    /// Place for so many tokens among those that wait.
    ///
    /// # Errors
    /// 429 or 503, with the time after which there should be place.
    pub(crate) fn admit(self: &Arc<Self>, tokens: usize) -> Result<Arc<Ticket>, ApiError> {
        let limit = self.limits.waiting_tokens;
        if tokens > limit {
            return Err(ApiError::field("input", &format!("at most {limit} tokens in a request"), tokens));
        }
        let fits = |waiting: usize| (waiting + tokens <= limit).then_some(waiting + tokens);
        if let Err(waiting) = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            let rate = match self.engine.rate() {
                0 => UNKNOWN_RATE,
                rate => rate,
            };
            let seconds = ((waiting + tokens - limit) / rate).clamp(1, 600) as u64;
            return Err(ApiError::overloaded(self.limits.overload_status, seconds));
        }
        Ok(Arc::new(Ticket { server: Arc::clone(self), tokens }))
    }

    /// Sends the engine a request to continue tokens, to which its ticket goes too; what comes of it comes from the receiver,
    /// and when that is dropped the request ends.
    ///
    /// # Errors
    /// 400 for a request that cannot run.
    pub(crate) async fn generate(
        &self,
        ticket: Arc<Ticket>,
        make: impl FnOnce(IsGone, Watch<Event>) -> GenerateRequest,
    ) -> Result<Reply, ApiError> {
        let (sender, receiver) = events::unbounded_channel();
        let listens = sender.clone();
        let watch = Box::new(move |event| {
            let _held = &ticket;
            match sender.send(event) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        let request = make(Box::new(move || listens.is_closed()), watch);
        let request = self.metrics.metered(request);
        let (taken, told) = oneshot::channel();
        self.jobs.send(Job::Generate(Box::new(request), taken)).map_err(|_| ApiError::gone())?;
        told.await.map_err(|_| ApiError::gone())??;
        Ok(Reply::new(receiver, Arc::clone(&self.metrics)))
    }

    /// The vector of a text's tokens; the ticket goes to the engine with it.
    ///
    /// # Errors
    /// 400 for a text that cannot be embedded.
    pub(crate) async fn embed(&self, ticket: Arc<Ticket>, ids: Vec<TokenId>) -> Result<Vec<f32>, ApiError> {
        Ok(self.read(ticket, Reading { ids, ..Reading::default() }).await?.vector)
    }

    /// As [`Server::embed`], of a text that may stand behind others, and with what else is asked of it.
    ///
    /// # Errors
    /// 400 for a text that cannot be embedded, or compressed where that is asked for.
    pub(crate) async fn read(&self, ticket: Arc<Ticket>, reading: Reading) -> Result<Embedded, ApiError> {
        let began = self.metrics.embed(reading.ids.len());
        let (sender, mut receiver) = events::unbounded_channel();
        let listens = sender.clone();
        let watch = Box::new(move |embedded| {
            let _held = ticket;
            // Who has gone away wants no vector.
            let _ = sender.send(embedded);
        });
        let (taken, told) = oneshot::channel();
        let is_gone = Box::new(move || listens.is_closed());
        let Reading { ids, before, options, compress, each_token } = reading;
        let request = EmbedRequest { ids, before, options, compress, each_token, is_gone, watch };
        self.jobs.send(Job::Embed(request, taken)).map_err(|_| ApiError::gone())?;
        told.await.map_err(|_| ApiError::gone())??;
        let embedded = receiver.recv().await.ok_or_else(ApiError::gone)?;
        self.metrics.embedded(began, &embedded);
        Ok(embedded?)
    }
}

/// Takes jobs and runs them until nobody can send any more. However it ends, jobs cannot be sent any more
/// then, and those that were are dropped, so that nobody waits for them.
///
/// # Errors
/// When an option is out of range.
pub(crate) fn run_engine(
    model: &Lapidary,
    options: EngineOptions,
    jobs: mpsc::Receiver<Job>,
    (state, metrics): (&EngineState, &Metrics),
) -> Result<(), lapidary::Error> {
    /// Set however this ends.
    struct Ended<'a>(&'a EngineState);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.has_ended.store(true, Ordering::Relaxed);
        }
    }
    let _ended = Ended(state);
    let mut engine = Engine::new(model, options)?;
    let mut rate = 0.0f64;
    loop {
        // The web server has gone when nobody can send any more: so has everyone who waits.
        if engine.is_idle() {
            match jobs.recv().map(|job| take(&mut engine, job)) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) | Err(_) => return Ok(()),
            }
        }
        loop {
            match jobs.try_recv().map(|job| take(&mut engine, job)) {
                Ok(ControlFlow::Continue(())) => {}
                Err(mpsc::TryRecvError::Empty) => break,
                Ok(ControlFlow::Break(())) | Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
            }
        }
        let clock = Instant::now();
        let tokens = engine.step();
        metrics.pass(engine.num_rows(), tokens);
        let tokens = tokens as f64 / clock.elapsed().as_secs_f64().max(1e-6);
        rate = if rate == 0.0 { tokens } else { 0.95 * rate + 0.05 * tokens };
        state.rate.store(rate as usize, Ordering::Relaxed);
        *state.load.lock().unwrap_or_else(PoisonError::into_inner) = engine.load();
    }
}

/// Breaks when the engine is to end.
fn take(engine: &mut Engine<'_>, job: Job) -> ControlFlow<()> {
    let (told, taken) = match job {
        Job::End => return ControlFlow::Break(()),
        Job::Generate(request, told) => (told, engine.generate(*request)),
        Job::Embed(request, told) => (told, engine.embed(request)),
    };
    // Who has gone away need not know.
    let _ = told.send(taken);
    ControlFlow::Continue(())
}

#[cfg(test)]
#[path = "../../tests/cli/tiny_model.rs"]
mod tiny_model;

#[cfg(test)]
mod tests {
    use super::tiny_model;
    use super::{EngineState, Job, Limits, Server, run_engine};
    use crate::serve::info::health;
    use axum::extract::State;
    use axum::http::StatusCode;
    use lapidary::engine::{EmbedRequest, EngineOptions};
    use lapidary::{Lapidary, ModelFiles};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    fn server(model: &Arc<Lapidary>) -> (Arc<Server>, mpsc::Receiver<Job>, Arc<EngineState>) {
        let ((jobs, to_do), state) = (mpsc::channel(), Arc::<EngineState>::default());
        let limits = Limits {
            is_local: true,
            body_bytes: 1 << 20,
            inputs: 8,
            waiting_tokens: 1000,
            reject_token_ids: false,
            compressed_bytes: 1 << 20,
            batch_tokens: 512,
            connections: 8,
            weights: "f32",
            header_timeout: Duration::from_secs(1),
            client_timeout: Duration::from_secs(1),
            overload_status: StatusCode::TOO_MANY_REQUESTS,
        };
        let name = ("tiny".to_owned(), &[][..]);
        let server = Server::new(Arc::clone(model), name, (limits, 256), jobs, Arc::clone(&state)).unwrap();
        (Arc::new(server), to_do, state)
    }

    /// Whatever ends it, a fault of the program too.
    #[test]
    fn an_engine_that_has_ended_turns_health_red() {
        let dir = tempfile::tempdir().unwrap();
        tiny_model::write(dir.path(), 1);
        let base = ModelFiles::Directory(dir.path().to_owned());
        let model = Arc::new(Lapidary::untrained(&base, "last", serde_json::Value::Null).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for by_fault in [true, false] {
            let (server, to_do, state) = server(&model);
            let code = || runtime.block_on(health(State(Arc::clone(&server)))).0;
            assert_eq!(code(), StatusCode::OK);
            if by_fault {
                let is_gone = Box::new(|| panic!("a fault"));
                let (ids, before, watch) = (vec![65], Vec::new(), Box::new(|_| {}));
                let options = Default::default();
                let request = EmbedRequest { ids, before, options, compress: false, each_token: false, is_gone, watch };
                server.jobs.send(Job::Embed(request, tokio::sync::oneshot::channel().0)).unwrap();
            } else {
                server.end();
            }
            let (engine, metrics) = (Arc::clone(&model), Arc::clone(&server.metrics));
            let ran =
                std::thread::spawn(move || run_engine(&engine, EngineOptions::default(), to_do, (&state, &metrics)));
            assert_eq!(ran.join().is_err(), by_fault);
            assert_eq!(code(), StatusCode::SERVICE_UNAVAILABLE);
            // Who asks now is told so, and does not wait.
            let ticket = server.admit(1).unwrap();
            assert!(runtime.block_on(server.embed(ticket, vec![65])).is_err());
        }
    }
}
