//! kombu's tables as SQLAlchemy makes them in SQLite, and those of celeriac beside them.
//!
//! Celery's counterpart: `kombu.transport.sqlalchemy.models`, whose tables these are to the letter:
//! whoever comes first makes them, and the other finds its own.

use crate::sql::tables::Tables;

/// The statements that make what is missing of the tables with these names.
pub(super) fn create(names: &Tables) -> String {
    let index = |suffix: &str| quote(&format!("ix_{}_{suffix}", names.message));
    let Tables {
        queue,
        message,
        lease,
        worker,
        delayed,
        dead,
        waiting,
    } = names.quoted(quote);
    format!(
        r#"
        CREATE TABLE IF NOT EXISTS {queue} (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            name VARCHAR(200),
            UNIQUE (name)
        );
        CREATE TABLE IF NOT EXISTS {message} (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            visible BOOLEAN,
            timestamp DATETIME,
            payload TEXT NOT NULL,
            version SMALLINT NOT NULL,
            queue_id INTEGER,
            CONSTRAINT "FK_kombu_message_queue" FOREIGN KEY(queue_id) REFERENCES {queue} (id)
        );
        CREATE INDEX IF NOT EXISTS {visible} ON {message} (visible);
        CREATE INDEX IF NOT EXISTS ix_kombu_message_timestamp_id ON {message} (timestamp, id);
        CREATE INDEX IF NOT EXISTS {timestamp} ON {message} (timestamp);
        -- The messages that wait, in the order in which they are taken.
        CREATE INDEX IF NOT EXISTS {waiting}
            ON {message} (queue_id, timestamp, id) WHERE visible != 0;
        -- Which worker holds a message that was taken.
        CREATE TABLE IF NOT EXISTS {lease} (
            message_id INTEGER NOT NULL PRIMARY KEY,
            worker TEXT NOT NULL
        );
        CREATE INDEX IF NOT EXISTS {lease_worker} ON {lease} (worker);
        -- The last sign of life of each worker: seconds of the clock that starts at boot.
        CREATE TABLE IF NOT EXISTS {worker} (
            name TEXT NOT NULL PRIMARY KEY,
            boot TEXT NOT NULL,
            seen REAL NOT NULL
        );
        -- When each message of the delay store is to be seen: microseconds since 1970.
        CREATE TABLE IF NOT EXISTS {delayed} (
            message_id INTEGER NOT NULL PRIMARY KEY,
            queue_id INTEGER,
            due INTEGER NOT NULL
        );
        CREATE INDEX IF NOT EXISTS {delayed_due} ON {delayed} (due);
        CREATE INDEX IF NOT EXISTS {delayed_queue} ON {delayed} (queue_id, due);
        -- Dead letters, with the moments of their deaths: microseconds since 1970.
        CREATE TABLE IF NOT EXISTS {dead} (
            id TEXT NOT NULL PRIMARY KEY,
            died_at INTEGER NOT NULL,
            record TEXT NOT NULL
        );
        CREATE INDEX IF NOT EXISTS {dead_died_at} ON {dead} (died_at);
        "#,
        visible = index("visible"),
        timestamp = index("timestamp"),
        lease_worker = quote(&format!("{}_worker", names.lease)),
        delayed_due = quote(&format!("{}_due", names.delayed)),
        delayed_queue = quote(&format!("{}_queue", names.delayed)),
        dead_died_at = quote(&format!("{}_died_at", names.dead)),
    )
}

/// `name` as an SQL identifier.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
