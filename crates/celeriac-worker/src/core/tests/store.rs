//! Messages that come later, and those that nothing can be done with.

use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::Evidence;
use celeriac_core::broker::{Delay, Delayed, Delivery, DeliveryTag, Fate, Unreadable};
use celeriac_core::dead_letter::{Cause, Content, DeadLetter};
use celeriac_core::pool::{ExitStatus, Failure, LossCause, Outcome, PoolEvent};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::life::{late, success};
use super::remote::{ask, replies};
use super::scene::{PID, START, Scene, at, message, options};
use crate::core::{Effect, Options, StoreOptions};

const SECOND: Duration = Duration::from_secs(1);

fn with_store(task: TaskOptions) -> Options {
    Options {
        store: Some(StoreOptions {
            max_deaths: Some(3),
            unknown_grace: Duration::from_mins(1),
        }),
        ..options([("t", task)])
    }
}

fn scene(task: TaskOptions) -> Scene {
    Scene::new(with_store(task), 1)
}

fn requeuing() -> TaskOptions {
    TaskOptions {
        reject_on_worker_lost: true,
        ignore_result: true,
        ..late()
    }
}

fn delayed(fate: Fate) -> Delay {
    match fate {
        Fate::Delay(delay) => delay,
        other => panic!("{other:?} is no delay"),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as a delay has it")]
fn after(seconds: i64) -> Option<Timestamp> {
    let start: Timestamp = START.parse().unwrap();
    Some(start + jiff::SignedDuration::from_secs(seconds))
}

/// The dead letters so far.
fn letters(scene: &Scene) -> Vec<DeadLetter> {
    let letters = scene.others.iter().filter_map(|effect| match effect {
        Effect::Bury(burial) => Some(burial.letter.clone()),
        _ => None,
    });
    letters.collect()
}

/// The running task's process dies.
fn kill(scene: &mut Scene, status: ExitStatus) {
    let key = scene.begin();
    scene.tell([PoolEvent::Lost {
        key,
        pid: PID,
        cause: LossCause::Died(status),
        evidence: Evidence {
            peak: Some(1234),
            log: vec!["last words".to_owned()],
            ..Evidence::of(status)
        },
    }]);
}

#[test]
fn what_has_a_far_eta_is_stored_and_told_of_once() {
    let mut scene = scene(late());
    scene.deliver(1, json!({"eta": at(60)}));
    let [(1, fate)] = scene.settled[..] else {
        panic!("{:?}", scene.settled)
    };
    let Delay { until, marks } = delayed(fate);
    assert_eq!(until, after(60));
    assert!(marks.told);
    let received = |scene: &Scene| {
        let is_received = |line: &&String| line.contains("received");
        scene.log().iter().filter(is_received).count()
    };
    assert_eq!(received(&scene), 1);
    // It comes again in its time, perhaps a little early.
    scene.pass(59 * SECOND);
    scene.deliver(
        2,
        json!({"id": "id-1", "eta": at(60), "celeriac": {"told": true}}),
    );
    assert_eq!(scene.jobs.len(), 0);
    scene.pass(SECOND);
    let key = scene.begin();
    scene.finish(key, success());
    assert_eq!(scene.settled[1..], [(2, Fate::Ack)]);
    assert_eq!(received(&scene), 1);
}

#[test]
fn what_comes_soon_is_held() {
    let mut scene = scene(late());
    scene.deliver(1, json!({"eta": at(2)}));
    assert_eq!(scene.settled, []);
    scene.pass(2 * SECOND);
    assert_eq!(scene.jobs.len(), 1);
}

#[test]
fn without_a_store_it_is_held_as_well() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({"eta": at(60)}));
    assert_eq!(scene.settled, []);
}

