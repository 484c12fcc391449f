//! Results on their way to a backend that has its troubles.

use celeriac_core::backend::{Error, ErrorKind};
use celeriac_core::pool::{Outcome, Pool as _, PoolEvent};
use celeriac_native::{Options, ResultSettings};
use serde_json::json;

use crate::scene::{Scene, Settings, task};

fn scene(retries: u32) -> Scene {
    let echo = task("echo", Options::default(), |_, mut arguments| async move {
        Ok(arguments.args.remove(0))
    });
    let results = ResultSettings {
        retries: Some(retries),
        ..ResultSettings::default()
    };
    Scene::with(
        [echo],
        Settings {
            results,
            size: Some(64),
            ..Settings::default()
        },
    )
}

#[tokio::test]
async fn a_lost_connection_is_tried_again() {
    for (lost, retries, is_stored) in [(2, 2, true), (3, 2, false)] {
        let mut scene = scene(retries);
        let error = Error::new(ErrorKind::Connection, "gone");
        *scene.memory.failing_stores.lock().unwrap() = vec![error; lost];
        let job = scene.simple("echo", json!([1]));
        match scene.run(job).await {
            Outcome::Success { .. } if is_stored => {}
            Outcome::Raised(failure) if !is_stored => {
                assert_eq!(failure.exception, "BackendStoreError('gone')");
            }
            outcome => panic!("{outcome:?}"),
        }
        assert_eq!(scene.meta("the-id").is_some(), is_stored);
    }
}

#[tokio::test]
async fn a_result_that_can_not_be_stored_takes_no_other_with_it() {
    let mut scene = scene(0);
    let mut keys = Vec::new();
    for at in 0..40 {
        let value = if at == 7 {
            json!("unstorable")
        } else {
            json!(at)
        };
        let id = json!({"id": format!("id-{at}")});
        let job = scene.job("echo", json!([value]), id, json!({}));
        keys.push(job.key);
        scene.pool.submit(job);
    }
    let mut ended = Vec::new();
    while ended.len() < keys.len() {
        for event in scene.pool.next().await {
            if let PoolEvent::Finished { key, outcome } = event {
                let at = keys.iter().position(|known| *known == key).unwrap();
                let is_raised = matches!(outcome, Outcome::Raised(_));
                assert_eq!(is_raised, at == 7, "{at} {outcome:?}");
                // What is told is stored.
                assert_eq!(scene.meta(&format!("id-{at}")).is_some(), at != 7);
                ended.push(at);
            }
        }
    }
}
