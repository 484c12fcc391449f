//! The life of a task in a worker. The modules are its stages, in order:
//!
//! [`receive`] (a delivery becomes a [`request::Request`]) → [`admit`] (run, hold, throttle,
//! discard) → the pool → [`complete`] (what becomes of the message, the result, the hooks).
//!
//! All decisions are in [`core::Core`] and the pure functions that it calls; [`worker`] carries
//! them out. The worker knows neither its broker nor its pool: it is given both.

pub mod admit;
pub mod autoscale;
pub mod complete;
pub mod control;
pub mod core;
pub mod events;
pub mod happening;
pub mod hooks;
pub mod limit;
pub mod parts;
pub mod receive;
pub mod request;
pub mod revoked;
pub mod shutdown;
pub mod vitals;
pub mod worker;

pub use hooks::{HookCall, Hooks};
pub use worker::Worker;
