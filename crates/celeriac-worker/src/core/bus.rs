//! What comes over the bus, and what goes.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use celeriac_core::bus::{Destination, Heard, Kind, Outgoing};
use celeriac_core::clock::Now;
use celeriac_core::journal::Level;
use celeriac_core::revokes::{self, KeptRevokes, RevokeStore};
use celeriac_protocol::Message;
use celeriac_protocol::json::{self, Object};
use serde_json::{Map, Value, json};

use super::command::{Arguments, CONTROL, PIDBOX};
use super::remote::Awaited;
use super::{Core, Effect};
use crate::control::gossip::{self, News};
use crate::control::mailbox::{self, Address, Command};
use crate::control::mingle::Mingle;
use crate::events::event::{Members, number};
use crate::happening::Happening;
use crate::hooks::HookCall;
use crate::revoked::{ids, values};

const MINGLE: &str = "celery.worker.consumer.mingle";
const GOSSIP: &str = "celery.worker.consumer.gossip";
/// How long the start waits for the store of revokes.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// Messages that main works on at most; further ones are dropped, as the bus itself may drop them.
const AWAITED: usize = 1024;

impl Core {
    /// The bus is open: the others are greeted, and monitors are told. Replies reach this worker by
    /// `reply_key`.
    pub fn bus_opened(&mut self, reply_key: &str, now: Now) {
        if self.remote.options.mingles {
            self.notice(Level::Info, MINGLE, "mingle: searching for neighbors");
            let ticket = format!("{reply_key}.{}", self.remote.clock.value());
            let revoked = self.revoked.ids();
            let message = mailbox::command(
                "hello",
                &json!({"from_node": self.options.hostname, "revoked": revoked}),
                &ticket,
                &self.remote.options.reply_exchange,
                reply_key,
                self.remote.clock.forward(),
            );
            self.remote.mingle = Some(Mingle::new(ticket, now.monotonic));
            self.effects.push(Effect::Broadcast(message));
        }
    }

    /// So many mailboxes have got the greeting, where the broker can tell.
    pub fn bus_reached(&mut self, mailboxes: Option<usize>, now: Now) {
        if let Some(mingle) = &mut self.remote.mingle {
            mingle.reached(mailboxes);
        }
        self.end_mingle(now);
    }

    /// The connection to the bus is lost: nobody will reply any more.
    pub fn bus_lost(&mut self) {
        self.remote.mingle = None;
    }

    /// Whether it is still awaited what others know: the replies to the greeting, and what the store
    /// of revokes holds.
    pub fn catches_up(&self) -> bool {
        self.remote.mingle.is_some() || self.remote.store_until.is_some()
    }

    /// Asks the store of revokes, after commands are heard: none must come in between.
    pub fn load_revokes(&mut self, now: Now) {
        match self.remote.options.revoke_store {
            Some(RevokeStore::Broker) => {
                // Without an answer there are no messages either: nothing is gained by giving up.
                self.remote.store_until = Some(Duration::MAX);
                let since = now.wall.as_duration().as_secs_f64() - revokes::KEPT.as_secs_f64();
                self.effects.push(Effect::ReadRevokes(since));
            }
            Some(RevokeStore::Elsewhere) => {
                self.remote.store_until = Some(now.monotonic + STORE_PATIENCE);
                self.ask_main(Awaited::Revokes, HookCall::LoadRevoked);
            }
            None => {}
        }
    }

    pub(super) fn end_waiting_for_store(&mut self, now: Now) {
        if self
            .remote
            .store_until
            .is_some_and(|until| until <= now.monotonic)
        {
            self.remote.store_until = None;
            let text = "The store of revoked tasks does not answer: tasks that were revoked while \
                        no worker was up may run.";
            self.notice(Level::Warning, CONTROL, text);
        }
    }

    /// The broker has told what it keeps of revokes, or why it can't.
    pub fn revokes_read(&mut self, read: Result<KeptRevokes, String>, now: Now) {
        let read = read.map(|kept| (kept.stamps(), kept.ids));
        self.revokes_came(read, now);
    }

