//! Dead letters: messages that no worker can do anything with, kept with the reason.
//!
//! The term is AMQP's. A dead letter is stored before its message leaves the broker, under an id of
//! its own: storing it twice is storing it once.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use bytes::Bytes;
use celeriac_protocol::envelope;
use celeriac_protocol::json::Object;
use celeriac_protocol::{Marks, Message};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many dead letters a broker keeps, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The most: the oldest make room.
    pub number: usize,
    /// Those that are older go.
    pub age: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            number: 10_000,
            age: Duration::from_hours(30 * 24),
        }
    }
}

/// A message that is dead, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The task's id; one made of its bytes where there is none.
    pub id: String,
    /// The queue that it came from, and goes back to when it is replayed.
    pub queue: String,
    /// The task's name, where it could be read.
    pub task: Option<String>,
    /// Why it is dead.
    pub cause: Cause,
    /// The same in words.
    pub reason: String,
    /// What is known of the process that it killed.
    #[serde(flatten)]
    pub remains: Remains,
    /// How often it was tried.
    pub attempts: u32,
    /// The node that gave it up.
    pub hostname: String,
    /// When that was.
    pub died_at: Timestamp,
    /// Itself.
    pub message: Content,
}

/// Why a message is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It can't be decoded.
    Undecodable,
    /// No worker has known its task for longer than is usual.
    UnknownTask,
    /// It is no valid task message, or of a content type that is not accepted.
    Invalid,
    /// A signal ended its process.
    Killed,
    /// Its process was ended for its memory, by the worker or by the kernel.
    OutOfMemory,
    /// Its process exited.
    Exited,
    /// It was over its hard time limit each time.
    TimeLimit,
    /// Workers died that ran it.
    WorkerLost,
    /// Its task rejected it.
    Rejected,
}

impl Cause {
    /// As it stands in records and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::UnknownTask => "unknown-task",
            Self::Invalid => "invalid",
            Self::Killed => "killed",
            Self::OutOfMemory => "out-of-memory",
            Self::Exited => "exited",
            Self::TimeLimit => "time-limit",
            Self::WorkerLost => "worker-lost",
            Self::Rejected => "rejected",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is known of the last process that died with a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remains {
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its exit status.
    pub exit_code: Option<i32>,
    /// The most memory that it held, in KiB.
    pub peak_memory: Option<u64>,
    /// Who says that it ran out of memory, in words.
    pub out_of_memory: Option<String>,
    /// How long the task ran, in seconds.
    pub run_time: Option<f64>,
    /// What it wrote last.
    pub log: Vec<String>,
}

/// A message as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// kombu's envelope of it.
    Envelope(String),
    /// Bytes that are no message, as text in which `char::from(byte)` stands for each.
    Raw(String),
}

impl Content {
    /// The envelope of a message, without marks: who replays it begins anew.
    pub fn message(message: &Message) -> Self {
        let mut message = message.clone();
        message.headers = Marks::default().write(&message.headers).into_owned().into();
        message.delivery_info.redelivered = false;
        let tag = Self::id_of(&message.body);
        Self::Envelope(envelope::encode(&message, &tag))
    }

    /// Bytes that are no message.
    pub fn raw(bytes: &[u8]) -> Self {
        Self::Raw(bytes.iter().map(|byte| char::from(*byte)).collect())
    }

    /// The bytes for brokers whose messages are envelopes.
    pub fn bytes(&self) -> Bytes {
        match self {
            Self::Envelope(text) => Bytes::copy_from_slice(text.as_bytes()),
            Self::Raw(text) => text.chars().map(|char| char as u8).collect(),
        }
    }

    /// An id for a message that has none: the same whenever it comes.
    pub fn id_of_message(message: &Message) -> String {
        let headers = Marks::default().write(&message.headers);
        let parts = [
            headers.as_bytes(),
            message.properties.as_bytes(),
            &message.body,
        ];
        Self::id_of(&parts.concat())
    }

    /// An id for what has none.
    pub fn id_of(bytes: &[u8]) -> String {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

impl DeadLetter {
    /// The record that a broker keeps, as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them: nothing that JSON has no word for.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The same without its message's body, for a broker that does not take so much.
    #[must_use]
    pub fn without_body(&self) -> Self {
        let bare = |text: &str| {
            let mut message = envelope::decode(&Bytes::copy_from_slice(text.as_bytes())).ok()?;
            message.body = Bytes::new();
            Some(Content::message(&message))
        };
        let message = match &self.message {
            Content::Envelope(text) => bare(text),
            Content::Raw(_) => None,
        };
        Self {
            reason: format!(
                "{} (kept without its message's body, which the broker does not take)",
                self.reason
            ),
            message: message.unwrap_or(Content::Raw(String::new())),
            ..self.clone()
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The task's arguments as its client showed them, where it did.
    pub fn arguments(&self) -> Option<(String, String)> {
        let Content::Envelope(text) = &self.message else {
            return None;
        };
        let message = envelope::decode(&Bytes::copy_from_slice(text.as_bytes())).ok()?;
        let headers = Object::parse(&message.headers).ok()?;
        let text = |name| {
            let raw = headers.get(name).and_then(celeriac_protocol::json::as_str);
            raw.map(std::borrow::Cow::into_owned)
        };
        Some((text("argsrepr")?, text("kwargsrepr")?))
    }
}

#[cfg(test)]
mod tests {
    use celeriac_protocol::DeliveryInfo;

    use super::*;

    fn message() -> Message {
        Message {
            body: Bytes::from_static(b"[[1], {}, {}]"),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            headers: r#"{"task": "t", "id": "1", "argsrepr": "(1,)", "kwargsrepr": "{}", "celeriac": {"deaths": 3}}"#.into(),
            properties: r#"{"priority": 3}"#.into(),
            delivery_info: DeliveryInfo {
                redelivered: true,
                ..DeliveryInfo::default()
            },
        }
    }

    fn letter(content: Content) -> DeadLetter {
        DeadLetter {
            id: "1".to_owned(),
            queue: "celery".to_owned(),
            task: Some("t".to_owned()),
            cause: Cause::OutOfMemory,
            reason: "killed".to_owned(),
            remains: Remains {
                signal: Some(9),
                run_time: Some(1.5),
                log: vec!["a".to_owned()],
                ..Remains::default()
            },
            attempts: 3,
            hostname: "w@h".to_owned(),
            died_at: Timestamp::UNIX_EPOCH,
            message: content,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dead = letter(Content::message(&message()));
        let read = DeadLetter::from_json(&dead.to_json()).unwrap();
        assert_eq!(read, dead);
        assert_eq!(read.arguments(), Some(("(1,)".into(), "{}".into())));
        let back = envelope::decode(&read.message.bytes()).unwrap();
        assert!(!back.delivery_info.redelivered);
        assert!(!back.headers.contains("celeriac"), "it begins anew");
        assert_eq!(back.body, message().body);
        assert_eq!(back.property("priority").as_deref(), Some("3"));
    }

    #[test]
    fn any_bytes_are_kept() {
        let bytes: Vec<u8> = (0..=255).collect();
        let dead = letter(Content::raw(&bytes));
        let read = DeadLetter::from_json(&dead.to_json()).unwrap();
        assert_eq!(&read.message.bytes()[..], bytes);
        assert_eq!(read.arguments(), None);
    }

    #[test]
    fn causes_are_named_as_they_are_written() {
        let dead = letter(Content::raw(b""));
        assert!(dead.to_json().contains(&format!("\"{}\"", dead.cause)));
    }
}
