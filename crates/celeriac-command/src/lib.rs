//! Tasks that run a command: one process for each call, declared in configuration or sent with the
//! call. See `docs/commands.md`.
//!
//! Not for: containers (`celeriac-container`).

pub mod call;
pub mod capture;
pub mod keeper;
pub mod lines;
pub mod options;
pub mod process;
pub mod task;
pub mod template;

pub use options::CommandOptions;
pub use task::{Error, command, command_with};
