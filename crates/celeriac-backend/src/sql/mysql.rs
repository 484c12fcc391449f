//! MariaDB and MySQL: one statement for many rows.

use async_trait::async_trait;
use celeriac_broker::sql::mysql::{Address, Connection};
use celeriac_core::backend::{Error, Settings};
use celeriac_net::ServerUrl;
use celeriac_protocol::timestamp;
use jiff::Timestamp;
use mysql_async::{Params, Row as Found, Value};
use tokio::sync::{Mutex, MutexGuard};

use super::error::backend_error;
use super::row::{Extended, Row};
use super::tables::{self, Table, Tables, Types};
use super::{Engine, connection_options};

const TYPES: Types = Types {
    blob: "BLOB",
    date: "DATETIME",
};
/// Two who write the same rows at the same moment: one of them is told to try again.
const ATTEMPTS: usize = 5;
/// A deadlock, as the connection tells it.
const DEADLOCK: &str = "(1213)";
/// A table or a column is there already: another worker was faster.
const IS_THERE: [&str; 3] = ["(1050)", "(1060)", "(1061)"];

/// A database of a server that holds results.
pub(super) struct Mysql {
    address: Address,
    tables: Tables,
    current: Mutex<Option<Ready>>,
}

/// A connection whose tables are there, and how rows get their numbers.
struct Ready {
    connection: Connection,
    task: Number,
    group: Number,
}

/// The lock on the connection: it answers one question after the other.
struct Held<'m> {
    current: MutexGuard<'m, Option<Ready>>,
}

impl Mysql {
    pub(super) fn new(url: &ServerUrl, settings: &Settings, tables: Tables) -> Result<Self, Error> {
        let address = Address::new(url, &connection_options(settings)).map_err(backend_error)?;
        Ok(Self {
            address,
            tables,
            current: Mutex::default(),
        })
    }

    /// Says something over the connection, which is taken meanwhile: one whose answer was not waited
    /// for is of no use to others.
    async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&mut Ready) -> Result<T, celeriac_core::broker::Error>,
    ) -> Result<T, Error> {
        let mut held = Held {
            current: self.current.lock().await,
        };
        let mut ready = match held.current.take() {
            Some(ready) => ready,
            None => self.open().await?,
        };
        match work(&mut ready).await {
            Ok(done) => {
                *held.current = Some(ready);
                Ok(done)
            }
            Err(error) => {
                let error = backend_error(error);
                if !error.is_transient() {
                    *held.current = Some(ready);
                }
                Err(error)
            }
        }
    }

    async fn open(&self) -> Result<Ready, Error> {
        let mut connection = self.address.connect().await.map_err(backend_error)?;
        if self.tables.are_made {
            make(&mut connection, &self.tables)
                .await
                .map_err(backend_error)?;
        }
        let task = number(&mut connection, &self.tables.task).await?;
        let group = number(&mut connection, &self.tables.group).await?;
        Ok(Ready {
            connection,
            task,
            group,
        })
    }

    async fn change(&self, statement: String, parameters: Vec<Value>) -> Result<(), Error> {
        self.with(async |ready| {
            let changed = ready
                .connection
                .change(&statement, Params::Positional(parameters));
            changed.await.map(drop)
        })
        .await
    }
}

#[async_trait]
impl Engine for Mysql {
    async fn store(&self, rows: &[Row]) -> Result<(), Error> {
        let columns = self.tables.columns();
        self.with(async |ready| {
            let statement = store(&self.tables, &ready.task, rows.len());
            let parameters: Vec<Value> = rows
                .iter()
                .flat_map(|row| values(row, columns.len()))
                .collect();
            let mut attempt = 0;
            loop {
                let parameters = Params::Positional(parameters.clone());
                match ready.connection.change(&statement, parameters).await {
                    Err(error) if error.message.ends_with(DEADLOCK) && attempt < ATTEMPTS => {
                        attempt += 1;
                    }
                    other => return other.map(drop),
                }
            }
        })
        .await
    }

