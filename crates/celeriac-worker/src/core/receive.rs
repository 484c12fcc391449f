//! A message becomes a request, or is dealt with at once.

use std::sync::Arc;

use celeriac_core::broker::{Delay, Delivery, DeliveryTag, Fate, Settlement};
use celeriac_core::clock::Now;
use celeriac_core::dead_letter::Cause;
use celeriac_core::journal::Level;
use celeriac_core::pool::RequestKey;
use celeriac_protocol::head::InvalidTask;
use celeriac_protocol::{Head, Marks, Message, content};
use jiff::{SignedDuration, Timestamp};

use super::bury::{Arrival, Death};
use super::delay::next_look;
use super::{Continuation, Core, Effect};
use crate::admit::{Admission, Discard, admit};
use crate::complete::death;
use crate::events::event::TaskEvent;
use crate::happening::Happening;
use crate::hooks::HookCall;
use crate::receive::decode::{self, Received};
use crate::request::{Request, Stage};

impl Core {
    pub(super) fn receive(&mut self, lane: usize, delivery: Delivery, now: Now) {
        let (tag, queue) = (delivery.tag, delivery.queue);
        match delivery.message {
            Ok(mut message) => {
                let received = decode::classify(&message, &self.options.accept);
                if let Received::Task(head) = &received
                    && head.marks.deaths > 0
                {
                    // It was published anew, but was delivered before.
                    message.delivery_info.redelivered = true;
                }
                let message = Arc::new(message);
                let arrival = Arrival {
                    lane,
                    tag,
                    queue,
                    message,
                };
                self.received(arrival, received, now);
            }
            Err(unreadable) => {
                let reason = &unreadable.reason;
                let body = &unreadable.raw;
                self.tell(&Happening::Undecodable {
                    reason,
                    message: None,
                    body,
                });
                self.bury_bytes(tag, &queue, body, reason);
                self.settle_message(tag, Fate::Ack);
            }
        }
    }

    pub(super) fn received(&mut self, arrival: Arrival, received: Received, now: Now) {
        match received {
            Received::Task(head) => self.task_came(arrival, head, now),
            Received::Invalid(invalid) => self.invalid_came(arrival, &invalid, now),
            Received::Unknown => {
                let message = &arrival.message;
                self.tell(&Happening::UnknownMessage { message });
                let reason = "it is no task message";
                self.bury_arrival(&arrival, Death::untried(Cause::Invalid, reason));
                self.announce_rejected(arrival.message, None);
                self.settle_message(arrival.tag, Fate::Reject);
            }
            Received::Undecodable(reason) => {
                self.undecodable(&arrival.message, &reason);
                self.bury_arrival(&arrival, Death::untried(Cause::Undecodable, &reason));
                self.settle_message(arrival.tag, Fate::Ack);
            }
            Received::NeedsPython => {
                let call = HookCall::OpenV1(Arc::clone(&arrival.message));
                self.call(call, Continuation::V1Opened(arrival));
            }
        }
    }

    pub(super) fn undecodable(&self, message: &Message, reason: &str) {
        let (message, body) = (Some(message), &message.body);
        self.tell(&Happening::Undecodable {
            reason,
            message,
            body,
        });
    }

    fn invalid_came(&mut self, arrival: Arrival, invalid: &InvalidTask, now: Now) {
        // That nobody knows the task comes before what is wrong with it.
        let unknown = invalid
            .task
            .as_ref()
            .filter(|name| !self.options.tasks.contains_key(*name));
        match unknown {
            Some(task) => self.unknown_task(arrival, task, invalid.id.as_deref(), now),
            None => self.invalid(arrival, &invalid.to_string()),
        }
    }

    fn invalid(&mut self, arrival: Arrival, reason: &str) {
        self.bury_arrival(&arrival, Death::untried(Cause::Invalid, reason));
        self.announce_invalid(arrival.message, reason);
        self.settle_message(arrival.tag, Fate::Reject);
    }

    /// Tells of a message that is no task's.
    pub(super) fn announce_invalid(&mut self, message: Arc<Message>, reason: &str) {
        self.tell(&Happening::InvalidTask {
            reason,
            message: &message,
        });
        self.announce_rejected(message, Some(reason.to_owned()));
    }

