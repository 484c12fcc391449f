//! A request as `inspect` shows it.
//!
//! Celery's counterpart: `celery.worker.request.Request.info`.

use celeriac_protocol::json::{self, Object};
use serde_json::{Value, json};

use crate::request::{Request, Stage};

/// The members of a request. `safe` asks for the representations of its arguments, which are also
/// shown where the arguments can't be read here: this process opens no pickle.
pub fn info(request: &Request, hostname: &str, safe: bool) -> Value {
    let (time_start, pid) = match request.stage {
        Stage::Running { pid, since } => (Some(since.as_microsecond() as f64 / 1e6), Some(pid)),
        _ => (None, None),
    };
    let message = &request.message;
    let arguments = if safe { None } else { arguments(request) };
    let (args, kwargs) = arguments.unwrap_or_else(|| {
        let headers = Object::parse(&message.headers).unwrap_or_default();
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(json::as_str)
                .map_or(Value::Null, |text| text.into_owned().into())
        };
        (text("argsrepr"), text("kwargsrepr"))
    });
    let delivery = &message.delivery_info;
    let priority = delivery
        .priority
        .as_deref()
        .and_then(|priority| serde_json::from_str(priority).ok())
        .unwrap_or(Value::Null);
    json!({
        "id": &*request.head.id,
        "name": request.head.name(),
        "args": args,
        "kwargs": kwargs,
        "type": &*request.head.task,
        "hostname": hostname,
        "time_start": time_start,
        "acknowledged": request.is_settled,
        "delivery_info": {
            "exchange": delivery.exchange.as_deref(),
            "routing_key": delivery.routing_key.as_deref(),
            "priority": priority,
            "redelivered": delivery.redelivered,
        },
        "worker_pid": pid,
    })
}

/// The arguments of a request whose body is plain JSON.
fn arguments(request: &Request) -> Option<(Value, Value)> {
    let message = &request.message;
    if message.content_type.as_deref() != Some("application/json") {
        return None;
    }
    let headers = Object::parse(&message.headers).ok()?;
    if headers.get("compression").is_some_and(json::is_truthy) {
        return None;
    }
    match serde_json::from_slice(&message.body).ok()? {
        // Protocol 2: arguments, keyword arguments, and what belongs to a canvas.
        Value::Array(parts) => {
            let mut parts = parts.into_iter();
            Some((parts.next()?, parts.next()?))
        }
        Value::Object(mut members) => {
            let args = members.remove("args").unwrap_or_else(|| json!([]));
            let kwargs = members.remove("kwargs").unwrap_or_else(|| json!({}));
            Some((args, kwargs))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use celeriac_config::TaskOptions;
    use celeriac_core::broker::DeliveryTag;
    use celeriac_core::pool::RequestKey;
    use celeriac_protocol::message::DeliveryInfo;
    use celeriac_protocol::{Head, Message};

    use super::*;

    fn request(content_type: &str, body: &'static str) -> Request {
        let headers = r#"{"task": "t", "id": "i", "argsrepr": "(1,)", "kwargsrepr": "{}"}"#;
        let head = Head::from_headers(&Object::parse(headers).unwrap())
            .unwrap()
            .unwrap();
        Request {
            key: RequestKey(1),
            tag: DeliveryTag(1),
            lane: 0,
            queue: "celery".into(),
            head,
            message: Arc::new(Message {
                body: body.into(),
                content_type: Some(content_type.into()),
                content_encoding: Some("utf-8".into()),
                headers: headers.into(),
                properties: "{}".into(),
                delivery_info: DeliveryInfo {
                    priority: Some("3".into()),
                    ..DeliveryInfo::default()
                },
            }),
            task: Arc::new(TaskOptions::default()),
            stage: Stage::Running {
                pid: 9,
                since: "2026-11-22T12:00:00.5Z".parse().unwrap(),
            },
            is_settled: true,
            is_taken: false,
            is_lost: false,
            terminated: None,
        }
    }

    #[test]
    fn arguments_are_shown_as_they_are_where_they_can_be_read() {
        let plain = request("application/json", r#"[[1, {"a": null}], {"k": 2}, {}]"#);
        let shown = info(&plain, "w1@h", false);
        assert_eq!(
            (&shown["args"], &shown["kwargs"]),
            (&json!([1, {"a": null}]), &json!({"k": 2}))
        );
        let safe = info(&plain, "w1@h", true);
        assert_eq!(
            (&safe["args"], &safe["kwargs"]),
            (&json!("(1,)"), &json!("{}"))
        );
        let pickled = request("application/x-python-serialize", "\u{1}");
        assert_eq!(info(&pickled, "w1@h", false)["args"], json!("(1,)"));
        let first = request(
            "application/json",
            r#"{"task": "t", "id": "i", "args": [4]}"#,
        );
        assert_eq!(info(&first, "w1@h", false)["args"], json!([4]));
    }

    #[test]
    fn the_rest_is_celerys() {
        let shown = info(&request("application/json", "[[], {}, {}]"), "w1@h", false);
        for (name, expected) in [
            ("time_start", json!(1_795_348_800.5)),
            ("worker_pid", json!(9)),
            ("acknowledged", json!(true)),
            ("hostname", json!("w1@h")),
            (
                "delivery_info",
                json!({"exchange": null, "routing_key": null, "priority": 3, "redelivered": false}),
            ),
        ] {
            assert_eq!(shown[name], expected, "{name}");
        }
    }
}
