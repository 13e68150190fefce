//! What all requests share: the model, the way to its engine, and how much waits there.

use super::api_error::ApiError;
use lapidary::Lapidary;
use lapidary::engine::{EmbedRequest, Engine, EngineOptions, Event, GenerateRequest, Load};
use lapidary::layout::TokenId;
use sha2::{Digest as _, Sha256};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc as events, oneshot};

/// What a request may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of a body.
    pub(crate) body_bytes: usize,
    /// Texts of one request.
    pub(crate) inputs: usize,
    /// Tokens that wait, all requests together.
    pub(crate) waiting_tokens: usize,
}

/// Something for the engine; it is told at once whether it was taken.
pub(crate) enum Job {
    Generate(GenerateRequest, oneshot::Sender<Result<(), lapidary::Error>>),
    Embed(EmbedRequest, oneshot::Sender<Result<(), lapidary::Error>>),
}

pub(crate) struct Server {
    pub(crate) model: Arc<Lapidary>,
    /// Under which clients ask for it.
    pub(crate) name: String,
    pub(crate) limits: Limits,
    /// Unix seconds of the start.
    pub(crate) created: u64,
    pub(crate) longest_row: usize,
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
    has_ended: std::sync::atomic::AtomicBool,
}

impl EngineState {
    pub(crate) fn load(&self) -> Load {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }
}

/// Tokens that wait as long as this lives.
pub(crate) struct Ticket {
    server: Arc<Server>,
    tokens: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.server.waiting.fetch_sub(self.tokens, Ordering::Relaxed);
    }
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
    ) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            model,
            name,
            limits,
            created: now.as_secs(),
            longest_row,
            keys: keys.iter().map(|key| digest(key)).collect(),
            jobs,
            waiting: AtomicUsize::new(0),
            engine,
        }
    }

    pub(crate) fn engine(&self) -> &EngineState {
        &self.engine
    }

    /// Whether a request with this key may pass. Digests are compared: how long it takes tells nothing of a key.
    pub(crate) fn admits(&self, key: &str) -> bool {
        let found = digest(key);
        self.keys.is_empty() || self.keys.iter().fold(false, |any, key| any | (*key == found))
    }

    /// # Errors
    /// 404 for another model than this one.
    pub(crate) fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if asked != self.name => {
                let message = format!("model: expected {}, found {asked}", self.name);
                Err(ApiError::new(axum::http::StatusCode::NOT_FOUND, message))
            }
            _ => Ok(()),
        }
    }

    /// Place for so many tokens among those that wait.
    ///
    /// # Errors
    /// 429, with the time after which there should be place.
    pub(crate) fn admit(self: &Arc<Self>, tokens: usize) -> Result<Ticket, ApiError> {
        let limit = self.limits.waiting_tokens;
        if tokens > limit {
            return Err(ApiError::field("input", &format!("at most {limit} tokens in a request"), tokens));
        }
        let before = self.waiting.fetch_add(tokens, Ordering::Relaxed);
        let ticket = Ticket { server: Arc::clone(self), tokens };
        if before + tokens > limit {
            let rate = self.engine.rate.load(Ordering::Relaxed).max(1);
            return Err(ApiError::overloaded(((before + tokens - limit) / rate).clamp(1, 600) as u64));
        }
        Ok(ticket)
    }

    /// Sends the engine a request to continue tokens; what comes of it comes from the receiver, and when that is dropped
    /// the request ends.
    ///
    /// # Errors
    /// 400 for a request that cannot run.
    pub(crate) async fn generate(
        &self,
        make: impl FnOnce(Box<dyn FnMut(Event) -> ControlFlow<()> + Send>) -> GenerateRequest,
    ) -> Result<events::UnboundedReceiver<Event>, ApiError> {
        let (sender, receiver) = events::unbounded_channel();
        let watch = Box::new(move |event| match sender.send(event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        });
        let (taken, told) = oneshot::channel();
        self.jobs.send(Job::Generate(make(watch), taken)).map_err(|_| ApiError::gone())?;
        told.await.map_err(|_| ApiError::gone())??;
        Ok(receiver)
    }

    /// The vector of a text's tokens.
    ///
    /// # Errors
    /// 400 for a text that cannot be embedded.
    pub(crate) async fn embed(&self, ids: Vec<TokenId>) -> Result<Vec<f32>, ApiError> {
        let (sender, receiver) = oneshot::channel();
        let watch = Box::new(move |vector| {
            // Who has gone away wants no vector.
            let _ = sender.send(vector);
        });
        let (taken, told) = oneshot::channel();
        let request = EmbedRequest { ids, options: Default::default(), watch };
        self.jobs.send(Job::Embed(request, taken)).map_err(|_| ApiError::gone())?;
        told.await.map_err(|_| ApiError::gone())??;
        Ok(receiver.await.map_err(|_| ApiError::gone())??)
    }
}

/// Takes jobs and runs them until nobody can send any more and all have ended.
///
/// # Errors
/// When an option is out of range.
pub(crate) fn run_engine(
    model: &Lapidary,
    options: EngineOptions,
    jobs: &mpsc::Receiver<Job>,
    state: &EngineState,
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
        if engine.is_idle() {
            match jobs.recv() {
                Ok(job) => take(&mut engine, job),
                Err(_) => return Ok(()),
            }
        }
        while let Ok(job) = jobs.try_recv() {
            take(&mut engine, job);
        }
        let clock = Instant::now();
        let tokens = engine.step() as f64 / clock.elapsed().as_secs_f64().max(1e-6);
        rate = if rate == 0.0 { tokens } else { 0.95 * rate + 0.05 * tokens };
        state.rate.store(rate as usize, Ordering::Relaxed);
        *state.load.lock().unwrap_or_else(PoisonError::into_inner) = engine.load();
    }
}

fn take(engine: &mut Engine<'_>, job: Job) {
    let (told, taken) = match job {
        Job::Generate(request, told) => (told, engine.generate(request)),
        Job::Embed(request, told) => (told, engine.embed(request)),
    };
    // Who has gone away need not know.
    let _ = told.send(taken);
}
