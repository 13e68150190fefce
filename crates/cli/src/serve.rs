//! One process that chats and embeds: an engine on a thread of its own, HTTP in front of it.

mod api_error;
mod chat;
mod chat_reply;
mod choices;
mod chunk;
mod completions;
mod compress;
mod connection;
mod docs;
mod embeddings;
mod info;
mod input;
mod metrics;
mod openapi;
mod overflow;
mod page;
mod prompt;
mod replies;
mod rerank;
mod routes;
mod speaker;
mod state;
mod stream;
mod tei;
mod texts;
mod tokenize;

pub(crate) use connection::serve;
pub(crate) use state::{Limits, Server, run_engine};
