//! A dead letter that the broker does not take holds up its own message alone.

#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{
    Broker, Capabilities, Delivery, DeliveryTag, Error, ErrorKind, Fate, Maintained, Session,
    Settlement, Unreadable, Want,
};
use celeriac_core::dead_letter::{Bounds, Cause, Content, DeadLetter, Remains};
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::queue::Queue;
use celeriac_protocol::Message;
use celeriac_worker::receive::consumer::{Burial, Event, Handle, Options};
use celeriac_worker::receive::failover::{RetryPolicy, Strategy};
use jiff::Timestamp;

/// Has two messages, and no room for a letter the first times.
#[derive(Debug, Clone, Default)]
struct Full(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    handed: bool,
    failures: usize,
    connections: usize,
    done: Vec<String>,
}

#[async_trait]
impl Broker for Full {
    fn display_url(&self) -> String {
        "full://".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: false,
            delays: true,
            recovers: true,
            tags_outlive_connections: false,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        self.0.lock().unwrap().connections += 1;
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Session for Full {
    async fn declare(&mut self, _: &Queue) -> Result<(), Error> {
        Ok(())
    }

    async fn subscribe(&mut self, _: &Queue) -> Result<(), Error> {
        Ok(())
    }

    async fn cancel(&mut self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn exchange(&mut self, told: &[Settlement], _: Want) -> Result<Vec<Delivery>, Error> {
        let mut state = self.0.lock().unwrap();
        let done = told
            .iter()
            .map(|told| format!("{:?} {}", told.fate, told.tag.0));
        state.done.extend(done);
        if std::mem::replace(&mut state.handed, true) {
            return Ok(Vec::new());
        }
        let delivery = |tag| Delivery {
            tag: DeliveryTag(tag),
            queue: "q".into(),
            message: Err(Unreadable {
                reason: String::new(),
                raw: Vec::new().into(),
            }),
        };
        Ok(vec![delivery(1), delivery(2)])
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

    async fn bury(&mut self, letter: &DeadLetter, _: Bounds) -> Result<(), Error> {
        let mut state = self.0.lock().unwrap();
        if state.failures > 0 {
            state.failures -= 1;
            return Err(Error::new(ErrorKind::Full, "no room"));
        }
        state.done.push(format!("bury {}", letter.id));
        Ok(())
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

fn letter() -> DeadLetter {
    DeadLetter {
        id: "a".to_owned(),
        queue: "q".to_owned(),
        task: None,
        cause: Cause::Undecodable,
        reason: String::new(),
        remains: Remains::default(),
        attempts: 0,
        hostname: "w@h".to_owned(),
        died_at: Timestamp::UNIX_EPOCH,
        message: Content::raw(b"x"),
    }
}

/// What a broker is told that has no room for so many times.
async fn told(failures: usize) -> State {
    let broker = Full::default();
    broker.0.lock().unwrap().failures = failures;
    let options = Options {
        brokers: vec![Arc::new(broker.clone())],
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
    let two = Want {
        runnable: 2,
        total: 2,
    };
    handle.exchange(&mut Vec::new(), &mut Vec::new(), two);
    let tags = loop {
        if let Event::Delivered(_, came) = handle.next().await.unwrap() {
            break came.iter().map(|came| came.tag).collect::<Vec<_>>();
        }
    };
    let burial = Burial {
        tag: tags[0],
        letter: letter(),
    };
    let ack = |tag: &DeliveryTag| Settlement {
        tag: *tag,
        fate: Fate::Ack,
    };
    let mut settlements = tags.iter().map(ack).collect();
    handle.exchange(&mut vec![burial], &mut settlements, two);
    tokio::time::sleep(Duration::from_mins(5)).await;
    handle.stop();
    while !matches!(handle.next().await, Some(Event::Closed) | None) {}
    std::mem::take(&mut *broker.0.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_message_is_settled_after_its_letter_and_the_others_do_not_wait() {
    let state = told(3).await;
    assert_eq!(state.done, ["Ack 2", "bury a", "Ack 1"]);
    assert_eq!(state.connections, 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_letter_is_never_kept_goes_back() {
    let state = told(usize::MAX).await;
    assert_eq!(state.done, ["Ack 2", "Release 1"]);
    assert_eq!(state.connections, 1);
}
