//! Limits of time, revocation and shutdown, for tasks that look and tasks that do not.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use celeriac_core::pool::{LossCause, Outcome, Pool as _, PoolEvent};
use celeriac_native::{Blocking, Cause, Options, Task};
use celeriac_protocol::{Exception, TimeLimit};
use serde_json::{Value, json};

use crate::scene::{Scene, Settings, task};

pub(crate) fn seconds(seconds: f64) -> Option<TimeLimit> {
    TimeLimit::new(&serde_json::Number::from_f64(seconds).unwrap()).unwrap()
}

fn graceful() -> Options {
    Options {
        cancel_grace: Duration::from_secs(20),
        ..Options::default()
    }
}

/// A task that ends when it is told to, with the cause.
fn looks() -> Arc<dyn Task> {
    task("looks", graceful(), |context, _| async move {
        let cause = context.cancellation().cancelled().await;
        match cause {
            Cause::Shutdown => Err(Exception::builtin("RuntimeError", "interrupted").into()),
            cause => Ok(json!(format!("{cause:?}"))),
        }
    })
}

fn is_lost(event: &PoolEvent) -> Option<LossCause> {
    match event {
        PoolEvent::Lost { cause, .. } => Some(*cause),
        _ => None,
    }
}

#[tokio::test]
async fn a_task_may_end_in_its_own_way_at_the_soft_limit() {
    let mut scene = Scene::new([looks()]);
    let mut job = scene.simple("looks", json!([]));
    job.time_limits.soft = seconds(0.05);
    let Outcome::Success { result, .. } = scene.run(job).await else {
        panic!()
    };
    assert_eq!(result, "'SoftTimeLimit(50ms)'");
}

#[tokio::test]
async fn a_task_that_does_not_look_fails_at_the_soft_limit() {
    let waits = |_, _| std::future::pending();
    let mut scene = Scene::new([task("waits", Options::default(), waits)]);
    let mut job = scene.simple("waits", json!([]));
    job.time_limits.soft = seconds(0.05);
    let Outcome::Failure(failure) = scene.run(job).await else {
        panic!()
    };
    assert_eq!(failure.exception, "SoftTimeLimitExceeded()");
    let exception = json!({"exc_type": "SoftTimeLimitExceeded", "exc_message": [],
        "exc_module": "billiard.exceptions"});
    assert_eq!(scene.meta("the-id").unwrap().result, exception);
}

#[tokio::test]
async fn nothing_is_stored_of_what_is_lost() {
    for signal in [None, Some(15)] {
        let mut scene = Scene::new([looks()]);
        let mut job = scene.simple("looks", json!([]));
        let key = job.key;
        job.time_limits.hard = signal.is_none().then(|| seconds(0.05)).flatten();
        scene.pool.submit(job);
        let expected = match signal {
            Some(signal) => {
                scene.pool.terminate(key, signal);
                LossCause::Terminated
            }
            None => LossCause::TimeLimit,
        };
        let lost = scene.until(|event| is_lost(event).is_some()).await;
        assert_eq!(is_lost(&lost), Some(expected));
        // It ended well, in time, and that counts no more.
        assert_eq!(scene.log(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_a_shutdown_interrupts_runs_again() {
    let mut scene = Scene::new([looks()]);
    let job = scene.simple("looks", json!([]));
    let key = job.key;
    scene.pool.submit(job);
    scene.pool.interrupt(key, true);
    let is_end = |event: &PoolEvent| matches!(event, PoolEvent::Finished { .. });
    match scene.until(is_end).await {
        PoolEvent::Finished {
            outcome: Outcome::Reject { requeue: true, .. },
            ..
        } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(scene.log(), Vec::<String>::new());
}

#[tokio::test]
async fn a_blocking_task_has_a_thread_and_may_wait_for_what_is_asynchronous() {
    let blocking = Blocking::new("blocks", Options::default(), |context, arguments| {
        tokio::runtime::Handle::current().block_on(context.progress(1))?;
        let name = std::thread::current().name().map(str::to_owned);
        Ok(json!([arguments.args, name]))
    });
    let panics = Blocking::new("panics", Options::default(), |_, _| panic!("oh no"));
    let mut scene = Scene::new([Arc::new(blocking) as Arc<dyn Task>, Arc::new(panics)]);
    let job = scene.simple("blocks", json!([1]));
    let Outcome::Success { result, .. } = scene.run(job).await else {
        panic!()
    };
    assert_eq!(result, "[[1], 'celeriac:task']");
    assert_eq!(
        scene.log(),
        ["store the-id PROGRESS", "store the-id SUCCESS"]
    );
    let job = scene.simple("panics", json!([]));
    let Outcome::Failure(failure) = scene.run(job).await else {
        panic!()
    };
    assert!(failure.exception.starts_with("Panic('oh no"), "{failure:?}");
}

#[tokio::test]
async fn a_thread_that_does_not_return_keeps_its_place() {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let stays = Blocking::new("stays", Options::default(), move |_context, _| {
        released.lock().unwrap().recv().unwrap();
        Ok(Value::Null)
    });
    let settings = Settings {
        size: Some(1),
        ..Settings::default()
    };
    let mut scene = Scene::with([Arc::new(stays) as Arc<dyn Task>], settings);
    let mut job = scene.simple("stays", json!([]));
    job.time_limits.soft = seconds(0.05);
    let Outcome::Failure(failure) = scene.run(job).await else {
        panic!()
    };
    assert_eq!(failure.exception, "SoftTimeLimitExceeded()");
    assert_eq!(scene.pool.free(), 0);
    release.send(()).unwrap();
    let free = async {
        while scene.pool.free() == 0 {
            scene.pool.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), free)
        .await
        .unwrap();
    assert_eq!(scene.meta("the-id").unwrap().status, "FAILURE");
}

#[tokio::test]
async fn the_worker_is_told_of_others_while_a_task_computes() {
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(std::sync::Mutex::new(released));
    let computes = task("computes", Options::default(), move |_, _| {
        let released = Arc::clone(&released);
        async move {
            // It never yields.
            released.lock().unwrap().recv().unwrap();
            Ok(Value::Null)
        }
    });
    let quick = task("quick", Options::default(), |_, _| async { Ok(json!(1)) });
    let mut scene = Scene::new([computes, quick]);
    let job = scene.simple("computes", json!([]));
    scene.pool.submit(job);
    let job = scene.simple("quick", json!([]));
    assert!(matches!(scene.run(job).await, Outcome::Success { .. }));
    release.send(()).unwrap();
    let is_end = |event: &PoolEvent| matches!(event, PoolEvent::Finished { .. });
    scene.until(is_end).await;
}
