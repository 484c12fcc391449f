use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_broker::{Options, open};
use celeriac_core::Broker;
use celeriac_core::broker::{Delay, DeliveryTag, ErrorKind, Fate, Session, Settlement, Want};
use celeriac_core::queue::Queue;
use celeriac_core::revokes::KeptRevokes;
use celeriac_protocol::Marks;
use celeriac_testing::conformance::broker::{self, Fixture, message};
use celeriac_testing::conformance::{limits, publisher};
use celeriac_testing::server::PostgresServer;
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use crate::as_python_keeps;
use crate::sql::{self, ALL_ARE_DUE, Database};

/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Postgres {
    server: Arc<PostgresServer>,
    database: String,
    options: Options,
}

impl Postgres {
    fn new() -> Self {
        let server = PostgresServer::shared();
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

#[async_trait]
impl Fixture for Postgres {
    fn broker(&self) -> Arc<dyn Broker> {
        open(&self.url(), &self.options).unwrap()
    }

    async fn publish_rubbish(&self, queue: &str, bytes: &[u8]) -> Option<()> {
        let text = std::str::from_utf8(bytes).unwrap();
        if text.contains('\0') {
            return None;
        }
        self.execute(&as_kombu_puts(queue, text));
        Some(())
    }
}

impl Database for Postgres {
    fn execute(&self, sql: &str) -> String {
        Self::execute(self, sql)
    }

    fn cut(&self, event: &str, table: &str) -> String {
        format!(
            "CREATE OR REPLACE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
             CREATE TRIGGER cut BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION cut()"
        )
    }

    fn mend(&self, table: &str) -> String {
        format!("DROP TRIGGER cut ON {table}")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delays_and_dead_letters() {
    sql::run(&Postgres::new()).await;
}

/// What kombu's SQLAlchemy transport executes to put a payload into a queue that exists.
fn as_kombu_puts(queue: &str, payload: &str) -> String {
    let payload = payload.replace('\'', "''");
    format!(
        "INSERT INTO kombu_message (id, visible, timestamp, payload, version, queue_id)
         VALUES (nextval('message_id_sequence'), true, NULL, '{payload}', 1,
                 (SELECT id FROM kombu_queue WHERE name = '{queue}'))"
    )
}

/// What kombu executes to take the next message; it is never deleted.
const AS_KOMBU_TAKES: &str = "UPDATE kombu_message
    SET visible = false, timestamp = localtimestamp, version = version + 1
    WHERE id = (SELECT id FROM kombu_message WHERE visible != false
                ORDER BY timestamp, id LIMIT 1 FOR UPDATE)
    RETURNING id";

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
    publisher::run(&Postgres::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance() {
    broker::run(&Postgres::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits() {
    limits::run(&Postgres::new().broker().limits().unwrap()).await;
}

#[tokio::test]
async fn conformance_with_other_table_names() {
    let mut postgres = Postgres::new();
    for (option, name) in [
        ("queue_tablename", "my queues"),
        ("message_tablename", "my \"messages\""),
    ] {
        postgres
            .options
            .transport
            .insert(option.to_owned(), name.into());
    }
    let mut session = postgres.consumer("q").await;
    session.publish("q", &message(1)).await.unwrap();
    assert_eq!(session.exchange(&[], want(1)).await.unwrap().len(), 1);
    session.close().await.unwrap();
}

#[tokio::test]
async fn tables_that_kombu_has_made_are_used() {
    let postgres = Postgres::new();
    // To the letter what SQLAlchemy executes for kombu's models.
    postgres.execute(
        r#"CREATE SEQUENCE queue_id_sequence;
        CREATE TABLE kombu_queue (
            id INTEGER NOT NULL, name VARCHAR(200), PRIMARY KEY (id), UNIQUE (name)
        );
        CREATE SEQUENCE message_id_sequence;
        CREATE TABLE kombu_message (
            id INTEGER NOT NULL, visible BOOLEAN, timestamp TIMESTAMP WITHOUT TIME ZONE,
            payload TEXT NOT NULL, version SMALLINT NOT NULL, queue_id INTEGER,
            PRIMARY KEY (id),
            CONSTRAINT "FK_kombu_message_queue" FOREIGN KEY(queue_id) REFERENCES kombu_queue (id)
        );
        CREATE INDEX ix_kombu_message_visible ON kombu_message (visible);
        CREATE INDEX ix_kombu_message_timestamp ON kombu_message (timestamp);
        CREATE INDEX ix_kombu_message_timestamp_id ON kombu_message (timestamp, id);
        INSERT INTO kombu_queue (id, name) VALUES (nextval('queue_id_sequence'), 'q');"#,
    );
    postgres.execute(&as_kombu_puts("q", "kombu's"));
    let mut session = postgres.consumer("q").await;
    let deliveries = session.exchange(&[], want(1)).await.unwrap();
    assert_eq!(
        deliveries[0].message.as_ref().unwrap_err().raw,
        "kombu's".as_bytes()
    );
}

#[tokio::test]
async fn kombus_consumers_share_the_queue() {
    let postgres = Postgres::new();
    let mut session = postgres.consumer("q").await;
    for id in 0..3 {
        session.publish("q", &message(id)).await.unwrap();
    }
    let first = session.exchange(&[], want(1)).await.unwrap();
    assert_eq!(postgres.execute(AS_KOMBU_TAKES), "2", "not what is claimed");
    let third = session.exchange(&[], want(5)).await.unwrap();
    assert_eq!(third[0].tag, DeliveryTag(3));
    session
        .exchange(&[ack(first[0].tag), ack(third[0].tag)], Want::NONE)
        .await
        .unwrap();
    assert_eq!(
        postgres.execute("SELECT id, visible FROM kombu_message"),
        "2|f",
        "kombu's row is kombu's"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_claim_at_once_never_get_the_same_message() {
    const MESSAGES: u32 = 600;
    let postgres = Postgres::new();
    let mut producer = postgres.consumer("q").await;
    for id in 0..MESSAGES {
        producer.publish("q", &message(id)).await.unwrap();
    }
    let mut consumers = Vec::new();
    for count in [1, 2, 3, 5] {
        let mut session = postgres.consumer("q").await;
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
    assert_eq!(postgres.execute("SELECT count(*) FROM kombu_message"), "0");
    assert_eq!(postgres.execute("SELECT count(*) FROM celeriac_lease"), "0");
}

/// Asks no more often than once an hour, so that only the server can wake it.
fn never_asks(options: &mut Options) {
    options
        .transport
        .insert("polling_interval".to_owned(), 3600.into());
}

#[tokio::test]
async fn the_server_wakes_a_waiting_session_whoever_puts_the_message() {
    let mut postgres = Postgres::new();
    never_asks(&mut postgres.options);
    let mut session = postgres.consumer("q").await;
    let mut other = postgres.consumer("q").await;
    assert!(session.exchange(&[], want(1)).await.unwrap().is_empty());

    postgres.execute(&as_kombu_puts("q", "kombu's"));
    timeout(PATIENCE, session.wait()).await.unwrap().unwrap();
    let kombus = session.exchange(&[], want(1)).await.unwrap();
    assert_eq!(kombus.len(), 1);

    other.publish("q", &message(1)).await.unwrap();
    timeout(PATIENCE, session.wait()).await.unwrap().unwrap();
    let ours = session.exchange(&[], want(1)).await.unwrap();
    assert_eq!(ours.len(), 1);

    // What is given back is news to the others.
    for fate in [Fate::Release, Fate::Requeue] {
        drain(&mut *other).await;
        let settlement = Settlement {
            tag: if fate == Fate::Release {
                ours[0].tag
            } else {
                kombus[0].tag
            },
            fate,
        };
        session.exchange(&[settlement], Want::NONE).await.unwrap();
        timeout(PATIENCE, other.wait()).await.unwrap().unwrap();
        assert_eq!(
            other.exchange(&[], want(5)).await.unwrap().len(),
            1,
            "{fate:?}"
        );
    }
}

#[tokio::test]
async fn the_server_wakes_a_waiting_session_when_another_moves_what_is_due() {
    let mut postgres = Postgres::new();
    never_asks(&mut postgres.options);
    let mut session = postgres.consumer("q").await;
    let mut mover = postgres.session().await;
    session.publish("q", &message(1)).await.unwrap();
    let taken = session.exchange(&[], want(1)).await.unwrap();
    let delay = Delay {
        until: Some(Timestamp::UNIX_EPOCH),
        marks: Marks::default(),
    };
    let settlement = Settlement {
        tag: taken[0].tag,
        fate: Fate::Delay(delay),
    };
    session.exchange(&[settlement], Want::NONE).await.unwrap();
    drain(&mut *session).await;
    postgres.execute(ALL_ARE_DUE);
    assert_eq!(mover.maintain().await.unwrap().restored, 1);
    timeout(PATIENCE, session.wait()).await.unwrap().unwrap();
    assert_eq!(session.exchange(&[], want(1)).await.unwrap().len(), 1);
}

/// Takes note of all news so far.
async fn drain(session: &mut dyn Session) {
    while timeout(Duration::from_millis(50), session.wait())
        .await
        .is_ok()
    {}
}

#[tokio::test]
async fn news_of_other_queues_wake_nobody() {
    let mut postgres = Postgres::new();
    never_asks(&mut postgres.options);
    let mut session = postgres.consumer("q").await;
    let mut other = postgres.consumer("other").await;
    other.publish("other", &message(1)).await.unwrap();
    timeout(PATIENCE, other.wait()).await.unwrap().unwrap();
    let woken = timeout(Duration::from_millis(100), session.wait()).await;
    assert!(woken.is_err(), "nothing came into its queue");
}

#[tokio::test]
async fn without_the_right_to_make_a_trigger_the_queue_is_asked() {
    let mut postgres = Postgres::new();
    // The tables are there, the trigger is not, and belong to somebody else.
    drop(postgres.session().await);
    postgres.execute(
        "DROP FUNCTION celeriac_notify CASCADE; DROP INDEX celeriac_waiting;
         CREATE ROLE guest LOGIN;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest;
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO guest;",
    );
    let url = postgres.url().replace("postgres@", "guest@");
    postgres.options = Options::default();
    let mut session = open(&url, &postgres.options)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let queue = Queue::direct("q");
    session.subscribe(&queue).await.unwrap();
    assert!(session.exchange(&[], want(1)).await.unwrap().is_empty());
    postgres.execute(&as_kombu_puts("q", "kombu's"));
    let deadline = Instant::now() + PATIENCE;
    while session.exchange(&[], want(1)).await.unwrap().is_empty() {
        timeout(PATIENCE, session.wait()).await.unwrap().unwrap();
        assert!(Instant::now() < deadline, "the message is found");
    }
}

#[tokio::test]
async fn a_worker_that_was_taken_for_dead_hears_of_what_it_lost() {
    let postgres = Postgres::new();
    let mut silent = postgres.consumer("q").await;
    let mut living = postgres.consumer("q").await;
    silent.publish("q", &message(1)).await.unwrap();
    silent.maintain().await.unwrap();
    let taken = silent.exchange(&[], want(1)).await.unwrap();
    living.maintain().await.unwrap();
    assert_eq!(living.maintain().await.unwrap().restored, 0);
    // As if one had been silent, and the other not.
    let name = postgres.execute("SELECT worker FROM celeriac_lease");
    postgres.execute(&format!(
        "UPDATE celeriac_worker SET seen = seen - interval '11 s' WHERE name = '{name}';
         UPDATE celeriac_worker SET since = since - interval '11 s' WHERE name != '{name}'"
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
    let postgres = Postgres::new();
    let mut one = postgres.consumer("q").await;
    let mut two = postgres.consumer("q").await;
    one.publish("q", &message(1)).await.unwrap();
    assert_eq!(one.exchange(&[], want(1)).await.unwrap().len(), 1);
    one.maintain().await.unwrap();
    two.maintain().await.unwrap();
    for clock in ["- interval '1 h'", "+ interval '1 h'"] {
        // The server was away for an hour, or its clock was set.
        postgres.execute(&format!(
            "UPDATE celeriac_worker SET seen = seen {clock}, since = since {clock} - interval '1 h'"
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
    let postgres = Postgres::new();
    let mut unknown = postgres.consumer("q").await;
    unknown.publish("q", &message(1)).await.unwrap();
    assert_eq!(unknown.exchange(&[], want(1)).await.unwrap().len(), 1);
    postgres.execute("DELETE FROM celeriac_worker");
    let mut other = postgres.session().await;
    assert_eq!(other.maintain().await.unwrap().restored, 1);
}

#[tokio::test]
async fn a_claim_whose_answer_never_came_is_given_back() {
    let postgres = Postgres::new();
    let mut session = postgres.consumer("q").await;
    session.publish("q", &message(1)).await.unwrap();
    session.publish("q", &message(2)).await.unwrap();
    let known = session.exchange(&[], want(1)).await.unwrap();
    session.maintain().await.unwrap();
    // The other message is claimed by the same worker, which does not know.
    postgres.execute(
        "UPDATE kombu_message SET visible = false WHERE visible;
         INSERT INTO celeriac_lease SELECT id, (SELECT name FROM celeriac_worker)
         FROM kombu_message ON CONFLICT DO NOTHING",
    );
    assert_eq!(session.maintain().await.unwrap().lost, []);
    let second = session.exchange(&[], want(5)).await.unwrap();
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].tag, known[0].tag);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_a_lost_connection_and_nothing_else() {
    let mut server = PostgresServer::start();
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
            if let Err(error) = session.wait().await {
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
    let postgres = Postgres::new();
    postgres.execute("CREATE ROLE locked LOGIN PASSWORD 'sec ret'");
    let port = postgres.server.port();
    let connect = |user: &str, database: &str| {
        open(
            &format!("sqla+postgresql+psycopg2://{user}@127.0.0.1:{port}/{database}"),
            &Options::default(),
        )
        .unwrap()
    };
    let database = &postgres.database;
    let denied = connect("locked:wrong-secret", database);
    let error = denied.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(!error.to_string().contains("wrong-secret"), "{error}");
    assert!(!denied.display_url().contains("wrong-secret"));

    let error = connect("postgres", "nowhere")
        .connect()
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind, ErrorKind::Configuration, "{error}");
    assert!(error.hint.unwrap().contains("CREATE DATABASE"));

    // It may connect, and read and write nothing.
    let error = connect("locked:sec%20ret", database)
        .connect()
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.hint.unwrap().contains("kombu_message"));

    postgres.execute(&format!(
        "ALTER DATABASE {database} SET default_transaction_read_only = on"
    ));
    let error = connect("postgres", database).connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
}

#[tokio::test]
async fn a_unix_socket_is_found_by_its_folder() {
    let postgres = Postgres::new();
    let url = format!(
        "sqla+postgresql://postgres@/{}?host={}&port={}",
        postgres.database,
        postgres.server.socket_folder().display(),
        postgres.server.port()
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
    let postgres = Arc::new(Postgres::new());
    let mut starting = Vec::new();
    for _ in 0..8 {
        let broker = postgres.broker();
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
async fn revokes_are_read_as_python_has_kept_them() {
    let postgres = Postgres::new();
    let mut session = postgres.session().await;
    let none = session.revokes(0.0).await.unwrap();
    assert_eq!(none, KeptRevokes::default(), "there is no table yet");
    postgres.execute(&as_python_keeps("FLOAT(53)"));
    let kept = session.revokes(1000.5).await.unwrap();
    assert_eq!(kept.ids, ["b", "a", "ünïcode"]);
    assert_eq!(kept.headers, [r#"["who", "x"]"#]);
    assert_eq!(
        session.revokes(3000.0).await.unwrap(),
        KeptRevokes::default()
    );
    session.close().await.unwrap();
}
