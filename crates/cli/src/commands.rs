//! The commands, one file each: arguments, and what is done with them.

pub(crate) mod certify;
pub(crate) mod chat;
mod chat_file;
pub(crate) mod embed;
mod embed_input;
mod embed_shards;
pub(crate) mod eval;
pub(crate) mod fetch_model;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod quickstart;
pub(crate) mod reconstruct;
pub(crate) mod report;
pub(crate) mod serve;
pub(crate) mod similarity;
pub(crate) mod sweep;
pub(crate) mod train;
mod train_watch;
