//! What RabbitMQ and the client library say, in the worker's kinds.

use celeriac_core::broker::{Error, ErrorKind};
use lapin::ErrorKind as Lapin;
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

use super::table::Unsayable;

/// Sorts an error that came over a live connection, or from one that is lost.
pub(super) fn broker_error(error: &lapin::Error) -> Error {
    match error.kind() {
        Lapin::ProtocolError(refusal) => refused(refusal),
        _ => Error::new(ErrorKind::Connection, error.to_string()),
    }
}

fn refused(refusal: &AMQPError) -> Error {
    let text = refusal.get_message().as_str();
    match refusal.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) if text.contains("Login was refused") => {
            Error::new(
                ErrorKind::Denied,
                format!("RabbitMQ refuses the user name or password: {text}"),
            )
            .with_hint("check the user and password in broker_url")
        }
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Error::new(ErrorKind::Denied, text)
            .with_hint(
                "give the user of broker_url permission for it: rabbitmqctl set_permissions",
            ),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("refused for user") => {
            Error::new(ErrorKind::Denied, text).with_hint(
                "give the user of broker_url access to the vhost: rabbitmqctl set_permissions",
            )
        }
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("vhost") => {
            Error::new(ErrorKind::Configuration, text).with_hint(
                "check the vhost at the end of broker_url, or make it: rabbitmqctl add_vhost",
            )
        }
        // Such as a consumer_timeout: the channel is gone, and what it held is delivered again.
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
        | AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED | AMQPHardError::INTERNALERROR) => {
            Error::new(ErrorKind::Connection, text)
        }
        _ => Error::new(ErrorKind::Refused, text),
    }
}

/// The code of a refusal, `None` for other errors.
pub(super) fn refusal(error: &lapin::Error) -> Option<&AMQPErrorKind> {
    match error.kind() {
        Lapin::ProtocolError(refusal) => Some(refusal.kind()),
        _ => None,
    }
}

/// Whether the server has said that this queue, exchange or argument is declared otherwise.
pub(super) fn is_precondition(error: &lapin::Error) -> bool {
    refusal(error) == Some(&AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED))
}

/// Something that the app asks for can't be said in AMQP.
pub(super) fn unsayable(what: &str, error: &Unsayable) -> Error {
    Error::new(ErrorKind::Configuration, format!("{what}: {error}"))
}

/// What a refusal of a declaration says about one argument.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inequivalent<'t> {
    /// The argument, such as `x-max-priority` or `durable`.
    pub(super) argument: &'t str,
    /// What was asked for; `None` nothing.
    pub(super) received: Option<&'t str>,
    /// What exists; `None` nothing.
    pub(super) current: Option<&'t str>,
}

impl<'t> Inequivalent<'t> {
    /// Reads RabbitMQ's text: `PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue
    /// 'q' in vhost '/': received none but current is the value '10' of type 'signedint'`.
    pub(super) fn parse(text: &'t str) -> Option<Self> {
        let (_, rest) = text.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once('\'')?;
        let (_, rest) = rest.rsplit_once(": received ")?;
        let (received, current) = rest.split_once(" but current is ")?;
        Some(Self {
            argument,
            received: quoted(received),
            current: quoted(current),
        })
    }
}

/// What stands in the first quotes; `none` has none.
fn quoted(text: &str) -> Option<&str> {
    Some(text.split_once('\'')?.1.split_once('\'')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_declarations_are_read() {
        for (text, argument, received, current) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost '/': received none but current is the value '10' of type 'signedint'",
                "x-max-priority",
                None,
                Some("10"),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'it: received 'x' but current is' in vhost 'v': received the value '5' of type 'long' but current is none",
                "x-message-ttl",
                Some("5"),
                None,
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'q' in vhost '/': received 'false' but current is 'true'",
                "durable",
                Some("false"),
                Some("true"),
            ),
        ] {
            let expected = Inequivalent {
                argument,
                received,
                current,
            };
            assert_eq!(Inequivalent::parse(text), Some(expected));
        }
        assert_eq!(Inequivalent::parse("PRECONDITION_FAILED - else"), None);
    }
}
