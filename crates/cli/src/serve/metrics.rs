//! What is measured, for `/metrics`: under vLLM's and TEI's names, because dashboards know them, and under our own.

use super::api_error::{ApiError, ErrorReply};
use super::state::Server;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use lapidary::Error;
use lapidary::engine::{Embedded, Event, GenerateRequest};
use lapidary::generate::Finish;
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    exponential_buckets,
};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;

/// All that is counted.
pub(crate) struct Metrics {
    registry: Registry,
    // Gauges are set when they are read.
    running: IntGauge,
    waiting: IntGauge,
    kv_usage: Gauge,
    texts: IntGauge,
    queue_tokens: IntGauge,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    finished: IntCounterVec,
    first_token: Histogram,
    between_tokens: Histogram,
    decode: Histogram,
    whole: Histogram,
    requests: IntCounter,
    request_successes: IntCounter,
    request_failures: IntCounterVec,
    request_duration: Histogram,
    input_length: Histogram,
    embeds: IntCounter,
    embed_successes: IntCounter,
    embed_duration: Histogram,
    batch_size: Histogram,
    batch_tokens: Histogram,
    rejected: IntCounterVec,
    nonfinite: IntCounter,
    compressed_in: IntCounter,
    compressed_out: IntCounter,
    /// Texts that were cut because they were too long.
    pub(crate) truncations: IntCounter,
}

/// Makes metrics that a registry knows.
struct Maker(Registry);

impl Maker {
    fn known<T: prometheus::core::Collector + Clone + 'static>(&self, metric: T) -> prometheus::Result<T> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.known(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, label: &str, help: &str) -> prometheus::Result<IntCounterVec> {
        self.known(IntCounterVec::new(Opts::new(name, help), &[label])?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.known(IntGauge::new(name, help)?)
    }

