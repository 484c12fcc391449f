//! The task at an engine that is none: what it asks for, and what it makes of the answers.

#![expect(clippy::unwrap_used, reason = "a test fails where it can't go on")]

mod harness;
mod stub;

use std::fs;
use std::path::PathBuf;

use celeriac_native::Cause;
use celeriac_native::error::Ending;
use harness::{Call, until};
use serde_json::{Value, json};
use stub::{Container, Stub};
use tempfile::TempDir;

/// An engine that has the image `busybox`.
fn engine() -> (Stub, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let stub = Stub::serve(&folder.path().join("socket"));
    stub.with(|state| state.images.push("busybox".to_owned()));
    (stub, folder)
}

fn call(folder: &TempDir, options: Value, retries: u32) -> Call {
    let socket = folder.path().join("socket");
    Call::new(socket.to_str().unwrap(), options, "t1", retries)
}

fn log(folder: &TempDir) -> PathBuf {
    folder.path().join("log")
}

fn kwargs(folder: &TempDir) -> Value {
    json!({"image": "busybox", "command": "echo", "logoutfile": log(folder)})
}

/// A container of the task, as a worker that was killed has left it.
fn left(retries: u32, out_offset: u64, state: &str) -> Container {
    let labels = [
        ("celeriac.task-id", "t1".to_owned()),
        ("celeriac.retries", retries.to_string()),
        ("celeriac.out-offset", out_offset.to_string()),
    ];
    Container {
        name: "run-t1".to_owned(),
        labels: labels.map(|(name, value)| (name.to_owned(), value)).into(),
        state: state.to_owned(),
        body: Value::Null,
    }
}

#[tokio::test]
async fn a_container_is_made_started_followed_and_removed() {
    let (stub, folder) = engine();
    stub.with(|state| state.logs.push_back((vec![(1, "a\n"), (2, "b\n")], true)));
    let call = call(&folder, json!({"memory": "1M", "log": "info"}), 0);
    let mut given = kwargs(&folder);
    given["env"] = json!({"A": "1"});
    let result = call.run(given).await;
    let seen = stub.with(|state| state.made.clone());
    assert_eq!(
        result.unwrap(),
        json!({"id": "t1", "output": "a\nb\n", "truncated": false})
    );
    assert_eq!(fs::read_to_string(log(&folder)).unwrap(), "a\nb\n");
    let changes = stub.changes();
    assert_eq!(changes.len(), 3);
    assert!(changes[0] == "POST containers/create" && changes[1].ends_with("/start"));
    assert!(changes[2].starts_with("DELETE"));
    let seen = seen.unwrap();
    assert_eq!(seen.name, "run-t1");
    assert_eq!(seen.body["Env"], json!(["A=1"]));
    assert_eq!(seen.body["HostConfig"]["MemorySwap"], 1 << 20);
    let records = call.told.records.lock().unwrap();
    let lines: Vec<_> = records
        .iter()
        .map(|record| record.message.as_str())
        .collect();
    assert_eq!(lines, ["a", "b"]);
}

#[tokio::test]
async fn a_container_that_runs_is_gone_on_with() {
    for (state, changes) in [("running", 1), ("exited", 1), ("created", 2)] {
        let (stub, folder) = engine();
        fs::write(log(&folder), "before\none\n").unwrap();
        stub.with(|it| {
            it.containers.insert("c1".to_owned(), left(0, 7, state));
            it.logs.push_back((vec![(1, "one\n"), (1, "two\n")], true));
        });
        let result = call(&folder, json!({}), 0)
            .run(kwargs(&folder))
            .await
            .unwrap();
        assert_eq!(result["output"], "one\ntwo\n");
        assert_eq!(
            fs::read_to_string(log(&folder)).unwrap(),
            "before\none\ntwo\n"
        );
        assert_eq!(stub.changes().len(), changes, "{:?}", stub.changes());
        assert!(
            !stub
                .changes()
                .contains(&"POST containers/create".to_owned())
        );
    }
}

#[tokio::test]
async fn what_is_left_of_an_earlier_attempt_is_replaced() {
    let (stub, folder) = engine();
    stub.with(|state| {
        state
            .containers
            .insert("c1".to_owned(), left(0, 0, "exited"));
        state.logs.push_back((vec![(1, "anew\n")], true));
    });
    let result = call(&folder, json!({}), 1)
        .run(kwargs(&folder))
        .await
        .unwrap();
    assert_eq!(result["output"], "anew\n");
    assert_eq!(
        stub.changes()[..2],
        ["DELETE containers/c1", "POST containers/create"]
    );
}

