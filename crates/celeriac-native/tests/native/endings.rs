//! Ends other than by a value or an error.

use std::time::Duration;

use celeriac_core::pool::Outcome;
use celeriac_native::sender::Unsent;
use celeriac_native::{Error, Options, Result, RetryPolicy};
use celeriac_protocol::{Exception, Signature};
use serde_json::{Value, json};

use crate::scene::{Scene, signature, task};

/// A scene with one task, which ends so.
fn ending(options: Options, end: impl Fn() -> Result<Value> + Send + Sync + 'static) -> Scene {
    Scene::new([task("ends", options, move |_, _| std::future::ready(end()))])
}

fn boom() -> Error {
    Exception::builtin("ValueError", "boom").into()
}

#[tokio::test]
async fn a_retry_is_sent_before_it_is_stored() {
    let mut scene = ending(Options::default(), || Err(boom().retried()));
    let headers = json!({"id": "the-id", "root_id": "r", "parent_id": "p", "group": "g",
        "group_index": 2, "shadow": "sh", "reply_to": "q", "expires": "2030-01-01T00:00:00",
        "timelimit": [9, 7], "origin": "gen1@h", "retries": 1, "replaced_task_nesting": 3,
        "my": "own", "x-death": [], "stamped_headers": ["s"], "stamps": {"s": 1}});
    let embed = json!({"callbacks": [signature("one", json!({}))],
        "errbacks": [signature("err", json!({}))],
        "chain": [signature("next", json!({}))],
        "chord": signature("body", json!({}))});
    let job = scene.job("ends", json!([1, "x"]), headers, embed);
    let Outcome::Retry(failure) = scene.run(job).await else {
        panic!()
    };
    assert_eq!(failure.exception, "ValueError('boom')");
    assert_eq!(scene.log(), ["send ends", "store the-id RETRY"]);
    let (sent, _) = &scene.sent()[0];
    assert_eq!(
        (&sent.args, sent.task.as_str()),
        (&vec![json!(1), json!("x")], "ends")
    );
    let options = Value::Object(sent.options.clone());
    for (name, value) in [
        ("task_id", json!("the-id")),
        ("root_id", json!("r")),
        ("parent_id", json!("p")),
        ("group_id", json!("g")),
        ("group_index", json!(2)),
        ("shadow", json!("sh")),
        ("reply_to", json!("q")),
        ("expires", json!("2030-01-01T00:00:00")),
        ("time_limit", json!(9)),
        ("soft_time_limit", json!(7)),
        ("origin", json!("gen1@h")),
        ("retries", json!(2)),
        ("replaced_task_nesting", json!(3)),
        ("headers", json!({"my": "own"})),
        ("stamped_headers", json!(["s"])),
        ("s", json!(1)),
        ("countdown", json!(180.0)),
        ("queue", json!("celery")),
        ("priority", json!(3)),
        ("ignore_result", json!(false)),
    ] {
        assert_eq!(options[name], value, "{name}");
    }
    for name in ["link", "link_error", "chain", "chord"] {
        assert!(!options[name].is_null(), "{name}");
    }
    let meta = scene.meta("the-id").unwrap();
    assert_eq!(meta.exception().unwrap().exc_type, "ValueError");
    let lines = scene.memory.lines.lock().unwrap().clone();
    assert_eq!(
        lines,
        ["Task sh[the-id] retry: Retry in 180s: ValueError('boom')"]
    );
}

#[tokio::test]
async fn a_task_that_was_retried_too_often_has_failed() {
    for (retried, expected) in [
        (
            Error::retry(),
            "MaxRetriesExceededError(\"Can't retry ends[the-id] args:[1] kwargs:{}\")",
        ),
        (boom().retried(), "ValueError('boom')"),
    ] {
        let mut scene = ending(Options::default(), move || Err(retried.clone()));
        let job = scene.job("ends", json!([1]), json!({"retries": 3}), json!({}));
        let Outcome::Failure(failure) = scene.run(job).await else {
            panic!()
        };
        assert_eq!(failure.exception, expected);
        assert_eq!(scene.log(), ["store the-id FAILURE"]);
    }
}