    /// From a millisecond to two minutes.
    fn seconds(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        let buckets = exponential_buckets(0.001, 2.0, 18)?;
        self.known(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
    }

    /// From one to 32768.
    fn sizes(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        let buckets = exponential_buckets(1.0, 2.0, 16)?;
        self.known(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
    }
}

impl Metrics {
    /// Nothing counted so far, for a model of this name.
    ///
    /// # Errors
    /// When two have one name.
    pub(crate) fn new(model_name: &str) -> prometheus::Result<Self> {
        let labels = [("model_name".to_owned(), model_name.to_owned())].into();
        let make = Maker(Registry::new_custom(None, Some(labels))?);
        Ok(Self {
            running: make.gauge("vllm:num_requests_running", "Conversations that have run in part")?,
            waiting: make.gauge("vllm:num_requests_waiting", "Conversations that wait for pages")?,
            kv_usage: make.known(Gauge::new("vllm:kv_cache_usage_perc", "Pages held, of all; 1 is all")?)?,
            texts: make.gauge("te_queue_size", "Texts that wait for a pass")?,
            queue_tokens: make.gauge("lapidary_queue_tokens", "Tokens of requests on their way")?,
            prefix_queries: make
                .counter("vllm:prefix_cache_queries_total", "Tokens of prompts looked for in the pool")?,
            prefix_hits: make.counter("vllm:prefix_cache_hits_total", "Tokens of prompts that were found there")?,
            prompt_tokens: make.counter("vllm:prompt_tokens_total", "Tokens of prompts that are there")?,
            generation_tokens: make.counter("vllm:generation_tokens_total", "Tokens of replies")?,
            finished: make.counters("vllm:request_success_total", "finished_reason", "Replies that are over")?,
            first_token: make.seconds("vllm:time_to_first_token_seconds", "From the request to the first token")?,
            between_tokens: make.seconds("vllm:inter_token_latency_seconds", "From a token to the next")?,
            decode: make.seconds("vllm:request_decode_time_seconds", "From the first token to the end")?,
            whole: make.seconds("vllm:e2e_request_latency_seconds", "From the request to the end of the reply")?,
            requests: make.counter("te_request_count", "Requests about texts")?,
            request_successes: make.counter("te_request_success", "Those that were answered")?,
            request_failures: make.counters("te_request_failure", "err", "Those that were refused or failed")?,
            request_duration: make.seconds("te_request_duration", "Seconds until those that were answered were")?,
            input_length: make.sizes("te_request_input_length", "Tokens of a text")?,
            embeds: make.counter("te_embed_count", "Texts")?,
            embed_successes: make.counter("te_embed_success", "Texts whose vectors came")?,
            embed_duration: make.seconds("te_embed_duration", "Seconds until the vector of a text came")?,
            batch_size: make.sizes("te_batch_next_size", "Rows of a pass, texts and conversations")?,
            batch_tokens: make.sizes("te_batch_next_tokens", "Tokens of a pass")?,
            rejected: make.counters("lapidary_rejected_total", "reason", "Requests that were not answered")?,
            nonfinite: make.counter("lapidary_nonfinite_total", "Vectors and logits that were not finite")?,
            compressed_in: make
                .counter("lapidary_compressed_tokens_in_total", "Tokens of texts that were compressed")?,
            compressed_out: make
                .counter("lapidary_compressed_tokens_out_total", "Special tokens that they were compressed to")?,
            truncations: make
                .counter("lapidary_truncations_total", "Texts that were cut because they were too long")?,
            registry: make.0,
        })
    }

    /// A pass has run.
    pub(crate) fn pass(&self, rows: usize, tokens: usize) {
        if tokens > 0 {
            self.batch_size.observe(rows as f64);
            self.batch_tokens.observe(tokens as f64);
        }
    }

    /// The request, watched: its tokens are counted as the engine tells them.
    pub(crate) fn metered(self: &Arc<Self>, mut request: GenerateRequest) -> GenerateRequest {
        let mut meter = Meter::new(Arc::clone(self), request.prompt.len());
        let mut watch = request.watch;
        request.watch = Box::new(move |event| {
            meter.see(&event);
            watch(event)
        });
        request
    }

    /// A text of so many tokens is on its way.
    pub(crate) fn embed(&self, num_tokens: usize) -> Instant {
        self.embeds.inc();
        self.input_length.observe(num_tokens as f64);
        Instant::now()
    }

    /// What came of it.
    pub(crate) fn embedded(&self, began: Instant, embedded: &Result<Embedded, Error>) {
        match embedded {
            Ok(Embedded { compressed, .. }) => {
                self.embed_successes.inc();
                self.embed_duration.observe(began.elapsed().as_secs_f64());
                if let Some(compressed) = compressed {
                    self.compressed_in.inc_by(compressed.num_text_tokens() as u64);
                    self.compressed_out.inc_by(compressed.num_tokens() as u64);
                }
            }
            Err(error) => self.see(error),
        }
    }

    fn see(&self, error: &Error) {
        if matches!(error, Error::NotFinite(_)) {
            self.nonfinite.inc();
        }
    }
}

/// The tokens of one reply.
struct Meter {
    metrics: Arc<Metrics>,
    /// Tokens of the prompt that are not counted yet.
    num_prompt: usize,
    began: Instant,
    last: Option<Instant>,
}

impl Meter {
    fn new(metrics: Arc<Metrics>, num_prompt: usize) -> Self {
        Self { metrics, num_prompt, began: Instant::now(), last: None }
    }

    fn see(&mut self, event: &Event) {
        let metrics = &self.metrics;
        match event {
            Event::Prompt(_) => {}
            Event::Ran(num_cached) => {
                metrics.prefix_queries.inc_by(self.num_prompt as u64);
                metrics.prefix_hits.inc_by(*num_cached as u64);
            }
            Event::Token(_) => {
                metrics.prompt_tokens.inc_by(std::mem::take(&mut self.num_prompt) as u64);
                metrics.generation_tokens.inc();
                let now = Instant::now();
                let (histogram, since) = match self.last.replace(now) {
                    Some(last) => (&metrics.between_tokens, last),
                    None => (&metrics.first_token, self.began),
                };
                histogram.observe((now - since).as_secs_f64());
            }
            Event::Done(done) => {
                if done.finish != Finish::Interrupted {
                    metrics.prompt_tokens.inc_by(std::mem::take(&mut self.num_prompt) as u64);
                }
            }
            Event::Failed(error) => metrics.see(error),
        }
    }
}

/// What comes of a request to continue tokens; dropped, the request ends.
pub(crate) struct Reply {
    events: UnboundedReceiver<Event>,
    metrics: Arc<Metrics>,
    began: Instant,
    first: Option<Instant>,
    is_over: bool,
}

impl Reply {
    pub(crate) fn new(events: UnboundedReceiver<Event>, metrics: Arc<Metrics>) -> Self {
        Self { events, metrics, began: Instant::now(), first: None, is_over: false }
    }

    /// What comes next; none when the engine has gone.
    pub(crate) async fn recv(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        match &event {
            Some(Event::Token(_)) => drop(self.first.get_or_insert_with(Instant::now)),
            Some(Event::Done(done)) => self.over(match done.finish {
                Finish::Stop => "stop",
                Finish::Length | Finish::Context => "length",
                Finish::Interrupted => "abort",
            }),
            Some(Event::Failed(_)) => self.over("error"),
            Some(Event::Prompt(_) | Event::Ran(_)) | None => {}
        }
        event
    }

    /// A stop string has ended it: that is an end as others are, not the client's going away.
    pub(crate) fn stop(mut self) {
        self.over("stop");
    }

    fn over(&mut self, end: &str) {
        self.is_over = true;
        self.metrics.finished.with_label_values(&[end]).inc();
        if !matches!(end, "stop" | "length") {
            return;
        }
        self.metrics.whole.observe(self.began.elapsed().as_secs_f64());
        if let Some(first) = self.first {
            self.metrics.decode.observe(first.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.is_over {
            self.over("abort");
        }
    }
}

/// Counts requests that are refused or fail, on any route.
pub(crate) async fn count_rejected(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(error) = response.extensions().get::<ApiError>() {
        server.metrics.rejected.with_label_values(&[error.reason()]).inc();
    }
    response
}

/// Counts requests about texts.
pub(crate) async fn count_requests(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let (metrics, began) = (&server.metrics, Instant::now());
    metrics.requests.inc();
    let response = next.run(request).await;
    match response.extensions().get::<ApiError>() {
        Some(error) => metrics.request_failures.with_label_values(&[error.reason()]).inc(),
        None => {
            metrics.request_successes.inc();
            metrics.request_duration.observe(began.elapsed().as_secs_f64());
        }
    }
    response
}

/// Counts and times, for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Server",
    responses(
        (
            status = 200,
            description = "Prometheus' text",
            body = String,
            content_type = "text/plain",
        ),
        (status = 500, description = "They could not be written", body = ErrorReply),
    ),
)]
pub(crate) async fn metrics(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    let (metrics, load) = (&server.metrics, server.engine().load());
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    metrics.running.set(number(load.running));
    metrics.waiting.set(number(load.waiting));
    metrics.texts.set(number(load.texts));
    metrics.queue_tokens.set(number(server.waiting_tokens()));
    metrics.kv_usage.set(load.pages.0 as f64 / load.pages.1.max(1) as f64);
    let mut text = Vec::new();
    TextEncoder::new().encode(&metrics.registry.gather(), &mut text).map_err(ApiError::failed)?;
    Ok(([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}
