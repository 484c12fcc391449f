//! Suites of behaviour.

pub mod backend;
pub mod broker;
pub mod bus;
pub mod dead_letters;
pub mod delays;
pub mod limits;
pub mod pool;
pub mod publisher;
