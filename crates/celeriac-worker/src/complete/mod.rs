//! Completion: what the end of a task means for its message and for the app.

pub mod death;
pub mod disposition;
