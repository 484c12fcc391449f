//! What a run does beside the task's own code.

mod scene;

use celeriac_core::pool::Outcome;
use celeriac_native::Options;
use celeriac_protocol::Exception;
use scene::{Scene, signature, task};
use serde_json::json;

#[tokio::test]
async fn a_success_is_stored_and_shown() {
    let mut scene = Scene::new([task("add", Options::default(), |_, arguments| async move {
        let sum: i64 = arguments.args.iter().filter_map(|x| x.as_i64()).sum();
        Ok(json!(sum))
    })]);
    let job = scene.job(
        "add",
        json!([2, 3]),
        json!({"group": "g", "parent_id": "p"}),
        json!({}),
    );
    let Outcome::Success { runtime, result } = scene.run(job).await else {
        panic!()
    };
    assert_eq!(result, "5");
    assert!(runtime.is_some());
    let meta = scene.meta("the-id").unwrap();
    assert_eq!((&*meta.status, meta.result), ("SUCCESS", json!(5)));
    assert_eq!(meta.children, json!([]));
    assert_eq!(meta.group_id.as_deref(), Some("g"));
    assert_eq!(meta.parent_id.as_deref(), Some("p"));
    assert!(meta.date_done.is_some());
}

#[tokio::test]
async fn a_failure_is_stored_and_errbacks_are_sent() {
    let mut scene = Scene::new([task("fails", Options::default(), |_, _| async {
        Err(Exception::builtin("ValueError", "boom").into())
    })]);
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
}
