//! The seams: what the worker asks of a broker and of a pool, and the clock all of them read.
//!
//! Traits and the small types in their signatures live here, drivers do not: the worker never
//! learns which broker or pool it talks to. Not for: I/O, policy, or Celery's semantics.

pub mod backend;
pub mod backoff;
pub mod broker;
pub mod bus;
pub mod clock;
pub mod dead_letter;
pub mod evidence;
pub mod journal;
pub mod limit;
pub mod pool;
pub mod publisher;
pub mod queue;
pub mod revokes;

pub use backend::Backend;
pub use broker::{Broker, Session};
pub use bus::Bus;
pub use clock::Clock;
pub use dead_letter::DeadLetter;
pub use evidence::Evidence;
pub use journal::{Journal, Level, Record};
pub use limit::LimitStore;
pub use publisher::Publisher;
pub use queue::Queue;
