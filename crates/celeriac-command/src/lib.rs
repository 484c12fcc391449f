//! Tasks that run a command: one process for each call, declared in configuration or sent with the
//! call. See `docs/commands.md`.
//!
//! Not for: containers (`celeriac-container`).

pub mod capture;
pub mod keeper;
pub mod lines;
pub mod process;
