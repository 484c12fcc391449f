use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_broker::{Options, open};
use celeriac_core::Broker;
use celeriac_core::broker::{DeliveryTag, ErrorKind, Fate, Session, Settlement, Want};
use celeriac_core::queue::Queue;
use celeriac_core::revokes::KeptRevokes;
use celeriac_testing::conformance::broker::{self, Fixture, message};
use celeriac_testing::conformance::{limits, publisher};
use celeriac_testing::server::MariadbServer;
use tokio::time::{Instant, timeout};

use crate::as_python_keeps;
use crate::sql::{self, Database};

/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Mariadb {
    server: Arc<MariadbServer>,
    database: String,
    options: Options,
}

impl Mariadb {
    fn new() -> Self {
        let server = MariadbServer::shared();
        let database = server.create_database();
        Self {
            server,
            database,
            options: Options::default(),
        }
    }

    fn url(&self) -> String {
        format!("sqla+{}", self.server.url(&self.database))
    }

    fn execute(&self, sql: &str) -> String {
        self.server.execute(&self.database, sql)
    }

    async fn session(&self) -> Box<dyn Session> {
        self.broker().connect().await.unwrap()
    }

    async fn consumer(&self, queue: &str) -> Box<dyn Session> {
        let mut session = self.session().await;
        let queue = Queue::direct(queue);
        session.declare(&queue).await.unwrap();
        session.subscribe(&queue).await.unwrap();
        session
    }
}

impl Database for Mariadb {
    fn execute(&self, sql: &str) -> String {
        Self::execute(self, sql)
    }

