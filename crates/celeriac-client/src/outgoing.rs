//! From a call to the message that is sent. Pure: the time and the sender are given.
//!
//! Celery's counterparts: `celery.app.base.Celery.send_task` and
//! `celery.app.amqp.AMQP.send_task_message`.

use std::time::Duration;

use celeriac_core::publisher::Published;
use celeriac_core::queue::Queue;
use celeriac_protocol::dumps::dumps;
use celeriac_protocol::{DeliveryInfo, Message, TaskMessage, timestamp};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::canvas::apply::Call;
use crate::canvas::node::one_or_many;
use crate::config::{Config, PublishRetry};
use crate::error::Error;
use crate::routes::Routes;

/// A call that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) id: String,
    /// Whether nobody waits for its result.
    pub(crate) ignores_result: bool,
    pub(crate) queue: Queue,
    pub(crate) published: Published,
    pub(crate) retry: Option<PublishRetry>,
}

/// What all calls of one `apply` have in common.
#[derive(Debug, Clone)]
pub(crate) struct Sender<'s> {
    pub(crate) config: &'s Config,
    pub(crate) routes: &'s Routes,
    pub(crate) now: Timestamp,
    /// `gen<pid>@<host>`.
    pub(crate) origin: &'s str,
    /// Where results are awaited, for backends that ask.
    pub(crate) reply_to: Option<&'s str>,
    /// What all began with, and what has sent it, for calls that do not say otherwise.
    pub(crate) root_id: Option<String>,
    pub(crate) parent_id: Option<String>,
}

/// Options that say how Celery's own process sends, or what has been dealt with.
const SPENT: [&str; 12] = [
    "add_to_parent",
    "connection",
    "confirm_timeout",
    "declare",
    "exchange_type",
    "immutable",
    "producer",
    "publisher",
    "result_cls",
    "router",
    "task_type",
    "timeout",
];