    /// A task came that this worker does not know. Another one may, or will when the deployment that
    /// is under way has come there: the message has some time.
    fn unknown_task(&mut self, arrival: Arrival, task: &str, id: Option<&str>, now: Now) {
        let marks = Marks::of(&arrival.message);
        let first = marks.unknown_since;
        let since = first.and_then(|since| Timestamp::from_second(since).ok());
        let since = since.unwrap_or(now.wall);
        let store = self.options.store;
        let next = store.and_then(|store| next_look(since, store.unknown_grace, now.wall));
        if first.is_none() {
            let kept = store.filter(|_| next.is_some());
            self.tell(&Happening::UnknownTask {
                task,
                message: &arrival.message,
                kept: kept.map(|store| store.unknown_grace),
            });
        }
        if let Some(until) = next {
            let marks = Marks {
                unknown_since: Some(since.as_second()),
                ..marks
            };
            let until = Some(until);
            return self.settle_message(arrival.tag, Fate::Delay(Delay { until, marks }));
        }
        let reason = format!("no worker knows the task {task}");
        self.bury_arrival(&arrival, Death::untried(Cause::UnknownTask, &reason));
        if let (Some(events), Some(id)) = (&mut self.remote.events, id) {
            let event = TaskEvent::NotRegistered(task);
            let clock = &mut self.remote.clock;
            events.task(event.kind(), &event.members(id), clock, self.read_at);
        }
        let Arrival { tag, message, .. } = arrival;
        let (task, id) = (task.to_owned(), id.map(str::to_owned));
        let call = HookCall::TaskUnknown { message, task, id };
        self.call(call, Continuation::SettleMessage(tag, Fate::Reject));
    }

    fn task_came(&mut self, arrival: Arrival, head: Head, now: Now) {
        let is_run = self.lanes[arrival.lane].runs(&head.task);
        let known = self.options.tasks.get(&head.task).filter(|_| is_run);
        let Some(task) = known.cloned() else {
            return self.unknown_task(arrival, &head.task, Some(&head.id), now);
        };
        let content_type = arrival.message.content_type.as_deref();
        if !self.options.accept.allows(content_type) {
            let name = content::display_name(content_type.unwrap_or_default());
            let reason = format!("Refusing to deserialize untrusted content of type {name}");
            return self.invalid(arrival, &reason);
        }
        if self.adopts(arrival.lane, arrival.tag, &head, &arrival.message, now) {
            return;
        }
        let Arrival {
            lane,
            tag,
            queue,
            message,
        } = arrival;
        let mut head = head;
        let marks = head.marks;
        self.remote.forget_declared_limits(&mut head);
        let key = RequestKey(self.next_key);
        self.next_key += 1;
        let stage = Stage::Ready { is_bound: false };
        let request = Request {
            key,
            tag,
            lane,
            queue,
            head,
            message,
            task,
            stage,
            is_settled: false,
            is_taken: false,
            is_lost: false,
            terminated: None,
        };
        if self.is_told(Level::Info) && !marks.told {
            let format = &self.options.received_format;
            self.tell(&Happening::TaskReceived {
                request: &request,
                format,
            });
        }
        let admission = admit(&request.head, &self.revoked, now);
        let message = Arc::clone(&request.message);
        self.by_tag.insert(tag, key);
        self.requests.insert(key, request);
        if let Admission::Discard(why) = admission {
            return self.discard(key, why, now);
        }
        let most = self.options.store.and_then(|store| store.max_deaths);
        if death::is_spent(marks, most) {
            return self.give_up_killer(key);
        }
        if marks.told {
            // It comes from the delay store.
            return self.admitted(key, admission, now);
        }
        if let Some(request) = self.requests.get(&key)
            && self.is_told_of(request.task.send_events)
            && let Some(events) = &mut self.remote.events
        {
            let event = TaskEvent::Received(request);
            let members = event.members(&request.head.id);
            events.task(event.kind(), &members, &mut self.remote.clock, now);
        }
        if self.options.signals_received {
            // Receivers see the task before it runs.
            self.lanes[lane].announced += 1;
            let continuation = Continuation::Received(lane, key, admission);
            self.call(HookCall::TaskReceived(message), continuation);
        } else {
            self.admitted(key, admission, now);
        }
    }

