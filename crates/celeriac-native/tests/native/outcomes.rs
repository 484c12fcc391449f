//! Success and failure, and what follows them.

use celeriac_core::pool::Outcome;
use celeriac_native::sender::Unsent;
use celeriac_native::{Options, ResultSettings, TraceSettings};
use celeriac_protocol::{Exception, Signature};
use serde_json::{Value, json};

use crate::scene::{Scene, Settings, signature, task};

fn adding() -> Scene {
    adding_with(Settings::default())
}

fn adding_with(settings: Settings) -> Scene {
    let add = task("add", Options::default(), |_, arguments| async move {
        let sum: i64 = arguments.args.iter().filter_map(Value::as_i64).sum();
        Ok(json!(sum))
    });
    let fails = task("fails", Options::default(), |_, _| async {
        Err(Exception::builtin("ValueError", "boom").into())
    });
    Scene::with([add, fails], settings)
}

#[tokio::test]
async fn a_success_is_stored_and_shown() {
    let mut scene = adding();
    let headers = json!({"group": "g", "parent_id": "p", "reply_to": "q", "correlation_id": "c"});
    let job = scene.job("add", json!([2, 3]), headers, json!({}));
    let Outcome::Success { runtime, result } = scene.run(job).await else {
        panic!()
    };
    assert_eq!(result, "5");
    assert!(runtime.is_some());
    let meta = scene.meta("the-id").unwrap();
    assert_eq!((&*meta.status, &meta.result), ("SUCCESS", &json!(5)));
    assert_eq!(meta.children, json!([]));
    assert_eq!(meta.group_id.as_deref(), Some("g"));
    assert_eq!(meta.parent_id.as_deref(), Some("p"));
    assert!(meta.date_done.is_some() && meta.extended.is_empty());
    let replies = scene.memory.replies.lock().unwrap().clone();
    assert_eq!(replies, [(Some("q".to_owned()), Some("c".to_owned()))]);
    let lines = scene.memory.lines.lock().unwrap().clone();
    assert!(
        lines[0].starts_with("Task add[the-id] succeeded in "),
        "{lines:?}"
    );
    assert!(lines[0].ends_with("s: 5"), "{lines:?}");
}

#[tokio::test]
async fn a_failure_is_stored_and_all_that_waits_fails_with_it() {
    let mut scene = adding();
    let embed = json!({"errbacks": [signature("errback", json!({}))],
        "chain": [signature("last", json!({"task_id": "last-id"})),
                  signature("next", json!({"task_id": "next-id"}))]});
    let job = scene.job("fails", json!([]), json!({"root_id": "root"}), embed);
    let Outcome::Failure(failure) = scene.run(job).await else {
        panic!()
    };
    assert_eq!(failure.exception, "ValueError('boom')");
    let exception = json!({"exc_type": "ValueError", "exc_message": ["boom"],
        "exc_module": "builtins"});
    for id in ["the-id", "next-id", "last-id"] {
        let meta = scene.meta(id).unwrap();
        assert_eq!(
            (&*meta.status, &meta.result),
            ("FAILURE", &exception),
            "{id}"
        );
    }
    let sent = scene.sent();
    let (group, with) = &sent[0];
    assert_eq!(group.kwargs["tasks"][0]["task"], "errback");
    assert_eq!(with.args, [json!("the-id")]);
    assert_eq!(with.options["parent_id"], "the-id");
    assert_eq!(with.options["root_id"], "root");
    // Stored before anybody is told.
    assert_eq!(scene.log()[0], "store the-id FAILURE");
}

#[tokio::test]
async fn what_follows_a_success_is_sent_before_it_is_stored() {
    let one = signature("one", json!({}));
    let mut group = signature("celery.group", json!({}));
    group["subtask_type"] = json!("group");
    let chain = json!([signature("last", json!({})), signature("next", json!({}))]);
    for (callbacks, chain, expected) in [
        (json!([one]), json!(null), vec!["one"]),
        (
            json!([one, group, one]),
            json!([]),
            vec!["celery.group", "celery.group"],
        ),
        (json!(null), chain.clone(), vec!["next"]),
        (json!([one]), chain, vec!["one", "next"]),
    ] {
        let mut scene = adding();
        let embed = json!({"callbacks": callbacks, "chain": chain});
        let job = scene.job("add", json!([1, 1]), json!({}), embed);
        assert!(matches!(scene.run(job).await, Outcome::Success { .. }));
        let sent = scene.sent();
        let names: Vec<_> = sent.iter().map(|(signature, _)| &*signature.task).collect();
        assert_eq!(names, expected);
        for (_, with) in &sent {
            assert_eq!(with.args, [json!(2)]);
            assert_eq!(with.options["parent_id"], "the-id");
            assert_eq!(with.options["root_id"], "the-id");
            assert!(!with.options.contains_key("priority"));
        }
        if names.contains(&"next") {
            let rest = &sent.last().unwrap().1.options["chain"];
            assert_eq!(rest[0]["task"], "last");
        }
        let children = scene.meta("the-id").unwrap().children;
        assert_eq!(children.as_array().unwrap().len(), expected.len());
        assert_eq!(scene.log().last().unwrap(), "store the-id SUCCESS");
    }
}

#[tokio::test]
async fn priorities_are_inherited_where_that_is_set() {
    let mut scene = adding_with(Settings {
        results: ResultSettings {
            inherit_parent_priority: true,
            ..ResultSettings::default()
        },
        ..Settings::default()
    });
    let embed = json!({"callbacks": [signature("one", json!({}))]});
    let job = scene.job("add", json!([]), json!({}), embed);
    scene.run(job).await;
    assert_eq!(scene.sent()[0].1.options["priority"], 3);
}

