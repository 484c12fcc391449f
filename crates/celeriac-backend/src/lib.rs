//! Where results are kept: one folder or file for each kind of store, all behind
//! [`celeriac_core::backend::Backend`].
//!
//! Keys, tables and documents are those of Celery's own backends, so that either side reads what the
//! other has written. Not for: deciding what a task's state is (`celeriac-native`), or how a chord's
//! body is sent (`celeriac-client`).
//!
//! Celery's counterpart: `celery.backends`.

mod awaited;
mod chord;
pub mod document;
mod keys;
pub mod memory;
pub mod open;
mod options;
mod payload;
pub mod python;
#[cfg(feature = "redis")]
pub mod redis;
mod retry;

pub use open::open;
