//! The client: sends calls of tasks, alone or combined, and awaits their results.
//!
//! Celery's counterparts: `celery.app.base.Celery.send_task`, `celery.app.amqp`, `celery.canvas` and
//! `celery.result`. Not for: running tasks.

pub mod apply;
pub mod canvas;
pub mod client;
pub mod config;
pub mod error;
mod outgoing;
pub mod result;
mod routes;
mod settings;

pub use apply::Apply;
pub use canvas::{Canvas, chain, chord, chunks, group, map, starmap};
pub use celeriac_protocol::Signature;
pub use client::Client;
pub use config::Config;
pub use error::{Error, TaskError};
pub use result::AsyncResult;
