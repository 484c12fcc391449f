//! Commands, replies and events.

use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::Evidence;
use celeriac_core::broker::Fate;
use celeriac_core::bus::{Destination, Heard, Kind};
use celeriac_core::pool::{ExitStatus, Failure, LossCause, Outcome, PoolEvent};
use celeriac_core::revokes::{KEPT, KeptRevokes, RevokeStore};
use serde_json::{Map, Value, json};

use super::life::{late, success};
use super::scene::{PID, Scene, at, lane, name_of, options};
use crate::autoscale::Autoscale;
use crate::control::mailbox::json_message;
use crate::core::{Effect, Options};
use crate::hooks::HookCall;

fn hear(scene: &mut Scene, kind: Kind, body: &Value, headers: &Value) {
    let message = Ok(json_message(body.to_string(), headers.to_string()));
    let now = scene.now;
    scene.core.heard(Heard { kind, message }, now);
    scene.look();
}

/// What a command is answered, if it is at once.
pub(super) fn ask(scene: &mut Scene, method: &str, arguments: &Value) -> Option<Value> {
    let command = json!({
        "method": method,
        "arguments": arguments,
        "ticket": "t",
        "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "k"},
    });
    hear(scene, Kind::Command, &command, &json!({"clock": 1}));
    replies(scene).pop()
}

pub(super) fn replies(scene: &mut Scene) -> Vec<Value> {
    let sent = scene.core.take_outgoing();
    sent.iter()
        .filter(|sent| matches!(sent.to, Destination::Reply { .. }))
        .map(|sent| {
            let body: Value = serde_json::from_slice(&sent.message.body).unwrap();
            body["celery@here"].clone()
        })
        .collect()
}

/// The types of the task events that are to be sent, and the last of them.
fn events(scene: &mut Scene) -> (Vec<String>, Value) {
    let mut kinds = Vec::new();
    let mut last = Value::Null;
    for sent in scene.core.take_outgoing() {
        if let Value::Array(events) = serde_json::from_slice(&sent.message.body).unwrap() {
            for event in events {
                kinds.push(event["type"].as_str().unwrap().to_owned());
                last = event;
            }
        }
    }
    (kinds, last)
}

#[test]
fn commands_are_answered_in_celerys_words() {
    let mut scene = Scene::with(late());
    for (method, arguments, reply) in [
        ("ping", json!({}), json!({"ok": "pong"})),
        ("nosuch", json!({}), json!({"error": "KeyError('nosuch')"})),
        ("registered", json!({}), json!(["t"])),
        ("dump_tasks", json!({"builtins": true}), json!(["t"])),
        ("reserved", json!({}), json!([])),
        ("active_queues", json!({}), json!([{"name": "celery"}])),
        (
            "rate_limit",
            json!({"task_name": "t", "rate_limit": "10/m"}),
            json!({"ok": "new rate limit set successfully"}),
        ),
        ("registered", json!({}), json!(["t [rate_limit=10/m]"])),
        (
            "rate_limit",
            json!({"task_name": "t", "rate_limit": null}),
            json!({"ok": "rate limit disabled successfully"}),
        ),
        (
            "rate_limit",
            json!({"task_name": "x", "rate_limit": "1"}),
            json!({"error": "unknown task"}),
        ),
        (
            "rate_limit",
            json!({"task_name": "t", "rate_limit": "1/x"}),
            json!({"error": "KeyError('x')"}),
        ),
        (
            "rate_limit",
            json!({"task_name": "t", "rate_limit": "often"}),
            json!({"error": "Invalid rate limit string: \
                ValueError(\"could not convert string to float: 'often'\")"}),
        ),
        (
            "time_limit",
            json!({"task_name": "t", "hard": "long"}),
            json!({"error": "Invalid time limit: 'long'"}),
        ),
        (
            "time_limit",
            json!({"task_name": "t", "hard": "", "soft": "1.5"}),
            json!({"ok": "time limits set successfully"}),
        ),
        (
            "query_task",
            json!({"ids": null}),
            json!({"error": "TypeError(\"'NoneType' object is not iterable\")"}),
        ),
        ("query_task", json!({"ids": []}), json!({})),
        (
            "revoke",
            json!({"task_id": "a"}),
            json!({"ok": "tasks {'a'} flagged as revoked"}),
        ),
        ("revoked", json!({}), json!(["a"])),
        (
            "terminate",
            json!({"task_id": "b", "signal": "KILL"}),
            json!({"ok": "terminate: tasks unknown"}),
        ),
        (
            "revoke_by_stamped_headers",
            json!({"headers": {"st": ["a", "b"]}}),
            json!({"ok": "headers {'st': ['a', 'b']} flagged as revoked, but not terminated"}),
        ),
        (
            "autoscale",
            json!({"max": 3, "min": 1}),
            json!({"error": "ValueError('Autoscale not enabled')"}),
        ),
        (
            "pool_grow",
            json!({"n": 1}),
            json!({"ok": "pool will grow"}),
        ),
        (
            "cancel_consumer",
            json!({"queue": "celery"}),
            json!({"ok": "no longer consuming from celery"}),
        ),
        ("active_queues", json!({}), json!([])),
        ("hello", json!({"from_node": "celery@here"}), Value::Null),
        (
            "disable_events",
            json!({}),
            json!({"ok": "task events already disabled"}),
        ),
        ("heartbeat", json!({}), Value::Null),
    ] {
        assert_eq!(ask(&mut scene, method, &arguments), Some(reply), "{method}");
    }
}

