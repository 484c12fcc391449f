//! Calls that are combined to one: chains, groups, chords, maps and chunks.
//!
//! A primitive is a [`Signature`] as any other, to be applied, to be nested, and to be sent to
//! workers, of Celery as well. Celery's counterpart: `celery.canvas`.

pub(crate) mod apply;
mod fold;
pub(crate) mod freeze;
pub(crate) mod node;
pub(crate) mod steps;

use celeriac_protocol::Signature;
use serde_json::{Map, Value};

use crate::error::Error;
use node::Node;

/// Calls one after another, each with the result of the one before it. A group that is followed by
/// a task becomes a chord, and what follows a chord becomes part of its body, as in Celery.
///
/// # Errors
/// When one of `tasks` is a primitive without its parts.
pub fn chain(tasks: impl IntoIterator<Item = Signature>) -> Result<Signature, Error> {
    let tasks: Result<Vec<Node>, Error> = tasks.into_iter().map(Node::parse).collect();
    Ok(fold::chain(tasks?).into_signature())
}

/// Calls beside each other.
///
/// # Errors
/// When one of `tasks` is a primitive without its parts.
pub fn group(tasks: impl IntoIterator<Item = Signature>) -> Result<Signature, Error> {
    let tasks: Result<Vec<Node>, Error> = tasks.into_iter().map(Node::parse).collect();
    Ok(Node::group(tasks?).into_signature())
}

/// Calls beside each other, and when all of them have ended `body` with the list of their results.
///
/// # Errors
/// When one of them is a primitive without its parts.
pub fn chord(
    header: impl IntoIterator<Item = Signature>,
    body: Signature,
) -> Result<Signature, Error> {
    let header: Result<Vec<Node>, Error> = header.into_iter().map(Node::parse).collect();
    Ok(Node::chord(header?, Node::parse(body)?).into_signature())
}

/// One call of `celery.map`: it runs `task` with each of `it`, one after another.
pub fn map(task: Signature, it: impl IntoIterator<Item = Value>) -> Result<Signature, Error> {
    mapped("celery.map", "xmap", task, it)
}

/// One call of `celery.starmap`: it runs `task` with the arguments that each of `it` is, one after
/// another.
pub fn starmap(task: Signature, it: impl IntoIterator<Item = Value>) -> Result<Signature, Error> {
    mapped("celery.starmap", "xstarmap", task, it)
}

/// A group of calls of `celery.starmap`, each with `n` of the arguments.
pub fn chunks(
    task: Signature,
    it: impl IntoIterator<Item = Value>,
    n: usize,
) -> Result<Signature, Error> {
    let mut signature = mapped("celery.chunks", "chunks", task, it)?;
    signature.kwargs.insert("n".to_owned(), n.into());
    Ok(signature)
}

fn mapped(
    name: &str,
    kind: &str,
    task: Signature,
    it: impl IntoIterator<Item = Value>,
) -> Result<Signature, Error> {
    let it: Vec<Value> = it.into_iter().collect();
    let mut kwargs = Map::new();
    kwargs.insert("task".to_owned(), Node::parse(task)?.into_value());
    kwargs.insert("it".to_owned(), it.into());
    Ok(Signature {
        kwargs,
        subtask_type: Some(kind.to_owned()),
        immutable: true,
        ..Signature::new(name)
    })
}

/// What is said of a call before it is made.
pub trait Canvas: Sized {
    /// With an argument more.
    #[must_use]
    fn arg(self, value: impl Into<Value>) -> Self;

    /// With an argument by name.
    #[must_use]
    fn kwarg(self, name: &str, value: impl Into<Value>) -> Self;

    /// With an option of `apply_async`.
    #[must_use]
    fn set(self, option: &str, value: impl Into<Value>) -> Self;

    /// Without the results of others among its arguments (`Signature.si`).
    ///
    /// # Errors
    /// When it is a primitive without its parts.
    fn immutable(self) -> Result<Self, Error>;

    /// Has `callback` be called with its result.
    ///
    /// # Errors
    /// When one of them is a primitive without its parts.
    fn link(self, callback: Signature) -> Result<Self, Error>;

    /// Has `errback` be called when it has failed.
    ///
    /// # Errors
    /// When one of them is a primitive without its parts.
    fn link_error(self, errback: Signature) -> Result<Self, Error>;

    /// This, and then `next` (`|`).
    ///
    /// # Errors
    /// When one of them is a primitive without its parts.
    fn then(self, next: Signature) -> Result<Self, Error>;
}

impl Canvas for Signature {
    fn arg(mut self, value: impl Into<Value>) -> Self {
        self.args.push(value.into());
        self
    }

    fn kwarg(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.kwargs.insert(name.to_owned(), value.into());
        self
    }

    fn set(mut self, option: &str, value: impl Into<Value>) -> Self {
        self.options.insert(option.to_owned(), value.into());
        self
    }

    fn immutable(self) -> Result<Self, Error> {
        let mut node = Node::parse(self)?;
        node.set_immutable(true);
        Ok(node.into_signature())
    }

    fn link(self, callback: Signature) -> Result<Self, Error> {
        let mut node = Node::parse(self)?;
        node.link(Node::parse(callback)?);
        Ok(node.into_signature())
    }

    fn link_error(self, errback: Signature) -> Result<Self, Error> {
        let mut node = Node::parse(self)?;
        node.link_error(&Node::parse(errback)?);
        Ok(node.into_signature())
    }

    fn then(self, next: Signature) -> Result<Self, Error> {
        Ok(fold::then(Node::parse(self)?, Node::parse(next)?).into_signature())
    }
}
