//! Between AMQP's content and messages.
//!
//! kombu's counterpart: `kombu.transport.pyamqp.Message`.

use std::borrow::Cow;
use std::sync::Arc;

use bytestring::ByteString;
use celeriac_core::broker::Unreadable;
use celeriac_protocol::{DeliveryInfo, Marks, Message, json};
use jiff::Timestamp;

use super::route::{self, Route};
use super::table::{self, Unsayable};
use super::wire::connection::Delivery;
use super::wire::octets::{Malformed, Octets, put_long, put_short_text};

/// The properties of a message, where its flags say that they are there.
#[derive(Debug, Default)]
struct Properties<'p> {
    content_type: Option<Cow<'p, str>>,
    content_encoding: Option<Cow<'p, str>>,
    /// The members of the table.
    headers: Option<&'p [u8]>,
    delivery_mode: Option<u8>,
    priority: Option<u8>,
    correlation_id: Option<Cow<'p, str>>,
    reply_to: Option<Cow<'p, str>>,
    expiration: Option<Cow<'p, str>>,
    message_id: Option<Cow<'p, str>>,
    timestamp: Option<u64>,
    kind: Option<Cow<'p, str>>,
    user_id: Option<Cow<'p, str>>,
    app_id: Option<Cow<'p, str>>,
    cluster_id: Option<Cow<'p, str>>,
}

/// The flags of the properties, in their order.
mod flag {
    pub(super) const CONTENT_TYPE: u16 = 1 << 15;
    pub(super) const CONTENT_ENCODING: u16 = 1 << 14;
    pub(super) const HEADERS: u16 = 1 << 13;
    pub(super) const DELIVERY_MODE: u16 = 1 << 12;
    pub(super) const PRIORITY: u16 = 1 << 11;
    pub(super) const CORRELATION_ID: u16 = 1 << 10;
    pub(super) const REPLY_TO: u16 = 1 << 9;
    pub(super) const EXPIRATION: u16 = 1 << 8;
    pub(super) const MESSAGE_ID: u16 = 1 << 7;
    pub(super) const TIMESTAMP: u16 = 1 << 6;
    pub(super) const KIND: u16 = 1 << 5;
    pub(super) const USER_ID: u16 = 1 << 4;
    pub(super) const APP_ID: u16 = 1 << 3;
    pub(super) const CLUSTER_ID: u16 = 1 << 2;
}

impl<'p> Properties<'p> {
    fn read(bytes: &'p [u8]) -> Result<Self, Malformed> {
        let mut octets = Octets(bytes);
        let flags = octets.short()?;
        let has = |flag: u16| flags & flag != 0;
        let text =
            |flag: u16, octets: &mut Octets<'p>| has(flag).then(|| octets.short_text()).transpose();
        Ok(Self {
            content_type: text(flag::CONTENT_TYPE, &mut octets)?,
            content_encoding: text(flag::CONTENT_ENCODING, &mut octets)?,
            headers: has(flag::HEADERS)
                .then(|| octets.long_bytes())
                .transpose()?,
            delivery_mode: has(flag::DELIVERY_MODE)
                .then(|| octets.octet())
                .transpose()?,
            priority: has(flag::PRIORITY).then(|| octets.octet()).transpose()?,
            correlation_id: text(flag::CORRELATION_ID, &mut octets)?,
            reply_to: text(flag::REPLY_TO, &mut octets)?,
            expiration: text(flag::EXPIRATION, &mut octets)?,
            message_id: text(flag::MESSAGE_ID, &mut octets)?,
            timestamp: has(flag::TIMESTAMP)
                .then(|| octets.long_long())
                .transpose()?,
            kind: text(flag::KIND, &mut octets)?,
            user_id: text(flag::USER_ID, &mut octets)?,
            app_id: text(flag::APP_ID, &mut octets)?,
            cluster_id: text(flag::CLUSTER_ID, &mut octets)?,
        })
    }

