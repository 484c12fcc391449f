//! The thread that owns the connection to the database.
//!
//! SQLite's calls block; one thread makes them all, one after the other, so that nothing else of
//! the worker ever waits for a disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::{mpsc, oneshot};

/// How long to wait for another process's transaction, as SQLAlchemy's driver does.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Work that waits for the thread: the consumer asks for one thing at a time.
const QUEUED_WORK: usize = 16;

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the thread. The connection closes when the last handle is gone.
#[derive(Clone)]
pub struct Database {
    work: mpsc::Sender<Work>,
    path: PathBuf,
}

impl Database {
    /// Opens the database and makes what is missing of `schema`.
    ///
    /// # Errors
    /// When it can't be opened.
    pub async fn open(path: PathBuf, schema: String) -> Result<Self, Error> {
        let (work, mut queue) = mpsc::channel::<Work>(QUEUED_WORK);
        let (opened, is_open) = oneshot::channel();
        let at = path.clone();
        std::thread::Builder::new()
            .name("sqlite".to_owned())
            .spawn(move || match connect(&at, &schema) {
                Err(error) => drop(opened.send(Err(broker_error(&error, &at)))),
                Ok(mut connection) => {
                    drop(opened.send(Ok(())));
                    while let Some(work) = queue.blocking_recv() {
                        work(&mut connection);
                    }
                }
            })
            .map_err(|error| Error::new(ErrorKind::Connection, error.to_string()))?;
        is_open.await.unwrap_or_else(|_| Err(gone()))?;
        Ok(Self { work, path })
    }

    /// Runs `work` on the thread.
    ///
    /// # Errors
    /// What SQLite said.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, result) = oneshot::channel();
        let job: Work = Box::new(move |connection| drop(done.send(work(connection))));
        self.work.send(job).await.map_err(|_| gone())?;
        match result.await {
            Ok(result) => result.map_err(|error| broker_error(&error, &self.path)),
            Err(_) => Err(gone()),
        }
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Connection,
        "the thread of the database has ended",
    )
}

fn connect(path: &Path, schema: &str) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Readers and a writer side by side. It stays with the file: Python's producers use it too.
    connection.pragma_update(None, "journal_mode", "wal")?;
    // A claim or an acknowledgement that a power cut undoes is made again; only publishing waits
    // for the disk (see `publish`).
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.execute_batch(schema)?;
    Ok(connection)
}

/// What SQLite says, in the worker's kinds.
fn broker_error(error: &rusqlite::Error, path: &Path) -> Error {
    let message = format!("{}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::new(
            ErrorKind::Full,
            format!("no room for the broker's database: {message}"),
        )
        .with_hint("make room on that file system: consuming goes on by itself then"),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            Error::new(ErrorKind::Connection, message).with_hint(
                "the folder of the broker's database must exist and be writable for the worker",
            )
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::new(ErrorKind::Configuration, message)
                .with_hint("broker_url names a file that is not (or no longer) an SQLite database")
        }
        _ => Error::new(ErrorKind::Connection, message),
    }
}
