use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_broker::{Options, open};
use celeriac_core::Broker;
use celeriac_core::broker::{ErrorKind, Fate, Retry, Session, Settlement, Want};
use celeriac_core::queue::{Binding, Exchange, ExchangeKind, Queue};
use celeriac_core::revokes::KeptRevokes;
use celeriac_testing::conformance::broker::{self, Fixture, message};
use celeriac_testing::conformance::{limits, publisher};
use celeriac_testing::server::RedisServer;
use serde_json::{Map, Value, json};

struct Redis {
    server: RedisServer,
    url: String,
    options: Options,
    prefix: &'static str,
}

impl Redis {
    fn new() -> Self {
        let server = RedisServer::start();
        let url = server.url(0);
        Self {
            server,
            url,
            options: Options::default(),
            prefix: "",
        }
    }

    fn with(options: Value) -> Self {
        let Value::Object(transport) = options else {
            panic!("an object")
        };
        Self {
            options: Options {
                transport,
                ..Options::default()
            },
            ..Self::new()
        }
    }
}

#[async_trait]
impl Fixture for Redis {
    fn broker(&self) -> Arc<dyn Broker> {
        open(&self.url, &self.options).unwrap()
    }

    async fn publish_rubbish(&self, queue: &str, bytes: &[u8]) -> Option<()> {
        self.server.command(&[
            b"LPUSH",
            format!("{}{queue}", self.prefix).as_bytes(),
            bytes,
        ]);
        Some(())
    }
}

#[tokio::test]
async fn publishing() {
    publisher::run(&Redis::new()).await;
}

