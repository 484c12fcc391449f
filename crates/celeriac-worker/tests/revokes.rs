//! What the broker keeps of revokes is told before any message that came later.

#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{
    Broker, Capabilities, Delivery, DeliveryTag, Error, ErrorKind, Maintained, Session, Settlement,
    Unreadable, Want,
};
use celeriac_core::dead_letter::Bounds;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::queue::Queue;
use celeriac_core::revokes::KeptRevokes;
use celeriac_protocol::Message;
use celeriac_worker::receive::consumer::{Event, Handle, Options};
use celeriac_worker::receive::failover::{RetryPolicy, Strategy};

/// Has one message waiting, and loses the connection the first times that it is asked for revokes.
#[derive(Debug)]
struct Keeping {
    losses: AtomicUsize,
    connections: AtomicUsize,
    since: Mutex<Vec<f64>>,
}

#[derive(Debug, Clone)]
struct Kept(Arc<Keeping>);

#[async_trait]
impl Broker for Kept {
    fn display_url(&self) -> String {
        "kept://".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: false,
            delays: false,
            recovers: true,
            tags_outlive_connections: true,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Session for Kept {
    async fn declare(&mut self, _: &Queue) -> Result<(), Error> {
        Ok(())
    }

    async fn subscribe(&mut self, _: &Queue) -> Result<(), Error> {
        Ok(())
    }

    async fn cancel(&mut self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn exchange(&mut self, _: &[Settlement], _: Want) -> Result<Vec<Delivery>, Error> {
        Ok(vec![Delivery {
            tag: DeliveryTag(1),
            queue: "q".into(),
            message: Err(Unreadable {
                reason: String::new(),
                raw: Vec::new().into(),
            }),
        }])
    }

    async fn wait(&mut self) -> Result<(), Error> {
        std::future::pending().await
    }

    async fn maintain(&mut self) -> Result<Maintained, Error> {
        Ok(Maintained {
            next: Duration::from_hours(1),
            ..Maintained::default()
        })
    }

    async fn purge(&mut self, _: &str) -> Result<u64, Error> {
        Ok(0)
    }

    async fn size(&mut self, _: &str) -> Result<u64, Error> {
        Ok(0)
    }

    async fn publish(&mut self, _: &str, _: &Message) -> Result<(), Error> {
        Ok(())
    }

    async fn revokes(&mut self, since: f64) -> Result<KeptRevokes, Error> {
        self.0.since.lock().unwrap().push(since);
        let losses = &self.0.losses;
        let one_less = |left: usize| left.checked_sub(1);
        if losses
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
        {
            return Err(Error::new(ErrorKind::Connection, "lost"));
        }
        Ok(KeptRevokes {
            ids: vec!["a".to_owned()],
            headers: Vec::new(),
        })
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

struct Nothing;

impl Journal for Nothing {
    fn writes(&self, _: Level) -> bool {
        false
    }

    fn write(&self, _: Record) {}
}

/// What a worker is told that asks for revokes and wants messages, up to the first of them, from a
/// broker that is lost so often over revokes.
async fn told(losses: usize) -> (Vec<String>, Arc<Keeping>) {
    let keeping = Arc::new(Keeping {
        losses: losses.into(),
        connections: AtomicUsize::new(0),
        since: Mutex::default(),
    });
    let options = Options {
        brokers: vec![Arc::new(Kept(Arc::clone(&keeping)))],
        strategy: Strategy::RoundRobin,
        policy: RetryPolicy {
            on_startup: true,
            when_lost: true,
            max_retries: None,
        },
        queues: vec![Queue::direct("q")],
        purge: false,
        dead_letters: Bounds::default(),
    };
    let mut handle = Handle::start(options, 0, Arc::new(Nothing));
    handle.read_revokes(7.0);
    let one = Want {
        runnable: 1,
        total: 1,
    };
    handle.exchange(&mut Vec::new(), &mut Vec::new(), one);
    let mut events = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_mins(1), handle.next())
            .await
            .unwrap()
            .unwrap();
        events.push(match &event {
            Event::Connected(_) => "connected".to_owned(),
            Event::Revokes(Ok(kept)) => format!("revoked {:?}", kept.ids),
            Event::Revokes(Err(error)) => format!("unread: {error}"),
            Event::Delivered(..) => "delivered".to_owned(),
            Event::Lost => "lost".to_owned(),
            other => format!("{other:?}"),
        });
        if matches!(event, Event::Delivered(..)) {
            return (events, keeping);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn revokes_are_told_before_the_first_message() {
    let (events, keeping) = told(0).await;
    assert_eq!(events, ["connected", r#"revoked ["a"]"#, "delivered"]);
    assert_eq!(*keeping.since.lock().unwrap(), [7.0], "they are read once");
}

#[tokio::test(start_paused = true)]
async fn revokes_are_read_over_the_next_connection_when_the_first_is_lost() {
    let (events, keeping) = told(1).await;
    let expected = [
        "connected",
        "lost",
        "connected",
        r#"revoked ["a"]"#,
        "delivered",
    ];
    assert_eq!(events, expected);
    assert_eq!(keeping.connections.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn messages_come_although_no_connection_survives_the_reading_of_revokes() {
    let (events, _) = told(usize::MAX).await;
    let expected = [
        "connected",
        "lost",
        "connected",
        "unread: lost",
        "delivered",
    ];
    assert_eq!(events, expected);
}
