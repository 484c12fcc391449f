//! Commands as they come over the bus, and the replies to them.
//!
//! Celery's counterpart: `kombu.pidbox.Node`, which it calls a mailbox.

use bytes::Bytes;
use celeriac_core::bus::{Destination, Outgoing};
use celeriac_protocol::message::DeliveryInfo;
use celeriac_protocol::{Message, json};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{matcher, python};

/// A command: what is asked, of whom, and where the reply goes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Command {
    /// Its name.
    pub method: String,
    /// Its arguments by their names.
    #[serde(default)]
    pub arguments: Option<Map<String, Value>>,
    /// The nodes that it is for; all without it.
    #[serde(default)]
    destination: Option<Value>,
    /// A pattern of the names of nodes that it is for.
    #[serde(default)]
    pattern: Option<String>,
    /// How the pattern is to be read.
    #[serde(default)]
    matcher: Option<String>,
    /// The address of its reply.
    #[serde(flatten)]
    pub address: Address,
}

/// Where a reply goes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Address {
    /// Names the request among those of the client.
    #[serde(default)]
    ticket: Option<Value>,
    /// The client's queue; without it no reply is wanted.
    #[serde(default)]
    reply_to: Option<ReplyTo>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct ReplyTo {
    #[serde(default)]
    exchange: String,
    routing_key: String,
}

/// Whether a command is for a node, where that can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// It is.
    Yes,
    /// It is for others.
    No,
    /// The pattern or the way to read it makes no sense.
    Unclear(String),
}

impl Command {
    /// Reads the body of a command, which is JSON.
    ///
    /// # Errors
    /// With the reason, when it is no command.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }

    /// Whether it is for the node of this name: by name if names are given, else by pattern.
    pub fn is_for(&self, hostname: &str) -> Meant {
        let is_named = |names: &Value| match names {
            Value::Array(names) => names.iter().any(|name| name == hostname),
            // Python looks for a part of the text.
            Value::String(name) => name.contains(hostname),
            _ => false,
        };
        let is_given = |value: &Value| python::is_true(value);
        if let Some(names) = self.destination.as_ref().filter(|names| is_given(names)) {
            return if is_named(names) {
                Meant::Yes
            } else {
                Meant::No
            };
        }
        // kombu takes what is empty for not given.
        let pattern = self.pattern.as_deref().filter(|text| !text.is_empty());
        let matcher = self.matcher.as_deref().filter(|text| !text.is_empty());
        match (pattern, matcher) {
            (Some(pattern), Some(matcher)) => match matcher::matches(hostname, pattern, matcher) {
                Ok(true) => Meant::Yes,
                Ok(false) => Meant::No,
                Err(reason) => Meant::Unclear(reason),
            },
            _ => Meant::Yes,
        }
    }
}

impl Address {
    /// Whether a reply is wanted.
    pub fn wants_reply(&self) -> bool {
        self.reply_to.is_some()
    }

    /// The reply of a node, given as JSON text (or what Python takes for it); `None` when none is
    /// wanted.
    pub fn reply(&self, hostname: &str, reply: &str, clock: u64) -> Option<Outgoing> {
        let reply_to = self.reply_to.as_ref()?;
        let body = format!("{{{}: {reply}}}", json::quote(hostname));
        let headers = serde_json::json!({"ticket": self.ticket, "clock": clock}).to_string();
        Some(Outgoing {
            to: Destination::Reply {
                exchange: reply_to.exchange.clone(),
                routing_key: reply_to.routing_key.clone(),
            },
            message: json_message(body, headers),
        })
    }
}

/// A command for all nodes whose replies are to come to `reply_key`.
pub fn command(
    method: &str,
    arguments: &Value,
    ticket: &str,
    reply_exchange: &str,
    reply_key: &str,
    clock: u64,
) -> Message {
    let body = serde_json::json!({
        "method": method,
        "arguments": arguments,
        "destination": null,
        "pattern": null,
        "matcher": null,
        "ticket": ticket,
        "reply_to": {"exchange": reply_exchange, "routing_key": reply_key},
    });
    let headers = serde_json::json!({"clock": clock, "expires": 0});
    json_message(body.to_string(), headers.to_string())
}

/// A message that need not outlive a restart of the broker.
pub fn json_message(body: String, headers: String) -> Message {
    Message {
        body: Bytes::from(body),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        headers: headers.into(),
        properties: r#"{"delivery_mode": 1, "priority": 0}"#.into(),
        delivery_info: DeliveryInfo::default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(more: &Value) -> Command {
        let mut all = json!({"method": "ping", "arguments": {}});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        Command::parse(all.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn names_come_before_patterns() {
        for (more, expected) in [
            (json!({}), Meant::Yes),
            (json!({"destination": null, "pattern": null}), Meant::Yes),
            (json!({"destination": ["w1@h", "w2@h"]}), Meant::Yes),
            (json!({"destination": ["w2@h"]}), Meant::No),
            (json!({"destination": []}), Meant::Yes),
            (json!({"pattern": "w*", "matcher": "glob"}), Meant::Yes),
            (json!({"pattern": "x*", "matcher": "glob"}), Meant::No),
            (json!({"pattern": "x*", "matcher": null}), Meant::Yes),
            (json!({"pattern": "x*", "matcher": ""}), Meant::Yes),
            (json!({"pattern": "", "matcher": "glob"}), Meant::Yes),
            (
                json!({"destination": ["w2@h"], "pattern": "w*", "matcher": "glob"}),
                Meant::No,
            ),
        ] {
            assert_eq!(parsed(&more).is_for("w1@h"), expected, "{more}");
        }
        assert!(matches!(
            parsed(&json!({"pattern": "(", "matcher": "pcre"})).is_for("w1@h"),
            Meant::Unclear(_)
        ));
    }

    #[test]
    fn a_reply_goes_where_the_command_says() {
        let command = parsed(&json!({
            "ticket": "t",
            "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "k"},
        }));
        let reply = command
            .address
            .reply("w1@h", r#"{"ok": "pong"}"#, 3)
            .unwrap();
        let to = Destination::Reply {
            exchange: "reply.celery.pidbox".to_owned(),
            routing_key: "k".to_owned(),
        };
        assert_eq!(reply.to, to);
        assert_eq!(&reply.message.body[..], br#"{"w1@h": {"ok": "pong"}}"#);
        let headers: Value = serde_json::from_str(&reply.message.headers).unwrap();
        assert_eq!(headers, json!({"ticket": "t", "clock": 3}));
        assert_eq!(parsed(&json!({})).address.reply("w1@h", "null", 3), None);
    }

    #[test]
    fn what_is_no_command_is_told() {
        for body in ["", "[]", r#"{"arguments": {}}"#, r#"{"method": 1}"#] {
            assert!(Command::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
