//! Events for monitors: which are sent, and how they are written.
//!
//! Celery's counterpart: `celery.events.dispatcher.EventDispatcher`.

pub mod clock;
pub mod event;

use celeriac_core::bus::{Destination, Outgoing};
use celeriac_core::clock::Now;
use jiff::tz::TimeZone;

use crate::control::mailbox;
use clock::LamportClock;
use event::{Members, number};

/// Events about tasks that go into one message at most (`buffer_limit`).
const BATCH: usize = 24;

/// Who sends events, and which.
#[derive(Debug, Clone)]
pub struct EventOptions {
    /// The node's name.
    pub hostname: String,
    /// The worker's process.
    pub pid: u32,
    /// Whether events about tasks are sent from the start, whatever is said later (`-E`).
    pub task_events: bool,
    /// The time zone of `utcoffset`.
    pub time_zone: TimeZone,
}

/// Writes events, and collects those about tasks into batches.
#[derive(Debug)]
pub struct Dispatcher {
    options: EventOptions,
    /// Whether events about tasks were asked for by remote control.
    sends_tasks: bool,
    batch: Vec<String>,
    outgoing: Vec<Outgoing>,
}

impl Dispatcher {
    /// A dispatcher with nothing to send yet.
    pub fn new(options: EventOptions) -> Self {
        Self {
            options,
            sends_tasks: false,
            batch: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    /// Whether events about tasks are sent.
    pub fn sends_tasks(&self) -> bool {
        self.options.task_events || self.sends_tasks
    }

    /// Begins to send events about tasks; false when they are sent already.
    pub fn enable_tasks(&mut self) -> bool {
        let news = !self.sends_tasks();
        self.sends_tasks = true;
        news
    }

    /// Ceases to send them; false when none are sent, or all are (`-E`), which Celery's remote
    /// control can't change.
    pub fn disable_tasks(&mut self) -> bool {
        !self.options.task_events && std::mem::take(&mut self.sends_tasks)
    }

    /// Sends an event of the group `worker`, by itself.
    pub fn worker(&mut self, kind: &str, members: &Members, clock: &mut LamportClock, now: Now) {
        let text = self.event(kind, members, clock, now);
        let routing_key = kind.replace('-', ".");
        self.publish(&routing_key, &text);
    }

    /// Sends an event of the group `task`, together with others.
    pub fn task(&mut self, kind: &str, members: &Members, clock: &mut LamportClock, now: Now) {
        if !self.sends_tasks() {
            return;
        }
        let text = self.event(kind, members, clock, now);
        self.batch.push(text);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Takes what is to be sent.
    pub fn take(&mut self) -> Vec<Outgoing> {
        self.flush();
        std::mem::take(&mut self.outgoing)
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let text = format!("[{}]", self.batch.join(", "));
        self.batch.clear();
        self.publish("task.multi", &text);
    }

    fn publish(&mut self, routing_key: &str, body: &str) {
        let headers = serde_json::json!({"hostname": self.options.hostname}).to_string();
        self.outgoing.push(Outgoing {
            to: Destination::Event {
                routing_key: routing_key.to_owned(),
            },
            message: mailbox::json_message(body.to_owned(), headers),
        });
    }

    fn event(&self, kind: &str, members: &Members, clock: &mut LamportClock, now: Now) -> String {
        let options = &self.options;
        // Hours, positive to the west.
        let offset = options.time_zone.to_offset(now.wall).seconds();
        let utcoffset = number(-f64::from(offset) / 3600.0 + 0.0);
        let timestamp = number(now.wall.as_microsecond() as f64 / 1e6);
        format!(
            r#"{{"hostname": {}, "utcoffset": {utcoffset}, "pid": {}, "clock": {}{}, "timestamp": {timestamp}, "type": "{kind}"}}"#,
            celeriac_protocol::json::quote(&options.hostname),
            options.pid,
            clock.forward(),
            members.as_str(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::event::TaskEvent;
    use super::*;

    fn dispatcher(task_events: bool) -> Dispatcher {
        Dispatcher::new(EventOptions {
            hostname: "w1@here".to_owned(),
            pid: 7,
            task_events,
            time_zone: TimeZone::fixed(jiff::tz::offset(5)),
        })
    }

    fn now() -> Now {
        Now {
            wall: "2026-11-22T12:00:00.25Z".parse().unwrap(),
            monotonic: Duration::ZERO,
        }
    }

    fn body(outgoing: &Outgoing) -> Value {
        serde_json::from_slice(&outgoing.message.body).unwrap()
    }

    #[test]
    fn an_event_says_who_when_and_in_which_order() {
        let (mut events, mut clock) = (dispatcher(false), LamportClock::default());
        let members = Members::default().raw("active", "0");
        events.worker("worker-online", &members, &mut clock, now());
        let sent = events.take();
        let to = Destination::Event {
            routing_key: "worker.online".to_owned(),
        };
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].to, to);
        assert_eq!(&*sent[0].message.headers, r#"{"hostname":"w1@here"}"#);
        let expected = json!({
            "hostname": "w1@here", "utcoffset": -5.0, "pid": 7, "clock": 1, "active": 0,
            "timestamp": 1_795_348_800.25, "type": "worker-online",
        });
        assert_eq!(body(&sent[0]), expected);
    }

    #[test]
    fn task_events_go_together_in_lists() {
        let (mut events, mut clock) = (dispatcher(true), LamportClock::default());
        for _ in 0..=BATCH {
            let members = TaskEvent::Started.members("i");
            events.task("task-started", &members, &mut clock, now());
        }
        let sizes: Vec<usize> = events
            .take()
            .iter()
            .map(|sent| body(sent).as_array().unwrap().len())
            .collect();
        assert_eq!(sizes, [BATCH, 1]);
        assert_eq!(events.take(), []);
    }

    #[test]
    fn task_events_can_be_asked_for_and_declined() {
        let (mut events, mut clock) = (dispatcher(false), LamportClock::default());
        let members = TaskEvent::Started.members("i");
        events.task("task-started", &members, &mut clock, now());
        assert_eq!(events.take(), []);
        assert_eq!(clock.value(), 0, "what is not sent does not count");
        assert!(events.enable_tasks());
        assert!(!events.enable_tasks());
        events.task("task-started", &members, &mut clock, now());
        assert_eq!(events.take().len(), 1);
        assert!(events.disable_tasks());
        assert!(!events.disable_tasks());
        assert!(!dispatcher(true).disable_tasks(), "-E stays on");
    }
}
