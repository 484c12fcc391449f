//! SQLite: results with no server.

use std::path::PathBuf;

use async_trait::async_trait;
use celeriac_broker::sql::file;
use celeriac_broker::sql::sqlite::Database;
use celeriac_core::backend::Error;
use celeriac_net::ServerUrl;
use celeriac_protocol::timestamp;
use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, ToSql, params_from_iter};
use tokio::sync::Mutex;

use super::Engine;
use super::error::backend_error;
use super::row::{Extended, Row};
use super::tables::{self, Table, Tables, Types};
use crate::options::invalid;

const TYPES: Types = Types {
    blob: "BLOB",
    date: "DATETIME",
};

/// A file that holds results.
pub(super) struct Sqlite {
    path: PathBuf,
    tables: Tables,
    database: Mutex<Option<Database>>,
}

impl Sqlite {
    pub(super) fn new(url: &ServerUrl, tables: Tables) -> Result<Self, Error> {
        let path = file(url);
        if matches!(path.to_str(), Some("" | ":memory:")) {
            return Err(invalid(&"a database in memory can't be shared")
                .with_hint("name a file: db+sqlite:///results.db"));
        }
        Ok(Self {
            path: path.to_owned(),
            tables,
            database: Mutex::default(),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection, &Tables) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let database = {
            let mut open = self.database.lock().await;
            match &*open {
                Some(database) => database.clone(),
                None => open.insert(self.open().await?).clone(),
            }
        };
        let tables = self.tables.clone();
        let done = database.run(move |connection| work(connection, &tables));
        done.await.map_err(backend_error)
    }

    async fn open(&self) -> Result<Database, Error> {
        let schema = if self.tables.are_made {
            create(&self.tables)
        } else {
            String::new()
        };
        let database = Database::open(self.path.clone(), schema)
            .await
            .map_err(backend_error)?;
        let tables = self.tables.clone();
        let prepared = database.run(move |connection| {
            // A result that was stored survives a power cut.
            connection.pragma_update(None, "synchronous", "full")?;
            add_columns(connection, &tables)
        });
        prepared.await.map_err(backend_error)?;
        Ok(database)
    }
}

#[async_trait]
impl Engine for Sqlite {
    async fn store(&self, rows: &[Row]) -> Result<(), Error> {
        let rows = rows.to_vec();
        self.run(move |connection, tables| {
            let columns = tables.columns();
            let updated: Vec<String> = columns[1..]
                .iter()
                .map(|column| format!("{column} = excluded.{column}"))
                .collect();
            let table = tables.task.quoted(quote);
            let statement = format!(
                "INSERT INTO {table} ({}) VALUES ({}) ON CONFLICT (task_id) DO UPDATE SET {}
                 WHERE {table}.status IS NOT 'SUCCESS'",
                columns.join(", "),
                vec!["?"; columns.len()].join(", "),
                updated.join(", "),
            );
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            {
                let mut insert = transaction.prepare_cached(&statement)?;
                for row in &rows {
                    insert.execute(params_from_iter(values(row, columns.len())))?;
                }
            }
            transaction.commit()
        })
        .await
    }

    async fn rows(&self, ids: &[String]) -> Result<Vec<Row>, Error> {
        let ids = ids.to_vec();
        self.run(move |connection, tables| {
            let statement = format!(
                "SELECT {} FROM {} WHERE task_id IN ({})",
                tables.columns().join(", "),
                tables.task.quoted(quote),
                vec!["?"; ids.len()].join(", "),
            );
            let mut select = connection.prepare_cached(&statement)?;
            let rows =
                select.query_map(params_from_iter(&ids), |row| read(row, tables.is_extended))?;
            rows.collect()
        })
        .await
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        let ids = ids.to_vec();
        self.run(move |connection, tables| {
            let statement = format!(
                "DELETE FROM {} WHERE task_id IN ({})",
                tables.task.quoted(quote),
                vec!["?"; ids.len()].join(", "),
            );
            connection.execute(&statement, params_from_iter(&ids))?;
            Ok(())
        })
        .await
    }

    async fn save_group(&self, id: &str, members: &[u8], at: Timestamp) -> Result<(), Error> {
        let (id, members) = (id.to_owned(), members.to_vec());
        self.run(move |connection, tables| {
            let statement = format!(
                "INSERT INTO {} (taskset_id, result, date_done) VALUES (?, ?, ?)
                 ON CONFLICT (taskset_id) DO UPDATE SET result = excluded.result,
                 date_done = excluded.date_done",
                tables.group.quoted(quote)
            );
            connection.execute(&statement, (id, members, date(at)))?;
            Ok(())
        })
        .await
    }

