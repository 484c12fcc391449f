use std::sync::Arc;
use std::time::Duration;

use celeriac_client::{AsyncResult, Error, TaskError};
use celeriac_core::backend::{Backend, Meta, Settings, Stored};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

fn backend(name: &str) -> Arc<dyn Backend> {
    celeriac_backend::open(&format!("memory://{name}"), Settings::default()).unwrap()
}

async fn store(backend: &Arc<dyn Backend>, id: &str, status: &str, result: Value) {
    let stored = Stored {
        meta: Meta {
            task_id: id.to_owned(),
            status: status.to_owned(),
            result,
            ..Meta::default()
        },
        reply_to: None,
        correlation_id: None,
        expires: None,
    };
    backend.store(&[stored]).await.unwrap();
}

#[tokio::test]
async fn a_result_is_had_when_it_comes() {
    let backend = backend("comes");
    let result = AsyncResult::new("1", Some(Arc::clone(&backend)));
    assert_eq!(result.state().await.unwrap(), "PENDING");
    let waiting = tokio::spawn({
        let result = result.clone();
        async move { result.get::<i64>().await }
    });
    store(&backend, "1", "STARTED", Value::Null).await;
    store(&backend, "1", "SUCCESS", json!(5)).await;
    assert_eq!(waiting.await.unwrap().unwrap(), 5);
    assert_eq!(result.state().await.unwrap(), "SUCCESS");
    let error = result.get::<String>().await.unwrap_err();
    assert!(matches!(error, Error::Unfit { .. }), "{error}");
    result.forget().await.unwrap();
    assert_eq!(result.state().await.unwrap(), "PENDING");
}

#[tokio::test]
async fn each_state_is_told_until_the_end() {
    let backend = backend("changes");
    let result = AsyncResult::new("1", Some(Arc::clone(&backend)));
    let mut changes = Box::pin(result.changes());
    for (status, described) in [("PROGRESS", json!({"done": 1})), ("SUCCESS", json!(5))] {
        store(&backend, "1", status, described.clone()).await;
        let meta = changes.next().await.unwrap().unwrap();
        assert_eq!((&*meta.status, meta.result), (status, described));
    }
    assert!(changes.next().await.is_none());
}

#[tokio::test]
async fn a_failure_is_an_exception_by_pythons_names() {
    let backend = backend("fails");
    let exception =
        json!({"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"});
    store(&backend, "1", "FAILURE", exception.clone()).await;
    store(&backend, "2", "REVOKED", exception).await;
    let get = |id: &str| AsyncResult::new(id, Some(Arc::clone(&backend)));
    let error = get("1").get::<Value>().await.unwrap_err();
    let Error::Task(TaskError::Failure { exception, .. }) = &error else {
        panic!("{error}");
    };
    assert_eq!(exception.to_string(), "ValueError: boom");
    let error = get("2").get::<Value>().await.unwrap_err();
    assert!(matches!(error, Error::Task(TaskError::Revoked { .. })));
    // What comes after it is never called.
    let tuple = json!([["3", [["1", null], null]], null]);
    let after = AsyncResult::from_tuple(&tuple, Some(Arc::clone(&backend))).unwrap();
    assert!(matches!(after.get::<Value>().await, Err(Error::Task(_))));
}

#[tokio::test(start_paused = true)]
async fn waiting_has_an_end() {
    let result = AsyncResult::new("never", Some(backend("never")));
    let error = result.wait::<Value>(Duration::from_secs(5)).await;
    assert!(matches!(error, Err(Error::Timeout { .. })));
    let nowhere = AsyncResult::new("1", None);
    assert!(matches!(
        nowhere.get::<Value>().await,
        Err(Error::NoBackend)
    ));
}

#[tokio::test]
async fn a_group_is_kept_and_found_again() {
    let backend = backend("group");
    let tuple = json!([
        ["g", null],
        [[["1", null], null], [["h", null], [[["2", null], null]]]]
    ]);
    let group = AsyncResult::from_tuple(&tuple, Some(Arc::clone(&backend))).unwrap();
    assert_eq!(group.as_tuple(), tuple);
    group.save().await.unwrap();
    store(&backend, "1", "SUCCESS", json!(1)).await;
    assert_eq!(group.completed_count().await.unwrap(), 1);
    assert!(!group.is_ready().await.unwrap());
    store(&backend, "2", "SUCCESS", json!(2)).await;
    let found = AsyncResult::restore("g", &backend).await.unwrap().unwrap();
    assert_eq!(found.get::<Value>().await.unwrap(), json!([1, [2]]));
    assert!(
        AsyncResult::restore("none", &backend)
            .await
            .unwrap()
            .is_none()
    );
    assert!(AsyncResult::from_tuple(&json!(5), None).is_err());
}
