//! Signs of life, and the messages of workers that give none.

use std::time::Duration;

use bytes::Bytes;
use celeriac_protocol::envelope;
use rusqlite::{Connection, TransactionBehavior, params};
use rustix::time::{ClockId, clock_gettime};

use super::schema::Tables;
use super::session::payload;

/// A worker that gave no sign of life for so long is dead.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(10);
/// Between two signs of life.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// Which start of the machine this is: readings of the clock below compare only within one.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Seconds since boot, less the time that the machine was suspended. All workers of a database run
/// on one machine: they read the same clock, which nobody can set.
fn seconds_since_boot() -> f64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Makes this worker known, if it is not: whoever holds a lease must be.
pub(super) fn appear(connection: &Connection, name: &str, boot: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO celeriac_worker (name, boot, seen) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO NOTHING",
        )?
        .execute(params![name, boot, seconds_since_boot()])?;
    Ok(())
}

/// Notes that this worker lives; gives back what dead workers hold, and tells how much.
pub(super) fn beat(
    connection: &mut Connection,
    tables: &Tables,
    name: &str,
    boot: &str,
) -> rusqlite::Result<u64> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let now = seconds_since_boot();
    transaction
        .prepare_cached(
            "INSERT INTO celeriac_worker (name, boot, seen) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET boot = ?2, seen = ?3",
        )?
        .execute(params![name, boot, now])?;
    let dead: Vec<String> = transaction
        .prepare_cached(
            "SELECT name FROM celeriac_worker WHERE (boot != ?1 OR seen < ?2) AND name != ?3",
        )?
        .query_map(params![boot, now - DEAD_AFTER.as_secs_f64(), name], |row| {
            row.get(0)
        })?
        .collect::<Result<_, _>>()?;
    let mut restored = 0;
    for worker in dead {
        restored += restore(&transaction, tables, &worker)?;
        transaction.execute("DELETE FROM celeriac_worker WHERE name = ?1", [&worker])?;
    }
    let unknown: Vec<String> = transaction
        .prepare_cached(
            "SELECT DISTINCT worker FROM celeriac_lease
             WHERE worker NOT IN (SELECT name FROM celeriac_worker)",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for worker in unknown {
        // Somebody has tidied the table of workers.
        restored += restore(&transaction, tables, &worker)?;
    }
    transaction.commit()?;
    Ok(restored)
}

/// Gives back everything that a worker holds, marked as delivered before.
fn restore(connection: &Connection, tables: &Tables, worker: &str) -> rusqlite::Result<u64> {
    let message = &tables.message;
    let held: Vec<(i64, Bytes)> = connection
        .prepare(&format!(
            "SELECT m.id, m.payload FROM celeriac_lease l JOIN {message} m ON m.id = l.message_id
             WHERE l.worker = ?1"
        ))?
        .query_map([worker], |row| Ok((row.get(0)?, payload(row, 1)?)))?
        .collect::<Result<_, _>>()?;
    let mut give_back = connection.prepare(&format!(
        "UPDATE {message} SET visible = 1, timestamp = NULL, version = version + 1,
                              payload = coalesce(?2, payload)
         WHERE id = ?1"
    ))?;
    for (id, payload) in &held {
        // What is no text has no mark, and stays as it is.
        let text = std::str::from_utf8(payload).ok();
        give_back.execute(params![id, text.map(envelope::mark_redelivered)])?;
    }
    connection.execute("DELETE FROM celeriac_lease WHERE worker = ?1", [worker])?;
    Ok(held.len() as u64)
}

/// Which of these messages are no longer this worker's: others took it for dead.
pub(super) fn lost(
    connection: &Connection,
    name: &str,
    claimed: impl IntoIterator<Item = u64>,
) -> rusqlite::Result<Vec<u64>> {
    let mut is_leased = connection
        .prepare_cached("SELECT 1 FROM celeriac_lease WHERE message_id = ?1 AND worker = ?2")?;
    let mut lost = Vec::new();
    for id in claimed {
        if !is_leased.exists(params![id as i64, name])? {
            lost.push(id);
        }
    }
    Ok(lost)
}

/// Removes this worker from the tables.
pub(super) fn leave(connection: &Connection, name: &str) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM celeriac_worker WHERE name = ?1", [name])?;
    Ok(())
}
