//! Envelopes of Redis and SQL: one that is opened is written so that it opens as the same.

use bytes::Bytes;
use celeriac_protocol::json::Object;
use celeriac_protocol::{envelope, request};

pub(crate) fn check(bytes: &[u8]) {
    let Ok(message) = envelope::decode(&Bytes::copy_from_slice(bytes)) else {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = envelope::mark_redelivered(text);
        }
        return;
    };
    assert!(message.priority() <= 9);
    let encoded = envelope::encode(&message, "tag");
    let again = envelope::decode(&Bytes::from(encoded)).expect("what was written is read");
    assert_eq!(again.body, message.body);
    assert_eq!(again.headers, message.headers);
    assert_eq!(again.content_type, message.content_type);
    assert_eq!(again.content_encoding, message.content_encoding);
    let (was, is) = (&message.delivery_info, &again.delivery_info);
    assert_eq!(is.exchange, was.exchange.clone().or(Some("".into())));
    assert_eq!(is.routing_key, was.routing_key.clone().or(Some("".into())));
    assert_eq!(is.redelivered, was.redelivered);
    assert_eq!(is.priority, was.priority);
    assert_eq!(again.property("delivery_tag").as_deref(), Some("\"tag\""));

    let text = std::str::from_utf8(bytes).expect("an envelope is text");
    let marked = envelope::mark_redelivered(text).into_owned();
    assert_eq!(envelope::mark_redelivered(&marked), marked);
    let marked = envelope::decode(&Bytes::from(marked)).expect("a mark breaks nothing");
    assert_eq!(marked.body, message.body);
    assert!(marked.delivery_info.redelivered >= message.delivery_info.redelivered);

    let request = request::to_json(&message, "worker@host");
    if Object::parse(&message.headers).is_ok() {
        let request = Object::parse(&request).expect("a request is an object");
        assert_eq!(request.get("hostname"), Some("\"worker@host\""));
    }
}
