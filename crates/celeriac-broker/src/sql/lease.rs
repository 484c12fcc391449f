//! How long a claim outlives its worker.

use std::time::Duration;

/// A worker that gave no sign of life for so long is dead.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(10);
/// Between two signs of life.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// Signs of life with more than this between them do not follow on one another: their worker, or
/// the server, was out of reach meanwhile.
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(super) const GAP: Duration = Duration::from_secs(5);