    async fn rows(&self, ids: &[String]) -> Result<Vec<Row>, Error> {
        let statement = format!(
            "SELECT {} FROM {} WHERE task_id IN ({})",
            self.tables.columns().join(", "),
            self.tables.task.quoted(quote),
            marks(ids.len())
        );
        let found: Vec<Found> = self
            .with(async |ready| ready.connection.all(&statement, texts(ids)).await)
            .await?;
        // The collation may not tell ids apart that differ in case.
        let rows = found
            .into_iter()
            .map(|row| read(row, self.tables.is_extended));
        Ok(rows.filter(|row| ids.contains(&row.task_id)).collect())
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        let statement = format!(
            "DELETE FROM {} WHERE task_id IN ({})",
            self.tables.task.quoted(quote),
            marks(ids.len())
        );
        let parameters = ids.iter().map(|id| Value::from(id.as_str())).collect();
        self.change(statement, parameters).await
    }

    async fn save_group(&self, id: &str, members: &[u8], at: Timestamp) -> Result<(), Error> {
        let table = self.tables.group.quoted(quote);
        let parameters: Vec<Value> = vec![id.into(), members.into(), date(at).into()];
        self.with(async |ready| {
            let statement = format!(
                "INSERT INTO {table} ({}taskset_id, result, date_done) VALUES ({}?, ?, ?)
                 ON DUPLICATE KEY UPDATE result = VALUES(result), date_done = VALUES(date_done)",
                ready.group.column(),
                ready.group.value(),
            );
            let saved = ready
                .connection
                .change(&statement, Params::Positional(parameters));
            saved.await.map(drop)
        })
        .await
    }

    async fn group(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let table = self.tables.group.quoted(quote);
        let statement = format!("SELECT result FROM {table} WHERE taskset_id = ?");
        let found: Option<Option<Vec<u8>>> = self
            .with(async |ready| ready.connection.first(&statement, (id,)).await)
            .await?;
        Ok(found.flatten())
    }

    async fn forget_group(&self, id: &str) -> Result<(), Error> {
        let table = self.tables.group.quoted(quote);
        self.change(
            format!("DELETE FROM {table} WHERE taskset_id = ?"),
            vec![id.into()],
        )
        .await
    }

    async fn cleanup(&self, before: Timestamp) -> Result<(), Error> {
        for table in [&self.tables.task, &self.tables.group] {
            let statement = format!("DELETE FROM {} WHERE date_done < ?", table.quoted(quote));
            self.change(statement, vec![date(before).into()]).await?;
        }
        Ok(())
    }
}

/// A moment as the column holds it.
fn date(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string()
}

fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

fn texts(ids: &[String]) -> Params {
    Params::Positional(ids.iter().map(|id| Value::from(id.as_str())).collect())
}

/// Columns are updated from left to right: the status, which all others look at, is the last.
fn store(tables: &Tables, number: &Number, count: usize) -> String {
    let columns = tables.columns();
    let row = format!("({}{})", number.value(), marks(columns.len()));
    let (others, status): (Vec<&str>, Vec<&str>) =
        columns[1..].iter().partition(|column| **column != "status");
    let updated: Vec<String> = others
        .into_iter()
        .chain(status)
        .map(|column| format!("{column} = IF(status <=> 'SUCCESS', {column}, VALUES({column}))"))
        .collect();
    format!(
        "INSERT INTO {} ({}{}) VALUES {} ON DUPLICATE KEY UPDATE {}",
        tables.task.quoted(quote),
        number.column(),
        columns.join(", "),
        vec![row; count].join(", "),
        updated.join(", "),
    )
}

fn values(row: &Row, count: usize) -> Vec<Value> {
    let extended = &row.extended;
    let mut values: Vec<Value> = vec![
        row.task_id.as_str().into(),
        row.status.as_str().into(),
        row.result.as_deref().into(),
        row.date_done.map(date).into(),
        row.traceback.as_deref().into(),
        row.children.as_deref().into(),
        extended.name.as_deref().into(),
        extended.args.as_deref().into(),
        extended.kwargs.as_deref().into(),
        extended.worker.as_deref().into(),
        extended.retries.into(),
        extended.queue.as_deref().into(),
        extended.stamps.as_deref().into(),
    ];
    values.truncate(count);
    values
}

fn read(mut row: Found, is_extended: bool) -> Row {
    let extended = if is_extended {
        Extended {
            name: text(&mut row, 6),
            args: bytes(&mut row, 7),
            kwargs: bytes(&mut row, 8),
            worker: text(&mut row, 9),
            retries: row.take::<Option<i32>, _>(10).flatten(),
            queue: text(&mut row, 11),
            stamps: bytes(&mut row, 12),
        }
    } else {
        Extended::default()
    };
    Row {
        task_id: text(&mut row, 0).unwrap_or_default(),
        status: text(&mut row, 1).unwrap_or_default(),
        result: bytes(&mut row, 2),
        date_done: match row.take::<Value, _>(3) {
            Some(Value::Date(year, month, day, hour, minute, second, micros)) => {
                let text = format!(
                    "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}"
                );
                timestamp::parse(&text).ok()
            }
            _ => None,
        },
        traceback: text(&mut row, 4),
        children: bytes(&mut row, 5),
        extended,
    }
}

