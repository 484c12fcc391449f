//! The request mapping that a task sees as `self.request`, as JSON for the process that runs it.
//!
//! Celery's counterpart is the request dictionary that `celery.worker.request.Request` builds:
//! all headers, and the members that describe the delivery.

use std::fmt::Write as _;

use crate::json::{Object, quote};
use crate::marks;
use crate::message::Message;

/// The headers of `message` with the members that Celery adds to them, as one JSON object.
///
/// The headers' own text is kept as it is; where it already has a member that is added here, it
/// stands twice, and a Python reader takes the added one, which comes last.
pub fn to_json(message: &Message, hostname: &str) -> String {
    let properties = Object::parse(&message.properties).unwrap_or_default();
    let property = |name| properties.get(name).unwrap_or("null");
    let info = &message.delivery_info;
    let text = |text: Option<&bytestring::ByteString>| {
        text.map_or_else(|| "null".to_owned(), |text| quote(text))
    };

    let headers = marks::unmarked(&message.headers);
    let headers = headers.trim_end().strip_suffix('}').unwrap_or("{");
    let mut json = String::with_capacity(headers.len() + message.properties.len() + 256);
    json.push_str(headers);
    if !headers.trim_end().ends_with('{') {
        json.push_str(", ");
    }
    // Writing to a `String` can't fail.
    let _ = write!(
        json,
        r#""properties": {}, "reply_to": {}, "correlation_id": {}, "hostname": {}, "delivery_info": {{"exchange": {}, "routing_key": {}, "priority": {}, "redelivered": {}}}}}"#,
        if message.properties.is_empty() {
            "{}"
        } else {
            &message.properties
        },
        property("reply_to"),
        property("correlation_id"),
        quote(hostname),
        text(info.exchange.as_ref()),
        text(info.routing_key.as_ref()),
        info.priority.as_deref().unwrap_or("null"),
        info.redelivered,
    );
    json
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::DeliveryInfo;

    fn message(headers: &'static str) -> Message {
        Message {
            body: Bytes::new(),
            content_type: None,
            content_encoding: None,
            headers: headers.into(),
            properties: r#"{"correlation_id": "1", "priority": 3}"#.into(),
            delivery_info: DeliveryInfo {
                exchange: Some("".into()),
                routing_key: Some("q\"x".into()),
                priority: Some("3".into()),
                redelivered: true,
            },
        }
    }

    #[test]
    fn headers_come_first_and_the_delivery_follows() {
        let json = to_json(&message(r#"{"id": "1", "x": NaN}"#), "w@h");
        assert_eq!(
            json,
            r#"{"id": "1", "x": NaN, "properties": {"correlation_id": "1", "priority": 3}, "reply_to": null, "correlation_id": "1", "hostname": "w@h", "delivery_info": {"exchange": "", "routing_key": "q\"x", "priority": 3, "redelivered": true}}"#
        );
        assert!(Object::parse(&json).is_ok());
    }

    #[test]
    fn marks_are_not_for_the_task() {
        let json = to_json(&message(r#"{"id": "1", "celeriac": {"deaths": 1}}"#), "w@h");
        assert_eq!(json, to_json(&message(r#"{"id": "1"}"#), "w@h"));
    }

    #[test]
    fn empty_headers_give_a_well_formed_object() {
        for headers in ["{}", "{ }", "null", ""] {
            let json = to_json(&message(headers), "w@h");
            assert_eq!(
                Object::parse(&json).unwrap().get("hostname"),
                Some("\"w@h\""),
                "{headers}"
            );
        }
    }
}
