//! What happens to one message, told as tables.

use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::Evidence;
use celeriac_core::broker::{Fate, Want};
use celeriac_core::pool::{ExitStatus, Failure, LossCause, Outcome, PoolEvent};
use celeriac_protocol::TimeLimit;
use serde_json::{Value, json};

use super::scene::{PID, Scene, at, lane, limited, message, options};
use crate::core::{Effect, Options};
use crate::shutdown::Signal;

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn early() -> TaskOptions {
    TaskOptions::default()
}

pub(super) fn late() -> TaskOptions {
    TaskOptions {
        acks_late: true,
        ..early()
    }
}

pub(super) fn success() -> Outcome {
    Outcome::Success {
        runtime: None,
        result: String::new(),
    }
}

pub(super) fn reject(requeue: bool) -> Outcome {
    let failure = Failure::default();
    Outcome::Reject { requeue, failure }
}

/// A task, how it ends, what is settled when it begins and when it ends, and hooks.
type EndRow = (
    TaskOptions,
    Outcome,
    Option<Fate>,
    Option<Fate>,
    &'static [&'static str],
);
/// A task, the answers of hooks, the hooks, and what is settled.
type LossRow = (TaskOptions, Vec<Value>, &'static [&'static str], Vec<Fate>);

/// The ack matrix of `celery.worker.request`: when a message is settled, and how.
#[test]
fn the_end_of_a_task_settles_its_message() {
    let failure = || Outcome::Failure(Failure::default());
    let unforgiving = || TaskOptions {
        acks_on_failure: false,
        ..late()
    };
    let raised = || Outcome::Raised(Failure::default());
    let table: Vec<EndRow> = vec![
        (early(), success(), Some(Fate::Ack), None, &[]),
        (early(), failure(), Some(Fate::Ack), None, &[]),
        (early(), reject(true), Some(Fate::Ack), None, &[]),
        (early(), raised(), Some(Fate::Ack), None, &["raised"]),
        (late(), success(), None, Some(Fate::Ack), &[]),
        (late(), failure(), None, Some(Fate::Ack), &[]),
        (unforgiving(), failure(), None, Some(Fate::Reject), &[]),
        (
            unforgiving(),
            Outcome::Retry(Failure::default()),
            None,
            Some(Fate::Ack),
            &[],
        ),
        (
            late(),
            Outcome::Ignore(Failure::default()),
            None,
            Some(Fate::Ack),
            &[],
        ),
        (late(), reject(true), None, Some(Fate::Requeue), &[]),
        (
            late(),
            reject(false),
            None,
            Some(Fate::Reject),
            &["rejected"],
        ),
        (late(), raised(), None, Some(Fate::Ack), &["raised"]),
    ];
    for (task, outcome, at_start, at_end, hooks) in table {
        let mut scene = Scene::with(task.clone());
        scene.deliver(1, json!({}));
        let key = scene.begin();
        let mut expected: Vec<(u64, Fate)> = at_start.into_iter().map(|fate| (1, fate)).collect();
        assert_eq!(
            scene.settled, expected,
            "at the start of {outcome:?} of {task:?}"
        );
        scene.finish(key, outcome.clone());
        while !scene.awaited.is_empty() {
            assert_eq!(scene.settled, expected, "the hook comes first");
            scene.answer(Ok(Value::Null));
        }
        expected.extend(at_end.map(|fate| (1, fate)));
        assert_eq!(
            scene.settled, expected,
            "at the end of {outcome:?} of {task:?}"
        );
        assert_eq!(scene.hooks, hooks, "{outcome:?} of {task:?}");
    }
}