#[test]
fn what_python_alone_knows_is_asked_of_main() {
    let mut scene = Scene::with(late());
    assert_eq!(
        ask(&mut scene, "conf", &json!({"with_defaults": true})),
        None
    );
    assert!(matches!(
        &scene.awaited[0].1,
        HookCall::ControlCommand { method, .. } if method == "conf"
    ));
    scene.answer(Ok(json!({"reply": r#"{"a": 1}"#})));
    assert_eq!(replies(&mut scene), [json!({"a": 1})]);
    ask(&mut scene, "mine", &json!({}));
    scene.answer(Err("gone".to_owned()));
    assert_eq!(replies(&mut scene), [json!({"error": "gone"})]);
}

#[test]
fn a_command_of_the_app_may_end_the_worker() {
    let mut scene = Scene::with(late());
    ask(&mut scene, "mine", &json!({}));
    scene.answer(Ok(json!({"shutdown": {"warm": true, "exitcode": 3}})));
    assert!(scene.others.contains(&Effect::ClosePools));
    assert_eq!(scene.core.shutdown().exit_status(), 3);
}

#[test]
fn a_remote_shutdown_is_a_warm_one() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    assert_eq!(ask(&mut scene, "shutdown", &json!({})), None);
    assert!(scene.others.contains(&Effect::ClosePools));
    scene.finish(key, success());
    scene.tell([PoolEvent::Closed]);
    assert!(scene.core.is_done());
    assert_eq!(scene.core.shutdown().exit_status(), 0);
    let log = scene.log();
    assert!(
        log.contains(&"Got shutdown from remote".to_owned()),
        "{log:?}"
    );
}

#[test]
fn a_task_that_is_terminated_is_stored_as_revoked_before_its_message_goes() {
    for dies_first in [true, false] {
        let mut scene = Scene::with(late());
        scene.deliver(1, json!({}));
        let key = scene.begin();
        let reply = ask(
            &mut scene,
            "revoke",
            &json!({"task_id": "id-1", "terminate": true}),
        );
        assert_eq!(reply, Some(json!({"ok": "terminate: id-1"})));
        assert!(scene.others.contains(&Effect::Terminate(0, key, 15)));
        while name_of(&scene.awaited[0].1) != "task_revoked" {
            scene.answer(Ok(Value::Null));
        }
        let lost = PoolEvent::Lost {
            key,
            pid: PID,
            cause: LossCause::Terminated,
            evidence: Evidence::default(),
        };
        if dies_first {
            scene.tell([lost]);
            assert_eq!(scene.settled, []);
            scene.answer(Ok(Value::Null));
        } else {
            scene.answer(Ok(Value::Null));
            assert_eq!(scene.settled, []);
            scene.tell([lost]);
        }
        assert_eq!(scene.settled, [(1, Fate::Ack)]);
        assert_eq!(scene.core.running(), 0);
    }
}

#[test]
fn a_task_that_survives_its_signal_ends_as_it_does() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    ask(
        &mut scene,
        "revoke",
        &json!({"task_id": "id-1", "terminate": true, "signal": "SIGUSR1"}),
    );
    assert!(scene.others.contains(&Effect::Terminate(0, key, 10)));
    scene.finish(key, success());
    assert_eq!(scene.settled, [(1, Fate::Ack)]);
    scene.answer(Ok(Value::Null));
    assert_eq!(scene.settled.len(), 1);
}

#[test]
fn a_task_that_ends_in_its_own_way_at_its_signal_is_settled_once_and_as_it_asks() {
    for (outcome, fate) in [
        (Outcome::Left { status: 1 }, Fate::Ack),
        (
            Outcome::Reject {
                requeue: false,
                failure: Failure::default(),
            },
            Fate::Reject,
        ),
    ] {
        let mut scene = Scene::with(late());
        scene.deliver(1, json!({}));
        let key = scene.begin();
        let task = json!({"task_id": "id-1", "terminate": true});
        ask(&mut scene, "revoke", &task);
        scene.finish(key, outcome);
        assert_eq!(scene.settled, []);
        while !scene.awaited.is_empty() {
            scene.answer(Ok(Value::Null));
        }
        assert_eq!(scene.settled, [(1, fate)]);
    }
}

#[test]
fn revoked_tasks_and_stamps_do_not_run() {
    let mut scene = Scene::new(options([("t", late())]), 2);
    ask(&mut scene, "revoke", &json!({"task_id": ["id-1"]}));
    ask(
        &mut scene,
        "revoke_by_stamped_headers",
        &json!({"headers": ["st=a"]}),
    );
    scene.deliver(1, json!({}));
    scene.deliver(
        2,
        json!({"stamped_headers": ["st"], "stamps": {"st": ["a"]}}),
    );
    assert_eq!(scene.jobs.len(), 0);
    let log = scene.log();
    assert!(
        log.contains(&"Discarding revoked task: t[id-1]".to_owned()),
        "{log:?}"
    );
    let by_header = "Discarding revoked task: t[id-2] (revoked by header: {'st': 'a'})";
    assert!(log.contains(&by_header.to_owned()), "{log:?}");
}

#[test]
fn a_queue_may_be_added_on_the_default_exchange() {
    let mut scene = Scene::with(late());
    for (arguments, expected) in [
        (json!({"queue": "q"}), (None, None)),
        (
            json!({"queue": "q", "exchange": "", "exchange_type": ""}),
            (Some(""), None),
        ),
        (
            json!({"queue": "q", "exchange": "x", "exchange_type": "topic"}),
            (Some("x"), Some("topic")),
        ),
    ] {
        scene.awaited.clear();
        ask(&mut scene, "add_consumer", &arguments);
        let Some((
            _,
            HookCall::SelectQueue {
                exchange,
                exchange_type,
                ..
            },
        )) = scene.awaited.first()
        else {
            panic!("main is not asked: {arguments}");
        };
        assert_eq!(
            (exchange.as_deref(), exchange_type.as_deref()),
            expected,
            "{arguments}"
        );
    }
}

#[test]
fn time_limits_hold_for_tasks_that_have_not_begun() {
    let mut scene = Scene::new(options([("t", late())]), 1);
    scene.deliver(1, json!({"eta": at(1)}));
    ask(
        &mut scene,
        "time_limit",
        &json!({"task_name": "t", "hard": 20, "soft": 10}),
    );
    scene.pass(Duration::from_secs(1));
    let limits = scene.jobs[0].time_limits;
    let shown = (
        limits.hard.unwrap().to_string(),
        limits.soft.unwrap().to_string(),
    );
    assert_eq!(shown, ("20".to_owned(), "10".to_owned()));
}

#[test]
fn limits_that_a_client_took_from_the_task_yield_to_a_command() {
    let declared = TaskOptions {
        time_limit: Some(600.into()),
        soft_time_limit: Some(300.into()),
        ..late()
    };
    let mut scene = Scene::new(options([("t", declared)]), 3);
    let change = json!({"task_name": "t", "hard": 20});
    ask(&mut scene, "time_limit", &change);
    // Celery's clients write what the task was declared with into each message.
    scene.deliver(1, json!({"timelimit": [600, 300]}));
    scene.deliver(2, json!({"timelimit": [5, null]}));
    scene.deliver(3, json!({}));
    let hard: Vec<String> = scene
        .jobs
        .iter()
        .map(|job| job.time_limits.hard.unwrap().to_string())
        .collect();
    assert_eq!(hard, ["20", "5", "20"]);
    assert!(scene.jobs[0].time_limits.soft.is_none());
}

#[test]
fn each_kind_of_request_is_listed_where_celery_lists_it() {
    let mut scene = Scene::new(options([("t", late())]), 2);
    for tag in [1, 2] {
        scene.deliver(tag, json!({}));
    }
    scene.begin();
    scene.deliver(3, json!({"eta": at(60)}));
    let ids = |reply: Option<Value>| -> Vec<String> {
        let items = reply.unwrap();
        let items = items.as_array().unwrap().iter();
        items
            .map(|item| {
                let request = item.get("request").unwrap_or(item);
                request["id"].as_str().unwrap().to_owned()
            })
            .collect()
    };
    assert_eq!(ids(ask(&mut scene, "active", &json!({}))), ["id-1"]);
    assert_eq!(ids(ask(&mut scene, "reserved", &json!({}))), ["id-2"]);
    let scheduled = ask(&mut scene, "scheduled", &json!({})).unwrap();
    assert_eq!(scheduled[0]["eta"], "2026-01-01T00:01:00+00:00");
    assert_eq!(ids(Some(scheduled)), ["id-3"]);
    let found = ask(
        &mut scene,
        "query_task",
        &json!({"ids": ["id-1", "id-3", "x"]}),
    )
    .unwrap();
    assert_eq!(
        (&found["id-1"][0], &found["id-3"][0]),
        (&json!("active"), &json!("scheduled"))
    );
    assert_eq!(found.as_object().unwrap().len(), 2);
}

#[test]
fn a_task_is_told_of_from_its_receipt_to_its_end() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({"argsrepr": "(1,)", "root_id": "r"}));
    assert!(scene.jobs[0].wants_result, "monitors want to see it");
    let key = scene.begin();
    scene.finish(key, success());
    let (kinds, last) = events(&mut scene);
    assert_eq!(kinds, ["task-received", "task-started", "task-succeeded"]);
    assert_eq!(last["uuid"], "id-1");

    scene.deliver(2, json!({}));
    let key = scene.begin();
    let cause = LossCause::Died(ExitStatus::Signal(9));
    scene.tell([PoolEvent::Lost {
        key,
        pid: PID,
        cause,
        evidence: Evidence::default(),
    }]);
    scene.answer(Ok(json!(false)));
    let (kinds, last) = events(&mut scene);
    assert_eq!(kinds, ["task-received", "task-started", "task-failed"]);
    let exception = "WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL) Job: 2.')";
    assert_eq!(last["exception"], exception);

    scene.deliver(3, json!({"task": "unknown"}));
    let (kinds, last) = events(&mut scene);
    assert_eq!(kinds, ["task-failed"]);
    assert_eq!(last["exception"], "NotRegistered('unknown')");
}

