//! Results in databases.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::Backend;
use celeriac_core::backend::{ErrorKind, Settings};
use celeriac_testing::conformance::backend::{self, Fixture, meta, stored};
use celeriac_testing::server::{MariadbServer, PostgresServer};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

struct Database {
    url: String,
    settings: Settings,
    is_mariadb: bool,
}

impl Database {
    fn new(url: String) -> Self {
        Self {
            is_mariadb: url.contains("mysql"),
            url,
            settings: Settings {
                extended: true,
                ..Settings::default()
            },
        }
    }
}

impl Fixture for Database {
    fn open(&self) -> Arc<dyn Backend> {
        celeriac_backend::open(&self.url, self.settings.clone()).unwrap()
    }

    // The tables have no columns for them.
    fn keeps_relations(&self) -> bool {
        false
    }

    fn keeps_microseconds(&self) -> bool {
        !self.is_mariadb
    }

    fn keeps_long_results(&self) -> bool {
        !self.is_mariadb
    }
}

fn sqlite() -> (TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("db+sqlite:///{}/results.db", folder.path().display());
    (folder, Database::new(url))
}

fn postgres(server: &PostgresServer) -> Database {
    let url = server.url(&server.create_database());
    Database::new(format!("db+{url}"))
}

fn mariadb(server: &MariadbServer) -> Database {
    let url = server.url(&server.create_database());
    Database::new(format!("db+{url}"))
}

#[tokio::test]
async fn sqlite_behaves_as_every_backend_does() {
    let (_folder, database) = sqlite();
    backend::run(&database).await;
    particulars(&database).await;
}

#[tokio::test]
async fn postgresql_behaves_as_every_backend_does() {
    let server = PostgresServer::shared();
    let database = postgres(&server);
    backend::run(&database).await;
    particulars(&database).await;
}

#[tokio::test]
async fn mariadb_behaves_as_every_backend_does() {
    let server = MariadbServer::shared();
    let database = mariadb(&server);
    backend::run(&database).await;
    particulars(&database).await;
}

async fn particulars(database: &Database) {
    tables_may_have_other_names(database).await;
    columns_that_are_missing_are_added(database).await;
    what_has_expired_is_deleted(database).await;
    many_make_the_tables_at_once(database).await;
}

fn with(database: &Database, options: Value, extended: bool) -> Arc<dyn Backend> {
    let Value::Object(options) = options else {
        unreachable!()
    };
    let settings = Settings {
        options,
        extended,
        ..database.settings.clone()
    };
    celeriac_backend::open(&database.url, settings).unwrap()
}

async fn is_kept(backend: &dyn Backend, id: &str) -> bool {
    backend.get(&[id.to_owned()]).await.unwrap()[0].is_some()
}

async fn tables_may_have_other_names(database: &Database) {
    let names = json!({"database_table_names": {"task": "My tasks", "group": "My groups"}});
    let other = with(database, names, false);
    let result = meta("elsewhere", "SUCCESS", json!(1));
    other.store(&[stored(&result)]).await.unwrap();
    other.save_group("elsewhere", &json!([1])).await.unwrap();
    assert!(is_kept(&*other, "elsewhere").await);
    assert!(!is_kept(&*database.open(), "elsewhere").await);
    let group = database.open().group("elsewhere").await.unwrap();
    assert_eq!(group, None);
}

async fn columns_that_are_missing_are_added(database: &Database) {
    let names = json!({"database_table_names": {"task": "grown", "group": "grown_groups"}});
    let plain = with(database, names.clone(), false);
    let before = meta("before", "SUCCESS", json!(1));
    plain.store(&[stored(&before)]).await.unwrap();
    let extended = with(database, names, true);
    let mut after = meta("after", "SUCCESS", json!(1));
    after.extended = Map::from_iter([("worker".to_owned(), json!("w@h"))]);
    extended.store(&[stored(&after)]).await.unwrap();
    let ids = ["before".to_owned(), "after".to_owned()];
    let found = extended.get(&ids).await.unwrap();
    assert_eq!(found, [Some(before), Some(after)]);
}