    async fn group(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let id = id.to_owned();
        self.run(move |connection, tables| {
            let statement = format!(
                "SELECT result FROM {} WHERE taskset_id = ?",
                tables.group.quoted(quote)
            );
            let mut select = connection.prepare_cached(&statement)?;
            let mut rows = select.query([id])?;
            rows.next()?.map_or(Ok(None), |row| row.get(0))
        })
        .await
    }

    async fn forget_group(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.run(move |connection, tables| {
            let table = tables.group.quoted(quote);
            connection.execute(&format!("DELETE FROM {table} WHERE taskset_id = ?"), [id])?;
            Ok(())
        })
        .await
    }

    async fn cleanup(&self, before: Timestamp) -> Result<(), Error> {
        self.run(move |connection, tables| {
            for table in [&tables.task, &tables.group] {
                let statement = format!("DELETE FROM {} WHERE date_done < ?", table.quoted(quote));
                connection.execute(&statement, [date(before)])?;
            }
            Ok(())
        })
        .await
    }
}

/// As SQLAlchemy writes a moment.
fn date(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string()
}

fn values(row: &Row, count: usize) -> Vec<Value> {
    let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::Text);
    let blob = |bytes: &Option<Vec<u8>>| bytes.clone().map_or(Value::Null, Value::Blob);
    let extended = &row.extended;
    let mut values = vec![
        Value::Text(row.task_id.clone()),
        Value::Text(row.status.clone()),
        blob(&row.result),
        text(&row.date_done.map(date)),
        text(&row.traceback),
        blob(&row.children),
        text(&extended.name),
        blob(&extended.args),
        blob(&extended.kwargs),
        text(&extended.worker),
        extended
            .retries
            .map_or(Value::Null, |retries| Value::Integer(retries.into())),
        text(&extended.queue),
        blob(&extended.stamps),
    ];
    values.truncate(count);
    values
}

fn read(row: &rusqlite::Row<'_>, is_extended: bool) -> rusqlite::Result<Row> {
    let extended = if is_extended {
        Extended {
            name: row.get(6)?,
            args: bytes(row, 7)?,
            kwargs: bytes(row, 8)?,
            worker: row.get(9)?,
            retries: row.get(10)?,
            queue: row.get(11)?,
            stamps: bytes(row, 12)?,
        }
    } else {
        Extended::default()
    };
    let done: Option<String> = row.get(3)?;
    Ok(Row {
        task_id: row.get(0)?,
        status: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
        result: bytes(row, 2)?,
        date_done: done.and_then(|text| timestamp::parse(&text.replacen(' ', "T", 1)).ok()),
        traceback: row.get(4)?,
        children: bytes(row, 5)?,
        extended,
    })
}

/// A column that holds bytes, or text where somebody else wrote it.
fn bytes(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Option<Vec<u8>>> {
    Ok(match row.get::<_, Value>(at)? {
        Value::Blob(bytes) => Some(bytes),
        Value::Text(text) => Some(text.into_bytes()),
        _ => None,
    })
}

fn create(tables: &Tables) -> String {
    let one = |table: &Table, columns: &str, unique: &str| {
        let index = table.within(table.index, quote);
        format!(
            "CREATE TABLE IF NOT EXISTS {name} (
                id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, {columns}, UNIQUE ({unique})
             );
             CREATE INDEX IF NOT EXISTS {index} ON {bare} (date_done);",
            name = table.quoted(quote),
            bare = quote(&table.name),
        )
    };
    one(
        &tables.task,
        &tables::task_columns(&TYPES, tables.is_extended),
        "task_id",
    ) + &one(
        &tables.group,
        "taskset_id VARCHAR(155), result BLOB, date_done DATETIME",
        "taskset_id",
    )
}

/// Adds the columns that the table of an older version does not have.
fn add_columns(connection: &Connection, tables: &Tables) -> rusqlite::Result<()> {
    let statement = "SELECT name FROM pragma_table_info(?1)";
    let mut select = connection.prepare(statement)?;
    let name: &dyn ToSql = &tables.task.name;
    let found: Vec<String> = select
        .query_map([name], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for column in tables.columns() {
        if !found.iter().any(|known| known == column) {
            let kind = tables::added_type(column, &TYPES);
            let table = tables.task.quoted(quote);
            connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"))?;
        }
    }
    Ok(())
}

/// `name` as an SQL identifier.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
