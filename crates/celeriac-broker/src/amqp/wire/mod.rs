//! The AMQP 0-9-1 client: frames, methods and connections.
//!
//! On the worker's own thread, and what comes is written as JSON straight from the frame. (With
//! lapin, the worker's CPU time for a task was twice as much: a thread of its own, a copy of each table
//! as a tree, and a wake-up for each message. It also reads nested tables by recursion, without a
//! limit.)
//!
//! Source: the AMQP 0-9-1 specification with RabbitMQ's extensions (confirms, `basic.nack`,
//! `connection.blocked`, `consumer_cancel_notify`), and `amqp.method_framing` of py-amqp.

pub(super) mod connection;
mod driver;
pub(super) mod failure;
mod frame;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(super) mod method;
pub(super) mod octets;
mod state;
