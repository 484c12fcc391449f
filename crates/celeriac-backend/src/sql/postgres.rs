//! PostgreSQL: one statement for many rows, whose columns go as arrays.

use std::sync::Arc;

use async_trait::async_trait;
use celeriac_broker::sql::postgres::{Address, Connection};
use celeriac_core::backend::{Error, ErrorKind, Settings};
use celeriac_net::ServerUrl;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_postgres::types::{FromSql, ToSql};

use super::error::backend_error;
use super::row::{Extended, Row};
use super::tables::{self, Table, Tables, Types};
use super::{Engine, connection_options};

const TYPES: Types = Types {
    blob: "BYTEA",
    date: "TIMESTAMP WITHOUT TIME ZONE",
};
/// Keeps two workers from making the tables at once: a number that nobody else uses.
const MAKING: i64 = 0x63_656c_7265_7375;
/// Two who write the same rows at the same moment: one of them is told to try again.
const ATTEMPTS: usize = 5;

/// A database of a PostgreSQL server that holds results.
pub(super) struct Postgres {
    address: Address,
    tables: Tables,
    current: Mutex<Option<Arc<Ready>>>,
}

/// A connection whose tables are there, and what to say over it.
struct Ready {
    connection: Connection,
    store: String,
    rows: String,
    save_group: String,
}

impl Postgres {
    pub(super) fn new(url: &ServerUrl, settings: &Settings, tables: Tables) -> Result<Self, Error> {
        let address = Address::new(url, &connection_options(settings)).map_err(backend_error)?;
        Ok(Self {
            address,
            tables,
            current: Mutex::default(),
        })
    }

    async fn ready(&self) -> Result<Arc<Ready>, Error> {
        let mut current = self.current.lock().await;
        if let Some(ready) = &*current
            && ready.connection.check().is_ok()
        {
            return Ok(Arc::clone(ready));
        }
        let connection = self.address.connect().await.map_err(backend_error)?;
        let tables = &self.tables;
        if tables.are_made {
            let all = format!(
                "BEGIN; SELECT pg_advisory_xact_lock({MAKING}); {} COMMIT;",
                create(tables)
            );
            let made = connection.answer(connection.batch_execute(&all)).await;
            if let Err(error) = made {
                // Whoever may not make tables may find them made.
                drop(
                    connection
                        .answer(connection.batch_execute("ROLLBACK"))
                        .await,
                );
                if !has_tables(&connection, tables).await? {
                    return Err(backend_error(error));
                }
            }
        }
        let ready = Ready {
            store: store(tables, &number(&connection, &tables.task).await?),
            rows: rows(tables),
            save_group: save_group(tables, &number(&connection, &tables.group).await?),
            connection,
        };
        Ok(Arc::clone(current.insert(Arc::new(ready))))
    }

    async fn execute(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<(), Error> {
        let ready = self.ready().await?;
        let connection = &ready.connection;
        let done = connection.answer(connection.execute(statement, parameters));
        done.await.map(drop).map_err(backend_error)
    }
}

#[async_trait]
impl Engine for Postgres {
    async fn store(&self, rows: &[Row]) -> Result<(), Error> {
        let columns = Columns::of(rows);
        let parameters = columns.parameters(self.tables.is_extended);
        let ready = self.ready().await?;
        let connection = &ready.connection;
        let mut attempt = 0;
        loop {
            let stored = async {
                let statement = connection.prepare(&ready.store).await?;
                connection.execute(&statement, &parameters).await
            };
            match connection.answer(stored).await {
                Err(error) if error.message.ends_with("(40P01)") && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                other => return other.map(drop).map_err(backend_error),
            }
        }
    }

    async fn rows(&self, ids: &[String]) -> Result<Vec<Row>, Error> {
        let ready = self.ready().await?;
        let connection = &ready.connection;
        let parameters: [&(dyn ToSql + Sync); 1] = [&ids];
        let found = connection.answer(connection.query(&ready.rows, &parameters));
        let found = found.await.map_err(backend_error)?;
        found
            .iter()
            .map(|row| read(row, self.tables.is_extended))
            .collect()
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        let table = self.tables.task.quoted(quote);
        let statement = format!("DELETE FROM {table} WHERE task_id = ANY($1::text[])");
        self.execute(&statement, &[&ids]).await
    }

    async fn save_group(&self, id: &str, members: &[u8], at: Timestamp) -> Result<(), Error> {
        let ready = self.ready().await?;
        self.execute(&ready.save_group, &[&id, &members, &at.as_microsecond()])
            .await
    }

    async fn group(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let table = self.tables.group.quoted(quote);
        let statement = format!("SELECT result FROM {table} WHERE taskset_id = $1");
        let ready = self.ready().await?;
        let connection = &ready.connection;
        let parameters: [&(dyn ToSql + Sync); 1] = [&id];
        let found = connection.answer(connection.query_opt(&statement, &parameters));
        match found.await.map_err(backend_error)? {
            Some(row) => get(&row, 0),
            None => Ok(None),
        }
    }

