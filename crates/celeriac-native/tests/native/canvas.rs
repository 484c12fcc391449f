//! Chains, groups and chords of native tasks: what the client sends comes back to the pool.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_backend::memory::MemoryBackend;
use celeriac_client::{Apply, Client, Config};
use celeriac_core::backend::{self, Backend, Chords};
use celeriac_core::broker;
use celeriac_core::clock::SystemClock;
use celeriac_core::pool::{Job, Pool as _, PoolEvent, RequestKey};
use celeriac_core::publisher::{Published, Publisher};
use celeriac_core::queue::Queue;
use celeriac_native::{
    Error, NativeOptions, NativePool, Options, Registry, ResultSettings, Results, Task,
    TraceSettings, Tracer,
};
use celeriac_protocol::{Exception, Signature, TimeLimits, request};
use serde_json::{Value, json};

use crate::scene::{Memory, signature, task};

/// A broker whose messages are read here.
#[derive(Debug, Default)]
struct Loop(Mutex<Vec<Published>>);

#[async_trait]
impl Publisher for Loop {
    async fn declare(&self, _queue: &Queue) -> Result<(), broker::Error> {
        Ok(())
    }

    async fn publish(&self, messages: &[Published]) -> Result<(), broker::Error> {
        self.0.lock().unwrap().extend_from_slice(messages);
        Ok(())
    }

    async fn close(&self) -> Result<(), broker::Error> {
        Ok(())
    }
}

fn tasks() -> Vec<Arc<dyn Task>> {
    let options = Options::default;
    vec![
        task("add", options(), |_, arguments| async move {
            let sum: i64 = arguments.args.iter().filter_map(Value::as_i64).sum();
            Ok(json!(sum))
        }),
        task("sum", options(), |_, arguments| async move {
            let list = arguments.args[0].as_array().cloned().unwrap_or_default();
            Ok(json!(list.iter().filter_map(Value::as_i64).sum::<i64>()))
        }),
        task("fails", options(), |_, _| async {
            Err(Exception::builtin("ValueError", "boom").into())
        }),
        task("again", options(), |context, _| async move {
            match context.retries() {
                2 => Ok(json!(2)),
                _ => Err(Error::retry_after(Duration::ZERO)),
            }
        }),
        task("becomes", options(), |_, arguments| async move {
            let with: Signature = serde_json::from_value(arguments.args[0].clone())?;
            Err(Error::replace(with))
        }),
        task("seen", options(), |_, arguments| async move {
            Ok(json!(arguments.args))
        }),
    ]
}

/// Applies a signature, runs all that follows, and answers with its result.
async fn result(canvas: Value) -> Result<Value, String> {
    let settings = backend::Settings::default();
    let backend: Arc<dyn Backend> = MemoryBackend::open("memory://", settings);
    assert_eq!(backend.chords(), Chords::Counted);
    let broker = Arc::<Loop>::default();
    let config = Config::default();
    let client = Client::over(config, broker.clone(), Some(backend.clone())).unwrap();
    let clock = Arc::new(SystemClock::new());
    let options = NativeOptions {
        size: 4,
        threads: Some(2),
    };
    let pool = NativePool::new(options, clock.clone(), || {
        let sender = Arc::new(client.clone());
        let journal = Arc::<Memory>::default();
        let settings = ResultSettings::default();
        let results = Results::new(Some(backend), sender, clock, journal, settings);
        let mut registry = Registry::default();
        for task in tasks() {
            registry.register(task).unwrap();
        }
        let registry = registry
            .with_builtins(&results, Duration::from_secs(1))
            .unwrap();
        Tracer::new(Arc::new(registry), results, TraceSettings::default())
    });
    let mut pool = pool.unwrap();
    let canvas: Signature = serde_json::from_value(canvas).unwrap();
    let result = client.apply(&canvas, Apply::default()).await.unwrap();
    let mut key = 0;
    let work = async {
        loop {
            let messages = std::mem::take(&mut *broker.0.lock().unwrap());
            for Published { message, .. } in messages {
                key += 1;
                let headers: Value = serde_json::from_str(&message.headers).unwrap();
                pool.submit(Job {
                    key: RequestKey(key),
                    task: headers["task"].as_str().unwrap().into(),
                    request: request::to_json(&message, "w@h"),
                    body: message.body,
                    content_type: message.content_type,
                    content_encoding: message.content_encoding,
                    time_limits: TimeLimits::default(),
                    wants_result: false,
                    wants_exception: false,
                });
            }
            for event in pool.next().await {
                let is_lost = matches!(event, PoolEvent::Lost { .. });
                assert!(!is_lost, "{event:?}");
            }
        }
    };
    tokio::select! {
        () = work => unreachable!("it works for ever"),
        value = result.wait::<Value>(Duration::from_secs(20)) => {
            value.map_err(|error| error.to_string())
        }
    }
}

