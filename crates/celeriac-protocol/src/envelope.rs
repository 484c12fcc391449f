//! The JSON envelope in which brokers without headers of their own carry a message.
//!
//! Redis lists, SQL rows and files hold it alike. Celery's counterpart:
//! `kombu.transport.virtual.base.Channel.{prepare_message, Message}`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use bytestring::ByteString;

use crate::json::{self, Object};
use crate::marks::Marks;
use crate::message::{DeliveryInfo, Message};

/// Python's `b64encode` pads; some clients do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How deep headers and properties may be nested: Python's `json` reads somewhat less than 1,000
/// levels, in a thread with little stack.
const MOST_LEVELS: usize = 500;

/// Why an envelope can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Undecodable {
    /// The bytes are no UTF-8.
    #[error("the envelope is not UTF-8: {0}")]
    Utf8(#[from] std::str::Utf8Error),
    /// The text is no JSON object.
    #[error("the envelope is not a JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// A member has a type that kombu never writes.
    #[error("the envelope's member {0:?} has the wrong type")]
    Member(&'static str),
    /// Headers or properties that no Python would read.
    #[error("the envelope's member {0:?} is nested too deeply")]
    TooDeep(&'static str),
    /// The body is not base64 although `body_encoding` says so.
    #[error("the body is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// `body_encoding` names something else than `base64` and `utf-8`.
    #[error("unknown body encoding {0:?}")]
    BodyEncoding(String),
}

/// Opens an envelope. What is kept of it points into `raw`; only the body is copied.
///
/// # Errors
/// When it is not an envelope. No input makes this panic or recurse deeply.
pub fn decode(raw: &Bytes) -> Result<Message, Undecodable> {
    std::str::from_utf8(raw)?;
    let text =
        ByteString::try_from(raw.clone()).map_err(|_| Undecodable::Member("the whole envelope"))?;
    let mut envelope = Object::parse(&text)?;

    let properties_text = envelope.take("properties").unwrap_or(Cow::Borrowed("{}"));
    shallow(&properties_text, "properties")?;
    let properties = Object::parse(&properties_text)?;
    let body = match envelope.take("body") {
        None => Bytes::new(),
        Some(body) => decode_body(&body, properties.get("body_encoding"))?,
    };
    let info = match properties.get("delivery_info") {
        None | Some("null") => Object::default(),
        Some(info) => Object::parse(info)?,
    };
    let is_true = |raw: Option<&str>| raw.is_some_and(json::is_truthy);
    let delivery_info = DeliveryInfo {
        exchange: optional_text(info.get("exchange"), "exchange")?,
        routing_key: optional_text(info.get("routing_key"), "routing_key")?,
        priority: properties.get("priority").map(ByteString::from),
        // SQL transports write the mark at the top of the envelope, Redis into delivery_info.
        redelivered: is_true(info.get("redelivered")) || is_true(envelope.get("redelivered")),
    };
    let slice = |part: &str| part_of(&text, part);
    let headers = envelope
        .take("headers")
        .filter(|headers| json::is_truthy(headers));
    if let Some(headers) = &headers {
        shallow(headers, "headers")?;
    }
    Ok(Message {
        body,
        content_type: optional_text(envelope.get("content-type"), "content-type")?,
        content_encoding: optional_text(envelope.get("content-encoding"), "content-encoding")?,
        headers: headers.map_or_else(|| ByteString::from_static("{}"), |headers| slice(&headers)),
        properties: slice(&properties_text),
        delivery_info,
    })
}

fn shallow(text: &str, name: &'static str) -> Result<(), Undecodable> {
    if json::is_deeper_than(text, MOST_LEVELS) {
        return Err(Undecodable::TooDeep(name));
    }
    Ok(())
}

/// Writes `message` as an envelope with the given delivery tag, its body in base64.
pub fn encode(message: &Message, delivery_tag: &str) -> String {
    let quoted = |text: Option<&ByteString>| {
        text.map_or_else(|| "null".to_owned(), |text| json::quote(text))
    };
    let mut properties = Object::parse(&message.properties).unwrap_or_default();
    let info = &message.delivery_info;
    let mut delivery_info = Object::default();
    delivery_info.set(
        "exchange",
        json::quote(info.exchange.as_deref().unwrap_or("")),
    );
    delivery_info.set(
        "routing_key",
        json::quote(info.routing_key.as_deref().unwrap_or("")),
    );
    if info.redelivered {
        delivery_info.set("redelivered", "true");
    }
    properties.set("delivery_info", delivery_info.to_string());
    properties.set("body_encoding", "\"base64\"");
    properties.set("delivery_tag", json::quote(delivery_tag));

    let mut envelope = Object::default();
    envelope.set("body", json::quote(&BASE64.encode(&message.body)));
    envelope.set(
        "content-encoding",
        quoted(message.content_encoding.as_ref()),
    );
    envelope.set("content-type", quoted(message.content_type.as_ref()));
    envelope.set("headers", message.headers.to_string());
    envelope.set("properties", properties.to_string());
    envelope.to_string()
}

/// The envelope `text` with the marks of a redelivered message, as kombu's Redis transport sets
/// them when it restores one; `text` itself when it is no envelope.
pub fn mark_redelivered(text: &str) -> Cow<'_, str> {
    let Ok(mut envelope) = Object::parse(text) else {
        return Cow::Borrowed(text);
    };
    let with_mark = |raw: &str| {
        let mut object = Object::parse(raw).ok()?;
        object.set("redelivered", "true");
        Some(object.to_string())
    };
    if let Some(headers) = envelope.get("headers").and_then(with_mark) {
        envelope.set("headers", headers);
    }
    let properties = envelope.get("properties").and_then(|raw| {
        let mut properties = Object::parse(raw).ok()?;
        let info = with_mark(properties.get("delivery_info")?)?;
        properties.set("delivery_info", info);
        Some(properties.to_string())
    });
    if let Some(properties) = properties {
        envelope.set("properties", properties);
    }
    Cow::Owned(envelope.to_string())
}

/// The envelope `text` with these marks in its headers; `text` itself when it is no envelope.
pub fn with_marks(text: &str, marks: Marks) -> Cow<'_, str> {
    let Ok(mut envelope) = Object::parse(text) else {
        return Cow::Borrowed(text);
    };
    let Cow::Owned(marked) = marks.write(headers_of(&envelope)) else {
        return Cow::Borrowed(text);
    };
    envelope.set("headers", marked);
    Cow::Owned(envelope.to_string())
}

