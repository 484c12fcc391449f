//! The pool and the tracer as a worker uses them, with a result backend and a sender that remember
//! what they were asked.

#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

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
