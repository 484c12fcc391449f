#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on panics"
)]
#![allow(missing_docs, reason = "each test says in its name what it shows")]

mod calls;
mod results;
