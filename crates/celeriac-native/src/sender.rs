//! What sends the calls that follow a task, or that it makes.

use std::fmt;

use async_trait::async_trait;
pub use celeriac_client::Apply;
use celeriac_client::Client;
use celeriac_protocol::Signature;
use serde_json::Value;

/// Sends calls. May be used by many at once; a test has its own.
#[async_trait]
pub trait Sender: Send + Sync {
    /// Sends what a signature stands for, a primitive too; returns when it is safe with the broker.
    ///
    /// # Errors
    /// When it makes no sense, or may not have arrived.
    async fn apply(&self, signature: &Signature, with: Apply) -> Result<Sent, Unsent>;
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

#[async_trait]
impl Sender for Client {
    async fn apply(&self, signature: &Signature, with: Apply) -> Result<Sent, Unsent> {
        match Self::apply(self, signature, with).await {
            Ok(result) => Ok(Sent {
                id: result.id().to_owned(),
                tuple: result.as_tuple(),
            }),
            Err(error) => Err(Unsent {
                is_operational: matches!(
                    error,
                    celeriac_client::Error::Broker(_) | celeriac_client::Error::Backend(_)
                ),
                reason: error.to_string(),
            }),
        }
    }
}
