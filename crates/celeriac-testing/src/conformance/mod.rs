//! Suites of behaviour.

pub mod broker;