#[test]
fn a_task_that_kills_its_process_is_a_dead_letter_after_three_attempts() {
    let mut scene = scene(requeuing());
    scene.deliver(1, json!({}));
    kill(&mut scene, ExitStatus::Signal(11));
    let first = delayed(scene.settled[0].1);
    assert_eq!((first.until, first.marks.deaths), (None, 1));
    scene.deliver(2, json!({"id": "id-1", "celeriac": {"deaths": 1}}));
    assert!(scene.jobs[0].request.contains(r#""redelivered": true"#));
    kill(&mut scene, ExitStatus::Signal(11));
    let second = delayed(scene.settled[1].1);
    assert_eq!((second.until, second.marks.deaths), (after(1), 2));
    assert_eq!(letters(&scene), []);

    scene.deliver(3, json!({"id": "id-1", "celeriac": {"deaths": 2}}));
    kill(&mut scene, ExitStatus::Signal(11));
    let [letter] = &letters(&scene)[..] else {
        panic!("it is buried once")
    };
    assert_eq!((letter.cause, letter.attempts), (Cause::Killed, 3));
    assert_eq!((&*letter.id, letter.task.as_deref()), ("id-1", Some("t")));
    assert_eq!(letter.remains.signal, Some(11));
    assert_eq!(letter.remains.peak_memory, Some(1234));
    assert_eq!(letter.remains.log, ["last words"]);
    let Content::Envelope(text) = &letter.message else {
        panic!("it was a message")
    };
    assert!(!text.contains("deaths"), "{text}");
    assert_eq!(scene.hooks.last(), Some(&"lost"), "it has failed");
    assert_eq!(scene.settled.len(), 2, "its message waits for the hook");
    scene.answer(Ok(Value::Null));
    assert_eq!(scene.settled[2], (3, Fate::Ack));
}

#[test]
fn what_does_not_run_again_is_a_dead_letter_at_once() {
    for task in [late(), TaskOptions::default()] {
        let mut scene = scene(TaskOptions {
            ignore_result: true,
            ..task
        });
        scene.deliver(1, json!({}));
        kill(&mut scene, ExitStatus::Code(7));
        let [letter] = &letters(&scene)[..] else {
            panic!("it is buried once")
        };
        assert_eq!((letter.cause, letter.attempts), (Cause::Exited, 1));
        assert_eq!(letter.remains.exit_code, Some(7));
    }
}

#[test]
fn what_has_killed_its_workers_does_not_run_again() {
    let mut scene = scene(late());
    scene.deliver(1, json!({"celeriac": {"deaths": 3}}));
    assert_eq!(scene.jobs.len(), 0);
    // Had it succeeded when the last of them died?
    scene.answer(Ok(Value::Bool(false)));
    let [letter] = &letters(&scene)[..] else {
        panic!("it is buried once")
    };
    assert_eq!((letter.cause, letter.attempts), (Cause::WorkerLost, 3));
    scene.answer(Ok(Value::Null));
    assert_eq!(scene.settled, [(1, Fate::Ack)]);
}

#[test]
fn what_had_succeeded_when_its_last_worker_died_is_no_dead_letter() {
    let mut scene = scene(late());
    scene.deliver(1, json!({"celeriac": {"deaths": 3}}));
    scene.answer(Ok(Value::Bool(true)));
    assert!(letters(&scene).is_empty());
    assert_eq!(scene.settled, [(1, Fate::Ack)]);
}

#[test]
fn a_task_that_nobody_knows_has_a_minute() {
    let mut scene = scene(late());
    scene.deliver(1, json!({"task": "new"}));
    let Delay { until, marks } = delayed(scene.settled[0].1);
    assert_eq!(until, after(1));
    let since = marks.unknown_since.unwrap();
    assert_eq!(Some(since), after(0).map(Timestamp::as_second));
    assert!(
        scene
            .log()
            .iter()
            .any(|line| line.contains("kept for 60 s"))
    );
    let lines = scene.log().len();

    scene.pass(59 * SECOND);
    let known = json!({"task": "new", "celeriac": {"unknown_since": since}});
    scene.deliver(2, known.clone());
    assert_eq!(delayed(scene.settled[1].1).until, after(60));
    assert_eq!(scene.log().len(), lines, "it is told of once");
    assert_eq!((letters(&scene), scene.hooks.len()), (Vec::new(), 0));

    scene.pass(SECOND);
    scene.deliver(3, known);
    assert_eq!(letters(&scene)[0].cause, Cause::UnknownTask);
    assert_eq!(scene.hooks, ["task_unknown"]);
    scene.answer(Ok(Value::Null));
    assert_eq!(scene.settled[2], (3, Fate::Reject));
}

#[test]
fn what_can_not_be_read_is_a_dead_letter() {
    let mut scene = scene(late());
    let raw = bytes::Bytes::from_static(b"\xff rubbish");
    let reason = "no UTF-8".to_owned();
    let unreadable = Delivery {
        tag: DeliveryTag(1),
        queue: "celery".into(),
        message: Err(Unreadable { reason, raw }),
    };
    scene.core.delivered(0, vec![unreadable], &[1], scene.now);
    scene.look();
    scene.deliver_message(2, message(r#"{"x": 1}"#, "[]"));
    scene.deliver_message(3, message("{}", "no JSON"));
    scene.deliver(4, json!({"eta": "soon"}));
    let causes: Vec<Cause> = letters(&scene).iter().map(|letter| letter.cause).collect();
    assert_eq!(
        causes,
        [
            Cause::Undecodable,
            Cause::Invalid,
            Cause::Undecodable,
            Cause::Invalid
        ]
    );
    let back = letters(&scene)[0].message.bytes();
    assert_eq!(&back[..], b"\xff rubbish");
    let fates: Vec<Fate> = scene.settled.iter().map(|(_, fate)| *fate).collect();
    assert_eq!(fates, [Fate::Ack, Fate::Reject, Fate::Ack, Fate::Reject]);
}

#[test]
fn what_its_task_rejects_is_a_dead_letter() {
    let mut scene = scene(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    let failure = Failure {
        exception: "Reject('no', requeue=False)".to_owned(),
        ..Failure::default()
    };
    let requeue = false;
    scene.finish(key, Outcome::Reject { requeue, failure });
    let letter = &letters(&scene)[0];
    assert_eq!(letter.cause, Cause::Rejected);
    assert_eq!(letter.reason, "Reject('no', requeue=False)");
}

#[test]
fn a_listing_holds_what_is_here_and_what_is_stored() {
    let mut scene = scene(late());
    scene.deliver(1, json!({"eta": at(1)}));
    assert_eq!(ask(&mut scene, "scheduled", &json!({})), None);
    let token = scene.others.iter().find_map(|effect| match effect {
        Effect::ReadDelayed(_, token, count) => Some((*token, *count)),
        _ => None,
    });
    let (token, count) = token.expect("the broker is asked");
    assert_eq!(count, 1000);
    let stored = Delayed {
        until: after(99).unwrap(),
        queue: "celery".into(),
        message: message(r#"{"task": "t", "id": "far"}"#, "[[], {}, {}]"),
    };
    scene.core.delayed_read(token, Ok(vec![stored]));
    let reply = replies(&mut scene).pop().expect("a reply");
    let ids: Vec<&Value> = reply
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["request"]["id"])
        .collect();
    assert_eq!(ids, ["id-1", "far"]);
}
