//! What must hold of every decoder of what comes from outside, whatever bytes it gets.
//!
//! A [`Target`] takes bytes and panics where something does not hold. The fuzzer in `fuzz/` looks
//! for such bytes by coverage (`make fuzz`); `tests/corpus.rs` replays what it has found, and
//! changes that by chance, in every run of the tests.

mod control;
mod dead_letter;
mod envelope;
mod json;
mod last_words;
mod prefork_frame;
mod python_frame;
mod rate;
mod received;
mod timestamp;
mod url;

use celeriac_broker::fuzzing as broker;

/// A decoder, and what must hold of it.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Panics if something does not hold for these bytes.
    pub check: fn(&[u8]),
}

const fn target(name: &'static str, check: fn(&[u8])) -> Target {
    Target { name, check }
}

/// All decoders.
pub const TARGETS: &[Target] = &[
    target("amqp_frame", broker::amqp_frame),
    target("amqp_message", broker::amqp_message),
    target("amqp_method", broker::amqp_method),
    target("amqp_state", broker::amqp_state),
    target("amqp_table", broker::amqp_table),
    target("control", control::check),
    target("dead_letter", dead_letter::check),
    target("envelope", envelope::check),
    target("json", json::check),
    target("last_words", last_words::check),
    target("local_frame", broker::local_frame),
    target("prefork_frame", prefork_frame::check),
    target("python_frame", python_frame::check),
    target("rate", rate::check),
    target("received", received::check),
    target("sql_address", |bytes| with_text(bytes, broker::sql_address)),
    target("timestamp", timestamp::check),
    target("url", url::check),
];

/// Calls a check of texts; other bytes never reach what it checks.
fn with_text(bytes: &[u8], check: fn(&str)) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        check(text);
    }
}
