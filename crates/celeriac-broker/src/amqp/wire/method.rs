//! Methods: what is asked of the server, and what it says.

use serde_json::{Map, Value};

use super::super::table::{self, Unsayable};
use super::failure::Refusal;
use super::octets::{Malformed, Octets, put_short_text};

/// A method's class and number.
pub(super) type Id = (u16, u16);

pub(super) const START: Id = (10, 10);
pub(super) const START_OK: Id = (10, 11);
pub(super) const TUNE: Id = (10, 30);
pub(super) const TUNE_OK: Id = (10, 31);
pub(super) const CONNECTION_OPEN: Id = (10, 40);
pub(super) const CONNECTION_OPEN_OK: Id = (10, 41);
pub(super) const CONNECTION_CLOSE: Id = (10, 50);
pub(super) const CONNECTION_CLOSE_OK: Id = (10, 51);
const BLOCKED: Id = (10, 60);
const UNBLOCKED: Id = (10, 61);
const CHANNEL_OPEN: Id = (20, 10);
const FLOW: Id = (20, 20);
pub(super) const FLOW_OK: Id = (20, 21);
const CHANNEL_CLOSE: Id = (20, 40);
pub(super) const CHANNEL_CLOSE_OK: Id = (20, 41);
const EXCHANGE_DECLARE: Id = (40, 10);
const EXCHANGE_BIND: Id = (40, 30);
const QUEUE_DECLARE: Id = (50, 10);
const QUEUE_BIND: Id = (50, 20);
const QUEUE_PURGE: Id = (50, 30);
const QOS: Id = (60, 10);
const CONSUME: Id = (60, 20);
const CANCEL: Id = (60, 30);
pub(super) const CANCEL_OK: Id = (60, 31);
const PUBLISH: Id = (60, 40);
const RETURN: Id = (60, 50);
const DELIVER: Id = (60, 60);
const GET: Id = (60, 70);
pub(super) const GET_OK: Id = (60, 71);
pub(super) const GET_EMPTY: Id = (60, 72);
const ACK: Id = (60, 80);
const REJECT: Id = (60, 90);
const RECOVER: Id = (60, 110);
const NACK: Id = (60, 120);
const CONFIRM_SELECT: Id = (85, 10);

/// Something that is asked of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::amqp) struct Request {
    pub(super) id: Id,
    pub(super) arguments: Vec<u8>,
    /// Whether the server answers; with the number that follows the request's.
    pub(super) is_answered: bool,
}

impl Request {
    pub(super) fn new(id: Id) -> Self {
        Self {
            id,
            arguments: Vec::with_capacity(64),
            is_answered: true,
        }
    }

    fn unanswered(mut self) -> Self {
        self.is_answered = false;
        self
    }

    fn answered_unless(mut self, nowait: bool) -> Self {
        self.is_answered = !nowait;
        self
    }