    /// Writes the flags, and what they say is there.
    fn put(&self, to: &mut Vec<u8>) -> Result<(), Unsayable> {
        to.extend_from_slice(&[0; 2]);
        let flags_at = to.len() - 2;
        let mut flags = 0;
        let mut put_text = |flag: u16, text: &Option<Cow<'p, str>>, to: &mut Vec<u8>| {
            let Some(text) = text else { return Ok(()) };
            flags |= flag;
            put_short_text(text, to)
        };
        put_text(flag::CONTENT_TYPE, &self.content_type, to)?;
        put_text(flag::CONTENT_ENCODING, &self.content_encoding, to)?;
        if let Some(headers) = self.headers {
            put_long::<Unsayable>(to, |to| {
                to.extend_from_slice(headers);
                Ok(())
            })?;
        }
        to.extend(self.delivery_mode);
        to.extend(self.priority);
        put_text(flag::CORRELATION_ID, &self.correlation_id, to)?;
        put_text(flag::REPLY_TO, &self.reply_to, to)?;
        put_text(flag::EXPIRATION, &self.expiration, to)?;
        put_text(flag::MESSAGE_ID, &self.message_id, to)?;
        to.extend(self.timestamp.iter().flat_map(|time| time.to_be_bytes()));
        put_text(flag::KIND, &self.kind, to)?;
        put_text(flag::USER_ID, &self.user_id, to)?;
        put_text(flag::APP_ID, &self.app_id, to)?;
        put_text(flag::CLUSTER_ID, &self.cluster_id, to)?;
        for (flag, is_there) in [
            (flag::HEADERS, self.headers.is_some()),
            (flag::DELIVERY_MODE, self.delivery_mode.is_some()),
            (flag::PRIORITY, self.priority.is_some()),
            (flag::TIMESTAMP, self.timestamp.is_some()),
        ] {
            if is_there {
                flags |= flag;
            }
        }
        to[flags_at..flags_at + 2].copy_from_slice(&flags.to_be_bytes());
        Ok(())
    }

    /// But for the headers, named as py-amqp names them.
    fn write(&self, to: &mut String) {
        let name = |name: &str, to: &mut String| {
            to.push_str(if to.is_empty() { "{\"" } else { ", \"" });
            to.push_str(name);
            to.push_str("\": ");
        };
        let texts = [
            ("content_type", &self.content_type),
            ("content_encoding", &self.content_encoding),
            ("correlation_id", &self.correlation_id),
            ("reply_to", &self.reply_to),
            ("expiration", &self.expiration),
            ("message_id", &self.message_id),
            ("type", &self.kind),
            ("user_id", &self.user_id),
            ("app_id", &self.app_id),
            ("cluster_id", &self.cluster_id),
        ];
        for (called, text) in texts {
            if let Some(text) = text {
                name(called, to);
                table::write_text(text, to);
            }
        }
        let numbers = [
            ("delivery_mode", self.delivery_mode.map(u64::from)),
            ("priority", self.priority.map(u64::from)),
            ("timestamp", self.timestamp),
        ];
        for (called, number) in numbers {
            if let Some(number) = number {
                name(called, to);
                to.push_str(&number.to_string());
            }
        }
        if to.is_empty() {
            to.push('{');
        }
        to.push('}');
    }
}

/// What came, as kombu would see it. The body is not copied.
///
/// # Errors
/// When no Python would read the headers.
pub(super) fn message(delivery: &Delivery) -> Result<Message, Unreadable> {
    read(delivery).map_err(|error| Unreadable {
        reason: error.to_string(),
        raw: delivery.body.clone(),
    })
}