/// The envelope `text` of a message whose worker died while it had it: marked as delivered before,
/// and with one more death among its marks.
pub fn after_death(text: &str) -> String {
    with_a_death(&mark_redelivered(text)).into_owned()
}

/// The envelope `text` with one more death among its marks.
fn with_a_death(text: &str) -> Cow<'_, str> {
    let Ok(envelope) = Object::parse(text) else {
        return Cow::Borrowed(text);
    };
    let Ok(headers) = Object::parse(headers_of(&envelope)) else {
        return Cow::Borrowed(text);
    };
    let marks = Marks::read(&headers);
    let deaths = marks.deaths.saturating_add(1);
    with_marks(text, Marks { deaths, ..marks })
}

/// The headers of an envelope: none where they are left out or `null`, as clients in other languages
/// have them that send none.
fn headers_of<'e>(envelope: &'e Object<'_>) -> &'e str {
    let headers = envelope.get("headers").filter(|raw| json::is_truthy(raw));
    headers.unwrap_or("{}")
}

fn decode_body(body: &str, encoding: Option<&str>) -> Result<Bytes, Undecodable> {
    let body = match json::as_str(body) {
        Some(body) => body,
        None if body == "null" => return Ok(Bytes::new()),
        None => return Err(Undecodable::Member("body")),
    };
    match encoding.and_then(json::as_str).as_deref() {
        Some("base64") => Ok(Bytes::from(BASE64.decode(body.as_bytes())?)),
        None | Some("utf-8" | "") => Ok(Bytes::from(body.into_owned())),
        Some(other) => Err(Undecodable::BodyEncoding(other.to_owned())),
    }
}

fn optional_text(raw: Option<&str>, name: &'static str) -> Result<Option<ByteString>, Undecodable> {
    match raw {
        None | Some("null") => Ok(None),
        Some(raw) => json::as_str(raw)
            .map(|text| Some(ByteString::from(text.into_owned())))
            .ok_or(Undecodable::Member(name)),
    }
}

