//! kombu's tables as SQLAlchemy makes them in PostgreSQL, and what celeriac has beside them.
//!
//! Celery's counterpart: `kombu.transport.sqlalchemy.models`, whose tables these are to the letter:
//! whoever comes first makes them, and the other finds its own.

use celeriac_core::broker::{Error, ErrorKind};

use tokio_postgres::types::ToSql;

use super::connection::Connection;
use super::error::broker_error;
use crate::sql::tables::Tables;

/// Keeps two workers from making the tables at once: a number that nobody else uses.
const MAKING: i64 = 0x63_656c_6572_6961;

/// How to hear of new messages.
pub(super) struct Notices {
    /// The channel of the table of messages.
    pub(super) channel: String,
    /// Whether all that is inserted is announced, whoever inserts it.
    pub(super) complete: bool,
}

/// What of the schema is there.
struct Found {
    tables: bool,
    index: bool,
    trigger: bool,
    /// The number of the table of messages.
    message: u32,
}

/// Makes what is missing, and listens.
pub(super) async fn prepare(connection: &Connection, names: &Tables) -> Result<Notices, Error> {
    let tables = names.quoted(quote);
    let mut found = look(connection, &tables, names).await?;
    if !found.tables {
        make(connection, &create(names)).await?;
        found = look(connection, &tables, names).await?;
    }
    if !found.index {
        optional(connection, "an index", &index(&tables)).await?;
    }
    let channel = format!("celeriac_{}", found.message);
    if !found.trigger {
        found.trigger = optional(connection, "a trigger", &trigger(&tables)).await?;
    }
    connection
        .answer(connection.batch_execute(&format!(
            // A transaction whose worker was lost locks nothing for long.
            "SET idle_in_transaction_session_timeout = '30 s'; LISTEN {channel}"
        )))
        .await?;
    Ok(Notices {
        channel,
        complete: found.trigger,
    })
}

async fn look(connection: &Connection, tables: &Tables, names: &Tables) -> Result<Found, Error> {
    let regclasses: [&(dyn ToSql + Sync); 7] = [
        &tables.queue,
        &tables.message,
        &tables.lease,
        &tables.worker,
        &tables.waiting,
        &tables.delayed,
        &tables.dead,
    ];
    let asked = connection.query_one(
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool,
                to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL
                AND to_regclass($3) IS NOT NULL AND to_regclass($4) IS NOT NULL
                AND to_regclass($6) IS NOT NULL AND to_regclass($7) IS NOT NULL
                AND to_regclass('queue_id_sequence') IS NOT NULL
                AND to_regclass('message_id_sequence') IS NOT NULL,
                to_regclass($5) IS NOT NULL,
                EXISTS (SELECT FROM pg_trigger
                        WHERE tgrelid = to_regclass($2)::oid AND tgname = 'celeriac_notify'),
                coalesce(to_regclass($2)::oid, 0),
                coalesce(current_schema(), '')",
        &regclasses,
    );
    let row = connection.answer(asked).await?;
    let get = |error: tokio_postgres::Error| broker_error(&error);
    if row.try_get(0).map_err(get)? {
        return Err(Error::new(
            ErrorKind::Connection,
            "PostgreSQL: the server can't be written to",
        )
        .with_hint("a worker needs the primary server, not a standby"));
    }
    let tables: bool = row.try_get(1).map_err(get)?;
    let schema: String = row.try_get(5).map_err(get)?;
    if !tables && schema.is_empty() {
        return Err(Error::new(
            ErrorKind::Configuration,
            format!(
                "PostgreSQL: there is no schema for the table {:?}",
                names.message
            ),
        )
        .with_hint("no schema of the role's search_path exists"));
    }
    Ok(Found {
        tables,
        index: row.try_get(2).map_err(get)?,
        trigger: row.try_get(3).map_err(get)?,
        message: row.try_get(4).map_err(get)?,
    })
}

/// Runs statements in one transaction, while no other worker does so.
async fn make(connection: &Connection, statements: &str) -> Result<(), Error> {
    let all = format!("BEGIN; SELECT pg_advisory_xact_lock({MAKING}); {statements} COMMIT;");
    let made = connection.answer(connection.batch_execute(&all)).await;
    if made.is_err() {
        connection
            .answer(connection.batch_execute("ROLLBACK"))
            .await?;
    }
    made
}

