//! Jobs that are no calls, or not quite those of protocol 2.

use std::io::Write as _;

use celeriac_core::pool::{Job, Outcome};
use celeriac_native::{Options, TraceSettings, body::Accepts};
use celeriac_protocol::AcceptContent;
use serde_json::{Value, json};

use crate::scene::{Scene, Settings, task};

/// A scene whose task answers with what it was given.
fn scene() -> Scene {
    scene_with(Accepts::default())
}

fn scene_with(accepts: Accepts) -> Scene {
    let echo = task(
        "echo",
        Options::default(),
        |context, arguments| async move {
            let request = context.request();
            Ok(json!([
                arguments.args,
                arguments.kwargs,
                request.id,
                request.retries,
                request.group
            ]))
        },
    );
    let trace = TraceSettings {
        accepts,
        ..TraceSettings::default()
    };
    Scene::with(
        [echo],
        Settings {
            trace,
            ..Settings::default()
        },
    )
}

async fn run(change: impl FnOnce(&mut Job)) -> Outcome {
    let mut scene = scene();
    let mut job = scene.simple("echo", json!([]));
    change(&mut job);
    scene.run(job).await
}

fn with_body(body: &[u8]) -> impl FnOnce(&mut Job) {
    let body = bytes::Bytes::copy_from_slice(body);
    move |job| job.body = body
}

