//! Keeps the bus open: connects again when it is lost, and keeps events meanwhile.
//!
//! Celery's counterparts: `celery.worker.pidbox.Pidbox` and the outbound buffer of
//! `celery.events.dispatcher`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::backoff::Doubling;
use celeriac_core::broker::{Broker, Error};
use celeriac_core::bus::{Bus, BusOptions, Destination, Heard, Outgoing};
use celeriac_protocol::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// What was heard and waits for the worker.
const QUEUED_EVENTS: usize = 256;
/// Batches that wait to be sent.
const QUEUED_SAYINGS: usize = 1024;
/// Bytes of events that are kept while the bus is lost; then the oldest are dropped.
const KEPT: usize = 16 << 20;
/// How long leaving in order may take.
const LEAVING: Duration = Duration::from_secs(2);
/// Waits between attempts to open the bus.
const BACKOFF: Doubling = Doubling {
    start: Duration::from_millis(250),
    max: Duration::from_secs(5),
};

/// What a bus is opened with.
pub struct Options {
    /// Brokers in the order of the consumer's.
    pub brokers: Vec<Arc<dyn Broker>>,
    /// Whether it is of any use.
    pub is_needed: bool,
    /// What it is opened for.
    pub bus: BusOptions,
}

/// What is told of the bus.
#[derive(Debug)]
pub enum Event {
    /// It is open.
    Opened {
        /// The routing key of replies to this worker.
        reply_key: String,
        /// What the operator should know.
        notice: Option<String>,
    },
    /// It can't be opened, and will be tried again.
    Failed(Error),
    /// This broker has none.
    Unavailable,
    /// A command was sent to so many mailboxes, where the broker can tell.
    Reached(Option<usize>),
    /// Something came.
    Heard(Box<Heard>),
    /// The connection is lost; it is opened again.
    Lost(Error),
}

#[derive(Debug)]
enum Saying {
    Send(Vec<Outgoing>),
    Broadcast(Box<Message>),
}

/// The worker's end.
#[derive(Debug)]
pub struct Handle {
    events: mpsc::Receiver<Event>,
    sayings: Option<mpsc::Sender<Saying>>,
    broker: watch::Sender<Option<usize>>,
}

impl Handle {
    /// Starts it; it opens the bus when it is told of a broker.
    pub fn start(options: Options) -> Self {
        let (to_events, events) = mpsc::channel(QUEUED_EVENTS);
        let (to_sayings, sayings) = mpsc::channel(QUEUED_SAYINGS);
        let (broker, wanted) = watch::channel(None);
        let keeper = Keeper {
            options,
            events: to_events,
            sayings,
            wanted,
            kept: Kept::default(),
            stops: false,
        };
        tokio::spawn(keeper.run());
        Self {
            events,
            sayings: Some(to_sayings),
            broker,
        }
    }

    /// Tasks are consumed from the broker of this number: the bus is to be there as well.
    pub fn follow(&self, broker: usize) {
        self.broker.send_if_modified(|followed| {
            let before = followed.replace(broker);
            before != Some(broker)
        });
    }

    /// The next that happens; `None` when nothing will any more. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Sends replies and events.
    pub fn send(&self, outgoing: Vec<Outgoing>) {
        self.say(Saying::Send(outgoing));
    }

    /// Sends a command to all nodes.
    pub fn broadcast(&self, command: Message) {
        self.say(Saying::Broadcast(Box::new(command)));
    }

    fn say(&self, saying: Saying) {
        if let Some(sayings) = &self.sayings
            && let Err(mpsc::error::TrySendError::Full(_)) = sayings.try_send(saying)
        {
            tracing::warn!("the bus is too slow: events or replies are left out");
        }
    }

    /// Has it send what is left, and leave; [`Handle::next`] answers with `None` when it has.
    pub fn stop(&mut self) {
        self.sayings = None;
    }
}

struct Keeper {
    options: Options,
    events: mpsc::Sender<Event>,
    sayings: mpsc::Receiver<Saying>,
    wanted: watch::Receiver<Option<usize>>,
    /// Events that could not be sent yet.
    kept: Kept,
    stops: bool,
}

impl Keeper {
    async fn run(mut self) {
        let mut failures = 0;
        while !self.stops {
            let Some(at) = *self.wanted.borrow_and_update() else {
                self.pause(None).await;
                continue;
            };
            let broker = Arc::clone(&self.options.brokers[at]);
            let opening = async {
                if self.options.is_needed {
                    broker.open_bus(&self.options.bus).await
                } else {
                    Ok(None)
                }
            };
            let opened = tokio::select! {
                biased;
                opened = opening => opened,
                () = self.events.closed() => return,
            };
            match opened {
                Ok(Some(bus)) => {
                    failures = 0;
                    self.serve(bus).await;
                }
                Ok(None) => {
                    self.tell(Event::Unavailable).await;
                    drop(self.kept.take());
                    // Another broker may have one.
                    self.pause(None).await;
                }
                Err(error) => {
                    self.tell(Event::Failed(error)).await;
                    let wait = BACKOFF.wait(failures);
                    failures += 1;
                    self.pause(Some(Instant::now() + wait)).await;
                }
            }
        }
    }