/// Makes something that is useful but not needed, and tells whether it is there now.
async fn optional(connection: &Connection, what: &str, statements: &str) -> Result<bool, Error> {
    match make(connection, statements).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind == ErrorKind::Denied => {
            tracing::info!(
                target: "celeriac.broker",
                "The broker would be faster with {what} that this role may not create on the \
                 table of messages: {error}"
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn create(names: &Tables) -> String {
    let made = |suffix: &str| quote(&format!("ix_{}_{suffix}", names.message));
    let Tables {
        queue,
        message,
        lease,
        worker,
        delayed,
        dead,
        ..
    } = names.quoted(quote);
    format!(
        r#"
        CREATE SEQUENCE IF NOT EXISTS queue_id_sequence;
        CREATE TABLE IF NOT EXISTS {queue} (
            id INTEGER NOT NULL,
            name VARCHAR(200),
            PRIMARY KEY (id),
            UNIQUE (name)
        );
        CREATE SEQUENCE IF NOT EXISTS message_id_sequence;
        CREATE TABLE IF NOT EXISTS {message} (
            id INTEGER NOT NULL,
            visible BOOLEAN,
            timestamp TIMESTAMP WITHOUT TIME ZONE,
            payload TEXT NOT NULL,
            version SMALLINT NOT NULL,
            queue_id INTEGER,
            PRIMARY KEY (id),
            CONSTRAINT "FK_kombu_message_queue" FOREIGN KEY(queue_id) REFERENCES {queue} (id)
        );
        CREATE INDEX IF NOT EXISTS {visible} ON {message} (visible);
        CREATE INDEX IF NOT EXISTS {timestamp} ON {message} (timestamp);
        CREATE INDEX IF NOT EXISTS ix_kombu_message_timestamp_id ON {message} (timestamp, id);
        -- Which worker holds a message that was taken.
        CREATE TABLE IF NOT EXISTS {lease} (
            message_id BIGINT NOT NULL PRIMARY KEY,
            worker TEXT NOT NULL
        );
        CREATE INDEX IF NOT EXISTS {lease_worker} ON {lease} (worker);
        -- The last sign of life of each worker, and since when they come without a gap.
        CREATE TABLE IF NOT EXISTS {worker} (
            name TEXT NOT NULL PRIMARY KEY,
            since TIMESTAMP WITH TIME ZONE NOT NULL,
            seen TIMESTAMP WITH TIME ZONE NOT NULL
        );
        -- When each message of the delay store is to be seen: microseconds since 1970.
        CREATE TABLE IF NOT EXISTS {delayed} (
            message_id BIGINT NOT NULL PRIMARY KEY,
            queue_id BIGINT,
            due BIGINT NOT NULL
        );
        CREATE INDEX IF NOT EXISTS {delayed_due} ON {delayed} (due);
        CREATE INDEX IF NOT EXISTS {delayed_queue} ON {delayed} (queue_id, due);
        -- Dead letters, with the moments of their deaths: microseconds since 1970.
        CREATE TABLE IF NOT EXISTS {dead} (
            id VARCHAR(255) NOT NULL PRIMARY KEY,
            died_at BIGINT NOT NULL,
            record TEXT NOT NULL
        );
        CREATE INDEX IF NOT EXISTS {dead_died_at} ON {dead} (died_at);
        "#,
        visible = made("visible"),
        timestamp = made("timestamp"),
        lease_worker = quote(&format!("{}_worker", names.lease)),
        delayed_due = quote(&format!("{}_due", names.delayed)),
        delayed_queue = quote(&format!("{}_queue", names.delayed)),
        dead_died_at = quote(&format!("{}_died_at", names.dead)),
    )
}

/// The messages that wait, in the order in which they are taken.
fn index(tables: &Tables) -> String {
    let Tables {
        message, waiting, ..
    } = tables;
    format!(
        "CREATE INDEX IF NOT EXISTS {waiting} ON {message} (queue_id, timestamp, id)
         WHERE visible;"
    )
}

/// Announces the queues that something was put into, once for each statement, on a channel that
/// is named after the table's number.
fn trigger(tables: &Tables) -> String {
    let message = &tables.message;
    format!(
        "CREATE OR REPLACE FUNCTION celeriac_notify() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM pg_catalog.pg_notify('celeriac_' || TG_RELID, queue_id::text)
             FROM (SELECT DISTINCT queue_id FROM inserted) AS queues;
             RETURN NULL;
         END $$;
         DROP TRIGGER IF EXISTS celeriac_notify ON {message};
         CREATE TRIGGER celeriac_notify AFTER INSERT ON {message}
             REFERENCING NEW TABLE AS inserted
             FOR EACH STATEMENT EXECUTE FUNCTION celeriac_notify();"
    )
}

/// `name` as an SQL identifier.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
