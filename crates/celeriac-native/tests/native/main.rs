//! The pool and the tracer as a worker uses them, with a result backend and a sender that remember
//! what they were asked.

#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]
#![allow(
    clippy::needless_pass_by_value,
    reason = "values are written where they are used"
)]

mod bodies;
mod builtins;
mod canvas;
mod chords;
mod conformance;
mod endings;
mod limits;
mod outcomes;
mod scene;
mod storing;
