//! Server-sent events.

use super::api_error::ApiError;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

/// Events that wait for a slow reader.
const EVENTS: usize = 32;

/// What is told beside the pieces of a reply.
#[derive(Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// The counts of tokens too, behind the reply.
    #[serde(default, deserialize_with = "super::input::or_default")]
    include_usage: bool,
}

impl StreamOptions {
    pub(crate) fn wants_usage(options: Option<&Self>) -> bool {
        options.is_some_and(|options| options.include_usage)
    }
}

/// The client is gone, or was told of an error: there is nothing more to say.
pub(crate) struct Over;

/// The way to a client that listens.
pub(crate) struct Events(Sender<Result<Event, Infallible>>);

impl Events {
    /// # Errors
    /// When nobody listens.
    pub(crate) async fn send(&self, value: &impl Serialize) -> Result<(), Over> {
        let data = serde_json::to_string(value).map_err(|_| Over)?;
        self.data(data).await
    }

    async fn data(&self, data: String) -> Result<(), Over> {
        self.0.send(Ok(Event::default().data(data))).await.map_err(|_| Over)
    }

    /// Tells of an error, which is the last event.
    pub(crate) async fn fail(&self, error: &ApiError) -> Over {
        self.send(&error.body()).await.err().unwrap_or(Over)
    }

    /// Waits until nobody listens.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Answers with the events that `run` sends; behind them stands `[DONE]`, as OpenAI has it, unless they ended early.
pub(crate) fn respond<F: Future<Output = Result<(), Over>> + Send>(
    run: impl FnOnce(std::sync::Arc<Events>) -> F + Send + 'static,
) -> Response {
    let (sender, receiver) = channel(EVENTS);
    // A task of its own: when the client goes away, sending fails and the replies end.
    tokio::spawn(async move {
        let events = std::sync::Arc::new(Events(sender));
        if run(std::sync::Arc::clone(&events)).await.is_ok() {
            let _ = events.data("[DONE]".into()).await;
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
}
