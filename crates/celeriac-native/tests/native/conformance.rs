//! What the worker may rely on of every pool, it may of these.

use crate::scene::{Scene, Settings, task};
use async_trait::async_trait;
use celeriac_core::pool::{Job, Pool, RequestKey};
use celeriac_native::{Context, MixedPool, Options};
use celeriac_protocol::Exception;
use celeriac_testing::conformance::pool::{self, Fixture, Work};
use serde_json::json;

/// Tasks that do what the suite asks for.
fn scene(size: usize) -> Scene {
    let tasks = [
        task("return", Options::default(), |_, _| async { Ok(json!(42)) }),
        task("fail", Options::default(), |_, _| async {
            Err(Exception::builtin("ValueError", "boom").into())
        }),
        task("wait", Options::default(), |_: Context, _| {
            std::future::pending()
        }),
    ];
    let size = Some(size);
    Scene::with(
        tasks,
        Settings {
            size,
            ..Settings::default()
        },
    )
}

fn job(key: RequestKey, work: Work) -> Job {
    let name = match work {
        Work::Return => "return",
        Work::Fail => "fail",
        Work::Wait => "wait",
    };
    Job {
        key,
        ..crate::scene::job(name, json!([]), json!({"id": key.to_string()}), json!({}))
    }
}

struct Native;

#[async_trait]
impl Fixture for Native {
    async fn pool(&mut self, size: usize) -> Box<dyn Pool> {
        Box::new(scene(size).pool)
    }

    fn job(&mut self, key: RequestKey, work: Work) -> Job {
        job(key, work)
    }
}

#[tokio::test]
async fn a_native_pool_is_a_pool() {
    pool::run(&mut Native).await;
}

/// Jobs go by turns to both.
struct Mixed;

#[async_trait]
impl Fixture for Mixed {
    async fn pool(&mut self, size: usize) -> Box<dyn Pool> {
        let other = Scene::with(
            [
                task("other.return", Options::default(), |_, _| async {
                    Ok(json!(42))
                }),
                task("other.fail", Options::default(), |_, _| async {
                    Err(Exception::builtin("ValueError", "boom").into())
                }),
                task("other.wait", Options::default(), |_: Context, _| {
                    std::future::pending()
                }),
            ],
            Settings {
                size: Some(size),
                ..Settings::default()
            },
        );
        Box::new(MixedPool::new(Box::new(other.pool), scene(size).pool))
    }

    fn job(&mut self, key: RequestKey, work: Work) -> Job {
        let job = job(key, work);
        if key.0.is_multiple_of(2) {
            return job;
        }
        Job {
            task: format!("other.{}", job.task).into(),
            ..job
        }
    }
}

#[tokio::test]
async fn a_mixed_pool_is_a_pool() {
    pool::run(&mut Mixed).await;
}
