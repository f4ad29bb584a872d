//! What can be set: typed values with defaults, validated as a whole.
//!
//! [`Settings`] is plain data; [`Settings::problems`] checks it and tells every
//! problem at once. [`Builder`] fills it in and starts a run.

mod builder;
mod settings;

pub(crate) use builder::Observer;
pub use builder::{Builder, builder};
pub(crate) use settings::ResetPolicy;
pub use settings::{
    Assignment, Isolation, Model, OnExhausted, Order, OutOfRange, RetryPolicy, Settings, Source,
    StartFrom, Workers,
};
