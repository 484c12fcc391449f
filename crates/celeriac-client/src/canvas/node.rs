//! Signatures as a tree: what a primitive's `kwargs` hold, taken apart.

use std::mem;

use celeriac_protocol::Signature;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// A signature, and the signatures that it is made of. Its `kwargs` are without these.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) signature: Signature,
    pub(crate) kind: Kind,
}

/// What a signature is made of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// A plain call; of `celery.map` and alike as well.
    Task,
    /// Calls one after another.
    Chain(Vec<Node>),
    /// Calls beside each other.
    Group(Vec<Node>),
    /// Calls beside each other, and one with all their results.
    Chord(Header, Option<Box<Node>>),
}

/// The calls of a chord that are made beside each other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    pub(crate) tasks: Vec<Node>,
    /// The signature of the group that they are, once that is frozen.
    pub(crate) group: Option<Signature>,
}

impl Node {
    /// Takes a signature apart.
    ///
    /// # Errors
    /// When a primitive lacks a part, or a part is no signature.
    pub(crate) fn parse(mut signature: Signature) -> Result<Self, Error> {
        let kind = match signature.subtask_type.as_deref() {
            Some("chain") => Kind::Chain(tasks(&mut signature)?),
            Some("group") => Kind::Group(tasks(&mut signature)?),
            Some("chord") => {
                let header = part(&mut signature, "header")?;
                let header = match header {
                    Value::Array(tasks) => Header {
                        tasks: nodes(tasks)?,
                        group: None,
                    },
                    one => match Self::from_value(one)? {
                        Self {
                            kind: Kind::Group(tasks),
                            signature,
                        } => Header {
                            tasks,
                            group: Some(signature),
                        },
                        Self {
                            kind: Kind::Chain(tasks),
                            ..
                        } => Header { tasks, group: None },
                        task => Header {
                            tasks: vec![task],
                            group: None,
                        },
                    },
                };
                let body = match signature.kwargs.remove("body") {
                    None | Some(Value::Null) => None,
                    Some(body) => Some(Box::new(Self::from_value(body)?)),
                };
                Kind::Chord(header, body)
            }
            _ => Kind::Task,
        };
        Ok(Self { signature, kind })
    }

    /// Reads a signature as it stands in messages.
    pub(crate) fn from_value(value: Value) -> Result<Self, Error> {
        let signature = serde_json::from_value(value)
            .map_err(|error| Error::Invalid(format!("a part is no signature: {error}")))?;
        Self::parse(signature)
    }

    /// A plain call.
    pub(crate) fn task(signature: Signature) -> Self {
        Self {
            signature,
            kind: Kind::Task,
        }
    }

    pub(crate) fn chain(tasks: Vec<Self>) -> Self {
        Self {
            signature: primitive("chain"),
            kind: Kind::Chain(tasks),
        }
    }

    pub(crate) fn group(tasks: Vec<Self>) -> Self {
        Self {
            signature: primitive("group"),
            kind: Kind::Group(tasks),
        }
    }

    pub(crate) fn chord(header: Vec<Self>, body: Self) -> Self {
        let mut signature = primitive("chord");
        signature.kwargs.insert("kwargs".to_owned(), json!({}));
        let header = Header {
            tasks: header,
            group: None,
        };
        Self {
            signature,
            kind: Kind::Chord(header, Some(Box::new(body))),
        }
    }

    /// The signature as it was given.
    pub(crate) fn into_signature(self) -> Signature {
        let Self {
            mut signature,
            kind,
        } = self;
        let list =
            |tasks: Vec<Self>| Value::Array(tasks.into_iter().map(Self::into_value).collect());
        match kind {
            Kind::Task => {}
            Kind::Chain(tasks) | Kind::Group(tasks) => {
                signature.kwargs.insert("tasks".to_owned(), list(tasks));
            }
            Kind::Chord(header, body) => {
                let header = match header.group {
                    None => list(header.tasks),
                    Some(group) => Self {
                        signature: group,
                        kind: Kind::Group(header.tasks),
                    }
                    .into_value(),
                };
                signature.kwargs.insert("header".to_owned(), header);
                let body = body.map_or(Value::Null, |body| body.into_value());
                signature.kwargs.insert("body".to_owned(), body);
            }
        }
        signature
    }