    fn revokes_loaded(&mut self, answer: Result<Value, String>, now: Now) {
        let read = answer.map(|kept| match kept.get("headers") {
            Some(Value::Object(headers)) => (headers.clone(), ids(kept.get("ids"))),
            _ => (Map::new(), ids(kept.get("ids"))),
        });
        self.revokes_came(read, now);
    }

    fn revokes_came(&mut self, read: Result<(Map<String, Value>, Vec<String>), String>, now: Now) {
        self.remote.store_until = None;
        match read {
            Ok((headers, ids)) => {
                self.merge_revoked(&ids, now);
                for (name, stamps) in &headers {
                    self.revoked.insert_stamps(name, values(stamps));
                }
            }
            Err(reason) => {
                let text = format!("The store of revoked tasks can't be read: {reason}");
                self.notice(Level::Warning, CONTROL, &text);
            }
        }
    }

    pub(super) fn end_mingle(&mut self, now: Now) {
        let is_over = |mingle: &Mingle| mingle.is_over(now.monotonic);
        if !self.remote.mingle.as_ref().is_some_and(is_over) {
            return;
        }
        match self
            .remote
            .mingle
            .take()
            .map_or(0, |mingle| mingle.synced())
        {
            0 => self.notice(Level::Info, MINGLE, "mingle: all alone"),
            nodes => {
                let text = format!("mingle: sync with {nodes} nodes");
                self.notice(Level::Info, MINGLE, &text);
                self.notice(Level::Info, MINGLE, "mingle: sync complete");
            }
        }
    }

    /// Something was heard.
    pub fn heard(&mut self, heard: Heard, now: Now) {
        let message = match heard.message {
            Ok(message) => message,
            Err(unreadable) => {
                let text = format!("Can't decode a message of the bus: {}", unreadable.reason);
                return self.notice(Level::Critical, PIDBOX, &text);
            }
        };
        match heard.kind {
            Kind::Command => self.command_came(message, now),
            Kind::Reply => self.reply_came(&message, now),
            Kind::Event => self.event_came(&message, now),
        }
    }

    fn command_came(&mut self, message: Message, now: Now) {
        self.remote.clock.forward();
        self.adjust_clock(&message);
        if message.content_type.as_deref() == Some("application/json") {
            self.open_command(&message.body, now);
        } else {
            self.ask_main(Awaited::Command, HookCall::ControlOpen(message.into()));
        }
    }

    fn adjust_clock(&mut self, message: &Message) {
        let headers = Object::parse(&message.headers).unwrap_or_default();
        let clock = headers.get("clock").and_then(json::as_i64);
        if let Some(clock) = clock.and_then(|clock| u64::try_from(clock).ok()) {
            self.remote.clock.adjust(clock);
        }
    }

    fn open_command(&mut self, body: &[u8], now: Now) {
        match Command::parse(body) {
            Ok(command) => self.command(command, now),
            Err(reason) => {
                let text = format!("Can't decode a command: {reason}");
                self.notice(Level::Critical, PIDBOX, &text);
            }
        }
    }

    fn reply_came(&mut self, message: &Message, now: Now) {
        self.adjust_clock(message);
        let Ok(body) = serde_json::from_slice::<Value>(&message.body) else {
            return;
        };
        let headers: Value = serde_json::from_str(&message.headers).unwrap_or_default();
        let Some(mingle) = &mut self.remote.mingle else {
            return;
        };
        let own = &self.options.hostname;
        if let Some(synced) = mingle.reply(headers.get("ticket"), &body, own, now.monotonic) {
            let text = format!("mingle: processing reply from {}", synced.node);
            self.notice(Level::Debug, MINGLE, &text);
            match synced.clock {
                Some(clock) => self.remote.clock.adjust(clock),
                None => self.remote.clock.forward(),
            };
            self.merge_revoked(&synced.revoked, now);
        }
        self.end_mingle(now);
    }

