//! Celery's own tasks.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::backend::Meta;
use celeriac_core::pool::Outcome;
use celeriac_native::{Options, Registry};
use celeriac_protocol::Exception;
use serde_json::{Value, json};

use crate::scene::{Scene, Settings, job, signature, task};

fn tasks() -> Registry {
    let mut tasks = Registry::default();
    let add = task("add", Options::default(), |_, arguments| async move {
        let sum: i64 = arguments.args.iter().filter_map(Value::as_i64).sum();
        Ok(json!(sum))
    });
    tasks.register(add).unwrap();
    tasks
}

fn scene() -> Scene {
    let interval = Duration::from_secs(1);
    let registry = |results: &_| tasks().with_builtins(results, interval).unwrap();
    Scene::over(registry, Settings::default())
}

/// The outcome of a call with arguments by name.
async fn call(scene: &mut Scene, task: &str, args: Value, kwargs: Value) -> Outcome {
    let mut job = scene.simple(task, json!([]));
    job.body = json!([args, kwargs, {}]).to_string().into();
    scene.run(job).await
}

async fn result(scene: &mut Scene, task: &str, args: Value, kwargs: Value) -> String {
    match call(scene, task, args, kwargs).await {
        Outcome::Success { result, .. } => result,
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn a_name_is_given_once() {
    let mut tasks = tasks();
    let again = task("add", Options::default(), |_, _| async { Ok(Value::Null) });
    let error = tasks.register(again).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there are two tasks with the name add: give one of them another one"
    );
}

#[tokio::test]
async fn results_are_accumulated() {
    let mut scene = scene();
    let name = "celery.accumulate";
    assert_eq!(
        result(&mut scene, name, json!([[1, 2]]), json!({"index": 0})).await,
        "[1, 2]"
    );
    assert_eq!(
        result(&mut scene, name, json!([1, 2]), json!({})).await,
        "[1, 2]"
    );
    let outcome = call(&mut scene, name, json!([]), json!({"index": 0})).await;
    assert!(matches!(outcome, Outcome::Failure(_)), "{outcome:?}");
}

#[tokio::test]
async fn the_backend_is_cleaned() {
    let mut scene = scene();
    result(&mut scene, "celery.backend_cleanup", json!([]), json!({})).await;
    assert_eq!(scene.log()[0], "cleanup");
}

#[tokio::test]
async fn one_task_runs_with_many_arguments() {
    let mut scene = scene();
    let add = signature("add", json!({}));
    let kwargs = json!({"task": add, "it": [1, 2]});
    assert_eq!(
        result(&mut scene, "celery.map", json!([]), kwargs).await,
        "[1, 2]"
    );
    let kwargs = json!({"task": add, "it": [[1, 2], [3, 4]]});
    assert_eq!(
        result(&mut scene, "celery.starmap", json!([]), kwargs).await,
        "[3, 7]"
    );
    let outcome = call(
        &mut scene,
        "celery.starmap",
        json!([]),
        json!({"task": add, "it": [1]}),
    );
    assert!(matches!(outcome.await, Outcome::Failure(_)));
    let kwargs = json!({"task": add, "it": [[1, 2]], "n": 10});
    call(&mut scene, "celery.chunks", json!([]), kwargs).await;
    let (sent, _) = &scene.sent()[0];
    assert_eq!(sent.subtask_type.as_deref(), Some("chunks"));
    assert_eq!(sent.kwargs["n"], 10);
}

#[tokio::test]
async fn what_calls_others_is_run_only_where_they_are() {
    let scene = scene();
    let registry = Arc::clone(scene.pool.tracer().registry());
    let calls = |name: &str| {
        let mut map = job("celery.map", json!([]), json!({}), json!({}));
        let kwargs = json!({"task": signature(name, json!({})), "it": []});
        map.body = json!([[], kwargs, {}]).to_string().into();
        map
    };
    assert!(registry.runs(&calls("add")));
    assert!(!registry.runs(&calls("of.python")));
    assert!(!registry.runs(&job("celery.map", json!([]), json!({}), json!({}))));
    assert!(registry.runs(&job("add", json!([]), json!({}), json!({}))));
    assert!(!registry.runs(&job("of.python", json!([]), json!({}), json!({}))));
}

fn meta(id: &str, status: &str, result: Value) -> Meta {
    Meta {
        task_id: id.to_owned(),
        status: status.to_owned(),
        result,
        ..Meta::default()
    }
}

#[tokio::test]
async fn a_chord_is_unlocked_when_all_its_parts_have_ended() {
    let parts = json!([
        [["a", null], null],
        [["group", null], [[["b", null], null]]]
    ]);
    let body = signature("body", json!({"task_id": "body-id"}));
    let kwargs = json!({"result": parts, "interval": 2.0});
    let error = serde_json::to_value(Exception::builtin("ValueError", "boom")).unwrap();
    let done = meta("a", "SUCCESS", json!(1));

    let mut scene = scene();
    let keep = |scene: &Scene, meta: &Meta| {
        scene
            .memory
            .metas
            .lock()
            .unwrap()
            .insert(meta.task_id.clone(), meta.clone());
    };
    keep(&scene, &done);
    let args = json!(["g", body]);
    let outcome = call(
        &mut scene,
        "celery.chord_unlock",
        args.clone(),
        kwargs.clone(),
    )
    .await;
    assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
    let (again, _) = scene.sent()[0].clone();
    assert_eq!(again.options["countdown"], json!(2.0));
    assert_eq!(
        (&again.args, Value::Object(again.kwargs)),
        (&vec![json!("g"), body], kwargs.clone())
    );

    keep(&scene, &meta("b", "SUCCESS", json!(2)));
    result(
        &mut scene,
        "celery.chord_unlock",
        args.clone(),
        kwargs.clone(),
    )
    .await;
    let (sent, with) = scene.sent()[1].clone();
    assert_eq!(
        (sent.task.as_str(), with.args),
        ("body", vec![json!([1, [2]])])
    );

    keep(&scene, &meta("b", "FAILURE", error));
    result(&mut scene, "celery.chord_unlock", args, kwargs).await;
    let stored = scene.meta("body-id").unwrap();
    assert_eq!(
        stored.exception().unwrap().to_string(),
        "ChordError: Dependency b raised ValueError('boom')"
    );
}

#[tokio::test]
async fn a_chord_that_is_not_looked_at_any_more_has_failed() {
    let mut scene = scene();
    let body = signature("body", json!({"task_id": "body-id"}));
    let mut job = scene.job(
        "celery.chord_unlock",
        json!([]),
        json!({"retries": 5}),
        json!({}),
    );
    let kwargs = json!({"result": [[["a", null], null]], "max_retries": 5});
    job.body = json!([["g", body], kwargs, {}]).to_string().into();
    assert!(matches!(scene.run(job).await, Outcome::Failure(_)));
    let stored = scene.meta("body-id").unwrap();
    assert!(
        stored
            .exception()
            .unwrap()
            .to_string()
            .contains("could not be retried")
    );
}
