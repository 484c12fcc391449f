//! Messages that nothing can be done with become dead letters.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use celeriac_core::broker::DeliveryTag;
use celeriac_core::dead_letter::{Cause, Content, DeadLetter, Remains};
use celeriac_core::evidence::Evidence;
use celeriac_core::pool::{ExitStatus, RequestKey};
use celeriac_protocol::Message;
use celeriac_protocol::json::{self, Object};

use super::{Core, Effect};
use crate::happening::Happening;
use crate::receive::consumer::Burial;

/// What is done with messages that can't run now, or never, by a broker that keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// How many processes or workers a task may kill (`celeriac_max_deaths`); `None` for any number.
    pub max_deaths: Option<u32>,
    /// How long a task is kept that no worker knows (`celeriac_unknown_task_grace`).
    pub unknown_grace: Duration,
}

/// A message that came, and where from.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) lane: usize,
    pub(super) tag: DeliveryTag,
    pub(super) queue: Arc<str>,
    pub(super) message: Arc<Message>,
}

/// What is known of a message that is given up.
pub(super) struct Death<'d> {
    pub(super) cause: Cause,
    pub(super) reason: &'d str,
    pub(super) remains: Remains,
    pub(super) attempts: u32,
}

impl<'d> Death<'d> {
    /// Of a message that was never tried.
    pub(super) fn untried(cause: Cause, reason: &'d str) -> Self {
        Self {
            cause,
            reason,
            remains: Remains::default(),
            attempts: 0,
        }
    }
}

impl Core {
    /// Keeps what was no message.
    pub(super) fn bury_bytes(&mut self, tag: DeliveryTag, queue: &str, raw: &Bytes, reason: &str) {
        let death = Death::untried(Cause::Undecodable, reason);
        let content = Content::raw(raw);
        self.bury(tag, (None, None), queue, content, raw, death);
    }

    /// Keeps a message that became no request.
    pub(super) fn bury_arrival(&mut self, arrival: &Arrival, death: Death<'_>) {
        let message = &arrival.message;
        let headers = Object::parse(&message.headers).unwrap_or_default();
        let text = |name| headers.get(name).and_then(json::as_str);
        let (id, task) = (text("id"), text("task"));
        // Whoever sends no ids may send the same body often.
        let id = id.map_or_else(|| Content::id_of_message(message), Cow::into_owned);
        let content = Content::message(message);
        let body = message.body.clone();
        let queue = Arc::clone(&arrival.queue);
        let named = (Some(&*id), task.as_deref());
        self.bury(arrival.tag, named, &queue, content, &body, death);
    }

    /// Keeps a request's message.
    pub(super) fn bury_request(&mut self, key: RequestKey, death: Death<'_>) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        if request.is_taken {
            // It is another worker's, which may have done it.
            return;
        }
        let (tag, content) = (request.tag, Content::message(&request.message));
        let (id, task) = (request.head.id.clone(), request.head.task.clone());
        let (queue, body) = (Arc::clone(&request.queue), request.message.body.clone());
        let named = (Some(&*id), Some(&*task));
        self.bury(tag, named, &queue, content, &body, death);
    }

    fn bury(
        &mut self,
        tag: DeliveryTag,
        (id, task): (Option<&str>, Option<&str>),
        queue: &str,
        message: Content,
        body: &Bytes,
        death: Death<'_>,
    ) {
        if self.options.store.is_none() {
            return;
        }
        let letter = DeadLetter {
            id: id.map_or_else(|| Content::id_of(body), str::to_owned),
            queue: queue.to_owned(),
            task: task.map(str::to_owned),
            cause: death.cause,
            reason: death.reason.to_owned(),
            remains: death.remains,
            attempts: death.attempts,
            hostname: self.options.hostname.clone(),
            died_at: self.read_at.wall,
            message,
        };
        self.tell(&Happening::Buried { letter: &letter });
        self.effects
            .push(Effect::Bury(Box::new(Burial { tag, letter })));
    }
}

/// What a process left, as it is kept.
pub(super) fn remains(evidence: &Evidence) -> Remains {
    let (signal, exit_code) = match evidence.status {
        ExitStatus::Code(code) => (None, Some(code)),
        ExitStatus::Signal(signal) => (Some(signal), None),
        ExitStatus::Unknown => (None, None),
    };
    Remains {
        signal,
        exit_code,
        peak_memory: evidence.peak,
        out_of_memory: evidence.oom.as_ref().map(ToString::to_string),
        run_time: evidence.run_time.map(|time| time.as_secs_f64()),
        log: evidence.log.clone(),
    }
}