#[test]
fn a_lost_process_is_dealt_with_as_its_task_says() {
    let requeued = || TaskOptions {
        reject_on_worker_lost: true,
        ..late()
    };
    let sent_again = || TaskOptions {
        retry_on_worker_lost: true,
        ..late()
    };
    let ignored = |task: TaskOptions| TaskOptions {
        ignore_result: true,
        ..task
    };
    let (yes, no) = (json!(true), json!(false));
    let table: Vec<LossRow> = vec![
        (
            early(),
            vec![no.clone(), Value::Null],
            &["success_was_stored", "lost"],
            vec![Fate::Ack],
        ),
        (
            late(),
            vec![no.clone(), Value::Null],
            &["success_was_stored", "lost"],
            vec![Fate::Ack],
        ),
        (
            late(),
            vec![yes.clone()],
            &["success_was_stored"],
            vec![Fate::Ack],
        ),
        (
            requeued(),
            vec![no.clone()],
            &["success_was_stored"],
            vec![Fate::Requeue],
        ),
        (
            requeued(),
            vec![yes.clone()],
            &["success_was_stored"],
            vec![Fate::Ack],
        ),
        (ignored(requeued()), vec![], &[], vec![Fate::Requeue]),
        (
            ignored(late()),
            vec![Value::Null],
            &["lost"],
            vec![Fate::Ack],
        ),
        (
            sent_again(),
            vec![no.clone(), yes],
            &["success_was_stored", "retry_lost"],
            vec![Fate::Ack],
        ),
        (
            sent_again(),
            vec![no.clone(), no, Value::Null],
            &["success_was_stored", "retry_lost", "lost"],
            vec![Fate::Ack],
        ),
    ];
    for (task, answers, hooks, fates) in table {
        let mut scene = Scene::with(task.clone());
        scene.deliver(1, json!({}));
        let key = scene.begin();
        let cause = LossCause::Died(ExitStatus::Signal(9));
        scene.tell([PoolEvent::Lost {
            key,
            pid: PID,
            cause,
            evidence: Evidence::default(),
        }]);
        for answer in answers {
            scene.answer(Ok(answer));
        }
        assert_eq!(scene.hooks, hooks, "{task:?}");
        let expected: Vec<(u64, Fate)> = fates.into_iter().map(|fate| (1, fate)).collect();
        assert_eq!(scene.settled, expected, "{task:?}");
    }
}

#[test]
fn a_process_that_was_killed_for_another_task_is_no_death_of_its_own() {
    let lost = |key| PoolEvent::Lost {
        key,
        pid: PID,
        cause: LossCause::Neighbor,
        evidence: Evidence::default(),
    };
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.tell([lost(key)]);
    assert_eq!(scene.settled, [(1, Fate::Requeue)]);
    assert!(scene.hooks.is_empty(), "{:?}", scene.hooks);
    // One that was acknowledged when it began can't run again.
    let mut scene = Scene::with(early());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.tell([lost(key)]);
    assert_eq!(scene.hooks, ["success_was_stored"]);
    scene.answer(Ok(json!(false)));
    assert_eq!(scene.hooks, ["success_was_stored", "lost"]);
}

#[test]
fn a_broken_hook_loses_no_message() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    let cause = LossCause::Died(ExitStatus::Code(1));
    scene.tell([PoolEvent::Lost {
        key,
        pid: PID,
        cause,
        evidence: Evidence::default(),
    }]);
    scene.answer(Err("the backend is down".to_owned()));
    scene.answer(Err("the backend is still down".to_owned()));
    assert_eq!(scene.settled, [(1, Fate::Ack)]);
    assert!(scene.log().iter().any(|line| line.contains("still down")));
}

