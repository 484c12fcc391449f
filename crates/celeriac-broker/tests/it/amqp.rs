use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_broker::{Options, open};
use celeriac_core::Broker;
use celeriac_core::broker::{Delivery, ErrorKind, Fate, Retry, Session, Settlement, Want};
use celeriac_core::bus::{BusOptions, BusSettings};
use celeriac_core::queue::{ExchangeKind, Queue};
use celeriac_testing::conformance::broker::{self, Fixture, GivesBack, Ways, message};
use celeriac_testing::conformance::{bus, publisher};
use celeriac_testing::server::RabbitMqServer;
use lapin::options::{BasicPublishOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ConnectionProperties};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

/// Longer than RabbitMQ needs for one step.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A vhost of the node that all tests share.
pub(super) struct Rabbit {
    pub(super) url: String,
    kind: &'static str,
}

impl Rabbit {
    pub(super) fn new() -> Self {
        Self::of("classic")
    }

    /// With queues of this type.
    pub(super) fn of(kind: &'static str) -> Self {
        let server = RabbitMqServer::shared();
        Self {
            url: server.url(&server.vhost()),
            kind,
        }
    }

    fn queue_of(&self, name: &str) -> Queue {
        let mut queue = Queue::direct(name);
        queue
            .arguments
            .insert("x-queue-type".to_owned(), self.kind.into());
        queue
    }
}

#[async_trait]
impl Fixture for Rabbit {
    fn broker(&self) -> Arc<dyn Broker> {
        open(&self.url, &Options::default()).unwrap()
    }

    async fn publish_rubbish(&self, _: &str, _: &[u8]) -> Option<()> {
        None // a message is a message: it has no envelope that could be broken
    }

    fn queue(&self, name: &str) -> Queue {
        let mut queue = self.queue_of(name);
        if self.kind == "classic" {
            queue
                .arguments
                .insert("x-max-priority".to_owned(), 10.into());
        }
        queue
    }

    fn ways(&self) -> Ways {
        Ways {
            keeps_delayed: true,
            gives_back: if self.kind == "classic" {
                GivesBack::InPlace
            } else {
                GivesBack::Anywhere
            },
            highest_is_urgent: true,
            has_no_priorities: self.kind != "classic",
            knows_no_nan: true,
        }
    }
}

#[tokio::test]
async fn publishing() {
    publisher::run(&Rabbit::new()).await;
}

#[tokio::test]
async fn conformance() {
    broker::run(&Rabbit::new()).await;
}

#[tokio::test]
async fn conformance_of_quorum_queues() {
    broker::run(&Rabbit::of("quorum")).await;
}

impl bus::Fixture for Rabbit {
    fn broker(&self) -> Arc<dyn Broker> {
        Fixture::broker(self)
    }
}

#[tokio::test]
async fn conformance_of_the_bus() {
    bus::run(&Rabbit::new()).await;
}

#[tokio::test]
async fn a_node_name_that_is_taken_is_told_with_the_remedy() {
    let rabbit = Rabbit::new();
    let options = BusOptions {
        node: "w1@host".to_owned(),
        settings: BusSettings::default(),
        hears_commands: true,
        hears_workers: true,
    };
    let _first = broker_of(&rabbit).open_bus(&options).await.unwrap();
    let error = broker_of(&rabbit).open_bus(&options).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.message.contains("w1@host"), "{error}");
    assert!(error.hint.unwrap().contains("-n"));
}

/// How often a connection is lost in one test. A thousand times take two minutes.
const LOSSES: u64 = 150;

/// Relays connections, and cuts them.
struct Proxy {
    url: String,
    relays: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Proxy {
    async fn to(url: &str) -> Self {
        let (server, vhost) = url.rsplit_once('/').unwrap();
        let port: u16 = server.rsplit_once(':').unwrap().1.parse().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let relays = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&relays);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let relay = tokio::spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                });
                kept.lock().unwrap().push(relay.abort_handle());
            }
        });
        Self {
            url: format!("amqp://guest:guest@127.0.0.1:{own}/{vhost}"),
            relays,
        }
    }

    fn cut(&self) {
        for relay in self.relays.lock().unwrap().drain(..) {
            relay.abort();
        }
    }
}

fn want(count: usize) -> Want {
    Want {
        runnable: count,
        total: 500.max(count),
    }
}