impl Sender<'_> {
    /// Makes a message of a call.
    ///
    /// # Errors
    /// When an option makes no sense.
    pub(crate) fn outgoing(&self, call: Call) -> Result<Outgoing, Error> {
        let Call {
            name,
            route_name,
            args,
            kwargs,
            options,
        } = call;
        let route_name = route_name.as_deref().unwrap_or(&name);
        let destination = self.routes.destination(route_name, options)?;
        let mut options = Options {
            task: name.clone(),
            all: destination.options,
        };
        for spent in SPENT {
            options.all.remove(spent);
        }
        let task_id = options.text("task_id")?.unwrap_or_default();
        match options.text("serializer")?.as_deref() {
            None | Some("json") => {}
            Some(other) => {
                return Err(options.wrong(
                    "serializer",
                    &format!("{other:?} is not supported: messages are sent as json"),
                ));
            }
        }
        if let Some(compression) = options.text("compression")? {
            return Err(options.wrong(
                "compression",
                &format!("{compression:?} is not supported: leave it out"),
            ));
        }
        let retry = self.retry(&mut options)?;
        let mut properties = Map::new();
        let eta = self.eta(&mut options)?;
        let expires = self.expires(&mut options, &mut properties)?;
        let stamped_headers = options.names("stamped_headers")?;
        let mut stamps = Map::new();
        for stamp in stamped_headers.iter().flatten() {
            let value = options.all.remove(stamp).unwrap_or_default();
            stamps.insert(stamp.clone(), value);
        }
        let own_ignore = options.flag("ignore_result")?;
        let ignore_result = own_ignore.or(self.config.task_ignore_result.then_some(true));
        let mode = options.number("delivery_mode")?;
        let priority = options.number("priority")?;
        let default_priority = self.config.task_default_priority.map(u64::from);
        let priority = priority.or(default_priority).unwrap_or(0);
        let soft_time_limit = options.seconds("soft_time_limit")?;
        let time_limit = options.seconds("time_limit")?;
        if let (Some(soft), Some(hard)) = (soft_time_limit.as_f64(), time_limit.as_f64())
            && soft > hard
        {
            return Err(options.wrong(
                "soft_time_limit",
                &format!("{soft} s is longer than time_limit, {hard} s: make it shorter"),
            ));
        }
        let message = TaskMessage {
            args,
            kwargs,
            eta,
            expires,
            group_id: options.text("group_id")?,
            group_index: options.number("group_index")?,
            retries: options.number("retries")?.unwrap_or(0),
            chord: options.any("chord"),
            callbacks: options.signatures("link"),
            errbacks: options.signatures("link_error"),
            chain: options.signatures("chain"),
            reply_to: options
                .text("reply_to")?
                .or_else(|| self.reply_to.map(str::to_owned)),
            time_limit,
            soft_time_limit,
            root_id: options.text("root_id")?.or_else(|| self.root_id.clone()),
            parent_id: options
                .text("parent_id")?
                .or_else(|| self.parent_id.clone()),
            shadow: options.text("shadow")?,
            origin: options
                .text("origin")?
                .unwrap_or_else(|| self.origin.to_owned()),
            ignore_result,
            replaced_task_nesting: options.number("replaced_task_nesting")?.unwrap_or(0),
            stamped_headers,
            stamps,
            argsrepr: options.text("argsrepr")?,
            kwargsrepr: options.text("kwargsrepr")?,
            headers: options.mapping("headers")?,
            delivery_mode: match mode {
                Some(mode @ 1..=2) => mode as u8,
                None => self.config.task_default_delivery_mode.number(),
                Some(other) => {
                    return Err(options.wrong(
                        "delivery_mode",
                        &format!("{other} is neither 1 (transient) nor 2 (persistent)"),
                    ));
                }
            },
            priority: u8::try_from(priority).map_err(|_| {
                options.wrong("priority", &format!("{priority} is not from 0 to 255"))
            })?,
            properties: {
                properties.extend(std::mem::take(&mut options.all));
                properties
            },
            task_id: task_id.clone(),
            name,
        };
        let built = message.build().map_err(|error| {
            Error::Invalid(format!(
                "the call {task_id} can't be written as JSON: {error}"
            ))
        })?;
        Ok(Outgoing {
            id: task_id,
            ignores_result: ignore_result == Some(true),
            queue: destination.queue,
            published: Published {
                exchange: destination.exchange.into(),
                routing_key: destination.routing_key.into(),
                mandatory: true,
                message: built,
            },
            retry,
        })
    }

    /// How publishing is retried: the setting, or what the call says.
    fn retry(&self, options: &mut Options) -> Result<Option<PublishRetry>, Error> {
        let policy = options.mapping("retry_policy")?;
        let setting = self.config.task_publish_retry;
        let retry = options.flag("retry")?.unwrap_or(setting.is_some());
        if !retry {
            return Ok(None);
        }
        PublishRetry::changed(setting.unwrap_or_default(), &policy).map(Some)
    }

    fn eta(&self, options: &mut Options) -> Result<Option<String>, Error> {
        let countdown = options.any("countdown");
        let eta = options.any("eta");
        if let Some(countdown) = countdown {
            let Some(seconds) = countdown.as_f64() else {
                let why = format!("{countdown} is no number of seconds");
                return Err(options.wrong("countdown", &why));
            };
            // None is no countdown to Celery.
            if seconds != 0.0 {
                return self.after(seconds, "countdown", options).map(Some);
            }
        }
        match eta {
            None => Ok(None),
            Some(Value::String(text)) => match timestamp::parse(&text) {
                Ok(_) => Ok(Some(text)),
                Err(error) => Err(options.wrong("eta", &format!("{text:?}: {error}"))),
            },
            Some(other) => Err(options.wrong("eta", &format!("{other} is no time in ISO 8601"))),
        }
    }

    /// When the call expires; for the broker as well.
    fn expires(
        &self,
        options: &mut Options,
        properties: &mut Map<String, Value>,
    ) -> Result<Option<String>, Error> {
        let (text, seconds) = match options.any("expires") {
            None => return Ok(None),
            Some(Value::String(text)) => {
                let moment = timestamp::parse(&text)
                    .map_err(|error| options.wrong("expires", &format!("{text:?}: {error}")))?;
                let seconds = moment.duration_since(self.now).as_secs_f64();
                (text, seconds)
            }
            Some(other) => match other.as_f64() {
                Some(seconds) => (self.after(seconds, "expires", options)?, seconds),
                None => {
                    let why = format!("{other} is neither a number of seconds nor a time");
                    return Err(options.wrong("expires", &why));
                }
            },
        };
        let milliseconds = (seconds.max(0.0) * 1000.0) as u64;
        properties.insert("expiration".to_owned(), milliseconds.to_string().into());
        Ok(Some(text))
    }

    fn after(&self, seconds: f64, what: &str, options: &Options) -> Result<String, Error> {
        let wrong = || options.wrong(what, &format!("{seconds} s lead to no time"));
        let wait = SignedDuration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
        let moment = self.now.checked_add(wait).map_err(|_| wrong())?;
        Ok(isoformat(moment))
    }
}

