//! What kind of message it is.
//!
//! Celery's counterpart: `celery.worker.consumer.consumer.Consumer.create_task_handler` and the
//! conversions of `celery.worker.strategy`.

use celeriac_protocol::head::InvalidTask;
use celeriac_protocol::json::Object;
use celeriac_protocol::{AcceptContent, Head, Marks, Message, content};

/// A message, as far as it is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A task.
    Task(Head),
    /// It names a task, but can't be one.
    Invalid(InvalidTask),
    /// It is no task.
    Unknown,
    /// Its body can't be read.
    Undecodable(String),
    /// It may be a task of protocol 1 whose body only Python can read.
    NeedsPython,
}

/// Looks at the headers, and at the body only where a task of protocol 1 may be in it.
pub fn classify(message: &Message, accept: &AcceptContent) -> Received {
    let Ok(headers) = Object::parse(&message.headers) else {
        return Received::Unknown;
    };
    if headers.get("task").is_some() {
        return match hybrid(message, &headers) {
            Some(merged) => task(Head::from_headers(&merged)),
            None => task(Head::from_headers(&headers)),
        };
    }
    let content_type = message.content_type.as_deref();
    if !accept.allows(content_type) {
        let name = content::display_name(content_type.unwrap_or_default());
        let reason = format!("Refusing to deserialize disallowed content of type {name}");
        return Received::Undecodable(reason);
    }
    if content_type != Some("application/json") || headers.get("compression").is_some() {
        return Received::NeedsPython;
    }
    let Ok(body) = std::str::from_utf8(&message.body) else {
        return Received::Undecodable("the body is not UTF-8".to_owned());
    };
    match Object::parse(body) {
        Ok(body) => marked(task(Head::from_v1_body(&body)), Marks::read(&headers)),
        Err(error) if error.is_data() => Received::Unknown,
        Err(error) => Received::Undecodable(error.to_string()),
    }
}

/// What main found in the body of a message that needs Python: a mapping, or null.
pub fn opened(members: &str) -> Received {
    match Object::parse(members) {
        Ok(members) => task(Head::from_v1_body(&members)),
        Err(_) => Received::Unknown,
    }
}

/// The same task with marks: where the head is read from the body, they are in the headers alone.
pub fn marked(received: Received, marks: Marks) -> Received {
    match received {
        Received::Task(head) => Received::Task(Head { marks, ..head }),
        other => other,
    }
}

fn task(head: Option<Result<Head, InvalidTask>>) -> Received {
    match head {
        Some(Ok(head)) => Received::Task(head),
        Some(Err(invalid)) => Received::Invalid(invalid),
        None => Received::Unknown,
    }
}

/// The members of a message that has headers of protocol 2 over a JSON body of protocol 1: those
/// of the body, and over them the headers.
fn hybrid<'m>(message: &'m Message, headers: &Object<'m>) -> Option<Object<'m>> {
    let is_mapping = message.content_type.as_deref() == Some("application/json")
        && message.body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
        && headers.get("compression").is_none();
    if !is_mapping {
        return None;
    }
    let body = Object::parse(std::str::from_utf8(&message.body).ok()?).ok()?;
    body.get("args")?;
    let mut merged = body;
    for (name, value) in headers.clone().into_members() {
        merged.remove(&name);
        merged.push(name, value);
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use celeriac_protocol::DeliveryInfo;

    use super::*;

    fn message(headers: &str, body: &str, content_type: Option<&'static str>) -> Message {
        Message {
            body: Bytes::copy_from_slice(body.as_bytes()),
            content_type: content_type.map(Into::into),
            content_encoding: None,
            headers: headers.into(),
            properties: "{}".into(),
            delivery_info: DeliveryInfo::default(),
        }
    }

    fn classified(headers: &str, body: &str, content_type: Option<&'static str>) -> Received {
        let accept = AcceptContent::new([
            "application/json".to_owned(),
            "application/x-python-serialize".to_owned(),
        ]);
        classify(&message(headers, body, content_type), &accept)
    }

    const JSON: Option<&str> = Some("application/json");
    const PICKLE: Option<&str> = Some("application/x-python-serialize");

    #[test]
    fn protocol_2_is_known_by_its_headers_whatever_the_body() {
        for (body, content_type) in [("[[], {}, {}]", JSON), ("\u{1}binary", PICKLE), ("", None)] {
            let received = classified(r#"{"task": "t", "id": "1"}"#, body, content_type);
            assert!(matches!(received, Received::Task(head) if &*head.task == "t"));
        }
        let invalid = classified(r#"{"task": "t"}"#, "", JSON);
        assert!(matches!(invalid, Received::Invalid(_)));
    }

    #[test]
    fn protocol_1_is_known_by_its_body() {
        let body = r#"{"task": "t", "id": "1", "args": [], "kwargs": {}, "eta": null}"#;
        assert!(matches!(classified("{}", body, JSON), Received::Task(_)));
        assert_eq!(classified("{}", body, PICKLE), Received::NeedsPython);
        let compressed = r#"{"compression": "application/x-gzip"}"#;
        assert_eq!(classified(compressed, body, JSON), Received::NeedsPython);
        let invalid = classified("{}", r#"{"task": "t", "id": "1", "kwargs": 5}"#, JSON);
        assert!(matches!(invalid, Received::Invalid(_)));
    }

    #[test]
    fn what_is_no_task_is_unknown() {
        for body in [r#"{"id": "1"}"#, "[1, 2]", "5", "\"text\"", "null"] {
            assert_eq!(classified("{}", body, JSON), Received::Unknown, "{body}");
        }
        assert_eq!(classified("[]", "{}", JSON), Received::Unknown);
        assert_eq!(classified("5", "{}", JSON), Received::Unknown);
    }

    #[test]
    fn what_cannot_be_read_is_undecodable() {
        for body in ["", "{", "no json", "{\"task\": }"] {
            assert!(
                matches!(classified("{}", body, JSON), Received::Undecodable(_)),
                "{body}"
            );
        }
        let refused = classified("{}", "{}", Some("application/x-yaml"));
        let Received::Undecodable(reason) = refused else {
            panic!("{refused:?}")
        };
        assert!(reason.contains("yaml (application/x-yaml)"), "{reason}");
    }

    #[test]
    fn headers_count_over_a_body_of_protocol_1() {
        let body = r#"{"task": "old", "args": [], "kwargs": {}, "eta": "2030-01-01T00:00:00", "retries": 2}"#;
        let received = classified(r#"{"task": "new", "id": "1", "retries": 3}"#, body, JSON);
        let Received::Task(head) = received else {
            panic!("{received:?}")
        };
        assert_eq!(
            (&*head.task, head.retries, head.eta.is_some()),
            ("new", 3, true)
        );
    }

    #[test]
    fn what_main_opened_is_read_the_same_way() {
        assert!(matches!(
            opened(r#"{"task": "t", "id": "1"}"#),
            Received::Task(_)
        ));
        assert!(matches!(
            opened(r#"{"task": "t", "id": "1", "kwargs": null}"#),
            Received::Invalid(_)
        ));
        assert_eq!(opened("null"), Received::Unknown);
        assert_eq!(opened("{}"), Received::Unknown);
    }
}
