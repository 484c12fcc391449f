//! Frames: a length and a JSON object.

use std::borrow::Cow;

use bytes::Bytes;
use celeriac_protocol::json::{self, Object};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// No frame is longer.
pub(super) const MOST_BYTES: usize = 16 << 20;

/// Something that one side tells the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// Who the other is; answered by the same.
    Hello(Hello),
    /// A command in its envelope.
    Command {
        /// Replies to this key are to come back over this connection.
        reply_key: Option<String>,
        /// The envelope.
        message: Bytes,
    },
    /// A reply in its envelope.
    Reply(Bytes),
    /// From now on events are wanted whose routing key begins so.
    Events(String),
    /// An event in its envelope.
    Event(Bytes),
    /// A kind that this version does not know.
    Unknown,
}

/// Who is at the other end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hello {
    /// The name of the node.
    pub(super) node: String,
    /// The path of its socket, if it listens.
    pub(super) socket: Option<String>,
    /// Whether it takes commands.
    pub(super) commands: bool,
    /// The routing key of the events that it wants.
    pub(super) events: Option<String>,
    /// Replies to this key are to come over this connection.
    pub(super) reply_key: Option<String>,
}

impl Frame {
    /// The bytes of the frame, with their length before them.
    pub(super) fn encode(&self) -> Bytes {
        let optional = |text: &Option<String>| {
            text.as_deref()
                .map_or_else(|| "null".to_owned(), json::quote)
        };
        let mut object = Object::default();
        let mut set = |name, value: String| object.set(name, value);
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Self::Hello(hello) => {
                set("kind", r#""hello""#.to_owned());
                set("node", json::quote(&hello.node));
                set("socket", optional(&hello.socket));
                set("commands", hello.commands.to_string());
                set("events", optional(&hello.events));
                set("reply_key", optional(&hello.reply_key));
            }
            Self::Command { reply_key, message } => {
                set("kind", r#""command""#.to_owned());
                set("reply_key", optional(reply_key));
                set("message", text(message));
            }
            Self::Reply(message) => {
                set("kind", r#""reply""#.to_owned());
                set("message", text(message));
            }
            Self::Events(routing_key) => {
                set("kind", r#""events""#.to_owned());
                set("routing_key", json::quote(routing_key));
            }
            Self::Event(message) => {
                set("kind", r#""event""#.to_owned());
                set("message", text(message));
            }
            Self::Unknown => {}
        }
        let object = object.to_string();
        let mut bytes = Vec::with_capacity(4 + object.len());
        bytes.extend_from_slice(&(object.len() as u32).to_be_bytes());
        bytes.extend_from_slice(object.as_bytes());
        Bytes::from(bytes)
    }

    /// Reads what follows the length; `None` when it is no JSON object. What should hold an envelope
    /// and holds none is unknown.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let object = Object::parse(std::str::from_utf8(bytes).ok()?).ok()?;
        let text = |name| object.get(name).and_then(json::as_str).map(Cow::into_owned);
        let message = object
            .get("message")
            .map(|raw| Bytes::copy_from_slice(raw.as_bytes()));
        let frame = match (text("kind").as_deref(), message) {
            (Some("hello"), _) => Self::Hello(Hello {
                node: text("node").unwrap_or_default(),
                socket: text("socket"),
                commands: object.get("commands").is_some_and(json::is_truthy),
                events: text("events"),
                reply_key: text("reply_key"),
            }),
            (Some("command"), Some(message)) => Self::Command {
                reply_key: text("reply_key"),
                message,
            },
            (Some("reply"), Some(message)) => Self::Reply(message),
            (Some("events"), _) => {
                Self::Events(text("routing_key").unwrap_or_else(|| "#".to_owned()))
            }
            (Some("event"), Some(message)) => Self::Event(message),
            _ => Self::Unknown,
        };
        Some(frame)
    }

    /// Reads the next frame; `None` at the end and at what is no frame.
    pub(super) async fn read(reader: &mut (impl AsyncRead + Unpin)) -> Option<Self> {
        let length = reader.read_u32().await.ok()? as usize;
        if length > MOST_BYTES {
            return None;
        }
        // Grows with what comes, not with what is announced.
        let mut bytes = Vec::new();
        let mut rest = reader.take(length as u64);
        rest.read_to_end(&mut bytes).await.ok()?;
        (bytes.len() == length).then(|| Self::decode(&bytes))?
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn every_frame_is_read_as_it_was_written() {
        let message = Bytes::from_static(br#"{"body":"e30="}"#);
        let frames = [
            Frame::Hello(Hello {
                node: "w\"1@h".to_owned(),
                socket: Some("a.sock".to_owned()),
                commands: true,
                events: None,
                reply_key: Some("k".to_owned()),
            }),
            Frame::Command {
                reply_key: Some("k".to_owned()),
                message: message.clone(),
            },
            Frame::Command {
                reply_key: None,
                message: message.clone(),
            },
            Frame::Reply(message.clone()),
            Frame::Events("worker.#".to_owned()),
            Frame::Event(message),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        let mut reader = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut reader).await, Some(frame));
        }
        assert_eq!(Frame::read(&mut reader).await, None);
    }

    #[tokio::test]
    async fn what_is_unknown_is_left_alone_and_what_is_no_frame_is_the_end() {
        let framed = |text: &[u8]| [&(text.len() as u32).to_be_bytes(), text].concat();
        for text in [
            r#"{"kind":"later","x":1}"#,
            r#"{"kind":5}"#,
            "{}",
            r#"{"kind":"event"}"#,
            r#"{"kind":"reply"}"#,
            r#"{"kind":"command","reply_key":"k"}"#,
        ] {
            let bytes = framed(text.as_bytes());
            assert_eq!(Frame::read(&mut &*bytes).await, Some(Frame::Unknown));
        }
        for bytes in [
            framed(b"[]"),
            framed(b"\xff"),
            framed(b""),
            b"\0\0\0\x09{}".to_vec(),
            b"\xff\xff\xff\xff{}".to_vec(),
        ] {
            assert_eq!(Frame::read(&mut &*bytes).await, None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(Frame::decode(&bytes));
        }
    }
}