#[tokio::test]
async fn any_error_is_retried_where_the_policy_says_so() {
    let options = Options {
        retry: RetryPolicy {
            on_error: true,
            max_retries: None,
            backoff: Some(Duration::from_secs(2)),
            jitter: false,
            ..RetryPolicy::default()
        },
        ..Options::default()
    };
    for end in [boom as fn() -> Error, || panic!("oh no")] {
        let mut scene = ending(options.clone(), move || Err(end()));
        let job = scene.job("ends", json!([]), json!({"retries": 4}), json!({}));
        assert!(matches!(scene.run(job).await, Outcome::Retry(_)));
        assert_eq!(scene.sent()[0].0.options["countdown"], json!(32.0));
    }
    let mut scene = ending(options, || Err(Error::ignore()));
    let job = scene.simple("ends", json!([]));
    assert!(matches!(scene.run(job).await, Outcome::Ignore(_)));
}

#[tokio::test]
async fn a_retry_that_can_not_be_sent_is_rejected() {
    let mut scene = ending(Options::default(), || Err(Error::retry()));
    *scene.memory.refuses.lock().unwrap() = Some(Unsent {
        reason: "no broker".to_owned(),
        is_operational: true,
    });
    let job = scene.simple("ends", json!([]));
    let Outcome::Reject { requeue, failure } = scene.run(job).await else {
        panic!()
    };
    assert!(!requeue);
    assert_eq!(failure.exception, "OperationalError('no broker')");
    assert_eq!(scene.log(), Vec::<String>::new());
}

