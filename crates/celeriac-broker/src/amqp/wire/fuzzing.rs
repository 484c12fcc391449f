//! What must hold of what is read from RabbitMQ, whatever bytes it sends.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use celeriac_protocol::json::{self, Object};
use celeriac_protocol::{Message, request};

use super::super::message::{self, Present};
use super::super::table;
use super::connection::Delivery;
use super::frame;
use super::method::{self, Said};
use super::octets::Malformed;
use super::state::{Arrival, State};

/// A frame that is read is written as the same bytes, and a part of it is not read as one.
pub fn amqp_frame(mut bytes: &[u8]) {
    while let Ok(Some((frame, length))) = frame::next(bytes, frame::MOST_RECEIVED) {
        let (whole, rest) = bytes.split_at(length);
        let mut again = Vec::new();
        frame::put(frame.kind, frame.channel, &mut again, |to| {
            to.extend_from_slice(frame.payload);
        });
        assert_eq!(again, whole);
        if !whole.starts_with(b"AMQP") {
            for shorter in [0, length / 2, length - 1] {
                assert_eq!(
                    frame::next(&whole[..shorter], frame::MOST_RECEIVED),
                    Ok(None)
                );
            }
        }
        bytes = rest;
    }
}

/// What is malformed does not become a method by cutting it short.
pub fn amqp_method(payload: &[u8]) {
    let said = Said::read(payload);
    if said.is_err() {
        for length in 0..payload.len() {
            assert_eq!(Said::read(&payload[..length]), Err(Malformed));
        }
    }
    if let Ok(Said::Answer(_, arguments)) = said {
        let _ = method::messages_in(arguments);
        let _ = method::purged(arguments);
    }
}

/// A table becomes a JSON object; one that AMQP can say becomes the same object again.
pub fn amqp_table(members: &[u8]) {
    let mut text = String::new();
    if table::write_table(members, &mut text).is_err() {
        return;
    }
    let object = Object::parse(&text);
    let object = object.unwrap_or_else(|error| panic!("{text} is no object: {error}"));
    if let Some(eta) = table::find_text(members, "eta").and_then(|eta| str::from_utf8(eta).ok()) {
        assert_eq!(
            object.get("eta").and_then(json::as_str).as_deref(),
            Some(eta)
        );
    }
    let mut again = Vec::new();
    if table::put_table(&text, &mut again).is_ok() {
        let mut same = String::new();
        assert_eq!(table::write_table(&again[4..], &mut same), Ok(()));
        assert_eq!(same, text);
    }
}

/// A message of any properties is one that the rest of the worker reads; published again, it
/// arrives as the same.
pub fn amqp_message(properties: &[u8]) {
    let Some(came) = came(properties) else {
        return;
    };
    let _ = message::is_held(&delivery(properties), &Present::default());
    let request = request::to_json(&came, "worker@host");
    let request = Object::parse(&request);
    let request = request.unwrap_or_else(|error| panic!("{came:?} is no request: {error}"));
    assert_eq!(request.get("hostname"), Some("\"worker@host\""));
    let mut sent = Vec::new();
    if message::put_properties(&came, &mut sent).is_err() {
        return;
    }
    let Some(arrived) = self::came(&sent) else {
        panic!("{came:?} can't be read again");
    };
    assert_eq!(arrived.headers, came.headers);
    assert_eq!(arrived.content_type, came.content_type);
    assert_eq!(arrived.content_encoding, came.content_encoding);
    assert_eq!(arrived.delivery_info, came.delivery_info);
    for name in ["correlation_id", "reply_to", "expiration", "timestamp"] {
        assert_eq!(arrived.property(name), came.property(name), "{name}");
    }
}

fn came(properties: &[u8]) -> Option<Message> {
    let message = message::message(&delivery(properties)).ok()?;
    let known = Object::parse(&message.properties);
    assert!(known.is_ok(), "{} is no object", message.properties);
    Some(message)
}

fn delivery(properties: &[u8]) -> Delivery {
    Delivery {
        consumer: "c".into(),
        tag: 1,
        redelivered: false,
        exchange: "".into(),
        routing_key: "q".into(),
        properties: Bytes::copy_from_slice(properties),
        body: Bytes::from_static(b"[[], {}, {}]"),
    }
}

/// A connection comes to the same whether bytes come at once or in pieces.
///
/// The input is a list of frames, each an octet for its kind and channel, one for its length and
/// its payload, so that a fuzzer need not find out how frames end; or, behind an octet of 0xff, the
/// bytes as they are.
pub fn amqp_state(input: &[u8]) {
    let bytes = match input {
        [0xff, raw @ ..] => raw.to_vec(),
        frames => written(frames),
    };
    let whole = Seen::after([&bytes[..]]);
    for size in [1, 7, 64] {
        assert_eq!(Seen::after(bytes.chunks(size)), whole, "pieces of {size}");
    }
}

fn written(mut frames: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let [kind, length, rest @ ..] = frames {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let (channel, kind) = (u16::from(kind >> 4), kind & 0x0f);
        frame::put(kind, channel, &mut bytes, |to| {
            to.extend_from_slice(payload);
        });
        frames = rest;
    }
    bytes
}

/// What can be seen of a connection from outside.
#[derive(Debug, PartialEq)]
enum Seen {
    /// The server has sent what makes no sense: all is over.
    Malformed,
    Alive {
        unread: Vec<u8>,
        said: Vec<u8>,
        is_blocked: bool,
        trouble: [Option<String>; 2],
        arrivals: [Vec<Arrival>; 2],
        answers: Vec<String>,
    },
}

impl Seen {
    /// After these bytes on a connection with two channels, the second of which has published.
    fn after<'b>(pieces: impl IntoIterator<Item = &'b [u8]>) -> Self {
        let mut state = State::new(frame::FRAME_MAX, 10);
        let mut opened = Vec::new();
        let mut confirmed = Vec::new();
        for _ in 0..2 {
            opened.extend(state.open_channel().map(|(_, answer)| answer));
        }
        for _ in 0..3 {
            confirmed.push(state.confirm(2, "e", "k"));
        }
        let mut input = Vec::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            match state.receive(&input) {
                Ok(length) => drop(input.drain(..length)),
                Err(Malformed) => return Self::Malformed,
            }
        }
        let mut answers = Vec::new();
        answers.extend(opened.iter_mut().map(|to| format!("{:?}", to.try_recv())));
        answers.extend(
            confirmed
                .iter_mut()
                .map(|to| format!("{:?}", to.try_recv())),
        );
        Self::Alive {
            unread: input,
            is_blocked: state.is_blocked,
            trouble: [1, 2].map(|channel| state.trouble(channel).map(ToString::to_string)),
            arrivals: [1, 2].map(|channel| arrivals(&mut state, channel)),
            said: state.out,
            answers,
        }
    }
}

fn arrivals(state: &mut State, channel: u16) -> Vec<Arrival> {
    let mut context = Context::from_waker(Waker::noop());
    let mut arrivals = Vec::new();
    while let Poll::Ready(Ok(arrival)) = state.poll_arrival(channel, &mut context) {
        arrivals.push(arrival);
    }
    arrivals
}
