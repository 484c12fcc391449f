//! Signs of life, and the messages of workers that give none.

use std::collections::HashSet;

use bytes::Bytes;
use rusqlite::{Connection, TransactionBehavior, params};
use rustix::time::{ClockId, clock_gettime};

use super::store::{Worker, payload};
use crate::sql::fates::after_death;
use crate::sql::lease::DEAD_AFTER;
use crate::sql::tables::Tables;

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
pub(super) fn appear(connection: &Connection, worker: &Worker) -> rusqlite::Result<()> {
    connection
        .prepare_cached(&format!(
            "INSERT INTO {} (name, boot, seen) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO NOTHING",
            worker.tables.worker
        ))?
        .execute(params![worker.name, worker.boot, seconds_since_boot()])?;
    Ok(())
}

/// Notes that this worker lives; gives back what dead workers hold, and tells how much.
pub(super) fn beat(connection: &mut Connection, own: &Worker) -> rusqlite::Result<u64> {
    let Worker { tables, name, boot } = own;
    let Tables { worker, lease, .. } = tables;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let now = seconds_since_boot();
    transaction
        .prepare_cached(&format!(
            "INSERT INTO {worker} (name, boot, seen) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET boot = ?2, seen = ?3"
        ))?
        .execute(params![name, boot, now])?;
    let dead: Vec<String> = transaction
        .prepare_cached(&format!(
            "SELECT name FROM {worker} WHERE (boot != ?1 OR seen < ?2) AND name != ?3"
        ))?
        .query_map(params![boot, now - DEAD_AFTER.as_secs_f64(), name], |row| {
            row.get(0)
        })?
        .collect::<Result<_, _>>()?;
    let mut restored = 0;
    for dead in dead {
        restored += restore(&transaction, tables, &dead)?;
        transaction.execute(&format!("DELETE FROM {worker} WHERE name = ?1"), [&dead])?;
    }
    let unknown: Vec<String> = transaction
        .prepare_cached(&format!(
            "SELECT DISTINCT worker FROM {lease} WHERE worker NOT IN (SELECT name FROM {worker})"
        ))?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for unknown in unknown {
        // Somebody has tidied the table of workers.
        restored += restore(&transaction, tables, &unknown)?;
    }
    transaction.commit()?;
    Ok(restored)
}

/// Gives back everything that a dead worker holds.
fn restore(connection: &Connection, tables: &Tables, worker: &str) -> rusqlite::Result<u64> {
    let Tables { message, lease, .. } = tables;
    let held: Vec<(i64, Bytes)> = connection
        .prepare(&format!(
            "SELECT m.id, m.payload FROM {lease} l JOIN {message} m ON m.id = l.message_id
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
        give_back.execute(params![id, after_death(payload)])?;
    }
    connection.execute(&format!("DELETE FROM {lease} WHERE worker = ?1"), [worker])?;
    Ok(held.len() as u64)
}

/// How many messages this worker holds.
pub(super) fn count(connection: &Connection, own: &Worker) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(&format!(
            "SELECT count(*) FROM {} WHERE worker = ?1",
            own.tables.lease
        ))?
        .query_row([&own.name], |row| {
            row.get::<_, i64>(0).map(|count| count as u64)
        })
}

/// The ids of the messages that this worker holds.
pub(super) fn held(connection: &Connection, own: &Worker) -> rusqlite::Result<HashSet<u64>> {
    connection
        .prepare_cached(&format!(
            "SELECT message_id FROM {} WHERE worker = ?1",
            own.tables.lease
        ))?
        .query_map([&own.name], |row| row.get::<_, i64>(0).map(|id| id as u64))?
        .collect()
}

/// Removes this worker from the tables.
pub(super) fn leave(connection: &Connection, own: &Worker) -> rusqlite::Result<()> {
    connection.execute(
        &format!("DELETE FROM {} WHERE name = ?1", own.tables.worker),
        [&own.name],
    )?;
    Ok(())
}
