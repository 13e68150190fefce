//! Rows, visibility and methods: how a text becomes passes of plain integers, before any tensor exists.
//!
//! A [`Method`] turns a text into a [`Plan`] of [`Layout`]s. A layout says everything the decoder, the
//! losses and the pooling need to know about one row: inputs, positions, labels, where the adapter acts,
//! who may attend to whom, and which positions are pooled. Nothing here knows a tensor, a file, a clock
//! or a global random generator: the same example and the same generator state give the same plan.
#![forbid(unsafe_code)]

mod anchors;
mod layout;
mod visibility;

mod plan;

mod batch;

mod objective;

mod method;
mod methods;

pub use anchors::Anchors;
pub use batch::pack;
pub use layout::{Input, Layout, LayoutError, LayoutParts, Pooled, Role, View};
pub use method::{Continuation, Example, Method, MethodContext, MethodError, SpecialInit, SpecialToken, build, names};
pub use objective::{Loss, Objective, Term, Weight};
pub use plan::Plan;
pub use visibility::{Base, Cut, Visibility};

/// A row of the model's token embedding table.
pub type TokenId = u32;

/// The generator every random choice of a method draws from: seeded by the caller, equal on all platforms.
pub type Rng = rand_chacha::ChaCha8Rng;
