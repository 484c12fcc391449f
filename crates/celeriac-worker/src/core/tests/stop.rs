//! What becomes of tasks that go on after the deadline of a shutdown.

use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::broker::Fate;
use celeriac_core::evidence::Evidence;
use celeriac_core::pool::{Failure, LossCause, Outcome, PoolEvent, RequestKey};
use serde_json::{Value, json};

use super::life::{early, late, reject, success};
use super::scene::{PID, Scene, at, options};
use crate::core::{Effect, Options};
use crate::shutdown::{Deadline, Signal};

const SECOND: Duration = Duration::from_secs(1);

/// A worker whose deadline is 20 s, with a task that runs, told to end.
fn draining(task: TaskOptions) -> (Scene, RequestKey) {
    let options = Options {
        shutdown_deadline: Some(Deadline::after(20 * SECOND)),
        ..options([("t", task)])
    };
    let mut scene = Scene::new(options, 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.settled.clear();
    scene.deliver(2, json!({"eta": at(60)}));
    scene.core.signalled(Signal::Terminate, scene.now);
    scene.look();
    assert_eq!(
        scene.settled,
        [(2, Fate::Release)],
        "what waits is given back at once"
    );
    scene.settled.clear();
    assert_eq!(scene.core.next_tick(scene.now), Some(20 * SECOND));
    scene.pass(19 * SECOND);
    assert_eq!(scene.others.last(), Some(&Effect::ClosePools));
    scene.others.clear();
    (scene, key)
}

#[test]
fn a_deadline_has_tasks_clean_up_and_run_again() {
    let again = || reject(true);
    for (task, outcome, requeues, settled) in [
        (late(), again(), true, Some(Fate::Requeue)),
        (late(), success(), true, Some(Fate::Ack)),
        (early(), Outcome::Failure(Failure::default()), false, None),
    ] {
        let (mut scene, key) = draining(task);
        scene.pass(SECOND);
        assert_eq!(
            scene.others,
            [Effect::Interrupt {
                lane: 0,
                key,
                requeues
            }]
        );
        scene.finish(key, outcome.clone());
        scene.tell([PoolEvent::Closed]);
        let settled: Vec<_> = settled.map(|fate| (1, fate)).into_iter().collect();
        assert_eq!(scene.settled, settled, "{outcome:?}");
        assert!(scene.core.is_done());
    }
}

#[test]
fn a_task_that_does_not_end_at_the_deadline_is_ended() {
    for (task, hooks, settled) in [
        (
            late(),
            ["success_was_stored", "cancelled"],
            vec![(1, Fate::Requeue)],
        ),
        (early(), ["success_was_stored", "lost"], vec![]),
    ] {
        let (mut scene, key) = draining(task);
        scene.pass(SECOND);
        scene.hooks.clear();
        scene.others.clear();
        scene.pass(5 * SECOND);
        assert_eq!(scene.others, [Effect::KillPools]);
        let cause = LossCause::Terminated;
        let lost = PoolEvent::Lost {
            key,
            pid: PID,
            cause,
            evidence: Evidence::default(),
        };
        scene.tell([lost, PoolEvent::Closed]);
        for _ in hooks {
            scene.answer(Ok(Value::Null));
        }
        assert_eq!((&scene.hooks[..], &scene.settled), (&hooks[..], &settled));
        assert!(scene.core.is_done());
        assert_eq!(scene.core.shutdown().exit_status(), 0);
    }
}

#[test]
fn a_worker_that_cannot_end_in_order_leaves_after_its_deadline() {
    let (mut scene, _) = draining(late());
    scene.pass(SECOND);
    scene.pass(5 * SECOND);
    scene.others.clear();
    scene.pass(5 * SECOND);
    assert_eq!(scene.others, [Effect::ExitNow(0)]);
}