/// `part`, sharing the bytes of `whole` where it lies within it.
fn part_of(whole: &ByteString, part: &str) -> ByteString {
    let range = whole.as_bytes().as_ptr_range();
    if range.contains(&part.as_ptr()) {
        whole.slice_ref(part)
    } else {
        ByteString::from(part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What kombu 5.7 put on a Redis list for `add.delay(2, 3)`.
    const CAPTURED: &str = r#"{"body": "W1syLCAzXSwge30sIHsiY2FsbGJhY2tzIjogbnVsbCwgImVycmJhY2tzIjogbnVsbCwgImNoYWluIjogbnVsbCwgImNob3JkIjogbnVsbH1d", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"lang": "py", "task": "proj.add", "id": "2c31690e-7029-4df1-a9aa-5a390a211096"}, "properties": {"correlation_id": "2c31690e-7029-4df1-a9aa-5a390a211096", "reply_to": "48579f8d", "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0, "body_encoding": "base64", "delivery_tag": "53a24494"}}"#;

    fn decode_text(text: &str) -> Result<Message, Undecodable> {
        decode(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_captured_envelope_is_opened() {
        let message = decode_text(CAPTURED).unwrap();
        assert_eq!(
            &message.body[..],
            br#"[[2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#
        );
        assert_eq!(message.content_type.as_deref(), Some("application/json"));
        assert_eq!(message.content_encoding.as_deref(), Some("utf-8"));
        assert_eq!(message.delivery_info.exchange.as_deref(), Some(""));
        assert_eq!(message.delivery_info.routing_key.as_deref(), Some("celery"));
        assert_eq!(message.priority(), 0);
        assert!(!message.delivery_info.redelivered);
        assert_eq!(
            message.property("reply_to").as_deref(),
            Some("\"48579f8d\"")
        );
    }

    #[test]
    fn an_encoded_message_is_opened_again() {
        let message = decode_text(CAPTURED).unwrap();
        assert_eq!(
            decode_text(&encode(&message, "53a24494")).unwrap().body,
            message.body
        );
        assert_eq!(
            decode_text(&encode(&message, "53a24494")).unwrap().headers,
            message.headers
        );
    }

    #[test]
    fn plain_bodies_and_missing_members_are_read() {
        let message = decode_text(
            r#"{"body": "[[], {}, {}]", "headers": null, "properties": {"delivery_tag": "1"}}"#,
        )
        .unwrap();
        assert_eq!(&message.body[..], b"[[], {}, {}]");
        assert_eq!(&*message.headers, "{}");
        assert_eq!(message.content_type, None);
    }

    #[test]
    fn a_restored_message_is_marked_once() {
        let once = mark_redelivered(CAPTURED).into_owned();
        let message = decode_text(&once).unwrap();
        assert!(message.delivery_info.redelivered);
        assert_eq!(
            Object::parse(&message.headers).unwrap().get("redelivered"),
            Some("true")
        );
        assert_eq!(mark_redelivered(&once), once);
        assert_eq!(mark_redelivered("no envelope"), "no envelope");
    }

    #[test]
    fn marks_come_and_go() {
        let marks = Marks {
            deaths: 1,
            ..Marks::default()
        };
        let marked = with_marks(CAPTURED, marks).into_owned();
        let message = decode_text(&marked).unwrap();
        assert_eq!(
            Marks::read(&Object::parse(&message.headers).unwrap()),
            marks
        );
        assert_eq!(with_marks(&marked, Marks::default()), CAPTURED);
        assert_eq!(with_marks("no envelope", marks), "no envelope");
        let again = with_a_death(&marked);
        let message = decode_text(&again).unwrap();
        assert_eq!(Marks::of(&message).deaths, 2);
        assert_eq!(with_a_death("no envelope"), "no envelope");
    }

    #[test]
    fn an_envelope_without_headers_is_marked_as_well() {
        for headers in ["", r#""headers": null, "#, r#""headers": {}, "#] {
            let text = format!(r#"{{"body": "", {headers}"properties": {{}}}}"#);
            let twice = with_a_death(&with_a_death(&text)).into_owned();
            let message = decode_text(&twice).unwrap();
            assert_eq!(Marks::of(&message).deaths, 2, "{text}");
        }
    }

    #[test]
    fn the_mark_of_sql_transports_counts() {
        let text = CAPTURED.replacen('{', r#"{"redelivered": true, "#, 1);
        assert!(decode_text(&text).unwrap().delivery_info.redelivered);
    }

    #[test]
    fn hostile_input_is_an_error() {
        let deep = format!(
            r#"{{"body": {}{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        for text in [
            "",
            "\u{0}",
            "[]",
            "null",
            r#"{"body": 5, "properties": {}}"#,
            r#"{"body": "!!!", "properties": {"body_encoding": "base64"}}"#,
            r#"{"body": "", "properties": {"body_encoding": "rot13"}}"#,
            r#"{"body": "", "properties": []}"#,
            r#"{"body": "", "content-type": 5, "properties": {}}"#,
            r#"{"body": "", "properties": {"delivery_info": {"exchange": []}}}"#,
            &deep,
        ] {
            assert!(
                decode_text(text).is_err(),
                "{}",
                &text[..text.len().min(80)]
            );
        }
        assert!(decode(&Bytes::from_static(&[0xff, 0xfe, 0x00])).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&Bytes::from(bytes)));
        }

        #[test]
        fn damaged_envelopes_never_panic(at in 0..CAPTURED.len(), byte in any::<u8>()) {
            let mut bytes = CAPTURED.as_bytes().to_vec();
            bytes[at] = byte;
            drop(decode(&Bytes::from(bytes.clone())));
            if let Ok(text) = std::str::from_utf8(&bytes) {
                drop(mark_redelivered(text));
            }
        }
    }
}