    async fn forget_group(&self, id: &str) -> Result<(), Error> {
        let table = self.tables.group.quoted(quote);
        let statement = format!("DELETE FROM {table} WHERE taskset_id = $1");
        self.execute(&statement, &[&id]).await
    }

    async fn cleanup(&self, before: Timestamp) -> Result<(), Error> {
        for table in [&self.tables.task, &self.tables.group] {
            let statement = format!(
                "DELETE FROM {} WHERE date_done < {}",
                table.quoted(quote),
                date("$1::int8")
            );
            self.execute(&statement, &[&before.as_microsecond()])
                .await?;
        }
        Ok(())
    }
}

/// The columns of rows, each as an array.
struct Columns<'r> {
    ids: Vec<&'r str>,
    statuses: Vec<&'r str>,
    results: Vec<Option<&'r [u8]>>,
    dates: Vec<Option<i64>>,
    tracebacks: Vec<Option<String>>,
    children: Vec<Option<&'r [u8]>>,
    names: Vec<Option<&'r str>>,
    args: Vec<Option<&'r [u8]>>,
    kwargs: Vec<Option<&'r [u8]>>,
    workers: Vec<Option<&'r str>>,
    retries: Vec<Option<i32>>,
    queues: Vec<Option<&'r str>>,
    stamps: Vec<Option<&'r [u8]>>,
}

impl<'r> Columns<'r> {
    fn of(rows: &'r [Row]) -> Self {
        fn all<'r, T>(rows: &'r [Row], column: impl Fn(&'r Row) -> T) -> Vec<T> {
            rows.iter().map(column).collect()
        }
        Self {
            ids: all(rows, |row| &*row.task_id),
            statuses: all(rows, |row| &*row.status),
            results: all(rows, |row| row.result.as_deref()),
            dates: all(rows, |row| row.date_done.map(Timestamp::as_microsecond)),
            // The one character that PostgreSQL's texts don't hold.
            tracebacks: all(rows, |row| {
                row.traceback
                    .as_ref()
                    .map(|text| text.replace('\0', "\\x00"))
            }),
            children: all(rows, |row| row.children.as_deref()),
            names: all(rows, |row| row.extended.name.as_deref()),
            args: all(rows, |row| row.extended.args.as_deref()),
            kwargs: all(rows, |row| row.extended.kwargs.as_deref()),
            workers: all(rows, |row| row.extended.worker.as_deref()),
            retries: all(rows, |row| row.extended.retries),
            queues: all(rows, |row| row.extended.queue.as_deref()),
            stamps: all(rows, |row| row.extended.stamps.as_deref()),
        }
    }

    fn parameters(&self, is_extended: bool) -> Vec<&(dyn ToSql + Sync)> {
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![
            &self.ids,
            &self.statuses,
            &self.results,
            &self.dates,
            &self.tracebacks,
            &self.children,
        ];
        if is_extended {
            parameters.extend::<[&(dyn ToSql + Sync); 7]>([
                &self.names,
                &self.args,
                &self.kwargs,
                &self.workers,
                &self.retries,
                &self.queues,
                &self.stamps,
            ]);
        }
        parameters
    }
}

/// The type of a column as a parameter.
fn parameter_type(column: &str) -> &'static str {
    match column {
        "result" | "children" | "args" | "kwargs" | "stamps" => "bytea[]",
        "date_done" => "int8[]",
        "retries" => "int4[]",
        _ => "text[]",
    }
}

/// A moment from microseconds since 1970, as the tables hold it: UTC without saying so.
fn date(micros: &str) -> String {
    format!("timestamp '1970-01-01' + {micros} * interval '1 microsecond'")
}

fn store(tables: &Tables, number: &Number) -> String {
    let columns = tables.columns();
    let parameters: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| format!("${}::{}", at + 1, parameter_type(column)))
        .collect();
    let selected: Vec<String> = columns
        .iter()
        .map(|column| match *column {
            "date_done" => date("date_done"),
            other => other.to_owned(),
        })
        .collect();
    let updated: Vec<String> = columns[1..]
        .iter()
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    format!(
        "INSERT INTO {table} AS stored ({into}{names})
         SELECT {value}{selected} FROM unnest({parameters}) AS given ({names})
         ON CONFLICT (task_id) DO UPDATE SET {updated}
         WHERE stored.status IS DISTINCT FROM 'SUCCESS'",
        table = tables.task.quoted(quote),
        into = number.column(),
        value = number.value(),
        names = columns.join(", "),
        selected = selected.join(", "),
        parameters = parameters.join(", "),
        updated = updated.join(", "),
    )
}

