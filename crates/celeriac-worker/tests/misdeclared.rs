//! A queue that exists otherwise than the app declares it ends the worker, whenever it is noticed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{
    Broker, Capabilities, Delivery, Error, ErrorKind, Maintained, Session, Settlement, Want,
};
use celeriac_core::dead_letter::Bounds;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::queue::Queue;
use celeriac_protocol::Message;
use celeriac_worker::receive::consumer::{Event, Handle, Options};
use celeriac_worker::receive::failover::{RetryPolicy, Strategy};

/// Loses each connection at its second exchange; from the second connection on the queue is
/// declared otherwise.
#[derive(Debug, Default)]
struct Changing {
    connections: AtomicUsize,
}

#[async_trait]
impl Broker for Changing {
    fn display_url(&self) -> String {
        "changing://".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: false,
            delays: false,
            recovers: true,
            tags_outlive_connections: false,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(OneOf {
            number,
            exchanges: 0,
        }))
    }
}

struct OneOf {
    number: usize,
    exchanges: usize,
}

#[async_trait]
impl Session for OneOf {
    async fn declare(&mut self, _: &Queue) -> Result<(), Error> {
        if self.number == 0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Configuration, "it is declared otherwise").with_hint("delete it"))
    }

    async fn subscribe(&mut self, _: &Queue) -> Result<(), Error> {
        Ok(())
    }

    async fn cancel(&mut self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn exchange(&mut self, _: &[Settlement], _: Want) -> Result<Vec<Delivery>, Error> {
        self.exchanges += 1;
        if self.exchanges == 1 {
            return Ok(Vec::new());
        }
        Err(Error::new(ErrorKind::Connection, "lost"))
    }

    async fn wait(&mut self) -> Result<(), Error> {
        tokio::task::yield_now().await;
        Ok(())
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

    async fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

#[derive(Default)]
struct Written(Mutex<Vec<String>>);

impl Journal for Written {
    fn writes(&self, _: Level) -> bool {
        true
    }

    fn write(&self, record: Record) {
        self.0.lock().unwrap().push(record.message);
    }
}

fn options(broker: &Arc<Changing>, queues: Vec<Queue>) -> Options {
    Options {
        brokers: vec![Arc::clone(broker) as Arc<dyn Broker>],
        strategy: Strategy::RoundRobin,
        policy: RetryPolicy {
            on_startup: true,
            when_lost: true,
            max_retries: None,
        },
        queues,
        purge: false,
        dead_letters: Bounds::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_declared_otherwise_after_a_loss_is_given_up_at_once() {
    let broker = Arc::new(Changing::default());
    let journal = Arc::new(Written::default());
    let options = options(&broker, vec![Queue::direct("q")]);
    let mut handle = Handle::start(options, 0, Arc::clone(&journal) as Arc<dyn Journal>);
    let mut events = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_mins(1), handle.next())
            .await
            .unwrap()
            .unwrap();
        events.push(format!("{event:?}"));
        if matches!(event, Event::GaveUp) {
            break;
        }
        let one = Want {
            runnable: 1,
            total: 1,
        };
        handle.exchange(&mut Vec::new(), &mut Vec::new(), one);
    }
    assert_eq!(events, ["Connected(0)", "Lost", "GaveUp"]);
    assert_eq!(broker.connections.load(Ordering::Relaxed), 2);
    let written = journal.0.lock().unwrap();
    let told: Vec<&String> = written
        .iter()
        .filter(|line| line.contains("declared otherwise"))
        .collect();
    assert_eq!(told.len(), 1, "{written:?}");
    assert!(told[0].contains("delete it"));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_a_command_added_is_given_up_alone() {
    let broker = Arc::new(Changing::default());
    let journal = Arc::new(Written::default());
    let options = options(&broker, Vec::new());
    let mut handle = Handle::start(options, 0, Arc::clone(&journal) as Arc<dyn Journal>);
    handle.add_queue(Queue::direct("added"));
    let mut events = Vec::new();
    while events.len() < 4 {
        let event = tokio::time::timeout(Duration::from_mins(1), handle.next())
            .await
            .unwrap()
            .unwrap();
        events.push(format!("{event:?}"));
        let one = Want {
            runnable: 1,
            total: 1,
        };
        handle.exchange(&mut Vec::new(), &mut Vec::new(), one);
    }
    let refused = "QueueRefused(\"added\")";
    assert_eq!(events, ["Connected(0)", "Lost", refused, "Connected(0)"]);
    let written = journal.0.lock().unwrap();
    let told = "Can't consume from added: it is declared otherwise (delete it)";
    assert!(written.iter().any(|line| line == told), "{written:?}");
}