    pub(super) fn short(mut self, number: u16) -> Self {
        self.arguments.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(super) fn long(mut self, number: u32) -> Self {
        self.arguments.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn long_long(mut self, number: u64) -> Self {
        self.arguments.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(super) fn text(mut self, text: &str) -> Result<Self, Unsayable> {
        put_short_text(text, &mut self.arguments)?;
        Ok(self)
    }

    /// Up to eight bits.
    pub(super) fn bits(mut self, bits: &[bool]) -> Self {
        let octet = bits
            .iter()
            .rev()
            .fold(0, |octet, bit| octet << 1 | u8::from(*bit));
        self.arguments.push(octet);
        self
    }

    fn table(mut self, arguments: &Map<String, Value>) -> Result<Self, Unsayable> {
        table::put_arguments(arguments, &mut self.arguments)?;
        Ok(self)
    }
}

/// What an exchange or a queue is like.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::amqp) struct Declared {
    /// Only whether it is there is asked.
    pub(in crate::amqp) passive: bool,
    pub(in crate::amqp) durable: bool,
    pub(in crate::amqp) exclusive: bool,
    pub(in crate::amqp) auto_delete: bool,
    pub(in crate::amqp) nowait: bool,
}

pub(in crate::amqp) fn exchange_declare(
    name: &str,
    kind: &str,
    like: Declared,
    arguments: &Map<String, Value>,
) -> Result<Request, Unsayable> {
    let bits = [
        like.passive,
        like.durable,
        like.auto_delete,
        false,
        like.nowait,
    ];
    let request = Request::new(EXCHANGE_DECLARE)
        .short(0)
        .text(name)?
        .text(kind)?;
    Ok(request
        .bits(&bits)
        .table(arguments)?
        .answered_unless(like.nowait))
}

pub(in crate::amqp) fn exchange_bind(
    destination: &str,
    source: &str,
    key: &str,
    nowait: bool,
) -> Result<Request, Unsayable> {
    bind(
        EXCHANGE_BIND,
        (destination, source, key),
        &Map::new(),
        nowait,
    )
}

/// The answer is read by [`messages_in`].
pub(in crate::amqp) fn queue_declare(
    name: &str,
    like: Declared,
    arguments: &Map<String, Value>,
) -> Result<Request, Unsayable> {
    let bits = [
        like.passive,
        like.durable,
        like.exclusive,
        like.auto_delete,
        like.nowait,
    ];
    let request = Request::new(QUEUE_DECLARE).short(0).text(name)?.bits(&bits);
    Ok(request.table(arguments)?.answered_unless(like.nowait))
}

pub(in crate::amqp) fn queue_bind(
    queue: &str,
    exchange: &str,
    key: &str,
    arguments: &Map<String, Value>,
    nowait: bool,
) -> Result<Request, Unsayable> {
    bind(QUEUE_BIND, (queue, exchange, key), arguments, nowait)
}

fn bind(
    id: Id,
    (to, from, key): (&str, &str, &str),
    arguments: &Map<String, Value>,
    nowait: bool,
) -> Result<Request, Unsayable> {
    let request = Request::new(id).short(0).text(to)?.text(from)?.text(key)?;
    let request = request.bits(&[nowait]).table(arguments)?;
    Ok(request.answered_unless(nowait))
}

/// The answer is read by [`purged`].
pub(in crate::amqp) fn queue_purge(name: &str) -> Result<Request, Unsayable> {
    Ok(Request::new(QUEUE_PURGE)
        .short(0)
        .text(name)?
        .bits(&[false]))
}

/// At most `limit` messages out at a time, 0 any number: for the whole channel, or for each
/// consumer made from now on.
pub(in crate::amqp) fn qos(limit: u16, global: bool) -> Request {
    Request::new(QOS).long(0).short(limit).bits(&[global])
}

pub(in crate::amqp) fn consume(
    queue: &str,
    tag: &str,
    no_ack: bool,
    nowait: bool,
    arguments: &Map<String, Value>,
) -> Result<Request, Unsayable> {
    let request = Request::new(CONSUME).short(0).text(queue)?.text(tag)?;
    let request = request.bits(&[false, no_ack, false, nowait]);
    Ok(request.table(arguments)?.answered_unless(nowait))
}

pub(in crate::amqp) fn cancel(tag: &str) -> Result<Request, Unsayable> {
    Ok(Request::new(CANCEL).text(tag)?.bits(&[false]))
}

/// Takes one message out of a queue. Answered with [`GOT`], and the message arrives; or with
/// nothing, where the queue is empty.
pub(in crate::amqp) fn get(queue: &str) -> Result<Request, Unsayable> {
    Ok(Request::new(GET).short(0).text(queue)?.bits(&[false]))
}

/// What answers a [`get`] whose message arrives.
pub(in crate::amqp) const GOT: &[u8] = &[1];

/// Puts all that is out on this channel back into its queues.
pub(in crate::amqp) fn recover() -> Request {
    Request::new(RECOVER).bits(&[true])
}

/// The message follows in frames of its own.
pub(super) fn publish(exchange: &str, key: &str, mandatory: bool) -> Result<Request, Unsayable> {
    let request = Request::new(PUBLISH).short(0).text(exchange)?.text(key)?;
    Ok(request.bits(&[mandatory, false]).unanswered())
}

pub(in crate::amqp) fn ack(tag: u64, multiple: bool) -> Request {
    Request::new(ACK)
        .long_long(tag)
        .bits(&[multiple])
        .unanswered()
}

pub(in crate::amqp) fn reject(tag: u64, requeue: bool) -> Request {
    Request::new(REJECT)
        .long_long(tag)
        .bits(&[requeue])
        .unanswered()
}

pub(in crate::amqp) fn confirm_select() -> Request {
    Request::new(CONFIRM_SELECT).bits(&[false])
}

pub(super) fn channel_open() -> Request {
    let mut request = Request::new(CHANNEL_OPEN);
    request.arguments.push(0);
    request
}

pub(super) fn channel_close() -> Request {
    let request = Request::new(CHANNEL_CLOSE).short(super::failure::code::SUCCESS);
    // No text, and no method that is to blame.
    request.bits(&[]).short(0).short(0)
}

pub(super) fn close(code: u16, text: &str) -> Result<Request, Unsayable> {
    let request = Request::new(CONNECTION_CLOSE).short(code).text(text)?;
    Ok(request.short(0).short(0))
}

/// How many messages wait, of the answer to [`queue_declare`].
pub(in crate::amqp) fn messages_in(answer: &[u8]) -> Result<u32, Malformed> {
    let mut octets = Octets(answer);
    octets.short_bytes()?;
    octets.long()
}

/// How many messages were deleted, of the answer to [`queue_purge`].
pub(in crate::amqp) fn purged(answer: &[u8]) -> Result<u32, Malformed> {
    Octets(answer).long()
}

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said<'b> {
    ConnectionClose(Refusal),
    ConnectionCloseOk,
    Blocked,
    Unblocked,
    ChannelClose(Refusal),
    Flow(u8),
    Deliver(Deliver<'b>),
    /// The message follows.
    Return(Returned),
    /// The answer to [`get`]; the message follows.
    Got(Deliver<'b>),
    Cancel {
        tag: String,
        nowait: bool,
    },
    Confirm {
        tag: u64,
        multiple: bool,
        is_ack: bool,
    },
    /// What answers a request, with its arguments.
    Answer(Id, &'b [u8]),
}

/// Why a message comes back, and where it was to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Returned {
    pub(super) reason: String,
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// The arguments of `basic.deliver`; the message follows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deliver<'b> {
    pub(super) consumer: std::borrow::Cow<'b, str>,
    pub(super) tag: u64,
    pub(super) redelivered: bool,
    pub(super) exchange: std::borrow::Cow<'b, str>,
    pub(super) routing_key: std::borrow::Cow<'b, str>,
}

impl<'b> Said<'b> {
    /// Reads the payload of a method frame.
    pub(super) fn read(payload: &'b [u8]) -> Result<Self, Malformed> {
        let mut octets = Octets(payload);
        let id = (octets.short()?, octets.short()?);
        Ok(match id {
            DELIVER => Self::Deliver(Deliver {
                consumer: octets.short_text()?,
                tag: octets.long_long()?,
                redelivered: octets.octet()? & 1 == 1,
                exchange: octets.short_text()?,
                routing_key: octets.short_text()?,
            }),
            ACK | NACK => Self::Confirm {
                tag: octets.long_long()?,
                multiple: octets.octet()? & 1 == 1,
                is_ack: id == ACK,
            },
            GET_OK => Self::Got(Deliver {
                consumer: "".into(),
                tag: octets.long_long()?,
                redelivered: octets.octet()? & 1 == 1,
                exchange: octets.short_text()?,
                routing_key: octets.short_text()?,
            }),
            RETURN => {
                octets.short()?;
                Self::Return(Returned {
                    reason: octets.short_text()?.into_owned(),
                    exchange: octets.short_text()?.into_owned(),
                    routing_key: octets.short_text()?.into_owned(),
                })
            }
            CANCEL => Self::Cancel {
                tag: octets.short_text()?.into_owned(),
                nowait: octets.octet()? & 1 == 1,
            },
            CHANNEL_CLOSE => Self::ChannelClose(Refusal::read(octets)?),
            FLOW => Self::Flow(octets.octet()?),
            CONNECTION_CLOSE => Self::ConnectionClose(Refusal::read(octets)?),
            CONNECTION_CLOSE_OK => Self::ConnectionCloseOk,
            BLOCKED => Self::Blocked,
            UNBLOCKED => Self::Unblocked,
            id => Self::Answer(id, octets.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_the_specification_has_them() {
        let none = Map::new();
        let declared = Declared {
            durable: true,
            nowait: true,
            ..Declared::default()
        };
        for (request, arguments, is_answered) in [
            (qos(258, true), &b"\0\0\0\0\x01\x02\x01"[..], true),
            (ack(5, true), b"\0\0\0\0\0\0\0\x05\x01", false),
            (reject(5, false), b"\0\0\0\0\0\0\0\x05\0", false),
            (
                queue_declare("q", declared, &none).unwrap(),
                b"\0\0\x01q\x12\0\0\0\0",
                false,
            ),
            (
                exchange_declare("e", "fanout", declared, &none).unwrap(),
                b"\0\0\x01e\x06fanout\x12\0\0\0\0",
                false,
            ),
            (
                queue_bind("q", "e", "k", &none, false).unwrap(),
                b"\0\0\x01q\x01e\x01k\0\0\0\0\0",
                true,
            ),
            (
                consume("q", "t", true, true, &none).unwrap(),
                b"\0\0\x01q\x01t\x0a\0\0\0\0",
                false,
            ),
            (publish("", "q", true).unwrap(), b"\0\0\0\x01q\x01", false),
            (get("q").unwrap(), b"\0\0\x01q\0", true),
            (recover(), b"\x01", true),
            (channel_close(), b"\0\xc8\0\0\0\0\0", true),
        ] {
            assert_eq!(request.arguments, arguments, "{request:?}");
            assert_eq!(request.is_answered, is_answered, "{request:?}");
        }
        assert!(cancel(&"x".repeat(256)).is_err());
    }

    #[test]
    fn what_the_server_says_is_read() {
        let deliver = Deliver {
            consumer: "t".into(),
            tag: 7,
            redelivered: true,
            exchange: "e".into(),
            routing_key: "k".into(),
        };
        let refusal = Refusal {
            code: 404,
            text: "NOT_FOUND".to_owned(),
        };
        for (payload, expected) in [
            (
                &b"\0\x3c\0\x3c\x01t\0\0\0\0\0\0\0\x07\x01\x01e\x01k"[..],
                Said::Deliver(deliver),
            ),
            (
                b"\0\x3c\0\x78\0\0\0\0\0\0\0\x07\x01",
                Said::Confirm {
                    tag: 7,
                    multiple: true,
                    is_ack: false,
                },
            ),
            (
                b"\0\x14\0\x28\x01\x94\x09NOT_FOUND\0\x32\0\x0a",
                Said::ChannelClose(refusal),
            ),
            (b"\0\x0a\0\x3c\x01m", Said::Blocked),
            (b"\0\x3c\0\x0b", Said::Answer((60, 11), b"")),
        ] {
            assert_eq!(Said::read(payload), Ok(expected));
        }
        assert_eq!(Said::read(b"\0\x3c\0\x3c\x01t"), Err(Malformed));
        assert_eq!(messages_in(b"\x01q\0\0\0\x05\0\0\0\0"), Ok(5));
        assert_eq!(purged(b"\0\0\0\x05"), Ok(5));
    }
}