#[tokio::test]
async fn a_name_that_is_taken_for_a_moment_is_waited_for() {
    let (stub, folder) = engine();
    stub.with(|state| {
        state.conflicts = 2;
        state.logs.push_back((vec![], true));
    });
    call(&folder, json!({}), 0)
        .run(kwargs(&folder))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_stranger_s_container_is_left_alone() {
    let (stub, folder) = engine();
    let mut stranger = left(0, 0, "running");
    stranger.labels.clear();
    stub.with(|state| state.containers.insert("c1".to_owned(), stranger));
    let error = call(&folder, json!({}), 0)
        .run(kwargs(&folder))
        .await
        .unwrap_err();
    assert!(matches!(error.ending(), Ending::Failure(_)));
    assert_eq!(
        error.exception().to_string(),
        "EngineError: the name is in use"
    );
    assert_eq!(stub.with(|state| state.containers.len()), 1);
}

#[tokio::test]
async fn an_engine_that_goes_away_for_a_while_costs_nothing() {
    let (stub, folder) = engine();
    stub.with(|state| {
        state.logs.push_back((vec![(1, "one\n"), (1, "tw")], false));
        state.logs.push_back((vec![(1, "o")], false));
        state
            .logs
            .push_back((vec![(1, "one\ntwo\n"), (2, "three\n")], true));
    });
    let result = call(&folder, json!({}), 0)
        .run(kwargs(&folder))
        .await
        .unwrap();
    assert_eq!(result["output"], "one\ntwo\nthree\n");
    assert_eq!(
        fs::read_to_string(log(&folder)).unwrap(),
        "one\ntwo\nthree\n"
    );
}

#[tokio::test]
async fn a_code_other_than_0_is_retried_and_its_output_kept() {
    let (stub, folder) = engine();
    stub.with(|state| {
        state.exit_code = 7;
        state.logs.push_back((vec![(2, "bad\n")], true));
    });
    let error = call(&folder, json!({"retry_delay": 2}), 0)
        .run(kwargs(&folder))
        .await
        .unwrap_err();
    let Ending::Retry(retry) = error.ending() else {
        panic!("{error:?}");
    };
    assert_eq!(
        format!("{:?}", retry.when),
        "Some(After(2s))",
        "the first wait is the configured one"
    );
    let expected = "ContainerFailed: Command 'echo' in image 'busybox' returned non-zero exit \
                    status 7: bad";
    assert_eq!(error.exception().to_string(), expected);
    assert_eq!(fs::read_to_string(log(&folder)).unwrap(), "bad\n");
    assert!(stub.with(|state| state.containers.is_empty()));
}

#[tokio::test]
async fn a_missing_image_is_pulled_and_that_is_told() {
    let (stub, folder) = engine();
    let layer = |current| {
        json!({
            "status": "Downloading", "id": "l1", "progressDetail": {"current": current, "total": 10},
        })
    };
    stub.with(|state| {
        state.images.clear();
        state.pull = vec![layer(5), layer(10)];
        state.logs.push_back((vec![], true));
    });
    let pulling = call(&folder, json!({}), 0);
    pulling.run(kwargs(&folder)).await.unwrap();
    let states = pulling.told.states.lock().unwrap().clone();
    assert_eq!(states[0].0, "PROGRESS");
    assert_eq!(
        states[0].1,
        json!({"pulling": "busybox", "status": "Downloading", "current": 5, "total": 10})
    );
    stub.with(|state| state.pull = vec![json!({"errorDetail": {"message": "no such thing"}})]);
    let error = call(&folder, json!({}), 0)
        .run(kwargs(&folder))
        .await
        .unwrap_err();
    assert!(matches!(error.ending(), Ending::Failure(_)));
    assert!(
        error.exception().message().contains("no such thing"),
        "{error}"
    );
    let mut never = kwargs(&folder);
    never["pull"] = "never".into();
    let error = call(&folder, json!({}), 0).run(never).await.unwrap_err();
    assert!(
        error.exception().message().contains("may not pull it"),
        "{error}"
    );
}

#[tokio::test]
async fn a_worker_that_shuts_down_leaves_a_container_to_the_next_one() {
    for (acks_late, left) in [(true, 1), (false, 0)] {
        let (stub, folder) = engine();
        let call = call(&folder, json!({"acks_late": acks_late, "grace": 0}), 0);
        let (result, ()) = tokio::join!(call.run(kwargs(&folder)), async {
            until(|| stub.with(|state| state.requests.iter().any(|it| it.ends_with("logs")))).await;
            call.canceller.cancel(Cause::Shutdown);
        });
        let error = result.unwrap_err();
        assert!(
            matches!(error.ending(), Ending::Reject { requeue: true, .. }),
            "{error:?}"
        );
        assert_eq!(stub.with(|state| state.containers.len()), left);
    }
}

#[tokio::test]
async fn where_there_is_no_engine_that_is_said() {
    let call = Call::new("/nonexistent", json!({}), "t1", 0);
    let error = call
        .run(json!({"image": "i", "command": "c"}))
        .await
        .unwrap_err();
    assert_eq!(error.exception().exc_type, "EngineError");
    assert!(
        error.exception().message().contains("/nonexistent"),
        "{error}"
    );
}
