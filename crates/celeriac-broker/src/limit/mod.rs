//! Where limits are kept: behind [`celeriac_core::limit::LimitStore`].
//!
//! What the SQL databases and the memory store decide is in `ledger`; Redis has the same in a
//! script of its own (`redis/lua/limits.lua`).

pub(crate) mod ledger;
pub(crate) mod memory;