fn call(task: &str, args: Value) -> Value {
    let mut call = signature(task, json!({}));
    call["args"] = args;
    call
}

fn primitive(name: &str, kwargs: Value) -> Value {
    let mut primitive = signature(&format!("celery.{name}"), json!({}));
    primitive["subtask_type"] = json!(name);
    primitive["kwargs"] = kwargs;
    primitive
}

fn chain(tasks: Value) -> Value {
    primitive("chain", json!({ "tasks": tasks }))
}

fn group(tasks: Value) -> Value {
    primitive("group", json!({ "tasks": tasks }))
}

fn chord(header: Value, body: Value) -> Value {
    primitive(
        "chord",
        json!({"header": header, "body": body, "kwargs": {}}),
    )
}

#[tokio::test]
async fn canvases_have_their_results() {
    let pair = || json!([call("add", json!([1, 2])), call("add", json!([3, 4]))]);
    let becomes = |with: Value| call("becomes", json!([with]));
    for (canvas, expected) in [
        (call("add", json!([1, 2])), json!(3)),
        (call("again", json!([])), json!(2)),
        (
            chain(json!([
                call("add", json!([1])),
                call("add", json!([2])),
                call("add", json!([3]))
            ])),
            json!(6),
        ),
        (group(pair()), json!([3, 7])),
        (chord(pair(), call("sum", json!([]))), json!(10)),
        (
            chain(json!([
                group(pair()),
                call("sum", json!([])),
                call("add", json!([1]))
            ])),
            json!(11),
        ),
        (becomes(call("add", json!([5, 5]))), json!(10)),
        (becomes(group(pair())), json!([3, 7])),
        (
            becomes(chain(json!([
                call("add", json!([1])),
                call("add", json!([2]))
            ]))),
            json!(3),
        ),
        (
            chain(json!([becomes(group(pair())), call("sum", json!([]))])),
            json!(10),
        ),
        (
            chord(
                json!([becomes(call("add", json!([1]))), call("add", json!([2]))]),
                call("sum", json!([])),
            ),
            json!(3),
        ),
        (
            chord(
                json!([becomes(group(pair())), call("add", json!([2]))]),
                call("seen", json!([])),
            ),
            json!([[[3, 7], 2]]),
        ),
        (
            primitive(
                "xmap",
                json!({"task": call("add", json!([])), "it": [1, 2]}),
            )
            .as_object()
            .map(|map| {
                let mut map = map.clone();
                map.insert("task".to_owned(), json!("celery.map"));
                Value::Object(map)
            })
            .unwrap(),
            json!([1, 2]),
        ),
    ] {
        let shown = canvas.to_string();
        assert_eq!(result(canvas).await, Ok(expected), "{shown}");
    }
}

#[tokio::test]
async fn a_failure_fails_the_whole() {
    let fails = || call("fails", json!([]));
    for (canvas, expected) in [
        (
            chain(json!([
                fails(),
                call("add", json!([1])),
                call("add", json!([1]))
            ])),
            "ValueError",
        ),
        (
            chord(
                json!([fails(), call("add", json!([1]))]),
                call("sum", json!([])),
            ),
            "ChordError",
        ),
        (
            chain(json!([
                group(json!([fails(), fails()])),
                call("sum", json!([])),
                call("add", json!([1]))
            ])),
            "ChordError",
        ),
        (
            chord(
                json!([
                    chain(json!([fails(), call("add", json!([1]))])),
                    call("add", json!([1]))
                ]),
                call("sum", json!([])),
            ),
            "ChordError",
        ),
    ] {
        let shown = canvas.to_string();
        let error = result(canvas).await.unwrap_err();
        // Who asks when a part has failed already is told of the part, as in Celery.
        let is_part = expected == "ChordError" && error.contains("ValueError: boom");
        assert!(error.contains(expected) || is_part, "{shown}: {error}");
    }
}
