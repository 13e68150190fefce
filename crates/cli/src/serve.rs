//! One process that chats and embeds: an engine on a thread of its own, HTTP in front of it.

mod api_error;
mod chat;
mod chunk;
mod completions;
mod connection;
mod embeddings;
mod info;
mod input;
mod metrics;
mod page;
mod rerank;
mod routes;
mod speaker;
mod state;
mod tei;
mod texts;
mod tokenize;

pub(crate) use connection::serve;
pub(crate) use state::{Limits, Server, run_engine};