    /// Waits for another broker, or until it is time to try again; keeps what is said meanwhile.
    async fn pause(&mut self, until: Option<Instant>) {
        loop {
            tokio::select! {
                biased;
                changed = self.wanted.changed() => {
                    self.stops = self.stops || changed.is_err();
                    return;
                }
                saying = self.sayings.recv() => match saying {
                    Some(Saying::Send(outgoing)) => self.kept.add(outgoing),
                    Some(Saying::Broadcast(_)) => {}
                    None => {
                        self.stops = true;
                        return;
                    }
                },
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return,
            }
        }
    }

    /// Hears and says over one connection.
    async fn serve(&mut self, mut bus: Box<dyn Bus>) {
        self.tell(Event::Opened {
            reply_key: bus.reply_key().to_owned(),
            notice: bus.notice().map(str::to_owned),
        })
        .await;
        let kept = self.kept.take();
        let mut result = self.send(&mut *bus, kept).await;
        while result.is_ok() {
            tokio::select! {
                biased;
                changed = self.wanted.changed() => {
                    self.stops = self.stops || changed.is_err();
                    break;
                }
                saying = self.sayings.recv() => match saying {
                    Some(Saying::Send(outgoing)) => result = self.send(&mut *bus, outgoing).await,
                    Some(Saying::Broadcast(command)) => match bus.broadcast(&command).await {
                        Ok(reached) => self.tell(Event::Reached(reached)).await,
                        Err(error) => result = Err(error),
                    },
                    None => {
                        self.stops = true;
                        break;
                    }
                },
                heard = bus.next() => match heard {
                    Ok(heard) => self.tell(Event::Heard(Box::new(heard))).await,
                    Err(error) => result = Err(error),
                },
            }
        }
        match result {
            Ok(()) => {
                if !matches!(timeout(LEAVING, bus.close()).await, Ok(Ok(()))) {
                    tracing::debug!("leaving the bus failed");
                }
            }
            Err(error) => self.tell(Event::Lost(error)).await,
        }
    }

    async fn send(&mut self, bus: &mut dyn Bus, outgoing: Vec<Outgoing>) -> Result<(), Error> {
        if outgoing.is_empty() {
            return Ok(());
        }
        let sent = bus.send(&outgoing).await;
        if sent.is_err() {
            self.kept.add(outgoing);
        }
        sent
    }

    async fn tell(&self, event: Event) {
        // Without a worker there is nothing left to do: the loop ends by itself.
        drop(self.events.send(event).await);
    }
}

/// Events that could not be sent.
#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Outgoing>,
    bytes: usize,
}

impl Kept {
    /// Keeps events; whoever waits for a reply has given up by the time that it could be sent.
    fn add(&mut self, outgoing: Vec<Outgoing>) {
        let is_event = |outgoing: &Outgoing| matches!(outgoing.to, Destination::Event { .. });
        for event in outgoing.into_iter().filter(is_event) {
            self.bytes += size(&event);
            self.events.push_back(event);
        }
        while self.bytes > KEPT
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= size(&oldest);
        }
    }

    /// Takes all of them, the oldest first.
    fn take(&mut self) -> Vec<Outgoing> {
        self.bytes = 0;
        std::mem::take(&mut self.events).into()
    }
}

/// Roughly the memory that a message takes.
fn size(outgoing: &Outgoing) -> usize {
    size_of::<Outgoing>() + outgoing.message.headers.len() + outgoing.message.body.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::mailbox::json_message;

    fn event(body: String) -> Outgoing {
        Outgoing {
            to: Destination::Event {
                routing_key: "task.multi".to_owned(),
            },
            message: json_message(body, "{}".to_owned()),
        }
    }

    #[test]
    fn the_newest_events_are_kept_whatever_their_size() {
        let mut kept = Kept::default();
        let large = "x".repeat(KEPT / 4);
        for number in 0..10 {
            kept.add(vec![event(format!("{number}{large}"))]);
        }
        kept.add(vec![Outgoing {
            to: Destination::Reply {
                exchange: "e".to_owned(),
                routing_key: "k".to_owned(),
            },
            message: json_message("{}".to_owned(), "{}".to_owned()),
        }]);
        let first: Vec<u8> = kept
            .take()
            .iter()
            .map(|event| event.message.body[0])
            .collect();
        assert_eq!(first, b"789");
        assert_eq!((kept.take().len(), kept.bytes), (0, 0));
    }
}