fn rows(tables: &Tables) -> String {
    let selected: Vec<&str> = tables
        .columns()
        .into_iter()
        .map(|column| match column {
            "date_done" => "(extract(epoch FROM date_done) * 1000000)::int8",
            other => other,
        })
        .collect();
    format!(
        "SELECT {} FROM {} WHERE task_id = ANY($1::text[])",
        selected.join(", "),
        tables.task.quoted(quote)
    )
}

fn save_group(tables: &Tables, number: &Number) -> String {
    format!(
        "INSERT INTO {table} ({into}taskset_id, result, date_done)
         VALUES ({value}$1, $2, {date})
         ON CONFLICT (taskset_id) DO UPDATE SET result = excluded.result,
         date_done = excluded.date_done",
        table = tables.group.quoted(quote),
        into = number.column(),
        value = number.value(),
        date = date("$3::int8"),
    )
}

/// Where a row's number comes from.
enum Number {
    /// The column counts by itself: somebody else made the table.
    Default,
    /// The sequence of this name, quoted, as SQLAlchemy has it.
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
            Self::Sequence(name) => format!("nextval('{}'), ", name.replace('\'', "''")),
        }
    }
}

async fn number(connection: &Connection, table: &Table) -> Result<Number, Error> {
    let name = table.quoted(quote);
    let parameters: [&(dyn ToSql + Sync); 1] = [&name];
    let asked = connection.query_opt(
        "SELECT atthasdef OR attidentity <> '' FROM pg_attribute
         WHERE attrelid = to_regclass($1) AND attname = 'id'",
        &parameters,
    );
    let row = connection.answer(asked).await.map_err(backend_error)?;
    let has_default = row.map_or(Ok(false), |row| get(&row, 0))?;
    Ok(if has_default {
        Number::Default
    } else {
        Number::Sequence(table.within(table.sequence, quote))
    })
}

async fn has_tables(connection: &Connection, tables: &Tables) -> Result<bool, Error> {
    let names = [&tables.task, &tables.group].map(|table| table.quoted(quote));
    let parameters: [&(dyn ToSql + Sync); 2] = [&names[0], &names[1]];
    let asked = connection.query_one(
        "SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL",
        &parameters,
    );
    get(&connection.answer(asked).await.map_err(backend_error)?, 0)
}

fn create(tables: &Tables) -> String {
    let one = |table: &Table, columns: &str, unique: &str| {
        let name = table.quoted(quote);
        format!(
            "CREATE SEQUENCE IF NOT EXISTS {sequence};
             CREATE TABLE IF NOT EXISTS {name} (
                id INTEGER NOT NULL, {columns}, PRIMARY KEY (id), UNIQUE ({unique})
             );
             CREATE INDEX IF NOT EXISTS {index} ON {name} (date_done);",
            sequence = table.within(table.sequence, quote),
            index = quote(table.index),
        )
    };
    let added: Vec<String> = tables
        .columns()
        .into_iter()
        .map(|column| {
            format!(
                "ADD COLUMN IF NOT EXISTS {column} {}",
                tables::added_type(column, &TYPES)
            )
        })
        .skip_while(|added| !added.contains(" children "))
        .collect();
    let columns = tables::task_columns(&TYPES, tables.is_extended);
    let group = "taskset_id VARCHAR(155), result BYTEA, date_done TIMESTAMP WITHOUT TIME ZONE";
    format!(
        "{} {} ALTER TABLE {} {};",
        one(&tables.task, &columns, "task_id"),
        one(&tables.group, group, "taskset_id"),
        tables.task.quoted(quote),
        added.join(", ")
    )
}

fn read(row: &tokio_postgres::Row, is_extended: bool) -> Result<Row, Error> {
    let done: Option<i64> = get(row, 3)?;
    let extended = if is_extended {
        Extended {
            name: get(row, 6)?,
            args: get(row, 7)?,
            kwargs: get(row, 8)?,
            worker: get(row, 9)?,
            retries: get(row, 10)?,
            queue: get(row, 11)?,
            stamps: get(row, 12)?,
        }
    } else {
        Extended::default()
    };
    Ok(Row {
        task_id: get(row, 0)?,
        status: get::<Option<String>>(row, 1)?.unwrap_or_default(),
        result: get(row, 2)?,
        date_done: done.and_then(|micros| Timestamp::from_microsecond(micros).ok()),
        traceback: get(row, 4)?,
        children: get(row, 5)?,
        extended,
    })
}

fn get<'r, T: FromSql<'r>>(row: &'r tokio_postgres::Row, at: usize) -> Result<T, Error> {
    row.try_get(at).map_err(|error| {
        Error::new(
            ErrorKind::Refused,
            format!("a table of results is not Celery's: {error}"),
        )
    })
}

/// `name` as an SQL identifier.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