#[tokio::test]
async fn nothing_is_stored_of_what_is_ignored_or_rejected() {
    let mut scene = ending(Options::default(), || Err(Error::ignore()));
    let job = scene.simple("ends", json!([]));
    assert!(matches!(scene.run(job).await, Outcome::Ignore(_)));
    assert_eq!(scene.log(), Vec::<String>::new());
    for requeue in [true, false] {
        let mut scene = ending(Options::default(), move || {
            Err(Error::reject("no", requeue))
        });
        let job = scene.simple("ends", json!([]));
        let Outcome::Reject {
            requeue: told,
            failure,
        } = scene.run(job).await
        else {
            panic!()
        };
        assert_eq!(told, requeue);
        let shown = if requeue { "True" } else { "False" };
        assert_eq!(failure.exception, format!("Reject('no', {shown})"));
        assert_eq!(scene.log(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_panic_is_a_failure_and_the_pool_goes_on() {
    let mut scene = ending(Options::default(), || panic!("oh {}", "no"));
    for _ in 0..3 {
        let job = scene.simple("ends", json!([]));
        let Outcome::Failure(failure) = scene.run(job).await else {
            panic!()
        };
        assert!(
            failure.exception.starts_with("Panic('oh no (at "),
            "{failure:?}"
        );
        assert!(failure.traceback.unwrap().contains("endings"));
        let meta = scene.meta("the-id").unwrap();
        assert_eq!(
            meta.exception().unwrap().exc_module.as_deref(),
            Some("celeriac.native")
        );
        assert!(meta.traceback.unwrap().starts_with("Panic: oh no (at "));
    }
}

#[tokio::test]
async fn a_panic_while_a_task_is_dropped_ends_nothing_else() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("boom");
        }
    }
    let code = |_, _| async {
        let _bomb = Bomb;
        std::future::pending().await
    };
    let mut scene = Scene::new([task("ends", Options::default(), code)]);
    let mut job = scene.simple("ends", json!([]));
    job.time_limits.soft = crate::limits::seconds(0.05);
    let Outcome::Failure(failure) = scene.run(job).await else {
        panic!()
    };
    assert!(failure.exception.starts_with("Panic('boom"), "{failure:?}");
}

/// What is sent in place of a call with links, a chain and a chord.
async fn replaced(with: Signature, embed: Value) -> (Scene, Outcome) {
    let mut scene = ending(Options::default(), move || {
        Err(Error::replace(with.clone()))
    });
    let headers = json!({"root_id": "r", "group": "g", "group_index": 1,
        "replaced_task_nesting": 1});
    let job = scene.job("ends", json!([]), headers, embed);
    let outcome = scene.run(job).await;
    (scene, outcome)
}

fn of_type(subtask_type: &str, kwargs: Value) -> Signature {
    serde_json::from_value(json!({"task": format!("celery.{subtask_type}"), "args": [],
        "kwargs": kwargs, "options": {}, "subtask_type": subtask_type, "immutable": false}))
    .unwrap()
}

#[tokio::test]
async fn a_call_is_replaced_by_one_with_its_id_and_what_follows_it() {
    let embed = json!({"callbacks": [signature("one", json!({}))],
        "errbacks": [signature("err", json!({}))], "chord": signature("body", json!({}))});
    let (scene, outcome) = replaced(Signature::new("other"), embed).await;
    assert!(matches!(outcome, Outcome::Ignore(_)), "{outcome:?}");
    assert_eq!(scene.log(), ["send other"]);
    let (sent, with) = scene.sent()[0].clone();
    assert_eq!(
        Value::Object(with.options),
        json!({"root_id": "r", "parent_id": "the-id"})
    );
    let options = Value::Object(sent.options);
    for (name, value) in [
        ("task_id", json!("the-id")),
        ("group_id", json!("g")),
        ("group_index", json!(1)),
        ("replaced_task_nesting", json!(2)),
        ("link", json!([signature("one", json!({}))])),
        ("link_error", json!([signature("err", json!({}))])),
        ("chord", signature("body", json!({}))),
    ] {
        assert_eq!(options[name], value, "{name}");
    }
}

#[tokio::test]
async fn what_takes_the_place_of_a_call_in_a_chain_goes_on_with_it() {
    let embed = json!({"chain": [signature("last", json!({"task_id": "l"})),
        signature("next", json!({"task_id": "n"}))]});
    let plain = Signature::new("other");
    let chain = of_type(
        "chain",
        json!({"tasks": [signature("a", json!({})),
        signature("b", json!({}))]}),
    );
    for (with, names, at) in [
        (plain, vec!["other", "next", "last"], 0),
        (chain, vec!["a", "b", "next", "last"], 1),
    ] {
        let (scene, _) = replaced(with, embed.clone()).await;
        let sent = scene.sent()[0].0.clone();
        assert_eq!(sent.subtask_type.as_deref(), Some("chain"));
        let tasks = sent.kwargs["tasks"].as_array().unwrap();
        let found: Vec<_> = tasks
            .iter()
            .map(|task| task["task"].as_str().unwrap())
            .collect();
        assert_eq!(found, names);
        assert_eq!(tasks[at]["options"]["task_id"], "the-id");
        assert_eq!(tasks.last().unwrap()["options"]["replaced_task_nesting"], 2);
        assert!(!sent.options.contains_key("task_id"), "{sent:?}");
    }
}

#[tokio::test]
async fn a_group_in_place_of_a_call_is_collected() {
    let group = of_type("group", json!({"tasks": [signature("a", json!({}))]}));
    let embed = json!({"callbacks": [signature("one", json!({}))]});
    let (scene, _) = replaced(group, embed).await;
    let sent = scene.sent()[0].0.clone();
    assert_eq!(sent.subtask_type.as_deref(), Some("chord"));
    let body = &sent.kwargs["body"];
    assert_eq!(body["task"], "celery.accumulate");
    assert_eq!(body["kwargs"], json!({"index": 0}));
    assert_eq!(body["options"]["task_id"], "the-id");
    assert_eq!(body["options"]["link"][0]["task"], "one");
}

#[tokio::test]
async fn what_can_not_take_a_place_fails() {
    let mut part = Signature::new("other");
    part.options
        .insert("chord".to_owned(), signature("body", json!({})));
    let empty = of_type("chain", json!({"tasks": []}));
    for with in [part, empty] {
        let (scene, outcome) = replaced(with, json!({})).await;
        let Outcome::Failure(failure) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(
            failure.exception.starts_with("ImproperlyConfigured("),
            "{failure:?}"
        );
        assert!(scene.sent().is_empty());
    }
}