#[tokio::test]
async fn what_is_no_call_is_told_with_what_is_wrong() {
    for (body, reason) in [
        (&b"7"[..], "the body is of type int"),
        (b"[[], {}]", "the body has 2 parts instead of 3"),
        (b"[7, {}, {}]", "Task arguments must be a list"),
        (b"[[], [], {}]", "Task keyword arguments must be a mapping"),
        (br#"[[], {}, {"chain": 7}]"#, "the options in the body: "),
        (
            br#"[[], {}, {"chord": {"args": []}}]"#,
            "the options in the body: missing field `task`",
        ),
        (
            br#"{"kwargs": []}"#,
            "Task keyword arguments must be a mapping",
        ),
    ] {
        let Outcome::Invalid { reason: told } = run(with_body(body)).await else {
            panic!("{reason}")
        };
        assert!(told.starts_with(reason), "{told}");
    }
    let deep = "[".repeat(100_000);
    for (body, reason) in [
        (&b""[..], "EOF while parsing"),
        (b"[[], {", "EOF while parsing"),
        (b"\xff\xfe", "expected value"),
        (b"[[NaN], {}, {}]", "NaN and Infinity are no JSON"),
        (deep.as_bytes(), "recursion limit exceeded"),
    ] {
        let Outcome::Undecodable { reason: told } = run(with_body(body)).await else {
            panic!("{reason}")
        };
        assert!(
            told.starts_with("DecodeError(") && told.contains(reason),
            "{told}"
        );
    }
    let outcome = run(|job| job.request = r#"{"task": "echo"}"#.to_owned()).await;
    assert!(matches!(outcome, Outcome::Invalid { .. }), "{outcome:?}");
    let outcome = run(|job| job.request = "{".to_owned()).await;
    assert!(
        matches!(outcome, Outcome::Undecodable { .. }),
        "{outcome:?}"
    );
    let outcome = run(|job| job.task = "unknown".into()).await;
    assert!(matches!(outcome, Outcome::Invalid { .. }), "{outcome:?}");
}

#[tokio::test]
async fn only_json_is_opened() {
    for (content_type, shown) in [
        (
            Some("application/x-python-serialize"),
            "pickle (application/x-python-serialize)",
        ),
        (Some("application/x-yaml"), "yaml (application/x-yaml)"),
        (None, "application/data"),
    ] {
        let outcome = run(|job| job.content_type = content_type.map(Into::into)).await;
        let Outcome::Undecodable { reason } = outcome else {
            panic!("{outcome:?}")
        };
        assert!(reason.starts_with("ContentDisallowed("), "{reason}");
        assert!(
            reason.contains(&format!("content of type {shown}; a task in Rust")),
            "{reason}"
        );
        assert!(reason.contains("task_serializer"), "{reason}");
    }
    let mut scene = scene_with(Accepts {
        content: AcceptContent::new(["application/x-yaml".to_owned()]),
        ..Accepts::default()
    });
    let job = scene.simple("echo", json!([]));
    let Outcome::Undecodable { reason } = scene.run(job).await else {
        panic!()
    };
    assert!(reason.contains("disabled content of type json"), "{reason}");
    assert!(reason.contains("accept_content"), "{reason}");
    let outcome = run(|job| job.content_encoding = Some("utf-16".into())).await;
    assert!(
        matches!(outcome, Outcome::Undecodable { .. }),
        "{outcome:?}"
    );
}

fn compressed(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn compressed_bodies_are_opened_as_far_as_they_may_grow() {
    let accepts = Accepts {
        most_bytes: 1000,
        ..Accepts::default()
    };
    let mut scene = scene_with(accepts);
    let body = |length: usize| json!([["x".repeat(length)], {}, {}]).to_string();
    for (name, bytes, reason) in [
        ("application/x-gzip", compressed(body(10).as_bytes()), None),
        ("zlib", compressed(body(10).as_bytes()), None),
        (
            "zlib",
            compressed(body(1000).as_bytes()),
            Some("more than 1000 bytes"),
        ),
        ("zlib", b"garbage".to_vec(), Some("the compressed body")),
        ("application/x-bz2", Vec::new(), Some("compression='zlib'")),
    ] {
        let mut job = scene.job("echo", json!([]), json!({"compression": name}), json!({}));
        job.body = bytes.into();
        match (scene.run(job).await, reason) {
            (Outcome::Success { result, .. }, None) => assert!(result.contains("xxxxxxxxxx")),
            (Outcome::Undecodable { reason: told }, Some(reason)) => {
                assert!(told.contains(reason), "{told}");
            }
            (outcome, reason) => panic!("{outcome:?} {reason:?}"),
        }
    }
}

#[tokio::test]
async fn messages_of_protocol_1_are_calls_too() {
    let mut scene = scene();
    let mut job = scene.simple("echo", json!([]));
    job.request = r#"{"hostname": "w@h", "delivery_info": {}}"#.to_owned();
    job.body = json!({"task": "echo", "id": "old", "args": [1], "kwargs": {"k": 2}, "retries": 3,
        "taskset": "g", "callbacks": null})
    .to_string()
    .into();
    let Outcome::Success { result, .. } = scene.run(job).await else {
        panic!()
    };
    assert_eq!(result, "[[1], {'k': 2}, 'old', 3, 'g']");
    assert_eq!(scene.meta("old").unwrap().status, "SUCCESS");
}

#[tokio::test]
async fn of_what_stands_twice_in_a_request_the_last_counts() {
    let outcome = run(|job| {
        job.request =
            r#"{"id": "first", "id": "\u006cast", "retries": "many", "x": 1.5}"#.to_owned();
        job.body = br#"[[{"__type__": "date", "__value__": "2030-01-02"}], {}, null]"#[..].into();
    })
    .await;
    let Outcome::Success { result, .. } = outcome else {
        panic!("{outcome:?}")
    };
    // What kombu marks is the task's to read.
    let date = "{'__type__': 'date', '__value__': '2030-01-02'}";
    assert_eq!(result, format!("[[{date}], {{}}, 'last', 0, None]"));
}

#[tokio::test]
async fn custom_headers_are_the_tasks() {
    let shows = task("shows", Options::default(), |context, _| async move {
        Ok(Value::Object(context.request().headers.clone()))
    });
    let mut scene = Scene::new([shows]);
    let headers = json!({"my": "own", "lang": "py", "argsrepr": "()", "eta": null,
        "x-death": [1], "celery_beat_task": true});
    let job = scene.job("shows", json!([]), headers, json!({}));
    scene.run(job).await;
    let result = scene.meta("the-id").unwrap().result;
    assert_eq!(result, json!({"my": "own", "celery_beat_task": true}));
}
