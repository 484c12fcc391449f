//! A call as a worker got it: its request, what follows it, and its arguments.
//!
//! Celery's counterparts: `celery.app.task.Context`, and the first lines of `celery.app.trace`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use celeriac_core::pool::{Job, RequestKey};
use celeriac_protocol::{Message, Signature, TimeLimits, request};
use serde_json::{Map, Value, json};

use crate::arguments::Arguments;
use crate::body::{self, Rejection};
use crate::context::Request;

/// A call as a worker got it.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// What the task is told of it.
    pub request: Arc<Request>,
    /// What follows it.
    pub links: Links,
    /// What the message says that only another message of the same call repeats.
    pub(crate) carried: Carried,
    /// Where its arguments are.
    pub(crate) source: Source,
    /// How long its result is kept, where its task says so.
    pub(crate) result_expires: Option<Duration>,
}

/// What follows a call: the third part of a message's body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Links {
    /// Called with its result (`link`).
    pub callbacks: Vec<Signature>,
    /// Called when it fails (`link_error`).
    pub errbacks: Vec<Signature>,
    /// The rest of its chain, the next one last.
    pub chain: Vec<Signature>,
    /// The body of the chord that it is a part of.
    pub chord: Option<Box<Signature>>,
}

/// Headers that a retry or a replacement hands on.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Carried {
    pub(crate) shadow: Option<String>,
    pub(crate) expires: Value,
    pub(crate) time_limit: Value,
    pub(crate) soft_time_limit: Value,
    pub(crate) origin: Option<String>,
    pub(crate) ignore_result: Option<bool>,
    pub(crate) nesting: u64,
    pub(crate) stamped_headers: Value,
    pub(crate) stamps: Map<String, Value>,
}

/// Where the arguments of a call are. They are given to the task as they are; what needs them later
/// as well, which is rare, reads them again.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// In a message's body, uncompressed.
    Body(Bytes),
    /// Here.
    Given(Arc<Arguments>),
}

impl Default for Source {
    fn default() -> Self {
        Self::Given(Arc::default())
    }
}

impl Call {
    /// The call that one of the links of another stands for: only to have a state stored of it.
    pub(crate) fn of_link(signature: &Signature) -> Self {
        let text = |name| signature.option(name).map(str::to_owned);
        let number = |name: &str| signature.options.get(name).and_then(Value::as_u64);
        let request = Request {
            id: text("task_id").unwrap_or_default(),
            task: signature.task.clone(),
            root_id: text("root_id"),
            parent_id: text("parent_id"),
            group: text("group_id"),
            group_index: number("group_index"),
            reply_to: text("reply_to"),
            correlation_id: text("task_id"),
            ..Request::default()
        };
        let errbacks = signatures(signature.options.get("link_error"));
        let chord = signature.options.get("chord");
        let chord = chord.and_then(|chord| serde_json::from_value(chord.clone()).ok());
        Self {
            request: Arc::new(request),
            links: Links {
                errbacks,
                chord,
                ..Links::default()
            },
            carried: Carried::default(),
            source: Source::Given(Arc::new(Arguments {
                args: signature.args.clone(),
                kwargs: signature.kwargs.clone(),
            })),
            result_expires: None,
        }
    }

    /// The name that people see: another one, where the caller gave one.
    pub fn name(&self) -> &str {
        let shadow = self.carried.shadow.as_deref();
        shadow
            .filter(|name| !name.is_empty())
            .unwrap_or(&self.request.task)
    }

    /// The id of the call that all began with.
    pub fn root_id(&self) -> &str {
        let root = self.request.root_id.as_deref();
        root.unwrap_or(&self.request.id)
    }

    /// The arguments, read again where they were given away.
    pub(crate) fn arguments(&self) -> Arguments {
        match &self.source {
            Source::Given(arguments) => Arguments::clone(arguments),
            // They could be read before.
            Source::Body(body) => body::arguments(body).unwrap_or_default(),
        }
    }

    /// The options of a message that is sent because of this call: where it comes from.
    pub(crate) fn descent(&self, inherits_priority: bool) -> Map<String, Value> {
        let mut options = Map::new();
        options.insert("parent_id".to_owned(), json!(self.request.id));
        options.insert("root_id".to_owned(), json!(self.root_id()));
        if let Some(priority) = self.request.priority.filter(|_| inherits_priority) {
            options.insert("priority".to_owned(), json!(priority));
        }
        options
    }

    /// The call that a message is, for what a worker stores of it without running it: that it was
    /// revoked, say, or lost.
    ///
    /// # Errors
    /// When there is no reading it.
    pub fn of_message(
        message: &Message,
        hostname: &str,
        accepts: &body::Accepts,
    ) -> Result<Self, Rejection> {
        let job = Job {
            key: RequestKey(0),
            task: ByteString::new(),
            request: request::to_json(message, hostname),
            body: message.body.clone(),
            content_type: message.content_type.clone(),
            content_encoding: message.content_encoding.clone(),
            time_limits: TimeLimits::default(),
            wants_result: false,
            wants_exception: false,
        };
        Ok(body::read(&job, accepts)?.0)
    }

    /// Reads the request as the worker hands it to pools (`celeriac_protocol::request`), and the
    /// message's body.
    ///
    /// # Errors
    /// When there is no reading it.
    pub fn read(job: &Job, accepts: &body::Accepts) -> Result<(Self, Arguments), Rejection> {
        body::read(job, accepts)
    }
}

/// One or more signatures, as options hold them; what is none is left out.
pub(crate) fn signatures(value: Option<&Value>) -> Vec<Signature> {
    let read = |value: &Value| serde_json::from_value(value.clone()).ok();
    match value {
        Some(Value::Array(values)) => values.iter().filter_map(read).collect(),
        Some(value) => read(value).into_iter().collect(),
        None => Vec::new(),
    }
}