    /// Goes on with a request whose receipt is known to all.
    pub(super) fn admitted(&mut self, key: RequestKey, admission: Admission, now: Now) {
        if !self.requests.contains_key(&key) {
            // Its lease was lost meanwhile.
            return;
        }
        if let Admission::Hold(eta) = admission
            && self.is_stored(eta, now)
        {
            let marks = self.requests.get(&key).map(|request| request.head.marks);
            let marks = Marks {
                told: true,
                ..marks.unwrap_or_default()
            };
            self.delay(key, Some(eta), marks);
        } else if let Admission::Hold(eta) = admission {
            self.held.insert(eta, key);
            self.set_stage(key, Stage::Held);
        } else {
            self.throttle(key, false, now);
        }
    }

    /// Sends a request through its task's rate limit.
    pub(super) fn throttle(&mut self, key: RequestKey, is_bound: bool, now: Now) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let lane = &self.lanes[request.lane];
        if self.spills_throttled()
            && lane.throttled >= lane.options.throttled_limit
            && let Some(wait) = self.buckets.line_up(&request.head.task, now.monotonic)
        {
            let marks = Marks {
                told: true,
                ..request.head.marks
            };
            let wait = SignedDuration::try_from(wait).unwrap_or_default();
            let until = now.wall.saturating_add(wait).unwrap_or(Timestamp::MAX);
            self.delay(key, Some(until), marks);
        } else if self.buckets.passes(&request.head.task, key, now.monotonic) {
            self.pass_limits(key, is_bound, now);
        } else {
            self.set_stage(key, Stage::Throttled);
        }
    }

    /// Whether what is too much for a rate limit goes to the delay store.
    pub(super) fn spills_throttled(&self) -> bool {
        self.options.spills_throttled && self.options.store.is_some()
    }

    pub(super) fn eta_came(&mut self, key: RequestKey, now: Now) {
        self.throttle(key, true, now);
    }

    /// Ends a request that is not to run.
    pub(super) fn discard(&mut self, key: RequestKey, why: Discard, now: Now) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let stamp = match why {
            Discard::Revoked => self.revoked.revoking_stamp(&request.head),
            Discard::Expired | Discard::Duplicate => None,
        };
        let stamp = stamp.filter(|_| !self.revoked.contains(&request.head.id));
        if why != Discard::Duplicate {
            self.tell(&Happening::TaskDiscarded {
                request,
                stamp: stamp.as_deref(),
            });
        }
        let message = Arc::clone(&request.message);
        if why == Discard::Expired {
            self.remote.expired += 1;
            let id = request.head.id.clone();
            self.revoked.insert(&id, now.monotonic);
        }
        self.set_stage(key, Stage::Concluding);
        let expired = why == Discard::Expired;
        let event = TaskEvent::Revoked {
            terminated: false,
            signum: None,
            expired,
        };
        self.task_event(key, &event, now);
        let call = HookCall::TaskRevoked {
            message,
            reason: why.reason(),
            terminated: false,
            signum: None,
            expired,
        };
        self.call(call, Continuation::Settle(key, Fate::Ack));
    }

    /// Ends a request that is to be unique, and is not: of the other one this is the id.
    pub(super) fn discard_duplicate(&mut self, key: RequestKey, of: &str, now: Now) {
        if let Some(request) = self.requests.get(&key) {
            self.tell(&Happening::TaskDuplicate { request, of });
        }
        self.discard(key, Discard::Duplicate, now);
    }

    fn announce_rejected(&mut self, message: Arc<Message>, reason: Option<String>) {
        if self.options.signals_rejected {
            self.effects
                .push(Effect::Tell(HookCall::TaskRejected { message, reason }));
        }
    }

    pub(super) fn settle_message(&mut self, tag: DeliveryTag, fate: Fate) {
        self.effects.push(Effect::Settle(Settlement { tag, fate }));
    }
}
