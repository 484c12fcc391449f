//! Between AMQP's content and messages.
//!
//! kombu's counterpart: `kombu.transport.pyamqp.Message`.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use celeriac_core::broker::Unreadable;
use celeriac_protocol::{DeliveryInfo, Message, json};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};

use super::table::{self, Unsayable};

/// Address space for what a frame of 128 KiB can nest.
const DEEP_STACK: usize = 256 * 1024 * 1024;

/// What came, as kombu would see it. The body is not copied.
///
/// # Errors
/// When no Python would read the headers.
pub(super) fn message(delivery: Delivery) -> Result<Message, Unreadable> {
    let properties = &delivery.properties;
    let mut headers = String::with_capacity(512);
    let written = match properties.headers() {
        Some(table) => table::write_table(table, &mut headers),
        None => {
            headers.push_str("{}");
            Ok(())
        }
    };
    if let Err(error) = written {
        let Delivery {
            properties, data, ..
        } = delivery;
        drop_deep(properties);
        return Err(Unreadable {
            reason: error.to_string(),
            raw: Bytes::from(data),
        });
    }
    let text = |text: &ShortString| ByteString::from(text.as_str());
    Ok(Message {
        content_type: properties.content_type().as_ref().map(text),
        content_encoding: properties.content_encoding().as_ref().map(text),
        headers: headers.into(),
        properties: write_properties(properties).into(),
        delivery_info: DeliveryInfo {
            exchange: Some(text(&delivery.exchange)),
            routing_key: Some(text(&delivery.routing_key)),
            priority: properties
                .priority()
                .map(|priority| priority.to_string().into()),
            redelivered: delivery.redelivered,
        },
        body: Bytes::from(delivery.data),
    })
}

/// Drops properties whose headers are nested so deeply that doing so takes more stack than this
/// thread has: each level is dropped by the one around it.
fn drop_deep(properties: BasicProperties) {
    let dropping = std::thread::Builder::new()
        .name("celeriac-drop".to_owned())
        .stack_size(DEEP_STACK)
        .spawn(move || drop(properties));
    if let Err(error) = dropping {
        tracing::error!(%error, "there is no thread for a message that is nested too deeply");
    }
}

/// The properties but for the headers, named as py-amqp names them.
fn write_properties(properties: &BasicProperties) -> String {
    let mut to = String::with_capacity(256);
    let name = |name: &str, to: &mut String| {
        to.push_str(if to.is_empty() { "{\"" } else { ", \"" });
        to.push_str(name);
        to.push_str("\": ");
    };
    let text = |called: &str, value: &Option<ShortString>, to: &mut String| {
        if let Some(value) = value {
            name(called, to);
            table::write_text(value.as_str(), to);
        }
    };
    text("content_type", properties.content_type(), &mut to);
    text("content_encoding", properties.content_encoding(), &mut to);
    text("correlation_id", properties.correlation_id(), &mut to);
    text("reply_to", properties.reply_to(), &mut to);
    text("expiration", properties.expiration(), &mut to);
    text("message_id", properties.message_id(), &mut to);
    text("type", properties.kind(), &mut to);
    text("user_id", properties.user_id(), &mut to);
    text("app_id", properties.app_id(), &mut to);
    text("cluster_id", properties.cluster_id(), &mut to);
    let numbers = [
        ("delivery_mode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", *properties.timestamp()),
    ];
    for (called, number) in numbers {
        if let Some(number) = number {
            name(called, &mut to);
            to.push_str(&number.to_string());
        }
    }
    if to.is_empty() {
        to.push('{');
    }
    to.push('}');
    to
}

/// Whether a message waits for a moment in the future. Only the form that Celery writes is looked
/// for: a message in another form counts as one that can run, so that too few are taken at worst.
pub(super) fn is_held(delivery: &Delivery, present: &Present) -> bool {
    let headers = delivery.properties.headers().as_ref();
    let Some(AMQPValue::LongString(eta)) = headers.and_then(|table| table.inner().get("eta"))
    else {
        return false;
    };
    let eta = eta.as_bytes();
    eta.ends_with(b"+00:00") && eta > present.text().as_bytes()
}

/// The present, read when it is first needed. Only to guess which messages are held; the worker
/// decides by its own clock.
#[derive(Debug, Default)]
pub(super) struct Present(std::cell::OnceCell<String>);

impl Present {
    /// As ISO 8601 in UTC, to the second.
    fn text(&self) -> &str {
        self.0.get_or_init(|| {
            jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%S")
                .to_string()
        })
    }
}

