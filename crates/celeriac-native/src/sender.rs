//! What sends the calls that follow a task, or that it makes.

use std::fmt;

use async_trait::async_trait;
use celeriac_protocol::Signature;
use serde_json::{Map, Value};

/// Sends calls. May be used by many at once; a test has its own.
#[async_trait]
pub trait Sender: Send + Sync {
    /// Sends what a signature stands for, a primitive too; returns when it is safe with the broker.
    ///
    /// # Errors
    /// When it makes no sense, or may not have arrived.
    async fn apply(&self, signature: &Signature, with: Apply) -> Result<Sent, Unsent>;
}

/// What a call is given beside its signature: the arguments of `Signature.apply_async`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Apply {
    /// Arguments that go before the signature's own, unless it is immutable.
    pub args: Vec<Value>,
    /// Options by the names of `apply_async`, which replace the signature's own; null is no option.
    pub options: Map<String, Value>,
}

/// A call that was sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// Its id.
    pub id: String,
    /// Its result as `AsyncResult.as_tuple()`.
    pub tuple: Value,
}

/// A call that was not sent, or may not have arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsent {
    /// Why.
    pub reason: String,
    /// Whether it is the broker that does not take it, not the call that makes no sense.
    pub is_operational: bool,
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Unsent {}