    /// The signature as it stands in messages. Celery does not say there what maps and chunks are:
    /// who gets one calls the task of that name.
    pub(crate) fn into_value(self) -> Value {
        let mut signature = self.into_signature();
        if matches!(
            signature.subtask_type.as_deref(),
            Some("xmap" | "xstarmap" | "chunks")
        ) {
            signature.subtask_type = None;
        }
        // A signature has nothing in it that is no JSON.
        serde_json::to_value(signature).unwrap_or_default()
    }

    pub(crate) fn to_value(&self) -> Value {
        self.clone().into_value()
    }

    pub(crate) fn option(&self, name: &str) -> Option<&Value> {
        self.signature.options.get(name)
    }

    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        let options = &mut self.signature.options;
        options.insert(name.to_owned(), value.into());
    }

    pub(crate) fn is_empty_group(&self) -> bool {
        matches!(&self.kind, Kind::Group(tasks) if tasks.is_empty())
    }

    pub(crate) fn is_empty_chain(&self) -> bool {
        matches!(&self.kind, Kind::Chain(tasks) if tasks.is_empty())
    }

    /// A group of one is that one (`maybe_unroll_group`).
    pub(crate) fn unrolled(mut self) -> Self {
        match &mut self.kind {
            Kind::Group(tasks) if tasks.len() == 1 => mem::take(tasks).remove(0),
            _ => self,
        }
    }

    /// Whether it is a chain whose first step is no group (`_is_chain_led_by_task`).
    pub(crate) fn is_chain_led_by_task(&self) -> bool {
        match &self.kind {
            Kind::Chain(tasks) => tasks
                .first()
                .is_some_and(|first| !matches!(first.kind, Kind::Group(_))),
            _ => false,
        }
    }

    /// How many results a chord gets from it (`_chord._descend`).
    pub(crate) fn parts(&self) -> u64 {
        match &self.kind {
            Kind::Task => 1,
            Kind::Group(tasks) => tasks.iter().map(Self::parts).sum(),
            Kind::Chain(tasks) => {
                let parts = tasks.iter().rev().map(Self::parts);
                parts.into_iter().find(|parts| *parts > 0).unwrap_or(0)
            }
            Kind::Chord(_, body) => body.as_ref().map_or(0, |body| body.parts()),
        }
    }

    /// Adds a callback or an errback, unless it is there already (`append_to_list_option`).
    pub(crate) fn append(&mut self, option: &str, value: Value) {
        let list = self.list(option);
        if !list.contains(&value) {
            list.push(value);
        }
    }

    /// Adds several, whether they are there or not (`extend_list_option`).
    pub(crate) fn extend(&mut self, option: &str, values: Vec<Value>) {
        self.list(option).extend(values);
    }

    fn list(&mut self, option: &str) -> &mut Vec<Value> {
        let entry = self.signature.options.entry(option);
        let value = entry.or_insert_with(|| Value::Array(Vec::new()));
        if !value.is_array() {
            let one = mem::take(value);
            *value = Value::Array(vec![one]);
        }
        match value {
            Value::Array(list) => list,
            _ => unreachable!("it was made a list"),
        }
    }

    /// Has `callback` be called when it has succeeded (`link`).
    pub(crate) fn link(&mut self, callback: Self) {
        match &mut self.kind {
            Kind::Task | Kind::Chain(_) => self.append("link", callback.into_value()),
            // Once for the whole group is the best that can be done: after its first task.
            Kind::Group(tasks) => {
                let mut callback = callback;
                callback.signature.immutable = true;
                if let Some(first) = tasks.first_mut() {
                    first.link(callback);
                }
            }
            Kind::Chord(_, body) => {
                if let Some(body) = body {
                    body.link(callback);
                }
            }
        }
    }

    /// Has `errback` be called when it has failed (`link_error`).
    pub(crate) fn link_error(&mut self, errback: &Self) {
        match &mut self.kind {
            Kind::Task | Kind::Chain(_) => self.append("link_error", errback.to_value()),
            Kind::Group(tasks) => {
                for task in tasks {
                    task.link_error(errback);
                }
            }
            Kind::Chord(header, body) => {
                for task in &mut header.tasks {
                    if matches!(task.kind, Kind::Chord(..)) {
                        task.link_error(errback);
                    }
                }
                if let Some(body) = body {
                    body.link_error(errback);
                }
            }
        }
    }

    /// `set_immutable`: for groups and headers that of their tasks.
    pub(crate) fn set_immutable(&mut self, immutable: bool) {
        match &mut self.kind {
            Kind::Task | Kind::Chain(_) => self.signature.immutable = immutable,
            Kind::Group(tasks) => {
                for task in tasks {
                    task.set_immutable(immutable);
                }
            }
            Kind::Chord(header, _) => {
                for task in &mut header.tasks {
                    task.set_immutable(immutable);
                }
            }
        }
    }

    /// The calls of a chain as calls of another: its callbacks go to the last, its errbacks to each
    /// (`unchain_tasks`).
    pub(crate) fn unchained(self) -> Vec<Self> {
        let Kind::Chain(mut tasks) = self.kind else {
            return vec![self];
        };
        for callback in one_or_many(self.signature.options.get("link")) {
            if let (Some(last), Ok(callback)) = (tasks.last_mut(), Self::from_value(callback)) {
                last.link(callback);
            }
        }
        for errback in one_or_many(self.signature.options.get("link_error")) {
            if let Ok(errback) = Self::from_value(errback) {
                for task in &mut tasks {
                    task.link_error(&errback);
                }
            }
        }
        tasks
    }
}

