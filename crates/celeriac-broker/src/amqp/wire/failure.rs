//! What can go wrong between us and the server.

use super::super::table::Unsayable;
use super::octets::{Malformed, Octets};

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::amqp) enum Failure {
    /// The server says no, and has closed the channel or the connection over it.
    #[error("{0}")]
    Refused(Refusal),
    /// The connection is no more, or never was.
    #[error("{0}")]
    Lost(String),
    /// It can't be said in AMQP.
    #[error(transparent)]
    Unsayable(#[from] Unsayable),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Self::Lost("what the server sent is no AMQP 0-9-1".to_owned())
    }
}

impl Failure {
    /// What became of a connection that is no longer there.
    pub(in crate::amqp) fn closed() -> Self {
        Self::Lost("the connection to the server is closed".to_owned())
    }
}

/// What the server says when it closes something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(in crate::amqp) struct Refusal {
    /// Such as 404; see [`code`].
    pub(in crate::amqp) code: u16,
    /// Such as `NOT_FOUND - no queue 'q' in vhost '/'`.
    pub(in crate::amqp) text: String,
}

impl Refusal {
    /// Reads the arguments of `connection.close` and `channel.close`.
    pub(super) fn read(mut octets: Octets<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            code: octets.short()?,
            text: octets.short_text()?.into_owned(),
        })
    }
}

/// Reply codes of AMQP 0-9-1.
pub(in crate::amqp) mod code {
    pub(in crate::amqp) const SUCCESS: u16 = 200;
    pub(in crate::amqp) const CONNECTION_FORCED: u16 = 320;
    pub(in crate::amqp) const ACCESS_REFUSED: u16 = 403;
    pub(in crate::amqp) const NOT_FOUND: u16 = 404;
    pub(in crate::amqp) const PRECONDITION_FAILED: u16 = 406;
    pub(in crate::amqp) const NOT_ALLOWED: u16 = 530;
    pub(in crate::amqp) const INTERNAL_ERROR: u16 = 541;
}