fn read(delivery: &Delivery) -> Result<Message, table::Unreadable> {
    let mut properties = Properties::read(&delivery.properties)?;
    let came = properties.headers.unwrap_or_default();
    let route = Route::find(came);
    let mut headers = String::with_capacity(2 * delivery.properties.len());
    let (exchange, routing_key) = if let Some(route) = &route {
        table::write_table(&route.headers(came)?, &mut headers)?;
        properties.expiration = route.expiration.map(Cow::Borrowed);
        (route.exchange.into(), route.routing_key.into())
    } else {
        table::write_table(came, &mut headers)?;
        (delivery.exchange.clone(), delivery.routing_key.clone())
    };
    let mut written = String::with_capacity(256);
    properties.write(&mut written);
    let text = |text: &Cow<'_, str>| ByteString::from(&**text);
    Ok(Message {
        content_type: properties.content_type.as_ref().map(text),
        content_encoding: properties.content_encoding.as_ref().map(text),
        headers: headers.into(),
        properties: written.into(),
        delivery_info: DeliveryInfo {
            exchange: Some(exchange),
            routing_key: Some(routing_key),
            priority: properties
                .priority
                .map(|priority| priority.to_string().into()),
            redelivered: delivery.redelivered,
        },
        body: delivery.body.clone(),
    })
}

/// Whether a message waits for a moment in the future. Only to guess which are held; the worker
/// decides by its own clock. What can't be read counts as a message that can run, so that too few are
/// taken at worst.
pub(super) fn is_held(delivery: &Delivery, present: &Present) -> bool {
    let properties = Properties::read(&delivery.properties).ok();
    let headers = properties.and_then(|properties| properties.headers);
    let eta = headers.and_then(|headers| table::find_text(headers, "eta"));
    let eta = eta.and_then(|eta| std::str::from_utf8(eta).ok()?.parse().ok());
    eta.is_some_and(|eta: Timestamp| eta > present.moment())
}

/// The present, read when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Present(std::cell::OnceCell<Timestamp>);

impl Present {
    fn moment(&self) -> Timestamp {
        *self.0.get_or_init(Timestamp::now)
    }
}

/// Writes the properties to publish a message with. It outlives a restart unless it says otherwise.
pub(super) fn put_properties(message: &Message, to: &mut Vec<u8>) -> Result<(), Unsayable> {
    let given = json::Object::parse(&message.properties)
        .map_err(|error| Unsayable::Json(error.to_string()))?;
    let given = |name: &str| given.get(name).filter(|raw| *raw != "null");
    let text = |name: &str| given(name).map(|raw| json::as_str(raw).unwrap_or(Cow::Borrowed(raw)));
    let octet = |name: &str| given(name)?.parse::<u8>().ok();
    let mut headers = Vec::with_capacity(2 * message.headers.len());
    table::put_table(&message.headers, &mut headers)?;
    let properties = Properties {
        content_type: message.content_type.as_deref().map(Cow::Borrowed),
        content_encoding: message.content_encoding.as_deref().map(Cow::Borrowed),
        // Behind their length.
        headers: headers.get(4..),
        delivery_mode: Some(octet("delivery_mode").unwrap_or(PERSISTENT)),
        priority: octet("priority"),
        correlation_id: text("correlation_id"),
        reply_to: text("reply_to"),
        expiration: text("expiration"),
        message_id: text("message_id"),
        timestamp: given("timestamp").and_then(|raw| raw.parse().ok()),
        kind: text("type"),
        // The server refuses one that is not the connection's: it is not passed on.
        user_id: None,
        app_id: text("app_id"),
        cluster_id: text("cluster_id"),
    };
    properties.put(to)
}

/// Writes the properties to publish a message with that came from a queue, so that it comes there
/// again and looks as it did: on disk meanwhile, and with these marks.
pub(super) fn put_detour(
    delivery: &Delivery,
    marks: Marks,
    to: &mut Vec<u8>,
) -> Result<(), NoDetour> {
    let mut properties = Properties::read(&delivery.properties)?;
    let before = properties.headers.unwrap_or_default();
    let expiration = properties.expiration.take();
    let headers = route::put(before, delivery, expiration.as_deref(), marks)?;
    properties.headers = Some(&headers);
    properties.delivery_mode = Some(PERSISTENT);
    properties.user_id = None;
    Ok(properties.put(to)?)
}

