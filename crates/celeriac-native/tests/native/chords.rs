//! Parts of chords.

use celeriac_core::backend::{Chords, Claimed};
use celeriac_core::pool::Outcome;
use celeriac_native::Options;
use celeriac_native::sender::Unsent;
use celeriac_protocol::Exception;
use serde_json::{Value, json};

use crate::scene::{Scene, signature, task};

fn scene() -> Scene {
    Scene::new([
        task("part", Options::default(), |_, _| async { Ok(json!(2)) }),
        task("fails", Options::default(), |_, _| async {
            Err(Exception::builtin("ValueError", "boom").into())
        }),
    ])
}

fn body() -> Value {
    signature(
        "body",
        json!({"task_id": "body-id", "root_id": "of-body",
            "link_error": [signature("err", json!({}))],
            "chain": [signature("after", json!({"task_id": "after-id"}))]}),
    )
}

/// Runs a part of a chord, which claims this.
async fn run(task: &str, body: Value, claim: impl Into<Option<Claimed>>) -> (Scene, Outcome) {
    let mut scene = scene();
    *scene.memory.claim.lock().unwrap() = claim.into();
    let headers = json!({"group": "g", "group_index": 1});
    let job = scene.job(task, json!([]), headers, json!({"chord": body}));
    let outcome = scene.run(job).await;
    (scene, outcome)
}

fn claimed(results: Result<Vec<Value>, Exception>) -> Claimed {
    Claimed {
        results,
        token: "t".to_owned(),
    }
}

#[tokio::test]
async fn each_part_is_counted_after_it_is_stored() {
    for (task, status, result) in [
        ("part", "SUCCESS", json!(2)),
        (
            "fails",
            "FAILURE",
            json!({"exc_type": "ValueError", "exc_message": ["boom"],
            "exc_module": "builtins"}),
        ),
    ] {
        let (scene, _) = run(task, body(), None).await;
        let log = [
            format!("store the-id {status}"),
            format!("part the-id {status}"),
        ];
        assert_eq!(scene.log(), log);
        let part = scene.memory.parts.lock().unwrap()[0].clone();
        assert_eq!((part.group_id.as_str(), part.group_index), ("g", Some(1)));
        assert_eq!(part.result, result);
        assert!(scene.sent().is_empty());
    }
}

#[tokio::test]
async fn whoever_adds_the_last_part_sends_the_body() {
    let (scene, outcome) = run("part", body(), claimed(Ok(vec![json!(1), json!(2)]))).await;
    assert!(matches!(outcome, Outcome::Success { .. }));
    let (sent, with) = &scene.sent()[0];
    assert_eq!(
        (sent.task.as_str(), &with.args),
        ("body", &vec![json!([1, 2])])
    );
    // What the body says itself counts.
    assert!(!with.options.contains_key("root_id"));
    assert_eq!(with.options["parent_id"], "the-id");
    assert_eq!(scene.log().last().unwrap(), "close g");
}

#[tokio::test]
async fn a_chord_with_a_failed_part_fails_with_all_that_follows() {
    let error = Exception::celery("ChordError", "Dependency 7 raised ValueError('boom')");
    let (scene, outcome) = run("fails", body(), claimed(Err(error))).await;
    assert!(matches!(outcome, Outcome::Failure(_)));
    for id in ["body-id", "after-id"] {
        let meta = scene.meta(id).unwrap();
        assert_eq!(meta.status, "FAILURE");
        let exception = meta.exception().unwrap().to_string();
        assert_eq!(
            exception,
            "ChordError: Dependency 7 raised ValueError('boom')"
        );
    }
    let (sent, with) = &scene.sent()[0];
    assert_eq!(sent.kwargs["tasks"][0]["task"], "err");
    assert_eq!(with.args, [json!("body-id")]);
    assert_eq!(scene.log().last().unwrap(), "close g");
}

#[tokio::test]
async fn every_task_of_a_group_that_is_a_body_fails() {
    let mut body = signature(
        "celery.group",
        json!({"task_id": "group-id",
        "link_error": [signature("of-group", json!({}))]}),
    );
    body["subtask_type"] = json!("group");
    let chain = json!({"task": "celery.chain", "subtask_type": "chain", "kwargs": {"tasks": [
        signature("c", json!({})), signature("d", json!({"task_id": "d-id"}))]}});
    body["kwargs"] = json!({"tasks": [
        signature("a", json!({"task_id": "a-id", "link_error": [signature("own", json!({}))]})),
        chain,
    ]});
    let error = Exception::celery("ChordError", "no");
    let (scene, _) = run("fails", body, claimed(Err(error))).await;
    for id in ["a-id", "d-id", "group-id"] {
        assert_eq!(scene.meta(id).unwrap().status, "FAILURE", "{id}");
    }
    let errbacks: Vec<_> = scene
        .sent()
        .iter()
        .map(|(group, with)| {
            (
                group.kwargs["tasks"].as_array().unwrap().len(),
                with.args.clone(),
            )
        })
        .collect();
    assert_eq!(
        errbacks,
        [(2, vec![json!("a-id")]), (1, vec![json!("d-id")])]
    );
}

#[tokio::test]
async fn a_body_that_can_not_be_sent_has_failed() {
    let mut scene = scene();
    *scene.memory.claim.lock().unwrap() = Some(claimed(Ok(vec![json!(1)])));
    *scene.memory.refuses.lock().unwrap() = Some(Unsent {
        reason: "no broker".to_owned(),
        is_operational: true,
    });
    let mut body = body();
    body["options"]["link_error"] = json!([]);
    let headers = json!({"group": "g"});
    let job = scene.job("part", json!([]), headers, json!({"chord": body}));
    assert!(matches!(scene.run(job).await, Outcome::Success { .. }));
    let meta = scene.meta("body-id").unwrap();
    assert_eq!(
        meta.exception().unwrap().message(),
        "Callback error: no broker"
    );
    assert_eq!(scene.log().last().unwrap(), "close g");
}

#[tokio::test]
async fn nothing_is_counted_where_a_task_looks_for_the_parts() {
    let mut scene = scene();
    *scene.memory.chords.lock().unwrap() = Some(Chords::Unlocked);
    let headers = json!({"group": "g"});
    let job = scene.job("part", json!([]), headers, json!({"chord": body()}));
    scene.run(job).await;
    assert_eq!(scene.log(), ["store the-id SUCCESS"]);
}

#[tokio::test]
async fn a_chord_further_down_a_failed_chain_is_told_once() {
    let last = signature(
        "last",
        json!({"task_id": "last-id", "group_id": "g",
        "chord": signature("body", json!({"task_id": "body-id"}))}),
    );
    let mut chord = signature("celery.chord", json!({}));
    chord["subtask_type"] = json!("chord");
    chord["kwargs"] = json!({"body": signature("inner", json!({"task_id": "inner-id"}))});
    let mut scene = scene();
    for runs in 1..=2 {
        let embed = json!({"chain": [last, chord]});
        let job = scene.job("fails", json!([]), json!({}), embed);
        scene.run(job).await;
        assert_eq!(scene.memory.parts.lock().unwrap().len(), 1, "{runs}");
        assert_eq!(scene.meta("inner-id").unwrap().status, "FAILURE");
    }
}
