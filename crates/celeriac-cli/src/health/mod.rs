//! How a worker is, for those who watch over it: over a socket of its own user's, and over HTTP.
//!
//! What the answers mean is decided in [`celeriac_worker::vitals`]; here they are carried.

pub(crate) mod command;
mod http;
mod node;
mod place;
mod report;
pub(crate) mod server;