pub(super) fn settle(deliveries: &[Delivery], fate: Fate) -> Vec<Settlement> {
    let settlement = |delivery: &Delivery| Settlement {
        tag: delivery.tag,
        fate,
    };
    deliveries.iter().map(settlement).collect()
}

pub(super) fn id(delivery: &Delivery) -> String {
    let headers = &delivery.message.as_ref().unwrap().headers;
    let headers: serde_json::Value = serde_json::from_str(headers).unwrap();
    headers["id"].as_str().unwrap().to_owned()
}

pub(super) async fn consumer(url: &str, queue: &Queue) -> Box<dyn Session> {
    let broker = open(url, &Options::default()).unwrap();
    let mut session = broker.connect().await.unwrap();
    session.declare(queue).await.unwrap();
    session.subscribe(queue).await.unwrap();
    session
}

pub(super) async fn fetch(session: &mut dyn Session, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while deliveries.len() < count {
        assert!(Instant::now() < deadline, "messages come in time");
        let more = session
            .exchange(&[], want(count - deliveries.len()))
            .await
            .unwrap();
        if more.is_empty() {
            timeout(PATIENCE, session.wait()).await.unwrap().unwrap();
        }
        deliveries.extend(more);
    }
    deliveries
}

pub(super) async fn lapin_channel(url: &str) -> (lapin::Connection, lapin::Channel) {
    let connection = lapin::Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

#[tokio::test]
async fn a_wrong_password_and_a_wrong_vhost_are_no_reason_to_retry() {
    let rabbit = Rabbit::new();
    let wrong = rabbit.url.replace("guest:guest", "guest:s3cret");
    let broker = open(&wrong, &Options::default()).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(
        (error.kind, error.retry()),
        (ErrorKind::Denied, Retry::Never),
        "{error}"
    );
    let shown = format!("{error:?} {broker:?} {}", broker.display_url());
    assert!(!shown.contains("s3cret"), "{shown}");

    let broker = open(&format!("{}-none", rabbit.url), &Options::default()).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Configuration, "{error}");
    assert!(error.hint.unwrap().contains("vhost"));

    let broker = open("amqp://127.0.0.1:1//", &Options::default()).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(error.retry(), Retry::Reconnect, "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = Options {
        connect_timeout: Some(Duration::from_millis(200)),
        ..Options::default()
    };
    let broker = open(&format!("amqp://127.0.0.1:{port}//"), &options).unwrap();
    let connecting = timeout(PATIENCE, broker.connect()).await.unwrap();
    assert_eq!(connecting.err().unwrap().kind, ErrorKind::Connection);
}

#[tokio::test]
async fn a_queue_that_is_declared_otherwise_is_told_once_and_with_the_remedy() {
    let rabbit = Rabbit::new();
    let mut queue = Queue::direct("q");
    queue
        .arguments
        .insert("x-max-priority".to_owned(), json!(10));
    let mut session = consumer(&rabbit.url, &queue).await;
    queue
        .arguments
        .insert("x-max-priority".to_owned(), json!(5));
    let error = session.declare(&queue).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry()),
        (ErrorKind::Configuration, Retry::Never)
    );
    for part in [
        "\"q\"",
        "x-max-priority = 10",
        "x-max-priority = 5",
        "durable",
    ] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
    assert!(error.hint.unwrap().contains("task_queue_max_priority"));
    // The session lives on.
    session.publish("q", &message(1)).await.unwrap();
    assert_eq!(fetch(&mut *session, 1).await.len(), 1);
}

