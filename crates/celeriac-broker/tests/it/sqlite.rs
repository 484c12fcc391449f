use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_broker::{Options, open};
use celeriac_core::Broker;
use celeriac_core::broker::{ErrorKind, Want};
use celeriac_core::queue::Queue;
use celeriac_core::revokes::KeptRevokes;
use celeriac_testing::conformance::broker::{self, Fixture, message};
use celeriac_testing::conformance::{limits, publisher};
use rusqlite::Connection;

use crate::as_python_keeps;
use crate::sql::{self, Database};

/// Longer than any transaction of others takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Sqlite {
    path: PathBuf,
    options: Options,
}

impl Sqlite {
    fn new(folder: &Path) -> Self {
        Self {
            path: folder.join("queue.db"),
            options: Options::default(),
        }
    }

    fn url(&self) -> String {
        format!("sqla+sqlite:///{}", self.path.display())
    }
}

#[async_trait]
impl Fixture for Sqlite {
    fn broker(&self) -> Arc<dyn Broker> {
        open(&self.url(), &self.options).unwrap()
    }

    async fn publish_rubbish(&self, queue: &str, bytes: &[u8]) -> Option<()> {
        let text = std::str::from_utf8(bytes).unwrap();
        let connection = Connection::open(&self.path).unwrap();
        connection
            .execute(
                "INSERT INTO kombu_message (visible, payload, version, queue_id)
                 VALUES (1, ?1, 1, (SELECT id FROM kombu_queue WHERE name = ?2))",
                [text, queue],
            )
            .unwrap();
        Some(())
    }
}

impl Database for Sqlite {
    fn execute(&self, sql: &str) -> String {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        if sql.starts_with("SELECT") {
            let first = connection.query_row(sql, [], |row| row.get::<_, i64>(0));
            return first.unwrap().to_string();
        }
        connection.execute_batch(sql).unwrap();
        String::new()
    }

    fn cut(&self, event: &str, table: &str) -> String {
        format!(
            "CREATE TRIGGER cut BEFORE {event} ON {table}
             BEGIN SELECT RAISE (ABORT, 'cut short'); END"
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delays_and_dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    sql::run(&Sqlite::new(folder.path())).await;
}

#[tokio::test]
async fn publishing() {
    let folder = tempfile::tempdir().unwrap();
    publisher::run(&Sqlite::new(folder.path())).await;
}

#[tokio::test]
async fn conformance() {
    let folder = tempfile::tempdir().unwrap();
    broker::run(&Sqlite::new(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits() {
    let folder = tempfile::tempdir().unwrap();
    limits::run(&Sqlite::new(folder.path()).broker().limits().unwrap()).await;
}

#[tokio::test]
async fn conformance_with_other_table_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut sqlite = Sqlite::new(folder.path());
    for (option, name) in [
        ("queue_tablename", "my queues"),
        ("message_tablename", "my \"messages\""),
    ] {
        sqlite
            .options
            .transport
            .insert(option.to_owned(), name.into());
    }
    let session = sqlite.broker().connect().await.unwrap();
    session.close().await.unwrap();
}

/// Puts a row that is no text on the queue, and has a worker take it that dies.
#[tokio::test]
async fn what_is_no_text_comes_back_like_everything_else() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::new(folder.path());
    let queue = Queue::direct("q");
    let mut dying = sqlite.broker().connect().await.unwrap();
    dying.declare(&queue).await.unwrap();
    dying.subscribe(&queue).await.unwrap();
    let connection = Connection::open(&sqlite.path).unwrap();
    connection
        .execute(
            "INSERT INTO kombu_message (visible, payload, version, queue_id)
             VALUES (1, x'ff00fe', 1, (SELECT id FROM kombu_queue WHERE name = 'q'))",
            [],
        )
        .unwrap();
    let want = Want {
        runnable: 1,
        total: 1,
    };
    dying.maintain().await.unwrap();
    let taken = dying.exchange(&[], want).await.unwrap();
    assert_eq!(
        taken[0].message.as_ref().unwrap_err().raw,
        [0xff, 0, 0xfe][..]
    );
    // Dead for longer than the machine runs.
    connection
        .execute("UPDATE celeriac_worker SET seen = -1000", [])
        .unwrap();
    let mut other = sqlite.broker().connect().await.unwrap();
    other.subscribe(&queue).await.unwrap();
    assert_eq!(other.maintain().await.unwrap().restored, 1);
    let again = other.exchange(&[], want).await.unwrap();
    assert_eq!(again[0].tag, taken[0].tag);
    // The one that was taken for dead lives after all, and hears of it.
    assert_eq!(dying.maintain().await.unwrap().lost, [taken[0].tag]);
    assert_eq!(dying.maintain().await.unwrap().lost, []);
}

#[tokio::test]
async fn a_lease_of_a_worker_that_nobody_knows_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::new(folder.path());
    let queue = Queue::direct("q");
    let mut unknown = sqlite.broker().connect().await.unwrap();
    unknown.declare(&queue).await.unwrap();
    unknown.subscribe(&queue).await.unwrap();
    unknown.publish("q", &message(1)).await.unwrap();
    let want = Want {
        runnable: 1,
        total: 1,
    };
    assert_eq!(unknown.exchange(&[], want).await.unwrap().len(), 1);
    let connection = Connection::open(&sqlite.path).unwrap();
    connection
        .execute("DELETE FROM celeriac_worker", [])
        .unwrap();
    let mut other = sqlite.broker().connect().await.unwrap();
    assert_eq!(other.maintain().await.unwrap().restored, 1);
}

#[tokio::test]
async fn what_is_no_database_is_refused_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::new(folder.path());
    std::fs::write(
        &sqlite.path,
        "this is a text file, and not a short one ".repeat(100),
    )
    .unwrap();
    let error = sqlite.broker().connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Configuration, "{error}");
    assert!(
        error
            .hint
            .unwrap()
            .contains("not (or no longer) an SQLite database")
    );
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let error = open(
        "sqla+sqlite:////does/not/exist/queue.db",
        &Options::default(),
    )
    .unwrap()
    .connect()
    .await
    .err()
    .unwrap();
    assert!(
        error.to_string().contains("/does/not/exist/queue.db"),
        "{error}"
    );
    assert!(error.hint.unwrap().contains("folder"));
}

#[test]
fn other_databases_and_memory_are_refused() {
    for url in [
        "sqla+oracle://u:secret@h/db",
        "sqla+sqlite://",
        "sqlite:///:memory:",
    ] {
        let error = open(url, &Options::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Configuration, "{url}");
        assert!(!error.to_string().contains("secret"));
    }
}

#[tokio::test]
async fn revokes_are_read_as_python_has_kept_them() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::new(folder.path());
    let mut session = sqlite.broker().connect().await.unwrap();
    let none = session.revokes(0.0).await.unwrap();
    assert_eq!(none, KeptRevokes::default(), "there is no table yet");
    Connection::open(&sqlite.path)
        .unwrap()
        .execute_batch(&as_python_keeps("FLOAT"))
        .unwrap();
    let kept = session.revokes(1000.5).await.unwrap();
    assert_eq!(kept.ids, ["b", "a", "ünïcode"]);
    assert_eq!(kept.headers, [r#"["who", "x"]"#]);
    assert_eq!(
        session.revokes(3000.0).await.unwrap(),
        KeptRevokes::default()
    );
    session.close().await.unwrap();
}