/// Why a message can't be published again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoDetour {
    #[error("its headers are malformed")]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Unsayable(#[from] Unsayable),
}

/// AMQP's `delivery_mode` of what is kept on disk.
const PERSISTENT: u8 = 2;

/// A message that came from a queue, before it is opened.
#[derive(Debug, Clone)]
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
    use bytes::Bytes;

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

    fn delivery(message: &Message) -> Delivery {
        let mut properties = Vec::new();
        put_properties(message, &mut properties).unwrap();
        Delivery {
            consumer: "c".into(),
            tag: 7,
            redelivered: true,
            exchange: "".into(),
            routing_key: "q".into(),
            properties: properties.into(),
            body: message.body.clone(),
        }
    }

    #[test]
    fn properties_come_back_under_py_amqps_names() {
        let came = message(&delivery(&sample())).unwrap();
        assert_eq!(
            &*came.properties,
            r#"{"content_type": "application/json", "content_encoding": "utf-8", "correlation_id": "c", "reply_to": "r", "expiration": "5000", "delivery_mode": 1, "priority": 3, "timestamp": 17}"#
        );
        assert_eq!(&*came.headers, r#"{"task": "t", "eta": null}"#);
        assert_eq!(came.delivery_info.priority.as_deref(), Some("3"));
        assert!(came.delivery_info.redelivered);
        assert_eq!(&came.body[..], b"[[], {}, {}]");
    }

    #[test]
    fn all_properties_are_read_in_their_order() {
        let mut bytes = 0xfffc_u16.to_be_bytes().to_vec();
        bytes.extend_from_slice(b"\x01a\x01b\0\0\0\0\x02\x05\x01c\x01d\x01e\x01f");
        bytes.extend_from_slice(&9_u64.to_be_bytes());
        bytes.extend_from_slice(b"\x01g\x01h\x01i\x01j");
        let mut written = String::new();
        Properties::read(&bytes).unwrap().write(&mut written);
        assert_eq!(
            written,
            r#"{"content_type": "a", "content_encoding": "b", "correlation_id": "c", "reply_to": "d", "expiration": "e", "message_id": "f", "type": "g", "user_id": "h", "app_id": "i", "cluster_id": "j", "delivery_mode": 2, "priority": 5, "timestamp": 9}"#
        );
    }

    #[test]
    fn a_message_without_anything_is_a_message() {
        let mut bare = delivery(&sample());
        bare.properties = Bytes::from_static(&[0, 0]);
        let came = message(&bare).unwrap();
        assert_eq!((&*came.headers, &*came.properties), ("{}", "{}"));
        assert_eq!(came.content_type, None);
    }

    #[test]
    fn what_is_malformed_is_told_of_with_its_body() {
        let mut cut = delivery(&sample());
        cut.properties.truncate(20);
        let error = message(&cut).unwrap_err();
        assert_eq!(error.reason, "the headers are malformed");
        assert_eq!(&error.raw[..], b"[[], {}, {}]");
    }

    #[test]
    fn only_an_eta_in_the_future_holds() {
        for (eta, holds) in [
            (r#""2030-01-01T00:00:00+00:00""#, true),
            (r#""2020-01-01T00:00:00.5+00:00""#, false),
            (r#""2025-06-01T14:00:01+02:00""#, true),
            (r#""2025-06-01T13:59:59.9+02:00""#, false),
            (r#""2025-06-01T06:00:01-06:00""#, true),
            (r#""2030-01-01T00:00:00""#, false),
            ("null", false),
            ("5", false),
        ] {
            let mut sent = sample();
            sent.headers = format!(r#"{{"eta": {eta}}}"#).into();
            let present = Present("2025-06-01T12:00:00Z".parse::<Timestamp>().unwrap().into());
            assert_eq!(is_held(&delivery(&sent), &present), holds, "{eta}");
        }
    }
}
