//! Every result backend against the suite of `celeriac-testing`, and what is particular to each.

#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

mod filesystem;
mod memory;
mod redis;
mod rpc;
mod sql;