fn bytes(row: &mut Found, at: usize) -> Option<Vec<u8>> {
    match row.take::<Value, _>(at) {
        Some(Value::Bytes(bytes)) => Some(bytes),
        _ => None,
    }
}

fn text(row: &mut Found, at: usize) -> Option<String> {
    bytes(row, at).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Where a row's number comes from.
enum Number {
    /// The column counts by itself, as SQLAlchemy has it in MySQL.
    Default,
    /// The sequence of this name, quoted, as SQLAlchemy has it in MariaDB.
    Sequence(String),
}

impl Number {
    fn column(&self) -> &'static str {
        match self {
            Self::Default => "",
            Self::Sequence(_) => "id, ",
        }
    }

    fn value(&self) -> String {
        match self {
            Self::Default => String::new(),
            Self::Sequence(name) => format!("NEXTVAL({name}), "),
        }
    }
}

async fn number(connection: &mut Connection, table: &Table) -> Result<Number, Error> {
    let extra: Option<String> = connection
        .first(
            "SELECT extra FROM information_schema.columns
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?
               AND column_name = 'id'",
            (table.schema.as_deref(), &table.name),
        )
        .await
        .map_err(backend_error)?;
    let counts = extra.is_some_and(|extra| extra.to_lowercase().contains("auto_increment"));
    Ok(if counts {
        Number::Default
    } else {
        Number::Sequence(table.within(table.sequence, quote))
    })
}

async fn make(
    connection: &mut Connection,
    tables: &Tables,
) -> Result<(), celeriac_core::broker::Error> {
    let version: Option<String> = connection.first("SELECT VERSION()", ()).await?;
    let has_sequences = version.is_some_and(|version| version.contains("MariaDB"));
    for (table, columns, unique) in [
        (
            &tables.task,
            tables::task_columns(&TYPES, tables.is_extended),
            "task_id",
        ),
        (
            &tables.group,
            "taskset_id VARCHAR(155), result BLOB, date_done DATETIME".to_owned(),
            "taskset_id",
        ),
    ] {
        let known: Option<i64> = connection
            .first(
                "SELECT 1 FROM information_schema.tables
                 WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?",
                (table.schema.as_deref(), &table.name),
            )
            .await?;
        if known.is_some() {
            continue;
        }
        let count = if has_sequences {
            let sequence = table.within(table.sequence, quote);
            let made = format!("CREATE SEQUENCE IF NOT EXISTS {sequence}");
            connection.execute(made).await?;
            ""
        } else {
            " AUTO_INCREMENT"
        };
        let name = table.quoted(quote);
        let index = quote(table.index);
        let made = connection.execute(format!(
            "CREATE TABLE {name} (
                id INTEGER NOT NULL{count}, {columns}, PRIMARY KEY (id), UNIQUE ({unique}),
                INDEX {index} (date_done)
             )"
        ));
        unless_there(made.await)?;
    }
    add_columns(connection, tables).await
}

/// Adds the columns that the table of an older version does not have.
async fn add_columns(
    connection: &mut Connection,
    tables: &Tables,
) -> Result<(), celeriac_core::broker::Error> {
    let table = &tables.task;
    let found: Vec<String> = connection
        .all(
            "SELECT column_name FROM information_schema.columns
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?",
            (table.schema.as_deref(), &table.name),
        )
        .await?;
    for column in tables.columns() {
        if !found.iter().any(|known| known.eq_ignore_ascii_case(column)) {
            let name = table.quoted(quote);
            let kind = tables::added_type(column, &TYPES);
            let added =
                connection.execute(format!("ALTER TABLE {name} ADD COLUMN {column} {kind}"));
            unless_there(added.await)?;
        }
    }
    Ok(())
}

fn unless_there(
    made: Result<(), celeriac_core::broker::Error>,
) -> Result<(), celeriac_core::broker::Error> {
    match made {
        Err(error) if IS_THERE.iter().any(|code| error.message.ends_with(code)) => Ok(()),
        other => other,
    }
}

/// `name` as an identifier.
fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
