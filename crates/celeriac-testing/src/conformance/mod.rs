//! Suites of behaviour.

pub mod broker;
pub mod bus;
