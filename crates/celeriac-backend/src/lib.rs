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
#[cfg(feature = "filesystem")]
pub mod filesystem;
mod keys;
pub mod memory;
#[cfg(feature = "mongodb")]
pub mod mongodb;
pub mod open;
mod options;
mod payload;
#[cfg(any(
    feature = "filesystem",
    feature = "mongodb",
    feature = "mysql",
    feature = "postgres",
    feature = "s3",
    feature = "sqlite"
))]
mod polling;
pub mod python;
#[cfg(feature = "redis")]
pub mod redis;
mod retry;
#[cfg(feature = "rpc")]
pub mod rpc;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub mod sql;

pub use open::{open, open_beside};
