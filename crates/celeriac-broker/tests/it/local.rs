//! The bus over Unix sockets: what is particular to it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use celeriac_broker::local::{LocalBus, Place};
use celeriac_broker::{Options, open};
use celeriac_core::Broker;
use celeriac_core::bus::{Bus, BusOptions, BusSettings, Destination, Heard, Kind, Outgoing};
use celeriac_protocol::Message;
use celeriac_testing::conformance::broker::message;
use celeriac_testing::conformance::bus;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

struct Fixture(PathBuf);

impl bus::Fixture for Fixture {
    fn broker(&self) -> Arc<dyn Broker> {
        let url = format!("sqla+sqlite:///{}", self.0.display());
        open(&url, &Options::default()).unwrap()
    }
}

#[tokio::test]
async fn conformance() {
    let folder = tempfile::tempdir().unwrap();
    bus::run(&Fixture(folder.path().join("q.db"))).await;
}

fn place(folder: &TempDir) -> Place {
    Place::under(folder.path().join("celeriac"), "sqlite:///q.db")
}

async fn bus_at(folder: &TempDir, node: &str) -> Box<LocalBus> {
    let options = BusOptions {
        node: node.to_owned(),
        settings: BusSettings::default(),
        hears_commands: true,
        hears_workers: true,
    };
    Box::new(LocalBus::open(&place(folder), &options).await.unwrap())
}

async fn heard(bus: &mut LocalBus) -> (Kind, Message) {
    let Heard { kind, message } = timeout(PATIENCE, bus.next()).await.unwrap().unwrap();
    (kind, message.unwrap())
}

fn event(key: &str, number: u32) -> Outgoing {
    Outgoing {
        to: Destination::Event {
            routing_key: key.to_owned(),
        },
        message: message(number),
    }
}

fn reply(key: &str, number: u32) -> Outgoing {
    Outgoing {
        to: Destination::Reply {
            exchange: "reply.celery.pidbox".to_owned(),
            routing_key: key.to_owned(),
        },
        message: message(number),
    }
}

