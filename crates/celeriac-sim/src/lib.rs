//! A seeded simulator: what the worker promises holds in a world where everything breaks.
//!
//! Real workers run in it: [`celeriac_worker::Worker`] with its core and its consumer, and the
//! decisions of the prefork pool ([`celeriac_pool::prefork::machine`]). The broker, the operating
//! system with its processes, main, the clocks and the operator are simulated, on tokio's paused
//! clock and one thread: a seed decides all that happens, and the same seed has the same happen.
//! The [`auditor`] sees what the workers can't: which runs began, ended, and what was stored.
//!
//! Not simulated: the bus, the transports themselves (they pass the conformance suite), Python.

mod auditor;
mod broker;
mod chance;
mod faults;
mod hooks;
mod os;
mod plan;
mod pool;
mod process;
mod run;
mod server;
mod worker;
mod world;

pub use plan::{Family, Mutation};
pub use run::{Failure, Summary, run};
