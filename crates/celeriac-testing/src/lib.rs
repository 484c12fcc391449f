//! What celeriac's tests share: real servers started for them, and one suite of behaviour for each
//! seam, which every implementation must pass. Never a dependency of what is shipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on panics"
)]
#![allow(missing_docs, reason = "each test says in its name what it shows")]

pub mod conformance;
pub mod server;