#[tokio::test]
async fn conformance() {
    broker::run(&Redis::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits() {
    limits::run(&Redis::new().broker().limits().unwrap()).await;
}

#[tokio::test]
async fn conformance_with_a_prefix_over_a_socket() {
    let mut redis =
        Redis::with(json!({"global_keyprefix": "p:", "queue_order_strategy": "round_robin"}));
    redis.prefix = "p:";
    redis.url = format!(
        "redis+socket://{}?virtual_host=2",
        redis.server.socket().display()
    );
    // The raw commands of the fixture work on database 0.
    redis.url = redis.url.replace("virtual_host=2", "virtual_host=0");
    broker::run(&redis).await;
    let keys = redis.server.command(&[b"KEYS", b"*"]);
    let keys = String::from_utf8_lossy(&keys);
    for key in keys.lines().filter(|line| !line.starts_with(['*', '$'])) {
        assert!(key.starts_with("p:"), "{key} has the prefix");
    }
}

#[tokio::test]
async fn a_password_is_needed_and_never_shown() {
    let server = RedisServer::start_with(&["--requirepass", "s3cret"]);
    let wrong = format!("redis://:wr0ng@127.0.0.1:{}/0", server.port());
    let right = format!("redis://:s3cret@127.0.0.1:{}/0", server.port());
    let none = server.url(0);
    for url in [&wrong, &none] {
        let broker = open(url, &Options::default()).unwrap();
        let error = broker.connect().await.err().unwrap();
        assert_eq!(
            (error.kind, error.retry()),
            (ErrorKind::Denied, Retry::Never),
            "{error}"
        );
        assert!(!format!("{error} {error:?} {broker:?}").contains("wr0ng"));
    }
    let broker = open(&right, &Options::default()).unwrap();
    assert!(!format!("{broker:?} {}", broker.display_url()).contains("s3cret"));
    broker.connect().await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_database_beyond_the_last_is_no_reason_to_retry() {
    let redis = Redis::new();
    let broker = open(&redis.server.url(99), &Options::default()).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Configuration, "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_reason_to_retry() {
    let broker = open("redis://127.0.0.1:1/0", &Options::default()).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(
        (error.kind, error.retry()),
        (ErrorKind::Connection, Retry::Reconnect),
        "{error}"
    );
}

/// What kombu's own restore looks at: field and score of the claim.
#[tokio::test]
async fn a_claim_stands_where_kombu_looks_for_it() {
    let redis = Redis::new();
    let mut session = consumer(&redis, "q\"1").await;
    session.publish("q\"1", &message(1)).await.unwrap();
    let deliveries = session
        .exchange(
            &[],
            Want {
                runnable: 1,
                total: 1,
            },
        )
        .await
        .unwrap();
    let tag = text(
        &redis
            .server
            .command(&[b"ZRANGE", b"unacked_index", b"0", b"-1"]),
    );
    let value = redis.server.command(&[b"HGET", b"unacked", tag.as_bytes()]);
    let value = String::from_utf8(value).unwrap();
    let value: Value = serde_json::from_str(value.lines().nth(1).unwrap()).unwrap();
    assert_eq!(value[1], "");
    assert_eq!(value[2], "q\"1");
    assert_eq!(value[0]["headers"]["id"], "1");
    settle(&mut *session, deliveries[0].tag, Fate::Ack).await;
    assert_eq!(
        redis
            .server
            .command(&[b"EXISTS", b"unacked", b"unacked_index"]),
        b":0\r\n"
    );
}

#[tokio::test]
async fn bindings_are_made_as_kombu_makes_them() {
    let redis = Redis::new();
    let mut session = redis.broker().connect().await.unwrap();
    let mut queue = Queue::direct("orders");
    queue.bindings.push(Binding {
        exchange: Exchange::new("shop", ExchangeKind::Topic),
        routing_key: "order.#".to_owned(),
        arguments: serde_json::Map::new(),
    });
    session.declare(&queue).await.unwrap();
    session.declare(&queue).await.unwrap();
    for set in ["_kombu.binding.shop", "_kombu.binding_permanent.shop"] {
        let members = redis.server.command(&[b"SMEMBERS", set.as_bytes()]);
        assert_eq!(
            text(&members),
            "order.#\u{6}\u{16}^order\\..*?$\u{6}\u{16}orders"
        );
    }
    // The queue's own exchange is of another type.
    let members = redis
        .server
        .command(&[b"SMEMBERS", b"_kombu.binding.orders"]);
    assert_eq!(text(&members), "orders\u{6}\u{16}\u{6}\u{16}orders");
}

/// A message that a worker of Celery took and left is restored when its time is over.
#[tokio::test]
async fn overdue_messages_of_other_workers_are_restored() {
    let redis = Redis::with(json!({"visibility_timeout": 1}));
    let foreign = |exchange: &str, key: &str, priority: u8| {
        let envelope = format!(
            r#"{{"body": "W10=", "headers": {{"task": "t", "id": "1"}}, "content-type": "application/json", "content-encoding": "utf-8", "properties": {{"priority": {priority}, "body_encoding": "base64", "delivery_tag": "x", "delivery_info": {{"exchange": "", "routing_key": "q"}}}}}}"#
        );
        format!(r#"[{envelope}, "{exchange}", "{key}"]"#)
    };
    let leave = |tag: &str, value: String, score: &str| {
        redis
            .server
            .command(&[b"HSET", b"unacked", tag.as_bytes(), value.as_bytes()]);
        redis
            .server
            .command(&[b"ZADD", b"unacked_index", score.as_bytes(), tag.as_bytes()]);
    };
    redis.server.command(&[
        b"SADD",
        b"_kombu.binding.ex",
        "k\u{6}\u{16}\u{6}\u{16}bound".as_bytes(),
    ]);
    leave("old", foreign("", "q", 0), "1000");
    leave("old-urgency", foreign("", "q", 7), "1000");
    leave("old-bound", foreign("ex", "k", 0), "1000");
    leave("old-nowhere", foreign("ex", "nobody", 0), "1000");
    leave("new", foreign("", "q", 0), "99999999999");
    let mut session = consumer(&redis, "q").await;
    let maintained = session.maintain().await.unwrap();
    assert_eq!(maintained.restored, 3);
    assert_eq!(redis.server.command(&[b"LLEN", b"q"]), b":1\r\n");
    assert_eq!(
        redis.server.command(&[b"LLEN", "q\u{6}\u{16}6".as_bytes()]),
        b":1\r\n"
    );
    assert_eq!(redis.server.command(&[b"LLEN", b"bound"]), b":1\r\n");
    assert_eq!(
        redis.server.command(&[b"HEXISTS", b"unacked", b"new"]),
        b":1\r\n"
    );
    assert_eq!(
        redis
            .server
            .command(&[b"HEXISTS", b"unacked", b"old-nowhere"]),
        b":1\r\n"
    );
    let deliveries = session
        .exchange(
            &[],
            Want {
                runnable: 9,
                total: 9,
            },
        )
        .await
        .unwrap();
    assert!(
        deliveries
            .iter()
            .all(|d| d.message.as_ref().unwrap().delivery_info.redelivered)
    );
}

/// The answer to a claim never came: the messages must not stay claimed by nobody.
#[tokio::test]
async fn claims_of_an_answer_that_was_lost_are_given_back() {
    let redis = Redis::new();
    let broker = redis.broker();
    let mut session = broker.connect().await.unwrap();
    subscribe(&mut *session, "q").await;
    for id in 0..3 {
        session.publish("q", &message(id)).await.unwrap();
    }
    let held = session
        .exchange(
            &[],
            Want {
                runnable: 1,
                total: 1,
            },
        )
        .await
        .unwrap();
    // As the script left them whose answer was on a connection that broke.
    session.maintain().await.unwrap();
    let worker = text(
        &redis
            .server
            .command(&[b"ZRANGE", b"_celeriac.workers", b"0", b"-1"]),
    );
    for number in [900, 901] {
        let envelope = text(&redis.server.command(&[b"RPOP", b"q"]));
        let (tag, value) = (
            format!("{worker}:{number}"),
            format!("[{envelope}, \"\", \"q\"]"),
        );
        redis
            .server
            .command(&[b"HSET", b"unacked", tag.as_bytes(), value.as_bytes()]);
        redis
            .server
            .command(&[b"ZADD", b"unacked_index", b"99999999999", tag.as_bytes()]);
    }
    drop(session);
    let mut session = broker.connect().await.unwrap();
    subscribe(&mut *session, "q").await;
    assert_eq!(redis.server.command(&[b"HLEN", b"unacked"]), b":1\r\n");
    assert_eq!(session.size("q").await.unwrap(), 2);
    settle(&mut *session, held[0].tag, Fate::Ack).await;
}

#[tokio::test]
async fn a_full_server_loses_nothing_and_can_be_emptied() {
    let redis = Redis::new();
    let mut session = consumer(&redis, "q").await;
    for id in 0..20 {
        session.publish("q", &message(id)).await.unwrap();
    }
    redis
        .server
        .command(&[b"CONFIG", b"SET", b"maxmemory", b"1mb"]);
    let error = session.publish("q", &message(99)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full, "{error}");
    let deliveries = session
        .exchange(
            &[],
            Want {
                runnable: 20,
                total: 20,
            },
        )
        .await
        .unwrap();
    assert_eq!(deliveries.len(), 20, "what is there can be worked off");
    let acks: Vec<Settlement> = deliveries
        .iter()
        .map(|d| Settlement {
            tag: d.tag,
            fate: Fate::Ack,
        })
        .collect();
    session.exchange(&acks, Want::NONE).await.unwrap();
    assert_eq!(redis.server.command(&[b"EXISTS", b"unacked"]), b":0\r\n");
}

#[tokio::test]
async fn fanout_messages_come_over_pub_sub() {
    let redis = Redis::new();
    let mut session = redis.broker().connect().await.unwrap();
    let mut queue = Queue::direct("bcast.1");
    queue.exchange.kind = ExchangeKind::Fanout;
    queue.exchange.name = "broadcast".to_owned();
    queue.routing_key = String::new();
    session.declare(&queue).await.unwrap();
    session.subscribe(&queue).await.unwrap();
    let envelope = celeriac_protocol::envelope::encode(&message(5), "tag");
    let told = redis
        .server
        .command(&[b"PUBLISH", b"/0.broadcast", envelope.as_bytes()]);
    assert_eq!(told, b":1\r\n");
    let want = Want {
        runnable: 1,
        total: 1,
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let deliveries = loop {
        let deliveries = session.exchange(&[], want).await.unwrap();
        if !deliveries.is_empty() {
            break deliveries;
        }
        assert!(tokio::time::Instant::now() < deadline, "the message comes");
        session.wait().await.unwrap();
    };
    assert_eq!(&*deliveries[0].queue, "bcast.1");
    settle(&mut *session, deliveries[0].tag, Fate::Release).await;
    let again = session.exchange(&[], want).await.unwrap();
    assert_eq!(again.len(), 1, "nobody else has it: it comes again");
    settle(&mut *session, again[0].tag, Fate::Ack).await;
    assert!(session.exchange(&[], want).await.unwrap().is_empty());
}

/// After the server was away for long, all signs of life are old.
#[tokio::test]
async fn a_silence_that_nobody_witnessed_is_no_death() {
    let redis = Redis::new();
    let mut cut_off = consumer(&redis, "q").await;
    cut_off.publish("q", &message(1)).await.unwrap();
    let want = Want {
        runnable: 1,
        total: 1,
    };
    cut_off.maintain().await.unwrap();
    assert_eq!(cut_off.exchange(&[], want).await.unwrap().len(), 1);
    let worker = text(
        &redis
            .server
            .command(&[b"ZRANGE", b"_celeriac.workers", b"0", b"-1"]),
    );
    let silent = |seconds: &[u8]| {
        let score = [b"-", seconds].concat();
        redis
            .server
            .command(&[b"ZADD", b"_celeriac.workers", &score, worker.as_bytes()]);
    };
    silent(b"1000");
    redis
        .server
        .command(&[b"HSET", b"_celeriac.pulse", b"last", b"1"]);
    let mut other = consumer(&redis, "q").await;
    assert_eq!(other.maintain().await.unwrap().restored, 0);
    // Somebody was there all the time, and it was not this worker.
    redis
        .server
        .command(&[b"HSET", b"_celeriac.pulse", b"since", b"1"]);
    let mut third = consumer(&redis, "q").await;
    assert_eq!(third.maintain().await.unwrap().restored, 1);
}

#[tokio::test]
async fn a_key_of_another_type_takes_no_message_with_it() {
    let redis = Redis::new();
    let mut session = redis.broker().connect().await.unwrap();
    subscribe(&mut *session, "good").await;
    subscribe(&mut *session, "odd").await;
    redis.server.command(&[b"SET", b"odd", b"no list"]);
    for id in 0..3 {
        session.publish("good", &message(id)).await.unwrap();
    }
    let want = Want {
        runnable: 10,
        total: 10,
    };
    let deliveries = session.exchange(&[], want).await.unwrap();
    assert_eq!(deliveries.len(), 3);
    assert_eq!(redis.server.command(&[b"HLEN", b"unacked"]), b":3\r\n");
    let error = session.exchange(&[], want).await.unwrap_err();
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");

    redis.server.command(&[b"DEL", b"unacked_index", b"odd"]);
    redis.server.command(&[b"SET", b"unacked_index", b"no set"]);
    session.publish("good", &message(3)).await.unwrap();
    session.exchange(&[], want).await.unwrap_err();
    assert_eq!(redis.server.command(&[b"LLEN", b"good"]), b":1\r\n");
}

#[tokio::test]
async fn options_that_make_no_sense_are_named() {
    for (options, named) in [
        (
            json!({"queue_order_strategy": "random"}),
            "queue_order_strategy",
        ),
        (json!({"priority_steps": ["x"]}), "priority_steps"),
    ] {
        let Value::Object(transport) = options else {
            unreachable!()
        };
        let options = Options {
            transport,
            ..Options::default()
        };
        let error = open("redis://localhost", &options).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    let error = open("redis://localhost/x", &Options::default()).unwrap_err();
    assert!(error.to_string().contains("database"), "{error}");
    let error = open(
        "kafka://localhost",
        &Options {
            transport: Map::new(),
            ..Options::default()
        },
    );
    assert!(error.unwrap_err().to_string().contains("kafka"));
}

#[tokio::test]
async fn revokes_are_read_as_python_has_kept_them() {
    for prefix in ["", "mine:"] {
        let redis = Redis::with(json!({"global_keyprefix": prefix}));
        let mut session = redis.broker().connect().await.unwrap();
        let none = session.revokes(0.0).await.unwrap();
        assert_eq!(none, KeptRevokes::default(), "nobody has kept any");
        let keep = |key: &str, score: &str, member: &[u8]| {
            let key = format!("{prefix}{key}");
            let parts = [b"ZADD", key.as_bytes(), score.as_bytes(), member];
            redis.server.command(&parts);
        };
        keep("_celeriac.revoked", "1000.500001", b"a");
        keep("_celeriac.revoked", "1000.5", b"b");
        keep("_celeriac.revoked", "1000.499999", b"too old");
        // A surrogate, as Python can have it in a text.
        keep("_celeriac.revoked", "2000", b"x\xed\xb2\x80");
        keep("_celeriac.revoked.headers", "1500", br#"["who", "x"]"#);
        let kept = session.revokes(1000.5).await.unwrap();
        assert_eq!(kept.ids[..2], ["b", "a"]);
        assert!(kept.ids[2].starts_with("x\u{fffd}"), "{kept:?}");
        assert_eq!(kept.headers, [r#"["who", "x"]"#]);
        session.close().await.unwrap();
    }
}

async fn consumer(redis: &Redis, queue: &str) -> Box<dyn Session> {
    let mut session = redis.broker().connect().await.unwrap();
    subscribe(&mut *session, queue).await;
    session
}

async fn subscribe(session: &mut dyn Session, queue: &str) {
    let queue = Queue::direct(queue);
    session.declare(&queue).await.unwrap();
    session.subscribe(&queue).await.unwrap();
}

async fn settle(session: &mut dyn Session, tag: celeriac_core::broker::DeliveryTag, fate: Fate) {
    session
        .exchange(&[Settlement { tag, fate }], Want::NONE)
        .await
        .unwrap();
}

/// The text of the last line of a raw answer.
fn text(answer: &[u8]) -> String {
    std::str::from_utf8(answer)
        .unwrap()
        .lines()
        .last()
        .unwrap()
        .to_owned()
}
