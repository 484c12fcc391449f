//! What kind of message it is: headers, a NUL, and the body.

use bytes::Bytes;
use celeriac_protocol::json::Object;
use celeriac_protocol::{AcceptContent, DeliveryInfo, Head, Marks, Message, content, timestamp};
use celeriac_worker::receive::decode::{Received, classify, opened};

pub(crate) fn check(bytes: &[u8]) {
    let cut = bytes.iter().position(|byte| *byte == 0);
    let (headers, body) = bytes.split_at(cut.unwrap_or(bytes.len()));
    let Ok(headers) = std::str::from_utf8(headers) else {
        return;
    };
    let body = Bytes::copy_from_slice(body.get(1..).unwrap_or_default());
    let types = [
        Some("application/json"),
        Some("application/x-python-serialize"),
        None,
    ];
    let accept = AcceptContent::new(["application/json".to_owned()]);
    for content_type in types {
        let message = Message {
            body: body.clone(),
            content_type: content_type.map(Into::into),
            content_encoding: None,
            headers: headers.into(),
            properties: "{}".into(),
            delivery_info: DeliveryInfo::default(),
        };
        let received = classify(&message, &accept);
        if let Received::Undecodable(reason) = &received
            && !accept.allows(content_type)
        {
            assert!(reason.contains(&content::display_name(content_type.unwrap_or_default())));
        }
        if let Received::Task(head) = received {
            well_formed(&head);
        }
    }
    if let Received::Task(head) = opened(headers) {
        well_formed(&head);
        let marked = head.marks.write(headers);
        assert_eq!(head.marks.write(&marked), marked);
        let parsed = Object::parse(&marked).expect("marks break no headers");
        assert_eq!(Marks::read(&parsed), head.marks);
        let headers = Object::parse(headers).expect("it was read before");
        assert_eq!(Head::from_headers(&headers), Some(Ok(head)));
    }
}

fn well_formed(head: &Head) {
    assert!(head.shadow.as_deref() != Some(""));
    for limit in [head.time_limits.hard, head.time_limits.soft] {
        assert!(limit.is_none_or(|limit| limit.seconds() > 0.0 && !limit.duration().is_zero()));
    }
    // Python's years.
    let usual = |text: &String| !text.starts_with(['-', '+']) && !text.starts_with("0000");
    for time in [head.eta, head.expires].into_iter().flatten() {
        if let Some(text) = Some(time.to_string()).filter(usual) {
            assert_eq!(timestamp::parse(&text), Ok(time), "{text}");
        }
    }
}