/// The command of the remote control that revokes calls.
pub(crate) fn revoke(ids: &[String], terminate: Option<&str>) -> Result<Message, Error> {
    let arguments = json!({
        "task_id": ids,
        "terminate": terminate.is_some(),
        "signal": terminate.map(|signal| format!("SIG{}", signal.trim_start_matches("SIG"))),
    });
    let command = json!({
        "method": "revoke",
        "arguments": arguments,
        "destination": null,
        "pattern": null,
        "matcher": null,
    });
    let body = dumps(&command).map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(Message {
        body: body.into(),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        headers: r#"{"clock": 0, "expires": 0}"#.into(),
        properties: r#"{"delivery_mode": 2, "priority": 0}"#.into(),
        delivery_info: DeliveryInfo::default(),
    })
}

/// A moment as Python's `datetime.isoformat` writes it.
pub(crate) fn isoformat(moment: Timestamp) -> String {
    let microseconds = moment.as_microsecond().rem_euclid(1_000_000);
    if microseconds == 0 {
        moment.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string()
    } else {
        let seconds = moment.strftime("%Y-%m-%dT%H:%M:%S");
        format!("{seconds}.{microseconds:06}+00:00")
    }
}

impl PublishRetry {
    /// The policy with what Celery's mapping of it says.
    pub(crate) fn changed(mut self, policy: &Map<String, Value>) -> Result<Self, Error> {
        for (name, value) in policy {
            let wrong = || {
                Error::Invalid(format!(
                    "the retry policy of publishing says {name} = {value}: it is to be a number"
                ))
            };
            let seconds = || {
                let seconds = value.as_f64().ok_or_else(wrong)?;
                Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
            };
            match name.as_str() {
                "max_retries" if value.is_null() => self.max_retries = None,
                "max_retries" => {
                    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
                    self.max_retries = Some(number.ok_or_else(wrong)?);
                }
                "interval_start" => self.interval_start = seconds()?,
                "interval_step" => self.interval_step = seconds()?,
                "interval_max" => self.interval_max = seconds()?,
                // `retry_errors` names classes of Python's.
                _ => {}
            }
        }
        Ok(self)
    }

    /// How long to wait before trying again after so many retries; `None` to give up.
    pub(crate) fn wait(&self, retries: u32) -> Option<Duration> {
        if self.max_retries.is_some_and(|max| retries >= max) {
            return None;
        }
        let wait = self.interval_step.saturating_mul(retries);
        Some(
            self.interval_start
                .saturating_add(wait)
                .min(self.interval_max),
        )
    }
}

/// The options of a call that are not read yet.
struct Options {
    task: String,
    all: Map<String, Value>,
}

impl Options {
    fn wrong(&self, name: &str, why: &str) -> Error {
        Error::Invalid(format!(
            "the option {name} of a call of {} makes no sense: {why}",
            self.task
        ))
    }

    fn any(&mut self, name: &str) -> Option<Value> {
        self.all.remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, &format!("{other} is no text"))),
        }
    }

    fn number(&mut self, name: &str) -> Result<Option<u64>, Error> {
        match self.any(name) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(name, &format!("{value} is no whole number from 0 on"))),
            },
        }
    }

    fn seconds(&mut self, name: &str) -> Result<Value, Error> {
        match self.any(name) {
            None => Ok(Value::Null),
            Some(value) if value.is_number() => Ok(value),
            Some(other) => Err(self.wrong(name, &format!("{other} is no number of seconds"))),
        }
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, Error> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(name, &format!("{other} is neither true nor false"))),
        }
    }

    fn mapping(&mut self, name: &str) -> Result<Map<String, Value>, Error> {
        match self.any(name) {
            None => Ok(Map::new()),
            Some(Value::Object(mapping)) => Ok(mapping),
            Some(other) => Err(self.wrong(name, &format!("{other} is no mapping"))),
        }
    }

    fn names(&mut self, name: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(value) = self.any(name) else {
            return Ok(None);
        };
        let names = serde_json::from_value(value);
        names
            .map(Some)
            .map_err(|_| self.wrong(name, "it is no list of names"))
    }

    fn signatures(&mut self, name: &str) -> Option<Vec<Value>> {
        self.any(name).map(|value| one_or_many(Some(&value)))
    }
}