#[tokio::test]
async fn what_no_process_is_free_for_is_left_to_others() {
    let rabbit = Rabbit::new();
    let queue = Queue::direct("q");
    let mut busy = consumer(&rabbit.url, &queue).await;
    for id in 0..10 {
        busy.publish("q", &message(id)).await.unwrap();
    }
    let held = fetch(&mut *busy, 2).await;
    // Acknowledged early, with all processes busy.
    busy.exchange(&settle(&held, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    let mut other = consumer(&rabbit.url, &queue).await;
    let rest = fetch(&mut *other, 8).await;
    assert_eq!(id(&rest[0]), "2");
    assert_eq!(busy.size("q").await.unwrap(), 0);
    // One process is free again, and gets one.
    other
        .exchange(&settle(&rest, Fate::Release), Want::NONE)
        .await
        .unwrap();
    let one = fetch(&mut *busy, 1).await;
    assert_eq!(id(&one[0]), "2");
    let acked = busy
        .exchange(&settle(&one, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    assert!(acked.is_empty());
    assert_eq!(other.size("q").await.unwrap(), 7);
}

#[tokio::test]
async fn a_normal_message_behind_thousands_with_an_eta_is_reached() {
    let rabbit = Rabbit::new();
    let mut session = consumer(&rabbit.url, &Queue::direct("q")).await;
    let (connection, channel) = lapin_channel(&rabbit.url).await;
    let mut headers = FieldTable::default();
    let eta = AMQPValue::LongString("2999-01-01T00:00:00+00:00".into());
    headers.insert("id".into(), AMQPValue::LongString("held".into()));
    headers.insert("eta".into(), eta);
    let properties = BasicProperties::default().with_headers(headers);
    for _ in 0..5000 {
        let options = BasicPublishOptions::default();
        channel
            .basic_publish("".into(), "q".into(), options, b"x", properties.clone())
            .await
            .unwrap();
    }
    connection.close(200, "OK".into()).await.unwrap();
    session.publish("q", &message(7)).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut held = 0;
    loop {
        assert!(Instant::now() < deadline, "only {held} came");
        let came = session.exchange(&[], want(1)).await.unwrap();
        if came.iter().any(|delivery| id(delivery) == "7") {
            break;
        }
        if came.is_empty() {
            session.wait().await.unwrap();
        }
        held += came.len();
    }
    assert!(held <= 5000);
}

#[tokio::test]
async fn a_lost_connection_is_an_error_and_what_was_out_comes_again() {
    let rabbit = Rabbit::new();
    let proxy = Proxy::to(&rabbit.url).await;
    let queue = Queue::direct("q");
    let mut session = consumer(&proxy.url, &queue).await;
    session.publish("q", &message(1)).await.unwrap();
    let held = fetch(&mut *session, 1).await;
    drop(session.exchange(&[], want(1)).await.unwrap());
    proxy.cut();
    let error = timeout(PATIENCE, async {
        loop {
            if let Err(error) = session.wait().await {
                return error;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    let settling = session.exchange(&settle(&held, Fate::Ack), want(1)).await;
    assert_eq!(settling.unwrap_err().kind, ErrorKind::Connection);
    assert!(session.maintain().await.is_err());

    let mut session = consumer(&proxy.url, &queue).await;
    // The tag is of the lost channel, and means nothing here.
    session
        .exchange(&settle(&held, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    let again = fetch(&mut *session, 1).await;
    assert!(again[0].message.as_ref().unwrap().delivery_info.redelivered);
    session
        .exchange(&settle(&again, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    assert_eq!(session.size("q").await.unwrap(), 0);
}

#[tokio::test]
async fn a_deleted_queue_counts_as_a_lost_connection() {
    let rabbit = Rabbit::new();
    let mut session = consumer(&rabbit.url, &Queue::direct("q")).await;
    drop(session.exchange(&[], want(1)).await.unwrap());
    let (_connection, channel) = lapin_channel(&rabbit.url).await;
    channel
        .queue_delete("q".into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    let error = timeout(PATIENCE, async {
        loop {
            if let Err(error) = session.wait().await {
                return error;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(error.kind, ErrorKind::Connection);
    assert!(error.message.contains("\"q\""), "{error}");
}

#[tokio::test]
async fn what_is_broadcast_reaches_each() {
    let rabbit = Rabbit::new();
    let queue = |name: &str| {
        let mut queue = Queue::direct(name);
        queue.exchange.name = "everyone".to_owned();
        queue.exchange.kind = ExchangeKind::Fanout;
        queue.routing_key = "celery".to_owned();
        queue.auto_delete = true;
        queue
    };
    let mut first = consumer(&rabbit.url, &queue("bcast.1")).await;
    let mut second = consumer(&rabbit.url, &queue("bcast.2")).await;
    let (_connection, channel) = lapin_channel(&rabbit.url).await;
    for round in 0..3 {
        channel
            .basic_publish(
                "everyone".into(),
                "".into(),
                BasicPublishOptions::default(),
                b"x",
                BasicProperties::default(),
            )
            .await
            .unwrap();
        for session in [&mut first, &mut second] {
            let came = fetch(&mut **session, 1).await;
            // Nothing is wanted, and the queue is still there.
            session
                .exchange(&settle(&came, Fate::Ack), Want::NONE)
                .await
                .unwrap();
            assert_eq!(session.size(&came[0].queue).await.unwrap(), 0, "{round}");
        }
    }
}

#[tokio::test]
async fn a_queue_without_acknowledgements_gives_each_message_once_and_few_at_a_time() {
    let rabbit = Rabbit::new();
    let mut queue = Queue::direct("q");
    queue.no_ack = true;
    let mut session = consumer(&rabbit.url, &queue).await;
    for id in 0..5 {
        session.publish("q", &message(id)).await.unwrap();
    }
    let came = fetch(&mut *session, 2).await;
    drop(session.exchange(&[], Want::NONE).await.unwrap());
    assert_eq!(session.size("q").await.unwrap(), 3);
    session
        .exchange(&settle(&came, Fate::Requeue), Want::NONE)
        .await
        .unwrap();
    drop(session);
    let mut session = consumer(&rabbit.url, &queue).await;
    let rest = fetch(&mut *session, 3).await;
    assert_eq!(id(&rest[0]), "2");
}

#[tokio::test]
async fn a_message_that_no_queue_takes_is_an_error() {
    let rabbit = Rabbit::new();
    let mut session = consumer(&rabbit.url, &Queue::direct("q")).await;
    let error = session.publish("nowhere", &message(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.message.contains("\"nowhere\""), "{error}");

    let mut full = Queue::direct("full");
    full.arguments.insert("x-max-length".to_owned(), json!(1));
    full.arguments
        .insert("x-overflow".to_owned(), json!("reject-publish"));
    session.declare(&full).await.unwrap();
    let mut last = Ok(());
    for id in 0..5 {
        last = session.publish("full", &message(id)).await;
    }
    assert_eq!(last.unwrap_err().kind, ErrorKind::Full);
}

#[tokio::test]
async fn a_message_with_a_countdown_comes_to_a_quorum_queue_after_it() {
    let rabbit = Rabbit::of("quorum");
    let mut queue = rabbit.queue_of("later");
    queue.exchange.name = "shop".to_owned();
    queue.exchange.kind = ExchangeKind::Topic;
    let mut session = consumer(&rabbit.url, &queue).await;
    let (_connection, channel) = lapin_channel(&rabbit.url).await;
    // As kombu sends a countdown of two seconds: 28 binary digits.
    let key = format!("{}1.0.later", "0.".repeat(26));
    let sent = Instant::now();
    channel
        .basic_publish(
            "celery_delayed_27".into(),
            key.as_str().into(),
            BasicPublishOptions::default(),
            b"x",
            BasicProperties::default().with_delivery_mode(2),
        )
        .await
        .unwrap();
    let came = fetch(&mut *session, 1).await;
    assert!(sent.elapsed() >= Duration::from_secs(2));
    assert_eq!(&*came[0].queue, "later");
}

#[tokio::test]
async fn a_connection_lost_at_any_moment_loses_no_message() {
    let rabbit = Rabbit::new();
    let proxy = Proxy::to(&rabbit.url).await;
    let queue = Queue::direct("q");
    let mut producer = consumer(&rabbit.url, &queue).await;
    for id in 0..100 {
        producer.publish("q", &message(id)).await.unwrap();
    }
    let options = Options {
        detects_quorum_queues: false,
        ..Options::default()
    };
    let broker = open(&proxy.url, &options).unwrap();
    let mut done = BTreeSet::new();
    for round in 0..LOSSES {
        // A different moment each time, from before the handshake to long after it.
        let cut_after = Duration::from_micros((round * 7919) % 20_000);
        let working = async {
            let mut session = broker.connect().await?;
            session.declare(&queue).await?;
            session.subscribe(&queue).await?;
            let mut settled = Vec::new();
            loop {
                let came = session.exchange(&settled, want(1)).await?;
                settled = settle(&came, Fate::Release);
                // Most go back, so that there is always something to do.
                for (settlement, delivery) in settled.iter_mut().zip(&came) {
                    let number: u64 = id(delivery).parse().unwrap();
                    if round % 100 == number % 100 {
                        settlement.fate = Fate::Ack;
                        done.insert(number);
                    }
                }
                if came.is_empty() {
                    session.wait().await?;
                }
            }
        };
        let cutting = async {
            tokio::time::sleep(cut_after).await;
            loop {
                proxy.cut();
                // The connection may not have been there yet.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ended: Result<(), celeriac_core::broker::Error> = tokio::select! {
            ended = timeout(PATIENCE, working) => ended.expect("the loss is noticed"),
            () = cutting => unreachable!(),
        };
        let error = ended.unwrap_err();
        assert_eq!(
            error.retry(),
            Retry::Reconnect,
            "{error:?} in round {round}"
        );
    }
    // The client library has a thread for each connection, and each ends with its connection.
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads < 300, "{threads} threads are left");
    // What is not done is still there, and nothing else.
    let mut left = BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    while left.len() + done.len() < 100 {
        assert!(
            Instant::now() < deadline,
            "{} are lost",
            100 - left.len() - done.len()
        );
        for delivery in producer.exchange(&[], want(100)).await.unwrap() {
            let number: u64 = id(&delivery).parse().unwrap();
            // An acknowledgement may have been lost with its connection.
            done.remove(&number);
            left.insert(number);
        }
        drop(timeout(Duration::from_millis(50), producer.wait()).await);
    }
}

/// A certificate for 127.0.0.1 that vouches for itself, and its key.
fn certificate(folder: &std::path::Path) -> (String, String) {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (certificate, key) = (path("certificate.pem"), path("key.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
        ])
        .args([
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-out", &certificate, "-keyout", &key])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    (certificate, key)
}

async fn only_a_certificate_that_is_trusted_is_talked_to(url: &str, certificate: &str) {
    let connect = async |ssl: serde_json::Value| {
        let options = Options {
            ssl: Some(ssl),
            ..Options::default()
        };
        let connected = open(url, &options).unwrap().connect().await;
        match connected {
            Ok(session) => session.close().await,
            Err(error) => Err(error),
        }
    };
    connect(json!({"ca_certs": certificate})).await.unwrap();
    connect(json!({"cert_reqs": 0})).await.unwrap();
    let error = connect(json!(true)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    let other = json!({"ca_certs": certificate, "server_hostname": "other.example"});
    assert!(connect(other).await.is_err());
}

/// What needs a node with settings of its own.
#[tokio::test]
async fn tls_a_consumer_timeout_and_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(folder.path());
    let tls_port = {
        let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        free.local_addr().unwrap().port()
    };
    let configuration = format!(
        "listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {certificate}\n\
         ssl_options.certfile = {certificate}\nssl_options.keyfile = {key}\n\
         ssl_options.verify = verify_none\n"
    );
    // It looks at the age of what is out every second.
    let advanced = "[{rabbit, [{consumer_timeout, 3000}, {channel_tick_interval, 1000}]}].";
    let starting = move || RabbitMqServer::start_with(&configuration, advanced);
    let mut server = tokio::task::spawn_blocking(starting).await.unwrap();
    let vhost = server.vhost();
    let url = server.url(&vhost);
    let secret = format!("amqps://guest:guest@127.0.0.1:{tls_port}/{vhost}");
    only_a_certificate_that_is_trusted_is_talked_to(&secret, &certificate).await;

    let queue = Queue::direct("q");
    let mut session = consumer(&url, &queue).await;
    session.publish("q", &message(1)).await.unwrap();
    let _held = fetch(&mut *session, 1).await;
    let lost = |mut session: Box<dyn Session>| async move {
        loop {
            if let Err(error) = session.maintain().await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let error = timeout(2 * PATIENCE, lost(session)).await.unwrap();
    assert_eq!(
        (error.kind, error.retry()),
        (ErrorKind::Connection, Retry::Reconnect),
        "{error}"
    );

    let mut session = consumer(&url, &queue).await;
    let again = fetch(&mut *session, 1).await;
    session
        .exchange(&settle(&again, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    session.publish("q", &message(2)).await.unwrap();
    server.kill();
    let error = timeout(PATIENCE, lost(session)).await.unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    let server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    })
    .await
    .unwrap();
    let mut session = consumer(&url, &queue).await;
    assert_eq!(id(&fetch(&mut *session, 1).await[0]), "2");
    drop(server);
}

fn broker_of(rabbit: &Rabbit) -> Arc<dyn Broker> {
    Fixture::broker(rabbit)
}