#[test]
fn a_task_may_be_kept_from_monitors() {
    let mut scene = Scene::with(TaskOptions {
        send_events: false,
        ..late()
    });
    scene.deliver(1, json!({}));
    assert!(!scene.jobs[0].wants_result);
    let key = scene.begin();
    scene.finish(key, success());
    assert_eq!(events(&mut scene).0, Vec::<String>::new());
}

#[test]
fn a_greeting_takes_over_what_the_others_know() {
    let mut scene = Scene::with(late());
    let now = scene.now;
    scene.core.bus_opened("key", now);
    scene.look();
    assert!(scene.core.catches_up());
    let Some(Effect::Broadcast(greeting)) = scene.others.pop() else {
        panic!("there is a greeting");
    };
    let sent: Value = serde_json::from_slice(&greeting.body).unwrap();
    assert_eq!(sent["method"], "hello");
    scene.core.bus_reached(Some(2), now);
    let reply = json!({"other@here": {"clock": 100, "revoked": ["id-1"]}});
    let headers = json!({"ticket": sent["ticket"], "clock": 90});
    hear(&mut scene, Kind::Reply, &reply, &headers);
    assert!(!scene.core.catches_up());
    scene.deliver(1, json!({}));
    assert_eq!(scene.jobs.len(), 0, "it is revoked");
    assert_eq!(
        ask(&mut scene, "clock", &json!({})).unwrap()["clock"]
            .as_u64()
            .map(|clock| clock > 100),
        Some(true)
    );
}

