//! kombu's tables, and the two of celeriac beside them.
//!
//! Celery's counterpart: `kombu.transport.sqlalchemy.models`, whose tables these are to the letter:
//! whoever comes first makes them, and the other finds its own.

use crate::open::Options;

/// The names of the tables, quoted.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    pub(super) queue: String,
    pub(super) message: String,
}

impl Tables {
    pub(super) fn new(options: &Options) -> Self {
        let named = |option, default| quote(options.text(option).unwrap_or(default));
        Self {
            queue: named("queue_tablename", "kombu_queue"),
            message: named("message_tablename", "kombu_message"),
        }
    }

    /// The statements that make what is missing.
    pub(super) fn create(&self) -> String {
        let Self { queue, message } = self;
        let index = |suffix: &str| {
            quote(&format!(
                "ix_{}_{suffix}",
                message.trim_matches('"').replace("\"\"", "\"")
            ))
        };
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
            CREATE INDEX IF NOT EXISTS {} ON {message} (visible);
            CREATE INDEX IF NOT EXISTS ix_kombu_message_timestamp_id ON {message} (timestamp, id);
            CREATE INDEX IF NOT EXISTS {} ON {message} (timestamp);
            -- The messages that wait, in the order in which they are taken.
            CREATE INDEX IF NOT EXISTS celeriac_waiting
                ON {message} (queue_id, timestamp, id) WHERE visible != 0;
            -- Which worker holds a message that was taken.
            CREATE TABLE IF NOT EXISTS celeriac_lease (
                message_id INTEGER NOT NULL PRIMARY KEY,
                worker TEXT NOT NULL
            );
            CREATE INDEX IF NOT EXISTS celeriac_lease_worker ON celeriac_lease (worker);
            -- The last sign of life of each worker: seconds of the clock that starts at boot.
            CREATE TABLE IF NOT EXISTS celeriac_worker (
                name TEXT NOT NULL PRIMARY KEY,
                boot TEXT NOT NULL,
                seen REAL NOT NULL
            );
            "#,
            index("visible"),
            index("timestamp"),
        )
    }
}

/// `name` as an SQL identifier.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