/// The properties to publish a message with. It outlives a restart unless it says otherwise.
pub(super) fn properties(message: &Message) -> Result<BasicProperties, Unsayable> {
    let mut properties = BasicProperties::default()
        .with_headers(table::read_table(&message.headers)?)
        .with_delivery_mode(PERSISTENT);
    if let Some(content_type) = &message.content_type {
        properties = properties.with_content_type(table::short(content_type)?);
    }
    if let Some(content_encoding) = &message.content_encoding {
        properties = properties.with_content_encoding(table::short(content_encoding)?);
    }
    let given = json::Object::parse(&message.properties)
        .map_err(|error| Unsayable::Json(error.to_string()))?;
    for (name, raw) in given.iter().filter(|(_, raw)| *raw != "null") {
        let number = || raw.parse::<u64>().ok();
        let byte = || number().and_then(|number| u8::try_from(number).ok());
        properties = match (name, byte()) {
            ("delivery_mode", Some(mode)) => properties.with_delivery_mode(mode),
            ("priority", Some(priority)) => properties.with_priority(priority),
            ("timestamp", _) => match number() {
                Some(time) => properties.with_timestamp(time),
                None => properties,
            },
            _ => with_text(properties, name, raw)?,
        };
    }
    Ok(properties)
}

/// AMQP's `delivery_mode` of what is kept on disk.
const PERSISTENT: u8 = 2;

fn with_text(
    properties: BasicProperties,
    name: &str,
    raw: &str,
) -> Result<BasicProperties, Unsayable> {
    let set = match name {
        "correlation_id" => BasicProperties::with_correlation_id,
        "reply_to" => BasicProperties::with_reply_to,
        "expiration" => BasicProperties::with_expiration,
        "message_id" => BasicProperties::with_message_id,
        "type" => BasicProperties::with_type,
        // The server refuses a user_id that is not the connection's: it is not passed on.
        "app_id" => BasicProperties::with_app_id,
        "cluster_id" => BasicProperties::with_cluster_id,
        _ => return Ok(properties),
    };
    let text = json::as_str(raw).unwrap_or(std::borrow::Cow::Borrowed(raw));
    Ok(set(properties, table::short(&text)?))
}

/// A message that came from a queue, before it is opened.
#[derive(Debug)]
pub(super) struct Arrived {
    /// The queue that it was consumed from.
    pub(super) queue: Arc<str>,
    /// Whether it waits for a moment in the future.
    pub(super) is_held: bool,
    /// The message itself.
    pub(super) delivery: Delivery,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Message {
        Message {
            body: Bytes::from_static(b"[[], {}, {}]"),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            headers: r#"{"task": "t", "eta": null}"#.into(),
            properties: r#"{"correlation_id": "c", "reply_to": "r", "delivery_mode": 1, "priority": 3, "expiration": "5000", "timestamp": 17, "delivery_tag": "x", "delivery_info": {}}"#.into(),
            delivery_info: DeliveryInfo::default(),
        }
    }

    #[test]
    fn properties_come_back_under_py_amqps_names() {
        let mut delivery = Delivery::mock(7, "".into(), "q".into(), true, b"body".to_vec());
        delivery.properties = properties(&sample()).unwrap();
        let came = message(delivery).unwrap();
        assert_eq!(
            &*came.properties,
            r#"{"content_type": "application/json", "content_encoding": "utf-8", "correlation_id": "c", "reply_to": "r", "expiration": "5000", "delivery_mode": 1, "priority": 3, "timestamp": 17}"#
        );
        assert_eq!(&*came.headers, r#"{"eta": null, "task": "t"}"#);
        assert_eq!(came.delivery_info.priority.as_deref(), Some("3"));
        assert!(came.delivery_info.redelivered);
        assert_eq!(&came.body[..], b"body");
    }

    #[test]
    fn a_message_without_anything_is_a_message() {
        let delivery = Delivery::mock(1, "".into(), "q".into(), false, Vec::new());
        let came = message(delivery).unwrap();
        assert_eq!((&*came.headers, &*came.properties), ("{}", "{}"));
        assert_eq!(came.content_type, None);
    }

    #[test]
    fn only_an_eta_in_the_future_holds() {
        for (eta, holds) in [
            (r#""2030-01-01T00:00:00+00:00""#, true),
            (r#""2020-01-01T00:00:00.5+00:00""#, false),
            (r#""2030-01-01T00:00:00+02:00""#, false),
            ("null", false),
            ("5", false),
        ] {
            let mut sent = sample();
            sent.headers = format!(r#"{{"eta": {eta}}}"#).into();
            let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, Vec::new());
            delivery.properties = properties(&sent).unwrap();
            let present = Present("2025-06-01T12:00:00".to_owned().into());
            assert_eq!(is_held(&delivery, &present), holds, "{eta}");
        }
    }
}