#[test]
fn what_was_revoked_while_no_worker_was_up_does_not_run() {
    let mut scene = Scene::with(late());
    scene.core.load_revokes(scene.now);
    scene.look();
    assert!(scene.core.catches_up());
    scene.answer(Ok(json!({"ids": ["id-1"], "headers": {"st": ["a"]}})));
    assert!(!scene.core.catches_up());
    scene.deliver(1, json!({}));
    scene.deliver(2, json!({"stamped_headers": ["st"], "stamps": {"st": "a"}}));
    assert_eq!(scene.jobs.len(), 0);
    ask(&mut scene, "revoke", &json!({"task_id": "id-3"}));
    assert!(scene.hooks.contains(&"revoked_store_add"));
    // A store that does not answer holds nothing up for long.
    scene.core.load_revokes(scene.now);
    scene.pass(Duration::from_secs(10));
    assert!(!scene.core.catches_up());
}

#[test]
fn what_the_broker_keeps_of_revokes_is_asked_of_nobody_else() {
    let mut options = options([("t", late())]);
    options.remote.revoke_store = Some(RevokeStore::Broker);
    let mut scene = Scene::new(options, 1);
    scene.core.load_revokes(scene.now);
    scene.look();
    let oldest = scene.now.wall.as_second() as f64 - KEPT.as_secs_f64();
    assert_eq!(scene.others, [Effect::ReadRevokes(oldest)]);
    assert!(!scene.hooks.contains(&"revoked_store_load"));
    // Until the broker answers there are no messages either.
    scene.pass(Duration::from_hours(1));
    assert!(scene.core.catches_up());
    let kept = KeptRevokes {
        ids: vec!["id-1".to_owned()],
        headers: vec![r#"["st", "a"]"#.to_owned()],
    };
    scene.core.revokes_read(Ok(kept), scene.now);
    assert!(!scene.core.catches_up());
    scene.deliver(1, json!({}));
    scene.deliver(2, json!({"stamped_headers": ["st"], "stamps": {"st": "a"}}));
    assert_eq!(scene.jobs.len(), 0);
    ask(&mut scene, "revoke", &json!({"task_id": "id-3"}));
    assert!(scene.hooks.contains(&"revoked_store_add"));
}

#[test]
fn revokes_that_the_broker_does_not_give_away_hold_up_nothing() {
    let mut options = options([("t", late())]);
    options.remote.revoke_store = Some(RevokeStore::Broker);
    let mut scene = Scene::new(options, 1);
    scene.core.load_revokes(scene.now);
    scene
        .core
        .revokes_read(Err("no permission".to_owned()), scene.now);
    assert!(!scene.core.catches_up());
    scene.deliver(1, json!({}));
    assert_eq!(scene.jobs.len(), 1);
    let told = "The store of revoked tasks can't be read: no permission";
    assert!(scene.log().iter().any(|line| line.contains(told)));
}

#[test]
fn what_is_no_command_stops_nothing() {
    let mut scene = Scene::with(late());
    for body in [
        json!([]),
        json!({"method": 7}),
        json!("x"),
        json!({"method": "ping", "arguments": [1]}),
    ] {
        hear(&mut scene, Kind::Command, &body, &json!({}));
        hear(&mut scene, Kind::Reply, &body, &json!({}));
        hear(&mut scene, Kind::Event, &body, &json!({"clock": "x"}));
    }
    assert_eq!(
        ask(&mut scene, "ping", &json!({})),
        Some(json!({"ok": "pong"}))
    );
}

#[test]
fn the_app_may_ask_for_what_a_command_does() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    let now = scene.now;
    let mut asked = |method: &str, arguments: Value| {
        let Value::Object(arguments) = arguments else {
            panic!("arguments are a mapping");
        };
        scene.core.asked(method, arguments, now);
    };
    asked("terminate_job", json!({"pid": PID, "signal": 9}));
    asked("pool_grow", json!({"n": 2}));
    asked("nosuch", Value::Object(Map::new()));
    scene.look();
    assert!(scene.others.contains(&Effect::Terminate(0, key, 9)));
    let grows = |effect: &Effect| matches!(effect, Effect::Scale(..));
    assert!(scene.others.iter().any(grows));
}

