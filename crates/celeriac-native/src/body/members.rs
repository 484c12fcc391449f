//! The request mapping that the worker hands to pools (`celeriac_protocol::request`).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;

use crate::call::Carried;
use crate::context::Request;

/// Headers that RabbitMQ adds when it dead-letters a message; sent again, they would look like a
/// cycle to it.
const DEATH_HEADERS: &[&str] = &[
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
];

/// The request mapping. What is of another type than it should be counts as absent; of what stands
/// twice, the last counts, as in Python.
pub(super) struct Members {
    pub(super) request: Request,
    pub(super) carried: Carried,
    pub(super) compression: Option<String>,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the mapping of a request")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let (mut request, mut carried, mut compression) =
            (Request::default(), Carried::default(), None);
        while let Some(name) = map.next_key::<Name<'de>>()? {
            match &*name.0 {
                "id" => request.id = text(&mut map)?.unwrap_or_default(),
                "task" => request.task = text(&mut map)?.unwrap_or_default(),
                "retries" => {
                    let retries = map.next_value::<Value>()?.as_u64().unwrap_or(0);
                    request.retries = u32::try_from(retries).unwrap_or(u32::MAX);
                }
                "root_id" => request.root_id = text(&mut map)?,
                "parent_id" => request.parent_id = text(&mut map)?,
                "group" => request.group = text(&mut map)?,
                "group_index" => request.group_index = map.next_value::<Value>()?.as_u64(),
                "reply_to" => request.reply_to = text(&mut map)?.filter(|to| !to.is_empty()),
                "correlation_id" => request.correlation_id = text(&mut map)?,
                "hostname" => request.hostname = text(&mut map)?.unwrap_or_default(),
                "ignore_result" => carried.ignore_result = map.next_value::<Value>()?.as_bool(),
                "shadow" => carried.shadow = text(&mut map)?,
                "expires" => carried.expires = map.next_value()?,
                "origin" => carried.origin = text(&mut map)?,
                "replaced_task_nesting" => {
                    carried.nesting = map.next_value::<Value>()?.as_u64().unwrap_or(0);
                }
                "stamped_headers" => carried.stamped_headers = map.next_value()?,
                "stamps" => {
                    if let Value::Object(stamps) = map.next_value()? {
                        carried.stamps = stamps;
                    }
                }
                "timelimit" => {
                    if let Value::Array(limits) = map.next_value()? {
                        let mut limits = limits.into_iter();
                        carried.time_limit = limits.next().unwrap_or_default();
                        carried.soft_time_limit = limits.next().unwrap_or_default();
                    }
                }
                "compression" => compression = text(&mut map)?,
                "delivery_info" => {
                    let info: Delivery<'_> = map.next_value()?;
                    request.exchange = info.exchange.unwrap_or_default().into_owned();
                    request.routing_key = info.routing_key.unwrap_or_default().into_owned();
                    request.redelivered = info.redelivered.unwrap_or(false);
                    let priority = info.priority.as_ref().and_then(Value::as_u64);
                    request.priority = priority.and_then(|n| u8::try_from(n).ok());
                }
                "headers" => {
                    if let Value::Object(headers) = map.next_value()? {
                        request.headers.extend(headers);
                    }
                }
                // Members of `celery.app.task.Context` that nothing here asks for.
                "lang" | "argsrepr" | "kwargsrepr" | "eta" | "meth" | "properties" | "args"
                | "kwargs" | "is_eager" | "utc" | "taskset" | "time_limit" | "soft_time_limit"
                | "callbacks" | "errbacks" | "chain" | "chord" => {
                    map.next_value::<IgnoredAny>()?;
                }
                other if DEATH_HEADERS.contains(&other) => {
                    map.next_value::<IgnoredAny>()?;
                }
                _ => {
                    let value = map.next_value()?;
                    request.headers.insert(name.0.into_owned(), value);
                }
            }
        }
        Ok(Members {
            request,
            carried,
            compression,
        })
    }
}

/// A member's name, borrowed where it holds no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

#[derive(Deserialize)]
struct Delivery<'a> {
    #[serde(borrow, default)]
    exchange: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    routing_key: Option<Cow<'a, str>>,
    #[serde(default)]
    priority: Option<Value>,
    #[serde(default)]
    redelivered: Option<bool>,
}

fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<String>, A::Error> {
    Ok(match map.next_value()? {
        Value::String(text) => Some(text),
        _ => None,
    })
}