    fn event_came(&mut self, message: &Message, now: Now) {
        let Ok(event) = serde_json::from_slice::<Value>(&message.body) else {
            return;
        };
        let is_own = event.get("hostname").and_then(Value::as_str) == Some(&self.options.hostname);
        if is_own {
            self.remote.clock.forward();
        } else if let Some(clock) = event.get("clock").and_then(Value::as_u64) {
            self.remote.clock.adjust(clock);
        }
        let own = &self.options.hostname;
        match self.remote.gossip.event(&event, own, now.monotonic) {
            Some(News::Joined(node)) => {
                self.notice(Level::Debug, GOSSIP, &format!("{node} joined the party"));
            }
            Some(News::Left(node)) => self.notice(Level::Debug, GOSSIP, &format!("{node} left")),
            Some(News::Elect(id)) => {
                let members = Members::default().text("id", Some(&id));
                self.worker_event("worker-elect-ack", &members, now);
            }
            Some(News::Elected {
                id,
                leader,
                topic,
                action,
            }) => self.elected(&id, &leader, &topic, action),
            None => {}
        }
    }

    fn elected(&mut self, id: &str, leader: &str, topic: &str, action: Value) {
        let own = format!("{}.{}", self.options.hostname, self.remote.options.pid);
        if leader != own {
            let text = format!("node {leader} elected for '{id}'");
            return self.notice(Level::Info, GOSSIP, &text);
        }
        self.notice(Level::Info, GOSSIP, &format!("I won the election '{id}'"));
        if topic == "task" {
            self.effects
                .push(Effect::Tell(HookCall::CallTask { action }));
        } else {
            let text = format!("Unknown election topic '{topic}'");
            self.notice(Level::Error, GOSSIP, &text);
        }
    }

    /// Looks for workers that are gone without a word.
    pub(super) fn look_for_missed(&mut self, now: Now) {
        if !self.remote.options.gossips || now.monotonic < self.remote.next_look {
            return;
        }
        self.remote.next_look = now.monotonic + gossip::INTERVAL;
        for node in self.remote.gossip.take_missed(now.monotonic) {
            self.notice(
                Level::Info,
                GOSSIP,
                &format!("missed heartbeat from {node}"),
            );
        }
    }

    /// Tells monitors that the worker lives: `worker-online`, `worker-heartbeat`, `worker-offline`.
    pub fn beat(&mut self, kind: &str, loadavg: [f64; 3], now: Now) {
        let [one, five, fifteen] = loadavg.map(number);
        let members = Members::default()
            .raw("freq", &number(self.remote.options.heartbeat))
            .raw("active", &self.running().to_string())
            .raw("processed", &self.accepted.to_string())
            .raw("loadavg", &format!("[{one}, {five}, {fifteen}]"));
        let members = self.with_software(members);
        self.worker_event(kind, &members, now);
    }

    pub(super) fn with_software(&self, members: Members) -> Members {
        let [ident, version, system] = &self.remote.options.software;
        members
            .text("sw_ident", Some(ident))
            .text("sw_ver", Some(version))
            .text("sw_sys", Some(system))
    }

    pub(super) fn worker_event(&mut self, kind: &str, members: &Members, now: Now) {
        if let Some(events) = &mut self.remote.events {
            events.worker(kind, members, &mut self.remote.clock, now);
        }
    }