#[test]
fn a_slip_of_the_finger_does_not_fill_the_host() {
    for (autoscale, method, arguments) in [
        (true, "autoscale", json!({"max": 1_000_000, "min": 1})),
        (true, "autoscale", json!({"max": 8, "min": 1_000_000})),
        (false, "pool_grow", json!({"n": 1_000_000})),
    ] {
        let autoscale = autoscale.then(|| Autoscale::new(4, 1, Autoscale::KEEPALIVE));
        let scaled = Options {
            lanes: lane(|lane| lane.autoscale = autoscale),
            ..options([("t", late())])
        };
        let mut scene = Scene::new(scaled, 1);
        let reply = ask(&mut scene, method, &arguments);
        assert!(reply.unwrap()["error"].is_string(), "{method}");
        assert_eq!(scene.others, [], "{method}");
    }
}

#[test]
fn one_of_several_tasks_that_are_revoked_at_once_runs() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    scene.deliver(2, json!({}));
    scene.begin();
    ask(
        &mut scene,
        "revoke",
        &json!({"task_id": ["id-1", "id-2", "id-3", "id-2"]}),
    );
    let marked = scene.awaited.iter().find_map(|(_, call)| match call {
        HookCall::MarkRevoked { ids, names } => Some((ids.clone(), Value::from(names.clone()))),
        _ => None,
    });
    let unstarted = ["id-2", "id-3"].map(str::to_owned).to_vec();
    assert_eq!(marked, Some((unstarted, json!({"id-2": "t"}))));
}