#[test]
fn a_task_over_its_hard_limit_fails_or_runs_again_when_it_is_dead() {
    let limits = |task| Options {
        lanes: lane(|lane| lane.time_limits.hard = TimeLimit::new(&5.into()).flatten()),
        ..options([("t", task)])
    };
    let mut scene = Scene::new(limits(late()), 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.tell([PoolEvent::HardTimeLimit { key, pid: PID }]);
    assert_eq!(scene.hooks, ["timed_out"]);
    scene.answer(Ok(Value::Null));
    assert_eq!(scene.settled, [(1, Fate::Ack)]);

    let again = TaskOptions {
        acks_on_timeout: false,
        ..late()
    };
    let mut scene = Scene::new(limits(again), 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.tell([PoolEvent::HardTimeLimit { key, pid: PID }]);
    assert_eq!(scene.settled, [], "its process may still work");
    let cause = LossCause::TimeLimit;
    scene.tell([PoolEvent::Lost {
        key,
        pid: PID,
        cause,
        evidence: Evidence::default(),
    }]);
    assert_eq!(scene.settled, [(1, Fate::Requeue)]);
    assert_eq!(scene.hooks, [""; 0]);
}

#[test]
fn what_is_not_to_run_does_not_reach_the_pool() {
    type Row = (Value, &'static str, Fate);
    let table: Vec<Row> = vec![
        (
            json!({"expires": "2025-12-31T23:59:59Z"}),
            "task_revoked",
            Fate::Ack,
        ),
        (
            json!({"task": "nobody.knows"}),
            "task_unknown",
            Fate::Reject,
        ),
        (json!({"id": null}), "task_rejected", Fate::Reject),
    ];
    for (headers, hook, fate) in table {
        let mut scene = Scene::with(early());
        scene.deliver(1, headers.clone());
        assert_eq!(scene.hooks, [hook], "{headers}");
        while !scene.awaited.is_empty() {
            assert_eq!(scene.settled, [], "the hook comes first");
            scene.answer(Ok(Value::Null));
        }
        assert_eq!(scene.settled, [(1, fate)], "{headers}");
        assert!(scene.jobs.is_empty());
    }
}

#[test]
fn content_that_is_not_accepted_is_rejected_unopened() {
    let mut scene = Scene::with(early());
    let mut pickled = message(r#"{"task": "t", "id": "1"}"#, "cos\nsystem\n");
    pickled.content_type = Some("application/x-python-serialize".into());
    scene.deliver_message(1, pickled);
    assert_eq!(scene.settled, [(1, Fate::Reject)]);
    assert!(scene.jobs.is_empty());
    assert!(
        scene
            .log()
            .iter()
            .any(|line| line.contains("untrusted content of type pickle"))
    );
}

#[test]
fn an_eta_holds_a_task_and_leaves_the_pool_free() {
    let mut scene = Scene::with(early());
    scene.deliver(1, json!({"eta": at(10)}));
    assert!(scene.jobs.is_empty());
    assert_eq!(scene.core.want(0, scene.free).runnable, 1);
    scene.deliver(2, json!({}));
    assert_eq!(scene.jobs.len(), 1, "the one behind runs");
    let key = scene.begin();
    scene.finish(key, success());
    scene.pass(9 * SECOND);
    assert!(scene.jobs.is_empty());
    assert_eq!(scene.core.next_tick(scene.now), Some(SECOND));
    scene.pass(SECOND);
    assert_eq!(scene.jobs.len(), 1);
}

#[test]
fn a_task_that_expires_while_it_waits_does_not_run() {
    let mut scene = Scene::with(early());
    scene.deliver(1, json!({"eta": at(10), "expires": at(5)}));
    scene.pass(10 * SECOND);
    assert!(scene.jobs.is_empty());
    assert_eq!(scene.hooks, ["task_revoked"]);
}

#[test]
fn a_rate_limit_spaces_tasks_and_bounds_what_is_fetched() {
    let mut scene = Scene::new(limited("1/s"), 10);
    for tag in 1..=5 {
        scene.deliver(tag, json!({}));
    }
    assert_eq!(scene.jobs.len(), 1);
    assert_eq!(
        scene.core.want(0, scene.free),
        Want::NONE,
        "four wait: that is enough"
    );
    scene.pass(SECOND);
    assert_eq!(scene.jobs.len(), 2);
    assert_ne!(scene.core.want(0, scene.free), Want::NONE);
}

#[test]
fn no_more_is_wanted_than_can_run() {
    let mut scene = Scene::new(options([("t", early())]), 2);
    assert_eq!(scene.core.want(0, 2).runnable, 2);
    scene.deliver(1, json!({}));
    assert_eq!(scene.core.want(0, scene.free).runnable, 1);
    scene.deliver(2, json!({}));
    assert_eq!(scene.core.want(0, scene.free), Want::NONE);
}

#[test]
fn what_waits_too_long_for_a_process_goes_back_to_the_queue() {
    let mut scene = Scene::with(early());
    scene.free = 0;
    scene.deliver(1, json!({}));
    scene.pass(SECOND / 10);
    assert_eq!(scene.settled, []);
    scene.pass(SECOND / 10);
    assert_eq!(scene.settled, [(1, Fate::Release)]);
}

#[test]
fn what_a_process_gives_back_runs_elsewhere() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.jobs[0].key;
    scene.tell([PoolEvent::Returned { key }]);
    assert_eq!(
        scene.jobs.len(),
        1,
        "the pool has room, so it gets it again"
    );
    assert_eq!(scene.settled, []);
}

#[test]
fn a_warm_shutdown_finishes_what_runs_and_gives_back_the_rest() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.deliver(2, json!({"eta": at(60)}));
    scene.core.signalled(Signal::Terminate, scene.now);
    scene.look();
    assert_eq!(scene.settled, [(2, Fate::Release)]);
    assert!(scene.others.contains(&Effect::ClosePools));
    scene.deliver(3, json!({}));
    assert_eq!(
        scene.settled.last(),
        Some(&(3, Fate::Release)),
        "it was under way"
    );
    assert_eq!(scene.core.want(0, 1), Want::NONE);
    scene.finish(key, success());
    assert_eq!(scene.settled.last(), Some(&(1, Fate::Ack)));
    assert!(!scene.core.is_done());
    scene.tell([PoolEvent::Closed]);
    assert!(scene.core.is_done());
}

#[test]
fn a_cold_shutdown_gives_back_what_was_to_be_acknowledged_late() {
    let mut scene = killed_by_a_cold_shutdown();
    scene.answer(Ok(Value::Bool(false)));
    assert_eq!(scene.settled, [], "the task's end is announced first");
    assert!(!scene.core.is_done());
    scene.answer(Ok(Value::Null));
    assert_eq!(scene.settled, [(1, Fate::Requeue)]);
    assert!(scene.core.is_done());
}

#[test]
fn what_had_succeeded_when_a_cold_shutdown_killed_it_does_not_run_again() {
    let mut scene = killed_by_a_cold_shutdown();
    scene.answer(Ok(Value::Bool(true)));
    assert_eq!(scene.settled, [(1, Fate::Ack)]);
    assert!(!scene.hooks.contains(&"cancelled"));
    assert!(scene.core.is_done());
}

/// What is acknowledged early, and was never read by its process: nobody else can run it.
fn acknowledged_and_unread() -> Scene {
    let mut scene = Scene::with(early());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.tell([PoolEvent::Lost {
        key,
        pid: PID,
        cause: LossCause::Unread,
        evidence: Evidence::default(),
    }]);
    assert_eq!(scene.settled, [(1, Fate::Ack)]);
    assert_eq!(scene.jobs.len(), 1, "it is to begin in another process");
    scene
}

#[test]
fn what_is_acknowledged_is_kept_when_the_pool_gives_it_back() {
    let mut scene = acknowledged_and_unread();
    let key = scene.jobs[0].key;
    scene.tell([PoolEvent::Returned { key }]);
    assert_eq!(scene.jobs.len(), 1);
}

#[test]
fn what_is_acknowledged_and_cannot_begin_any_more_has_failed() {
    let mut scene = acknowledged_and_unread();
    let key = scene.jobs[0].key;
    scene.core.signalled(Signal::Terminate, scene.now);
    scene.tell([PoolEvent::Returned { key }, PoolEvent::Closed]);
    assert!(!scene.core.is_done());
    scene.answer(Ok(Value::Bool(false)));
    scene.answer(Ok(Value::Null));
    assert_eq!(scene.hooks.last(), Some(&"lost"));
    assert!(scene.core.is_done());
}

fn killed_by_a_cold_shutdown() -> Scene {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.core.signalled(Signal::Quit, scene.now);
    scene.look();
    assert!(scene.others.contains(&Effect::KillPools));
    let cause = LossCause::Terminated;
    scene.tell([
        PoolEvent::Lost {
            key,
            pid: PID,
            cause,
            evidence: Evidence::default(),
        },
        PoolEvent::Closed,
    ]);
    scene
}

#[test]
fn a_soft_shutdown_waits_for_as_long_as_it_may() {
    let soft = Options {
        soft_shutdown_timeout: 5 * SECOND,
        ..options([("t", late())])
    };
    let mut scene = Scene::new(soft, 1);
    scene.deliver(1, json!({}));
    scene.begin();
    scene.core.signalled(Signal::Quit, scene.now);
    scene.look();
    assert!(!scene.others.contains(&Effect::KillPools));
    assert_eq!(scene.core.next_tick(scene.now), Some(5 * SECOND));
    scene.pass(5 * SECOND);
    assert!(scene.others.contains(&Effect::KillPools));
}

#[test]
fn a_lease_that_is_lost_is_nobodys_to_settle() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    scene.deliver(2, json!({"eta": at(60)}));
    let key = scene.begin();
    let tags = [1, 2].map(celeriac_core::broker::DeliveryTag);
    scene.core.leases_lost(&tags);
    scene.finish(key, success());
    scene.pass(60 * SECOND);
    assert_eq!(scene.settled, []);
    assert!(
        scene.jobs.is_empty(),
        "another worker runs what had not begun"
    );
}

#[test]
fn a_lost_connection_takes_along_what_its_tags_named() {
    for outlives in [true, false] {
        let connected = Options {
            tags_outlive_connections: outlives,
            ..options([("t", late())])
        };
        let mut scene = Scene::new(connected, 1);
        scene.deliver(1, json!({}));
        let key = scene.begin();
        scene.deliver(2, json!({"eta": at(60)}));
        scene.core.disconnected(0);
        assert_eq!(scene.core.want(0, 1), Want::NONE);
        scene.finish(key, success());
        scene.pass(60 * SECOND);
        let expected: &[(u64, Fate)] = if outlives { &[(1, Fate::Ack)] } else { &[] };
        assert_eq!(scene.settled, expected);
        assert_eq!(scene.jobs.len(), usize::from(outlives));
    }
}

#[test]
fn tasks_that_a_lost_connection_would_repeat_are_cancelled_on_demand() {
    let cancels = Options {
        cancel_on_connection_loss: true,
        tags_outlive_connections: false,
        ..options([("t", late())])
    };
    let mut scene = Scene::new(cancels, 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.core.disconnected(0);
    scene.look();
    assert_eq!(scene.others, [Effect::Terminate(0, key, 15)]);
}

#[test]
fn what_waits_too_long_is_given_back_from_behind_tasks_whose_eta_has_come() {
    let mut scene = Scene::new(options([("t", late())]), 0);
    for tag in 1..4 {
        scene.deliver(tag, json!({"eta": at(1)}));
    }
    scene.pass(Duration::from_secs(1));
    scene.deliver(4, json!({}));
    for waited in [150, 100] {
        assert_eq!(scene.settled, []);
        scene.pass(Duration::from_millis(waited));
    }
    assert_eq!(scene.settled, [(4, Fate::Release)]);
    scene.deliver(5, json!({}));
    scene.pass(Duration::from_millis(199));
    assert_eq!(scene.settled.len(), 1);
    scene.pass(Duration::from_millis(1));
    assert_eq!(scene.settled.last(), Some(&(5, Fate::Release)));
}