    /// Takes what is to be sent over the bus.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        let mut outgoing = std::mem::take(&mut self.remote.outgoing);
        if let Some(events) = &mut self.remote.events {
            outgoing.extend(events.take());
        }
        let options = &self.remote.options;
        if options.plain_events && options.plain_replies {
            return outgoing;
        }
        let is_plain = |outgoing: &Outgoing| match outgoing.to {
            Destination::Event { .. } => options.plain_events,
            Destination::Reply { .. } => options.plain_replies,
        };
        let (plain, others): (Vec<_>, Vec<_>) = outgoing.into_iter().partition(is_plain);
        for other in others {
            let body = serde_json::from_slice(&other.message.body).unwrap_or_default();
            let call = match other.to {
                Destination::Event { .. } => HookCall::EncodeEvent(body),
                Destination::Reply { .. } => HookCall::EncodeReply(body),
            };
            self.ask_main(Awaited::Encoding(Box::new(other)), call);
        }
        plain
    }

    /// Has main do something for the bus.
    pub(super) fn ask_main(&mut self, awaited: Awaited, call: HookCall) {
        if self.remote.awaited.len() >= AWAITED {
            let text = "The main process is too slow: a message of the bus is dropped";
            return self.notice(Level::Error, PIDBOX, text);
        }
        self.await_main(awaited, call);
    }

    /// The same, however much main has to do: what it did not do before it died, its successor does.
    pub(super) fn await_main(&mut self, awaited: Awaited, call: HookCall) {
        let token = self.token();
        self.remote.awaited.insert(token, awaited);
        self.effects.push(Effect::Call(token, call));
    }

    /// Main has answered.
    pub(super) fn main_answered(
        &mut self,
        awaited: Awaited,
        answer: Result<Value, String>,
        now: Now,
    ) {
        match (awaited, answer) {
            // What it is instead is in main's log.
            (Awaited::Command, Ok(Value::Null)) => {}
            (Awaited::Command, Ok(command)) => {
                self.open_command(command.to_string().as_bytes(), now);
            }
            (Awaited::Command, Err(reason)) => {
                let text = format!("Can't decode a command: {reason}");
                self.notice(Level::Critical, PIDBOX, &text);
            }
            (Awaited::Reply(address), Ok(reply)) => {
                self.command_answered(&address, &reply, now);
            }
            (Awaited::Reply(address), Err(reason)) => {
                self.reply(&address, &json!({"error": reason}));
            }
            (Awaited::Encoding(outgoing), Ok(encoded)) => self.encoded(*outgoing, &encoded),
            (Awaited::Encoding(_), Err(reason)) => {
                let text = format!("A message of the bus can't be written: {reason}");
                self.notice(Level::Error, PIDBOX, &text);
            }
            (Awaited::Queue(lane, queue, call), answer) => {
                self.queue_selected(lane, queue, call, answer);
            }
            (Awaited::Stored, Ok(_)) => {}
            (Awaited::Stored, Err(reason)) => {
                let text = format!("That tasks are revoked could not be stored: {reason}");
                self.notice(Level::Warning, CONTROL, &text);
            }
            (Awaited::Revokes, answer) => self.revokes_loaded(answer, now),
        }
    }

    /// Main has carried out a command: `celeriac.host.control.Control.command` tells how it
    /// answers.
    fn command_answered(&mut self, address: &Address, answer: &Value, now: Now) {
        if let Some(reply) = answer.get("reply").and_then(Value::as_str) {
            let clock = self.remote.clock.forward();
            let reply = address.reply(&self.options.hostname, reply, clock);
            self.remote.outgoing.extend(reply);
        } else if let Some(message) = answer.get("message") {
            let clock = self.remote.clock.forward();
            let outgoing = address.reply(&self.options.hostname, "null", clock);
            if let Some(outgoing) = outgoing {
                self.encoded(outgoing, message);
            }
        }
        if let Some(Value::Object(end)) = answer.get("shutdown") {
            self.asked_to_end(&Arguments(end.clone()), now);
        }
    }

    fn encoded(&mut self, mut outgoing: Outgoing, encoded: &Value) {
        let text = |name: &str| encoded.get(name).and_then(Value::as_str);
        let body = text("body").and_then(|body| STANDARD.decode(body).ok());
        let (Some(body), Some(content_type)) = (body, text("content_type")) else {
            return;
        };
        outgoing.message.body = body.into();
        outgoing.message.content_type = Some(content_type.into());
        outgoing.message.content_encoding = text("content_encoding").map(Into::into);
        // It is written already: it must not be given to main again.
        self.effects.push(Effect::Send(outgoing));
    }

    pub(super) fn notice(&self, level: Level, logger: &'static str, text: &str) {
        self.tell(&Happening::Remote {
            level,
            logger,
            text,
        });
    }
}
