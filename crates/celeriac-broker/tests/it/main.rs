//! Every broker against the suite of `celeriac-testing`, and what is particular to each.

#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

mod amqp;
mod local;
mod mariadb;
mod memory;
mod postgres;
mod redis;
mod redis_bus;
mod sentinel;
mod sqlite;
