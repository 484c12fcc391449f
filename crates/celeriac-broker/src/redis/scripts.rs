//! The scripts, loaded once.

use std::sync::LazyLock;

use redis::Script;

/// Settles and claims.
pub(super) static EXCHANGE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/exchange.lua")));
/// Puts claimed messages back.
pub(super) static GIVE_BACK: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/give_back.lua")));
/// Puts claimed messages into the delay store.
pub(super) static DELAY: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/delay.lua")));
/// Moves what is due from there to its list.
pub(super) static DUE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/due.lua")));
/// Grants and denies what limits allow.
pub(super) static LIMITS: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/limits.lua")));
/// Keeps a dead letter.
pub(super) static BURY: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/bury.lua")));
/// Puts dead letters back into their lists.
pub(super) static REPLAY: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/replay.lua")));
/// Renews leases.
pub(super) static RENEW: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/renew.lua")));
/// Finds what dead workers hold.
pub(super) static OVERDUE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/overdue.lua")));
/// Claims anew what the server has forgotten.
pub(super) static RECLAIM: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/reclaim.lua")));
/// Binds a queue that expires.
pub(super) static BIND: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/bind.lua")));
/// Deletes it.
pub(super) static UNBIND: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/unbind.lua")));
/// Deletes binding tables that were left behind.
pub(super) static SWEEP: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/sweep.lua")));
/// Sends a reply. Its text is sent each time: it goes with others in one pipeline, where a script
/// that the server has forgotten could not be sent again.
pub(super) const REPLY: &str = include_str!("lua/reply.lua");

/// How many tags go into one script call: Lua's `unpack` fails beyond some 8,000 values, and a
/// script stops the server while it runs.
pub(super) const TAGS_PER_CALL: usize = 500;
