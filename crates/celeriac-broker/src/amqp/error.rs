//! What RabbitMQ and the connection say, in the worker's kinds.

use celeriac_core::broker::{Error, ErrorKind};

use super::table::Unsayable;
use super::wire::failure::{Failure, Refusal, code};

/// Sorts a failure on a live connection, or of one that is lost.
pub(super) fn broker_error(failure: &Failure) -> Error {
    match failure {
        Failure::Refused(refusal) => refused(refusal),
        Failure::Lost(text) => Error::new(ErrorKind::Connection, text.as_str()),
        Failure::Unsayable(error) => Error::new(ErrorKind::Configuration, error.to_string()),
    }
}

fn refused(refusal: &Refusal) -> Error {
    let text = refusal.text.as_str();
    match refusal.code {
        code::ACCESS_REFUSED if text.contains("Login was refused") => Error::new(
            ErrorKind::Denied,
            format!("RabbitMQ refuses the user name or password: {text}"),
        )
        .with_hint("check the user and password in broker_url"),
        code::ACCESS_REFUSED => Error::new(ErrorKind::Denied, text).with_hint(
            "give the user of broker_url permission for it: rabbitmqctl set_permissions",
        ),
        code::NOT_ALLOWED if text.contains("refused for user") => {
            Error::new(ErrorKind::Denied, text).with_hint(
                "give the user of broker_url access to the vhost: rabbitmqctl set_permissions",
            )
        }
        code::NOT_ALLOWED if text.contains("vhost") => Error::new(ErrorKind::Configuration, text)
            .with_hint(
                "check the vhost at the end of broker_url, or make it: rabbitmqctl add_vhost",
            ),
        code::PRECONDITION_FAILED if text.contains("message size") => {
            Error::new(ErrorKind::Refused, text)
                .with_hint("raise max_message_size in rabbitmq.conf")
        }
        // Such as a consumer_timeout: the channel is gone, and what it held is delivered again.
        code::PRECONDITION_FAILED | code::CONNECTION_FORCED | code::INTERNAL_ERROR => {
            Error::new(ErrorKind::Connection, text)
        }
        _ => Error::new(ErrorKind::Refused, text),
    }
}

/// What the server says where a queue, an exchange or an argument is declared otherwise.
pub(super) fn precondition(failure: &Failure) -> Option<&str> {
    match failure {
        Failure::Refused(Refusal { code, text }) if *code == code::PRECONDITION_FAILED => {
            Some(text)
        }
        _ => None,
    }
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
    fn only_what_is_too_large_is_refused_for_good() {
        let kind = |text: &str| {
            let text = text.to_owned();
            let code = code::PRECONDITION_FAILED;
            broker_error(&Failure::Refused(Refusal { code, text })).kind
        };
        let too_large = "PRECONDITION_FAILED - message size 20000000 is larger than configured \
                         max size 16777216";
        assert_eq!(kind(too_large), ErrorKind::Refused);
        let timeout = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out";
        assert_eq!(kind(timeout), ErrorKind::Connection);
    }

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