async fn what_has_expired_is_deleted(database: &Database) {
    let settings = Settings {
        expires: Some(Duration::from_hours(1)),
        ..database.settings.clone()
    };
    let backend = celeriac_backend::open(&database.url, settings).unwrap();
    let mut old = meta("old", "SUCCESS", json!(1));
    old.date_done = Some("2001-01-01T00:00:00Z".parse().unwrap());
    let mut new = meta("new", "SUCCESS", json!(1));
    new.date_done = Some(jiff::Timestamp::now());
    let runs = meta("runs", "STARTED", json!(1));
    let results = [&old, &new, &runs].map(stored);
    backend.store(&results).await.unwrap();
    backend.save_group("new", &json!([1])).await.unwrap();
    backend.cleanup().await.unwrap();
    assert!(!is_kept(&*backend, "old").await);
    assert!(is_kept(&*backend, "new").await);
    assert!(is_kept(&*backend, "runs").await);
    assert!(backend.group("new").await.unwrap().is_some());
}

async fn many_make_the_tables_at_once(database: &Database) {
    let names = json!({"database_table_names": {"task": "made", "group": "made_groups"}});
    let mut making = tokio::task::JoinSet::new();
    for number in 0..5 {
        let backend = with(database, names.clone(), true);
        making.spawn(async move {
            let result = meta(&format!("made-{number}"), "SUCCESS", json!(number));
            backend.store(&[stored(&result)]).await
        });
    }
    while let Some(made) = making.join_next().await {
        made.unwrap().unwrap();
    }
}

#[tokio::test]
async fn schemas_are_used() {
    let server = PostgresServer::shared();
    let database = postgres(&server);
    let name = database.url.rsplit('/').next().unwrap().to_owned();
    server.execute(&name, "CREATE SCHEMA one; CREATE SCHEMA two");
    let schemas = json!({"database_table_schemas": {"task": "one", "group": "two"}});
    let backend = with(&database, schemas, false);
    let result = meta("a", "SUCCESS", json!(1));
    backend.store(&[stored(&result)]).await.unwrap();
    backend.save_group("g", &json!([1])).await.unwrap();
    let found = server.execute(
        &name,
        "SELECT count(*) FROM one.celery_taskmeta, two.celery_tasksetmeta",
    );
    assert!(found.contains('1'), "{found}");
}

#[tokio::test]
async fn a_long_result_is_refused_with_a_remedy() {
    let server = MariadbServer::shared();
    let backend = mariadb(&server).open();
    let result = meta("long", "SUCCESS", json!("x".repeat(70_000)));
    let error = backend.store(&[stored(&result)]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.hint.unwrap().contains("LONGBLOB"));
}

#[tokio::test]
async fn a_pickle_of_an_old_version_is_told() {
    let (folder, database) = sqlite();
    let backend = database.open();
    let result = meta("p", "SUCCESS", json!(1));
    backend.store(&[stored(&result)]).await.unwrap();
    let file = rusqlite::Connection::open(folder.path().join("results.db")).unwrap();
    file.execute("UPDATE celery_taskmeta SET result = x'80049503'", ())
        .unwrap();
    for error in [
        backend.get(&["p".to_owned()]).await.unwrap_err(),
        backend.changed("p", None).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unreadable);
        assert!(error.message.contains("pickle"), "{error}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (url, word) in [
        ("db+sqlite://", "memory"),
        ("db+oracle://u:secret@h/db", "oracle"),
        ("db+mysql://u:secret@h/", "database"),
        ("db+postgresql://u:secret@h/db?sslmode=maybe", "sslmode"),
    ] {
        let error = celeriac_backend::open(url, Settings::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Configuration, "{url}");
        assert!(error.message.contains(word), "{error}");
        assert!(!format!("{error:?}").contains("secret"));
        assert!(!format!("{error:?}").contains("broker_url"));
    }
}
