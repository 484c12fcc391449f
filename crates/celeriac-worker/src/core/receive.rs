//! A message becomes a request, or is dealt with at once.

use std::sync::Arc;

use celeriac_core::broker::{Delivery, DeliveryTag, Fate, Settlement};
use celeriac_core::clock::Now;
use celeriac_core::journal::Level;
use celeriac_core::pool::RequestKey;
use celeriac_protocol::head::InvalidTask;
use celeriac_protocol::{Head, Message, content};

use super::{Continuation, Core, Effect};
use crate::admit::{Admission, Discard, admit};
use crate::events::event::TaskEvent;
use crate::happening::Happening;
use crate::hooks::HookCall;
use crate::receive::decode::{self, Received};
use crate::request::{Request, Stage};

impl Core {
    pub(super) fn receive(&mut self, delivery: Delivery, now: Now) {
        let tag = delivery.tag;
        match delivery.message {
            Ok(message) => {
                let received = decode::classify(&message, &self.options.accept);
                self.received(tag, Arc::new(message), received, now);
            }
            Err(unreadable) => {
                let reason = &unreadable.reason;
                let body = &unreadable.raw;
                self.tell(&Happening::Undecodable {
                    reason,
                    message: None,
                    body,
                });
                self.settle_message(tag, Fate::Ack);
            }
        }
    }

    pub(super) fn received(
        &mut self,
        tag: DeliveryTag,
        message: Arc<Message>,
        received: Received,
        now: Now,
    ) {
        match received {
            Received::Task(head) => self.task_came(tag, message, head, now),
            Received::Invalid(invalid) => self.invalid_came(tag, message, &invalid),
            Received::Unknown => {
                self.tell(&Happening::UnknownMessage { message: &message });
                self.announce_rejected(message, None);
                self.settle_message(tag, Fate::Reject);
            }
            Received::Undecodable(reason) => {
                self.undecodable(&message, &reason);
                self.settle_message(tag, Fate::Ack);
            }
            Received::NeedsPython => {
                let call = HookCall::OpenV1(Arc::clone(&message));
                self.call(call, Continuation::V1Opened(tag, message));
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

    fn invalid_came(&mut self, tag: DeliveryTag, message: Arc<Message>, invalid: &InvalidTask) {
        // That nobody knows the task comes before what is wrong with it.
        let unknown = invalid
            .task
            .as_ref()
            .filter(|name| !self.options.tasks.contains_key(*name));
        match unknown {
            Some(task) => self.unknown_task(tag, message, task, invalid.id.as_deref()),
            None => self.invalid(tag, message, &invalid.to_string()),
        }
    }

    fn invalid(&mut self, tag: DeliveryTag, message: Arc<Message>, reason: &str) {
        self.announce_invalid(message, reason);
        self.settle_message(tag, Fate::Reject);
    }

    /// Tells of a message that is no task's.
    pub(super) fn announce_invalid(&mut self, message: Arc<Message>, reason: &str) {
        self.tell(&Happening::InvalidTask {
            reason,
            message: &message,
        });
        self.announce_rejected(message, Some(reason.to_owned()));
    }

    fn unknown_task(
        &mut self,
        tag: DeliveryTag,
        message: Arc<Message>,
        task: &str,
        id: Option<&str>,
    ) {
        self.tell(&Happening::UnknownTask {
            task,
            message: &message,
        });
        if let (Some(events), Some(id)) = (&mut self.remote.events, id) {
            let event = TaskEvent::NotRegistered(task);
            let clock = &mut self.remote.clock;
            events.task(event.kind(), &event.members(id), clock, self.read_at);
        }
        let (task, id) = (task.to_owned(), id.map(str::to_owned));
        let call = HookCall::TaskUnknown { message, task, id };
        self.call(call, Continuation::SettleMessage(tag, Fate::Reject));
    }

    fn task_came(&mut self, tag: DeliveryTag, message: Arc<Message>, head: Head, now: Now) {
        let Some(task) = self.options.tasks.get(&head.task).cloned() else {
            return self.unknown_task(tag, message, &head.task.clone(), Some(&head.id));
        };
        let content_type = message.content_type.as_deref();
        if !self.options.accept.allows(content_type) {
            let name = content::display_name(content_type.unwrap_or_default());
            let reason = format!("Refusing to deserialize untrusted content of type {name}");
            return self.invalid(tag, message, &reason);
        }
        if self.adopts(tag, &head, &message, now) {
            return;
        }
        let mut head = head;
        self.remote.forget_declared_limits(&mut head);
        let key = RequestKey(self.next_key);
        self.next_key += 1;
        let stage = Stage::Ready { is_bound: false };
        let request = Request {
            key,
            tag,
            head,
            message,
            task,
            stage,
            is_settled: false,
            is_lost: false,
            terminated: None,
        };
        if self.is_told(Level::Info) {
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
            self.announced += 1;
            let continuation = Continuation::Received(key, admission);
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
        if let Admission::Hold(eta) = admission {
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
        if self.buckets.passes(&request.head.task, key, now.monotonic) {
            self.make_ready(key, is_bound, now);
        } else {
            self.set_stage(key, Stage::Throttled);
        }
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
            Discard::Expired => None,
        };
        let stamp = stamp.filter(|_| !self.revoked.contains(&request.head.id));
        self.tell(&Happening::TaskDiscarded {
            request,
            stamp: stamp.as_deref(),
        });
        let message = Arc::clone(&request.message);
        if why == Discard::Expired {
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