/// What an option holds, or what of them (`maybe_list`).
pub(crate) fn one_or_many(option: Option<&Value>) -> Vec<Value> {
    match option {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(values)) => values.clone(),
        Some(one) => vec![one.clone()],
    }
}

/// Options given to a call over those of its signature: what places it in a group or was stamped
/// stays (`Signature._merge`).
pub(crate) fn merge(own: &Map<String, Value>, given: Map<String, Value>) -> Map<String, Value> {
    let stamps = one_or_many(own.get("stamped_headers"));
    let stays = |name: &str| {
        matches!(name, "group_id" | "stamped_headers")
            || stamps.iter().any(|stamp| stamp.as_str() == Some(name))
    };
    let mut merged = own.clone();
    for (name, value) in given {
        if !(stays(&name) && own.contains_key(&name)) {
            merged.insert(name, value);
        }
    }
    merged
}

fn primitive(kind: &str) -> Signature {
    Signature {
        task: format!("celery.{kind}"),
        subtask_type: Some(kind.to_owned()),
        ..Signature::default()
    }
}

fn part(signature: &mut Signature, name: &str) -> Result<Value, Error> {
    signature.kwargs.remove(name).ok_or_else(|| {
        Error::Invalid(format!(
            "a signature of {} has no {name:?} among its kwargs",
            signature.task
        ))
    })
}

fn tasks(signature: &mut Signature) -> Result<Vec<Node>, Error> {
    match part(signature, "tasks")? {
        Value::Array(tasks) => nodes(tasks),
        _ => Err(Error::Invalid(format!(
            "the tasks of a signature of {} are no list",
            signature.task
        ))),
    }
}

fn nodes(values: Vec<Value>) -> Result<Vec<Node>, Error> {
    values.into_iter().map(Node::from_value).collect()
}