    fn cut(&self, event: &str, table: &str) -> String {
        format!(
            "CREATE TRIGGER cut BEFORE {event} ON {table} FOR EACH ROW
             SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'cut short'"
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delays_and_dead_letters() {
    sql::run(&Mariadb::new()).await;
}

#[async_trait]
impl Fixture for Mariadb {
    fn broker(&self) -> Arc<dyn Broker> {
        open(&self.url(), &self.options).unwrap()
    }

    async fn publish_rubbish(&self, queue: &str, bytes: &[u8]) -> Option<()> {
        let mut literal = String::from("x'");
        for byte in bytes {
            write!(literal, "{byte:02x}").unwrap();
        }
        literal.push('\'');
        self.execute(&as_kombu_puts(queue, &literal));
        Some(())
    }
}

#[tokio::test]
async fn a_claim_that_fails_in_its_last_statement_is_none() {
    let mariadb = Mariadb::new();
    let mut session = mariadb.consumer("q").await;
    session.publish("q", &message(1)).await.unwrap();
    mariadb.execute(&mariadb.cut("UPDATE", "kombu_message"));
    let error = session.exchange(&[], want(1)).await.unwrap_err();
    assert!(error.message.contains("cut short"), "{error}");
    mariadb.execute(&mariadb.mend("kombu_message"));
    // The transaction has ended: over the same connection all goes on.
    assert_eq!(session.maintain().await.unwrap().lost, []);
    assert_eq!(session.exchange(&[], want(9)).await.unwrap().len(), 1);
}

/// What kombu's SQLAlchemy transport executes to put a payload, an SQL expression, into a queue that
/// exists.
fn as_kombu_puts(queue: &str, payload: &str) -> String {
    format!(
        "INSERT INTO kombu_message (id, visible, timestamp, payload, version, queue_id)
         VALUES (nextval(message_id_sequence), 1, NULL, {payload}, 1,
                 (SELECT id FROM kombu_queue WHERE name = '{queue}'))"
    )
}

/// What kombu executes to take the next message; it is never deleted.
const AS_KOMBU_TAKES: &str = "START TRANSACTION;
    SET @id = (SELECT id FROM kombu_message WHERE visible != false
               ORDER BY timestamp, id LIMIT 1 FOR UPDATE);
    UPDATE kombu_message SET visible = 0, timestamp = NOW(), version = version + 1 WHERE id = @id;
    SELECT @id;
    COMMIT;";

fn want(count: usize) -> Want {
    Want {
        runnable: count,
        total: count,
    }
}

fn ack(tag: DeliveryTag) -> Settlement {
    Settlement {
        tag,
        fate: Fate::Ack,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing() {
    publisher::run(&Mariadb::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance() {
    broker::run(&Mariadb::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits() {
    limits::run(&Mariadb::new().broker().limits().unwrap()).await;
}

#[tokio::test]
async fn conformance_with_other_table_names() {
    let mut mariadb = Mariadb::new();
    for (option, name) in [
        ("queue_tablename", "my queues"),
        ("message_tablename", "my `messages`"),
    ] {
        mariadb
            .options
            .transport
            .insert(option.to_owned(), name.into());
    }
    let mut session = mariadb.consumer("q").await;
    session.publish("q", &message(1)).await.unwrap();
    assert_eq!(session.exchange(&[], want(1)).await.unwrap().len(), 1);
    session.close().await.unwrap();
}

#[tokio::test]
async fn tables_that_kombu_has_made_are_used() {
    let mariadb = Mariadb::new();
    // To the letter what SQLAlchemy executes for kombu's models.
    mariadb.execute(
        "CREATE SEQUENCE queue_id_sequence;
        CREATE TABLE kombu_queue (
            id INTEGER NOT NULL, name VARCHAR(200), PRIMARY KEY (id), UNIQUE (name)
        ) ENGINE=InnoDB;
        CREATE SEQUENCE message_id_sequence;
        CREATE TABLE kombu_message (
            id INTEGER NOT NULL, visible BOOL, timestamp DATETIME,
            payload TEXT NOT NULL, version SMALLINT NOT NULL, queue_id INTEGER,
            PRIMARY KEY (id),
            CONSTRAINT `FK_kombu_message_queue` FOREIGN KEY(queue_id) REFERENCES kombu_queue (id)
        ) ENGINE=InnoDB;
        CREATE INDEX ix_kombu_message_timestamp ON kombu_message (timestamp);
        CREATE INDEX ix_kombu_message_visible ON kombu_message (visible);
        CREATE INDEX ix_kombu_message_timestamp_id ON kombu_message (timestamp, id);
        INSERT INTO kombu_queue (id, name) VALUES (nextval(queue_id_sequence), 'q')",
    );
    mariadb.execute(&as_kombu_puts("q", "'kombu''s'"));
    let mut session = mariadb.consumer("q").await;
    let deliveries = session.exchange(&[], want(1)).await.unwrap();
    assert_eq!(
        deliveries[0].message.as_ref().unwrap_err().raw,
        "kombu's".as_bytes()
    );
}

#[tokio::test]
async fn kombus_consumers_share_the_queue() {
    let mariadb = Mariadb::new();
    let mut session = mariadb.consumer("q").await;
    for id in 0..3 {
        session.publish("q", &message(id)).await.unwrap();
    }
    let first = session.exchange(&[], want(1)).await.unwrap();
    assert_eq!(mariadb.execute(AS_KOMBU_TAKES), "2", "not what is claimed");
    let third = session.exchange(&[], want(5)).await.unwrap();
    assert_eq!(third[0].tag, DeliveryTag(3));
    session
        .exchange(&[ack(first[0].tag), ack(third[0].tag)], Want::NONE)
        .await
        .unwrap();
    assert_eq!(
        mariadb.execute("SELECT id, visible FROM kombu_message"),
        "2\t0",
        "kombu's row is kombu's"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_claim_at_once_never_get_the_same_message() {
    const MESSAGES: u32 = 600;
    let mariadb = Mariadb::new();
    let mut producer = mariadb.consumer("q").await;
    for id in 0..MESSAGES {
        producer.publish("q", &message(id)).await.unwrap();
    }
    let mut consumers = Vec::new();
    for count in [1, 2, 3, 5] {
        let mut session = mariadb.consumer("q").await;
        consumers.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            let mut done = Vec::new();
            loop {
                let deliveries = session.exchange(&done, want(count)).await.unwrap();
                if deliveries.is_empty() {
                    return seen;
                }
                seen.extend(deliveries.iter().map(|delivery| delivery.tag.0));
                done = deliveries
                    .iter()
                    .map(|delivery| ack(delivery.tag))
                    .collect();
            }
        }));
    }
    let mut seen = Vec::new();
    for consumer in consumers {
        seen.extend(timeout(PATIENCE, consumer).await.unwrap().unwrap());
    }
    assert_eq!(seen.len(), MESSAGES as usize);
    let different: BTreeSet<u64> = seen.into_iter().collect();
    assert_eq!(different.len(), MESSAGES as usize, "no message twice");
    assert_eq!(mariadb.execute("SELECT count(*) FROM kombu_message"), "0");
    assert_eq!(mariadb.execute("SELECT count(*) FROM celeriac_lease"), "0");
}

#[tokio::test]
async fn without_the_right_to_make_an_index_messages_are_found() {
    let mut mariadb = Mariadb::new();
    // The tables are there, the index is not, and they belong to somebody else.
    drop(mariadb.session().await);
    mariadb.execute(&format!(
        "ALTER TABLE kombu_message ADD KEY other (queue_id), DROP KEY celeriac_waiting;
         CREATE USER guest;
         GRANT SELECT, INSERT, UPDATE, DELETE ON {}.* TO guest",
        mariadb.database
    ));
    let url = mariadb.url().replace("root@", "guest@");
    mariadb.options = Options::default();
    let mut session = open(&url, &mariadb.options)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let queue = Queue::direct("q");
    session.subscribe(&queue).await.unwrap();
    assert!(session.exchange(&[], want(1)).await.unwrap().is_empty());
    mariadb.execute(&as_kombu_puts("q", "'kombu''s'"));
    let deadline = Instant::now() + PATIENCE;
    while session.exchange(&[], want(1)).await.unwrap().is_empty() {
        timeout(PATIENCE, session.wait()).await.unwrap().unwrap();
        assert!(Instant::now() < deadline, "the message is found");
    }
}

#[tokio::test]
async fn a_worker_that_was_taken_for_dead_hears_of_what_it_lost() {
    let mariadb = Mariadb::new();
    let mut silent = mariadb.consumer("q").await;
    let mut living = mariadb.consumer("q").await;
    silent.publish("q", &message(1)).await.unwrap();
    silent.maintain().await.unwrap();
    let taken = silent.exchange(&[], want(1)).await.unwrap();
    living.maintain().await.unwrap();
    assert_eq!(living.maintain().await.unwrap().restored, 0);
    // As if one had been silent, and the other not.
    let name = mariadb.execute("SELECT worker FROM celeriac_lease");
    mariadb.execute(&format!(
        "UPDATE celeriac_worker SET seen = seen - interval 11 second WHERE name = '{name}';
         UPDATE celeriac_worker SET since = since - interval 11 second WHERE name != '{name}'"
    ));
    assert_eq!(living.maintain().await.unwrap().restored, 1);
    let again = living.exchange(&[], want(1)).await.unwrap();
    assert_eq!(again[0].tag, taken[0].tag);
    assert!(again[0].message.as_ref().unwrap().delivery_info.redelivered);
    assert_eq!(silent.maintain().await.unwrap().lost, [taken[0].tag]);
    assert_eq!(silent.maintain().await.unwrap().lost, []);
    // Its settlement comes too late, and harms nobody.
    silent
        .exchange(&[ack(taken[0].tag)], Want::NONE)
        .await
        .unwrap();
    assert_eq!(living.maintain().await.unwrap().lost, []);
}

#[tokio::test]
async fn nobody_is_dead_while_nobody_reached_the_server() {
    let mariadb = Mariadb::new();
    let mut one = mariadb.consumer("q").await;
    let mut two = mariadb.consumer("q").await;
    one.publish("q", &message(1)).await.unwrap();
    assert_eq!(one.exchange(&[], want(1)).await.unwrap().len(), 1);
    one.maintain().await.unwrap();
    two.maintain().await.unwrap();
    for clock in ["- interval 1 hour", "+ interval 1 hour"] {
        // The server was away for an hour, or its clock was set.
        mariadb.execute(&format!(
            "UPDATE celeriac_worker SET seen = seen {clock}, since = since {clock} - interval 1 hour"
        ));
        assert_eq!(two.maintain().await.unwrap().restored, 0, "{clock}");
        let maintained = one.maintain().await.unwrap();
        assert_eq!(
            (maintained.restored, maintained.lost),
            (0, vec![]),
            "{clock}"
        );
    }
}

#[tokio::test]
async fn a_lease_of_a_worker_that_nobody_knows_is_given_back() {
    let mariadb = Mariadb::new();
    let mut unknown = mariadb.consumer("q").await;
    unknown.publish("q", &message(1)).await.unwrap();
    assert_eq!(unknown.exchange(&[], want(1)).await.unwrap().len(), 1);
    mariadb.execute("DELETE FROM celeriac_worker");
    let mut other = mariadb.session().await;
    assert_eq!(other.maintain().await.unwrap().restored, 1);
}

#[tokio::test]
async fn a_claim_whose_answer_never_came_is_given_back() {
    let mariadb = Mariadb::new();
    let mut session = mariadb.consumer("q").await;
    session.publish("q", &message(1)).await.unwrap();
    session.publish("q", &message(2)).await.unwrap();
    let known = session.exchange(&[], want(1)).await.unwrap();
    session.maintain().await.unwrap();
    // The other message is claimed by the same worker, which does not know.
    mariadb.execute(
        "UPDATE kombu_message SET visible = false WHERE visible = 1;
         INSERT IGNORE INTO celeriac_lease SELECT id, (SELECT name FROM celeriac_worker)
         FROM kombu_message",
    );
    assert_eq!(session.maintain().await.unwrap().lost, []);
    let second = session.exchange(&[], want(5)).await.unwrap();
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].tag, known[0].tag);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_a_lost_connection_and_nothing_else() {
    let mut server = MariadbServer::start();
    let database = server.create_database();
    let broker = open(
        &format!("sqla+{}", server.url(&database)),
        &Options::default(),
    )
    .unwrap();
    let queue = Queue::direct("q");
    let mut session = broker.connect().await.unwrap();
    session.subscribe(&queue).await.unwrap();
    for id in 0..4 {
        session.publish("q", &message(id)).await.unwrap();
    }
    let claimed = session.exchange(&[], want(2)).await.unwrap();
    session.maintain().await.unwrap();

    server.kill();
    let error = timeout(PATIENCE, async {
        loop {
            session.wait().await.unwrap();
            if let Err(error) = session.exchange(&[], want(1)).await {
                break error;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    let error = session.exchange(&[], want(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    let error = broker.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");

    server.restart();
    let mut session = broker.connect().await.unwrap();
    session.subscribe(&queue).await.unwrap();
    assert_eq!(session.maintain().await.unwrap().lost, []);
    let settled: Vec<Settlement> = claimed.iter().map(|delivery| ack(delivery.tag)).collect();
    let rest = session.exchange(&settled, want(10)).await.unwrap();
    assert_eq!(rest.len(), 2);
    assert_eq!(
        server.execute(&database, "SELECT count(*) FROM kombu_message"),
        "2"
    );
}

#[tokio::test]
async fn who_is_denied_and_what_does_not_exist_is_told() {
    let mariadb = Mariadb::new();
    mariadb.execute("CREATE USER locked IDENTIFIED BY 'sec ret'; CREATE USER reader");
    let port = mariadb.server.port();
    let connect = |user: &str, database: &str| {
        open(
            &format!("sqla+mysql+pymysql://{user}@127.0.0.1:{port}/{database}"),
            &Options::default(),
        )
        .unwrap()
    };
    let database = &mariadb.database;
    let denied = connect("locked:wrong-secret", database);
    let error = denied.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(!error.to_string().contains("wrong-secret"), "{error}");
    assert!(!denied.display_url().contains("wrong-secret"));

    let error = connect("root", "nowhere").connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Configuration, "{error}");
    assert!(error.hint.unwrap().contains("CREATE DATABASE"));

    // It may not use the database.
    let error = connect("locked:sec%20ret", database)
        .connect()
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");

    // It may look at the tables that there are not, and make none.
    mariadb.execute(&format!("GRANT SELECT ON {database}.* TO reader"));
    let error = connect("reader", database).connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.hint.unwrap().contains("kombu_message"));
}

#[tokio::test]
async fn a_unix_socket_is_found() {
    let mariadb = Mariadb::new();
    let url = format!(
        "sqla+mysql://root@/{}?unix_socket={}",
        mariadb.database,
        mariadb.server.socket().display()
    );
    let session = open(&url, &Options::default())
        .unwrap()
        .connect()
        .await
        .unwrap();
    session.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_workers_make_the_tables_at_once() {
    let mariadb = Arc::new(Mariadb::new());
    let mut starting = Vec::new();
    for _ in 0..8 {
        let broker = mariadb.broker();
        starting.push(tokio::spawn(async move {
            let mut session = broker.connect().await.unwrap();
            session.declare(&Queue::direct("q")).await.unwrap();
        }));
    }
    for started in starting {
        timeout(PATIENCE, started).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_read_only_server_is_left_for_the_next() {
    // A server of its own: the others go on writing.
    let server = MariadbServer::start();
    let database = server.create_database();
    server.execute("mysql", "SET GLOBAL read_only = 1");
    let url = format!("sqla+{}", server.url(&database));
    let error = open(&url, &Options::default())
        .unwrap()
        .connect()
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
}

#[tokio::test]
async fn a_message_too_long_for_kombus_column_is_refused_with_a_remedy() {
    let mariadb = Mariadb::new();
    let mut session = mariadb.consumer("q").await;
    mariadb.execute("ALTER TABLE kombu_message MODIFY payload TEXT NOT NULL");
    let mut long = message(1);
    long.body = vec![b'x'; 100_000].into();
    let error = session.publish("q", &long).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    assert!(error.hint.unwrap().contains("LONGTEXT"));
}

#[tokio::test]
async fn names_of_queues_are_told_apart_by_case() {
    let mariadb = Mariadb::new();
    let mut lower = mariadb.consumer("q").await;
    let mut upper = mariadb.consumer("Q").await;
    upper.publish("Q", &message(1)).await.unwrap();
    assert!(lower.exchange(&[], want(1)).await.unwrap().is_empty());
    assert_eq!(upper.exchange(&[], want(1)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn revokes_are_read_as_python_has_kept_them() {
    let mariadb = Mariadb::new();
    let mut session = mariadb.session().await;
    let none = session.revokes(0.0).await.unwrap();
    assert_eq!(none, KeptRevokes::default(), "there is no table yet");
    mariadb.execute(&as_python_keeps("FLOAT(53)"));
    let kept = session.revokes(1000.5).await.unwrap();
    assert_eq!(kept.ids, ["b", "a", "ünïcode"]);
    assert_eq!(kept.headers, [r#"["who", "x"]"#]);
    assert_eq!(
        session.revokes(3000.0).await.unwrap(),
        KeptRevokes::default()
    );
    session.close().await.unwrap();
}
