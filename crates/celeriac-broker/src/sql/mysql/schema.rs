//! kombu's tables as SQLAlchemy makes them in MariaDB and MySQL, and what celeriac has beside
//! them.
//!
//! Celery's counterpart: `kombu.transport.sqlalchemy.models`: whoever comes first makes the tables,
//! and the other finds its own. What differs: here a payload may be longer than 64 KiB, and the
//! names of queues are told apart by case.

use celeriac_core::broker::{Error, ErrorKind};

use super::connection::Connection;
use super::version;
use crate::sql::tables::Tables;

/// What of the schema is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// The ids come from sequences, as SQLAlchemy has it in MariaDB; else they count themselves.
    pub(super) sequences: bool,
    /// The index of what waits.
    pub(super) index: bool,
}

/// Makes what is missing.
pub(super) async fn prepare(connection: &mut Connection, names: &Tables) -> Result<Found, Error> {
    let server: Option<(String, bool)> = connection
        .first("SELECT VERSION(), @@global.read_only", ())
        .await?;
    let (version, is_read_only) = server.unwrap_or_default();
    version::check(&version)?;
    if is_read_only {
        return Err(Error::new(
            ErrorKind::Connection,
            "MySQL: the server can't be written to",
        )
        .with_hint("a worker needs the primary server, not a replica"));
    }
    let has_sequences = version.contains("MariaDB");
    if !has_all_tables(connection, names).await? {
        // Two workers that make the same tables at once are in one another's way.
        connection
            .execute("DO GET_LOCK('celeriac making tables', 20)".to_owned())
            .await?;
        let made = connection.execute(create(names, has_sequences)).await;
        connection
            .execute("DO RELEASE_LOCK('celeriac making tables')".to_owned())
            .await?;
        made?;
    }
    let mut index = has_index(connection, names).await?;
    if !index {
        index = make_index(connection, names).await?;
    }
    Ok(Found {
        sequences: has_sequences && are_sequences_used(connection).await?,
        index,
    })
}

async fn has_all_tables(connection: &mut Connection, names: &Tables) -> Result<bool, Error> {
    let wanted = [
        &names.queue,
        &names.message,
        &names.lease,
        &names.worker,
        &names.delayed,
        &names.dead,
    ];
    let count: Option<u64> = connection
        .first(
            "SELECT count(DISTINCT table_name) FROM information_schema.tables
             WHERE table_schema = DATABASE() AND table_name IN (?, ?, ?, ?, ?, ?)",
            wanted.map(String::as_str).to_vec(),
        )
        .await?;
    Ok(count == Some(wanted.len() as u64))
}

async fn are_sequences_used(connection: &mut Connection) -> Result<bool, Error> {
    let count: Option<u64> = connection
        .first(
            "SELECT count(*) FROM information_schema.tables
             WHERE table_schema = DATABASE() AND table_type = 'SEQUENCE'
               AND table_name IN ('queue_id_sequence', 'message_id_sequence')",
            (),
        )
        .await?;
    Ok(count == Some(2))
}

async fn has_index(connection: &mut Connection, names: &Tables) -> Result<bool, Error> {
    let found: Option<u64> = connection
        .first(
            "SELECT 1 FROM information_schema.statistics
             WHERE table_schema = DATABASE() AND table_name = ? AND index_name = ? LIMIT 1",
            (names.message.as_str(), names.waiting.as_str()),
        )
        .await?;
    Ok(found.is_some())
}

/// Makes the index of what waits in a table that kombu has made, if the user may.
async fn make_index(connection: &mut Connection, names: &Tables) -> Result<bool, Error> {
    let Tables {
        message, waiting, ..
    } = names.quoted(quote);
    let made = connection
        .execute(format!(
            "CREATE INDEX {waiting} ON {message} (queue_id, visible, timestamp, id)"
        ))
        .await;
    match made {
        Ok(()) => Ok(true),
        // Another worker was faster.
        Err(_) if has_index(connection, names).await? => Ok(true),
        Err(error) if error.kind == ErrorKind::Denied => {
            tracing::info!(
                target: "celeriac.broker",
                "The broker would be faster with an index that this user may not create on the \
                 table of messages: {error}"
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn create(names: &Tables, has_sequences: bool) -> String {
    let made = |suffix: &str| quote(&format!("ix_{}_{suffix}", names.message));
    let Tables {
        queue,
        message,
        lease,
        worker,
        delayed,
        dead,
        waiting,
    } = names.quoted(quote);
    let (sequences, count) = if has_sequences {
        (
            "CREATE SEQUENCE IF NOT EXISTS queue_id_sequence;
             CREATE SEQUENCE IF NOT EXISTS message_id_sequence;",
            "",
        )
    } else {
        ("", "AUTO_INCREMENT")
    };
    format!(
        "
        {sequences}
        CREATE TABLE IF NOT EXISTS {queue} (
            id INTEGER NOT NULL {count},
            name VARCHAR(200) COLLATE utf8mb4_bin,
            PRIMARY KEY (id),
            UNIQUE (name)
        ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
        CREATE TABLE IF NOT EXISTS {message} (
            id INTEGER NOT NULL {count},
            visible BOOL,
            timestamp DATETIME,
            payload LONGTEXT NOT NULL,
            version SMALLINT NOT NULL,
            queue_id INTEGER,
            PRIMARY KEY (id),
            -- The messages that wait, in the order in which they are taken.
            KEY {waiting} (queue_id, visible, timestamp, id),
            KEY {timestamp} (timestamp),
            KEY {visible} (visible),
            KEY ix_kombu_message_timestamp_id (timestamp, id),
            CONSTRAINT {foreign} FOREIGN KEY(queue_id) REFERENCES {queue} (id)
        ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
        -- Which worker holds a message that was taken.
        CREATE TABLE IF NOT EXISTS {lease} (
            message_id BIGINT NOT NULL PRIMARY KEY,
            worker VARCHAR(64) NOT NULL,
            KEY worker (worker)
        ) ENGINE=InnoDB DEFAULT CHARSET=ascii COLLATE=ascii_bin;
        -- The last sign of life of each worker, and since when they come without a gap.
        CREATE TABLE IF NOT EXISTS {worker} (
            name VARCHAR(64) NOT NULL PRIMARY KEY,
            since DATETIME(6) NOT NULL,
            seen DATETIME(6) NOT NULL
        ) ENGINE=InnoDB DEFAULT CHARSET=ascii COLLATE=ascii_bin;
        -- When each message of the delay store is to be seen: microseconds since 1970.
        CREATE TABLE IF NOT EXISTS {delayed} (
            message_id BIGINT NOT NULL PRIMARY KEY,
            queue_id BIGINT,
            due BIGINT NOT NULL,
            KEY due (due),
            KEY queue (queue_id, due)
        ) ENGINE=InnoDB DEFAULT CHARSET=ascii COLLATE=ascii_bin;
        -- Dead letters, with the moments of their deaths: microseconds since 1970.
        CREATE TABLE IF NOT EXISTS {dead} (
            id VARCHAR(255) NOT NULL PRIMARY KEY,
            died_at BIGINT NOT NULL,
            record LONGTEXT NOT NULL,
            KEY died_at (died_at)
        ) ENGINE=InnoDB DEFAULT CHARSET=ascii COLLATE=ascii_bin;
        ",
        timestamp = made("timestamp"),
        visible = made("visible"),
        // The names of these are the database's, not the table's.
        foreign = quote(&format!("FK_{}_queue", names.message)),
    )
}

/// `name` as an SQL identifier.
pub(super) fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