#[tokio::test]
async fn a_task_whose_callback_can_not_be_sent_has_failed() {
    for (is_operational, class) in [(true, "OperationalError"), (false, "EncodeError")] {
        let mut scene = adding();
        *scene.memory.refuses.lock().unwrap() = Some(Unsent {
            reason: "no broker".to_owned(),
            is_operational,
        });
        let embed = json!({"callbacks": [signature("one", json!({}))]});
        let job = scene.job("add", json!([]), json!({}), embed);
        let Outcome::Failure(failure) = scene.run(job).await else {
            panic!()
        };
        assert_eq!(failure.exception, format!("{class}('no broker')"));
        let meta = scene.meta("the-id").unwrap();
        assert_eq!(meta.exception().unwrap().exc_type, class);
    }
}

#[tokio::test]
async fn results_that_nobody_wants_are_not_stored() {
    let stores = |ignore_result: bool, store_errors: bool| {
        let mut options = Options::default();
        options.celery.ignore_result = ignore_result;
        options.celery.store_errors_even_if_ignored = store_errors;
        options
    };
    let yes = json!({"ignore_result": true});
    let no = json!({"ignore_result": false});
    let unsaid = json!({});
    for (options, headers, expected) in [
        (stores(false, false), &unsaid, [true, true]),
        (stores(false, false), &yes, [false, false]),
        (stores(true, false), &unsaid, [false, false]),
        (stores(true, false), &no, [true, true]),
        (stores(true, true), &unsaid, [false, true]),
    ] {
        let mut scene = Scene::new([
            task("succeeds", options.clone(), |context, _| async move {
                Ok(json!(context.request().ignore_result))
            }),
            task("fails", options, |_, _| async {
                Err(Exception::builtin("E", "").into())
            }),
        ]);
        for (task, is_stored) in ["succeeds", "fails"].into_iter().zip(expected) {
            let job = scene.job(task, json!([]), headers.clone(), json!({}));
            scene.run(job).await;
            let stored = scene.memory.metas.lock().unwrap().remove("the-id");
            assert_eq!(stored.is_some(), is_stored, "{task} {headers} {expected:?}");
        }
    }
}

#[tokio::test]
async fn more_is_stored_where_that_is_set() {
    let mut scene = adding_with(Settings {
        results: ResultSettings {
            extended: true,
            ..ResultSettings::default()
        },
        trace: TraceSettings {
            track_started: true,
            ..TraceSettings::default()
        },
        ..Settings::default()
    });
    let headers = json!({"stamped_headers": ["colour"], "stamps": {"colour": "red", "other": 1}});
    let job = scene.job("add", json!([2, 3]), headers, json!({}));
    scene.run(job).await;
    assert_eq!(
        scene.log(),
        ["store the-id STARTED", "store the-id SUCCESS"]
    );
    let extended = Value::Object(scene.meta("the-id").unwrap().extended);
    assert_eq!(
        extended,
        json!({"name": "add", "args": [2, 3], "kwargs": {}, "worker": "w@h", "retries": 0,
            "queue": "celery", "stamped_headers": ["colour"], "colour": "red"})
    );
}

#[tokio::test]
async fn what_a_task_sends_and_says_is_stored() {
    let says = task("says", Options::default(), |context, _| async move {
        let id = context.send(Signature::new("child")).await?;
        context.progress(json!({"done": 1})).await?;
        Ok(json!(id))
    });
    let mut scene = Scene::new([says]);
    let job = scene.job("says", json!([]), json!({"root_id": "root"}), json!({}));
    scene.run(job).await;
    let log = [
        "send child",
        "store the-id PROGRESS",
        "store the-id SUCCESS",
    ];
    assert_eq!(scene.log(), log);
    let (_, with) = &scene.sent()[0];
    assert_eq!(with.options["parent_id"], "the-id");
    assert_eq!(with.options["root_id"], "root");
    let meta = scene.meta("the-id").unwrap();
    assert_eq!(meta.children, json!([[["sent-1", null], null]]));
}

#[tokio::test]
async fn a_message_that_comes_again_after_a_success_runs_no_more() {
    let redelivered = json!({"delivery_info": {"redelivered": true}});
    let settings = |deduplicate_successful_tasks| Settings {
        trace: TraceSettings {
            deduplicate_successful_tasks,
            ..TraceSettings::default()
        },
        ..Settings::default()
    };
    let mut late = Options::default();
    late.celery.acks_late = true;
    for (is_set, options, headers, runs) in [
        (true, late.clone(), redelivered.clone(), 1),
        (true, late.clone(), json!({}), 2),
        (false, late, redelivered.clone(), 2),
        (true, Options::default(), redelivered, 2),
    ] {
        let task = task("once", options, |context, _| async move {
            context.log(celeriac_core::Level::Warning, "runs");
            Ok(json!(7))
        });
        let mut scene = Scene::with([task], settings(is_set));
        let first = scene.simple("once", json!([]));
        scene.run(first).await;
        let embed = json!({"callbacks": [signature("one", json!({}))]});
        let second = scene.job("once", json!([]), headers, embed);
        assert!(matches!(scene.run(second).await, Outcome::Success { .. }));
        let lines = scene.memory.lines.lock().unwrap().clone();
        let count = lines.iter().filter(|line| *line == "runs").count();
        assert_eq!(count, runs, "{lines:?}");
        // What follows it is not known to have been sent.
        assert_eq!(scene.sent()[0].1.args, [json!(7)]);
    }
}
