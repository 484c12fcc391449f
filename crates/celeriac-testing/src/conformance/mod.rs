//! Suites of behaviour.

pub mod broker;
pub mod bus;
pub mod dead_letters;
pub mod delays;
pub mod limits;
pub mod pool;
