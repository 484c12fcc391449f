//! A worker and its client within one program, on SQLite.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celeriac::{App, Context, Exception, Journal, Level, Record, Running, Stop};
use tokio::time::timeout;

/// More than anything here takes.
const DEADLINE: Duration = Duration::from_mins(1);

/// Whether the task that only ends when it is cancelled has begun.
static HAS_BEGUN: AtomicBool = AtomicBool::new(false);

#[celeriac::task]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task]
fn halve(x: i64) -> celeriac::Result<i64> {
    if x % 2 == 0 {
        return Ok(x / 2);
    }
    Err(Exception::builtin("ValueError", format!("{x} is odd")).into())
}

#[celeriac::task(ignore_result)]
async fn linger(context: Context) {
    HAS_BEGUN.store(true, Ordering::SeqCst);
    context.cancellation().cancelled().await;
    std::future::pending::<()>().await;
}

/// Keeps what a worker says.
#[derive(Default)]
struct Kept(Mutex<Vec<String>>);

impl Journal for Kept {
    fn writes(&self, _: Level) -> bool {
        true
    }

    fn write(&self, record: Record) {
        self.0.lock().unwrap().push(record.message);
    }
}

/// An app whose messages and results are in this folder.
fn app(folder: &std::path::Path) -> App {
    let folder = folder.display();
    App::new("embedded")
        .broker(format!("sqla+sqlite:///{folder}/broker.db"))
        .backend(format!("db+sqlite:///{folder}/results.db"))
        .task(add)
        .task(halve)
        .task(linger)
}

async fn ends(running: Running) -> i32 {
    timeout(DEADLINE, running).await.expect("the worker ends")
}

/// Calls tasks of a worker that runs, and stops it.
async fn call_and_stop(app: &App, running: Running, stop: Stop) -> i32 {
    let calling = async {
        let sum = app.send(add::s(2, 3)).await.unwrap();
        assert_eq!(sum.wait::<i64>(DEADLINE).await.unwrap(), 5);
        let half = app.send(halve::s(8)).await.unwrap();
        assert_eq!(half.wait::<i64>(DEADLINE).await.unwrap(), 4);
        let odd = app.send(halve::s(7)).await.unwrap();
        let error = odd.wait::<i64>(DEADLINE).await.unwrap_err().to_string();
        assert!(error.contains("7 is odd"), "{error}");
        assert_eq!(odd.state().await.unwrap(), "FAILURE");
        stop.stop();
    };
    tokio::join!(ends(running), calling).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_runs_beside_its_client_until_it_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(folder.path());
    let kept = Arc::new(Kept::default());
    let worker = app.worker().concurrency(2).queues(["celery"]);
    let worker = worker.hostname("w1@here").journal(kept.clone());
    let (running, stop) = worker.start().unwrap();
    assert_eq!(call_and_stop(&app, running, stop).await, 0);
    let kept = kept.0.lock().unwrap().join("\n");
    assert!(kept.contains("w1@here ready"), "{kept}");
    assert!(kept.contains("Task embedded.add["), "{kept}");
}

#[tokio::test]
async fn one_thread_is_enough_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(folder.path());
    let (running, stop) = app.worker().hostname("w2@here").start().unwrap();
    assert_eq!(call_and_stop(&app, running, stop).await, 0);
}

#[tokio::test]
async fn a_second_stop_ends_running_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(folder.path());
    let (running, stop) = app.worker().hostname("w3@here").start().unwrap();
    let stopping = async {
        app.send(linger::s()).await.unwrap();
        let has_begun = async {
            while !HAS_BEGUN.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, has_begun).await.expect("the task begins");
        stop.stop();
        stop.stop();
    };
    tokio::join!(ends(running), stopping);
}

#[tokio::test]
async fn a_worker_that_makes_no_sense_is_refused() {
    let error = App::new("empty").worker().start().unwrap_err().to_string();
    assert!(error.contains("The app has no tasks"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let worker = app(folder.path()).worker().set("broker_url", "gopher://x");
    let error = worker.start().unwrap_err().to_string();
    assert!(error.contains("gopher"), "{error}");
}

#[test]
fn a_worker_without_a_runtime_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = app(folder.path()).worker().start().unwrap_err().to_string();
    assert!(error.contains("there is none here"), "{error}");
}