fn sockets(folder: &TempDir) -> Vec<PathBuf> {
    let base = folder.path().join("celeriac");
    let inner = std::fs::read_dir(base).unwrap();
    let files = inner.flat_map(|inner| std::fs::read_dir(inner.unwrap().path()).unwrap());
    files
        .map(|file| file.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect()
}

/// A client as another language would write it.
struct Client(UnixStream);

impl Client {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn write(&mut self, frame: &Value) {
        let text = frame.to_string();
        self.0
            .write_all(&(text.len() as u32).to_be_bytes())
            .unwrap();
        self.0.write_all(text.as_bytes()).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut text = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

#[tokio::test]
async fn nodes_hear_one_another_whoever_came_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = bus_at(&folder, "a@h").await;
    let mut second = bus_at(&folder, "b@h").await;
    for (from, number) in [(&mut first, 1), (&mut second, 2)] {
        let events = [event("task.multi", 9), event("worker.online", number)];
        from.send(&events).await.unwrap();
    }
    for bus in [&mut first, &mut second] {
        let mut found = Vec::new();
        for _ in 0..2 {
            let (kind, message) = heard(bus).await;
            assert_eq!(kind, Kind::Event);
            found.push(message.headers);
        }
        found.sort();
        assert_eq!(found, [message(1).headers, message(2).headers]);
    }
    assert_eq!(first.broadcast(&message(3)).await.unwrap(), Some(2));
    for bus in [&mut first, &mut second] {
        let (kind, command) = heard(bus).await;
        assert_eq!((kind, command.headers), (Kind::Command, message(3).headers));
    }
    let key = first.reply_key().to_owned();
    second.send(&[reply(&key, 4)]).await.unwrap();
    first.send(&[reply(&key, 5)]).await.unwrap();
    let mut replies = [heard(&mut first).await, heard(&mut first).await];
    replies.sort_by(|a, b| a.1.headers.cmp(&b.1.headers));
    assert_eq!(replies[0].1.headers, message(4).headers);
    assert_eq!(
        (replies[1].0, &replies[1].1.headers),
        (Kind::Reply, &message(5).headers)
    );
    first.close().await.unwrap();
    second.close().await.unwrap();
    let left = std::fs::read_dir(folder.path().join("celeriac")).unwrap();
    assert_eq!(left.count(), 0, "nothing is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_another_language_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = bus_at(&folder, "a@h").await;
    let [socket] = &*sockets(&folder) else {
        panic!("one socket")
    };
    let mut client = Client::connect(socket);
    client.write(&json!({"kind": "later", "x": [1]}));
    client.write(&json!({"kind": "events", "routing_key": "#"}));
    client.write(&json!({
        "kind": "command", "reply_key": "k",
        "message": {
            "body": "{\"method\": \"ping\"}",
            "content-type": "application/json", "content-encoding": "utf-8",
            "headers": {"clock": 1}, "properties": {},
        },
    }));
    let (kind, command) = heard(&mut node).await;
    assert_eq!(kind, Kind::Command);
    assert_eq!(&command.body[..], br#"{"method": "ping"}"#);
    let outgoing = [event("task.multi", 7), reply("other", 1), reply("k", 8)];
    node.send(&outgoing).await.unwrap();
    let found = client.read();
    assert_eq!(found["kind"], "event");
    let properties = &found["message"]["properties"];
    assert_eq!(properties["delivery_info"]["routing_key"], "task.multi");
    assert_eq!(properties["body_encoding"], "base64");
    let found = client.read();
    assert_eq!(
        (&found["kind"], &found["message"]["headers"]["id"]),
        (&json!("reply"), &json!("8"))
    );

    client.write(&json!({"kind": "hello"}));
    assert_eq!(
        client.read(),
        json!({"kind": "hello", "node": "a@h", "socket": socket.to_str().unwrap(),
               "commands": true, "events": "worker.#", "reply_key": node.reply_key()})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_dropped_and_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = bus_at(&folder, "a@h").await;
    let socket = sockets(&folder).remove(0);
    let mut idle = Client::connect(&socket);
    idle.write(&json!({"kind": "events"}));
    idle.write(&json!({"kind": "hello"}));
    idle.read();
    let large = Outgoing {
        message: Message {
            body: vec![b'x'; 1 << 20].into(),
            ..message(1)
        },
        ..event("task.multi", 1)
    };
    for _ in 0..20 {
        timeout(PATIENCE, node.send(std::slice::from_ref(&large)))
            .await
            .unwrap()
            .unwrap();
    }
    let mut rest = Vec::new();
    // The end comes, before all was sent.
    let ended = tokio::task::spawn_blocking(move || idle.0.read_to_end(&mut rest).map(|_| rest));
    let rest = ended.await.unwrap().unwrap();
    assert!(rest.len() < 20 << 20, "{}", rest.len());
}

#[tokio::test]
async fn what_is_no_frame_ends_the_connection_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = bus_at(&folder, "a@h").await;
    let socket = sockets(&folder).remove(0);
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\0\0\0\x02[]",
        b"\xff\xff\xff\xff",
    ] {
        let mut client = Client::connect(&socket);
        client.0.write_all(bytes).unwrap();
        let ended = tokio::task::spawn_blocking(move || client.0.read(&mut [0; 1]));
        // Closed in order, or with bytes unread.
        assert!(!matches!(ended.await.unwrap(), Ok(1..)));
    }
    assert_eq!(node.broadcast(&message(1)).await.unwrap(), Some(1));
    assert_eq!(heard(&mut node).await.0, Kind::Command);
}

#[tokio::test]
async fn a_node_that_hangs_or_is_dead_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let first = bus_at(&folder, "a@h").await;
    let own = sockets(&folder).remove(0);
    let dead = own.with_file_name("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let hanging = own.with_file_name("hanging.sock");
    let _hanging = std::os::unix::net::UnixListener::bind(&hanging).unwrap();
    let mut second = timeout(PATIENCE, bus_at(&folder, "b@h")).await.unwrap();
    assert!(!dead.exists(), "it is removed by whoever finds it");
    assert!(hanging.exists());
    let count = timeout(PATIENCE, second.broadcast(&message(1))).await;
    assert_eq!(count.unwrap().unwrap(), Some(2));
    drop(first);
}

#[tokio::test]
async fn a_name_that_is_taken_is_told_and_both_are_reached() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = bus_at(&folder, "a@h").await;
    assert_eq!(first.notice(), None);
    let mut second = bus_at(&folder, "a@h").await;
    assert!(second.notice().unwrap().contains("a@h"));
    assert_eq!(first.broadcast(&message(1)).await.unwrap(), Some(2));
    assert_eq!(heard(&mut second).await.1.headers, message(1).headers);
    // A bus that is dropped leaves no socket, and the next has the name for itself.
    drop(second);
    drop(first);
    assert_eq!(sockets(&folder), [""; 0].map(PathBuf::from));
    assert_eq!(bus_at(&folder, "a@h").await.notice(), None);
}

#[tokio::test]
async fn apps_on_other_control_exchanges_are_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = bus_at(&folder, "a@h").await;
    let options = BusOptions {
        node: "b@h".to_owned(),
        settings: BusSettings {
            control_exchange: "other".to_owned(),
            ..BusSettings::default()
        },
        hears_commands: true,
        hears_workers: true,
    };
    let _other = LocalBus::open(&place(&folder), &options).await.unwrap();
    assert_eq!(first.broadcast(&message(1)).await.unwrap(), Some(1));
}

#[tokio::test]
async fn workers_of_one_database_find_one_another_whatever_they_call_it() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("q.db");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let open_bus = async |path: &Path, node: &str| {
        let url = format!("sqla+sqlite:///{}", path.display());
        let broker = open(&url, &Options::default()).unwrap();
        let options = BusOptions {
            node: node.to_owned(),
            settings: BusSettings::default(),
            hears_commands: true,
            hears_workers: false,
        };
        broker.open_bus(&options).await.unwrap().unwrap()
    };
    let mut first = open_bus(&real, "a@h").await;
    std::fs::write(&real, "").unwrap();
    let second = open_bus(&link.join("q.db"), "b@h").await;
    let third = open_bus(&folder.path().join("other.db"), "c@h").await;
    assert_eq!(first.broadcast(&message(1)).await.unwrap(), Some(2));
    for bus in [first, second, third] {
        bus.close().await.unwrap();
    }
}
