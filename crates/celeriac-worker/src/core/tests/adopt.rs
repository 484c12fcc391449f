//! Connections that take their tags along, and messages that come again.

use std::time::Duration;

use celeriac_core::Evidence;
use celeriac_core::broker::Fate;
use celeriac_core::pool::{Failure, LossCause, Outcome, PoolEvent, RequestKey};
use serde_json::json;

use super::life::{late, success};
use super::scene::{PID, Scene, message, options};
use crate::core::Options;
use crate::shutdown::Signal;
use celeriac_config::TaskOptions;

/// The beginning of the tags of the second connection.
const SECOND: u64 = 1 << 40;

fn scene(task: TaskOptions, free: usize) -> Scene {
    let connected = Options {
        tags_outlive_connections: false,
        ..options([("t", task)])
    };
    Scene::new(connected, free)
}

fn reconnect(scene: &mut Scene) {
    scene.core.disconnected(0);
    scene.look();
    scene.core.connected(0, scene.now);
}

/// The message of `deliver(1, …)` comes over another connection.
fn comes_again(scene: &mut Scene, tag: u64, is_marked: bool) {
    let mut again = message(r#"{"task": "t", "id": "id-1"}"#, "[[], {}, {}]");
    again.delivery_info.redelivered = is_marked;
    scene.deliver_message(tag, again);
}

#[test]
fn a_task_that_runs_takes_over_the_copy_of_its_message() {
    for is_marked in [true, false] {
        let mut scene = scene(late(), 1);
        scene.deliver(1, json!({}));
        let key = scene.begin();
        reconnect(&mut scene);
        comes_again(&mut scene, SECOND, is_marked);
        assert_eq!((scene.jobs.len(), scene.settled.len()), (1, 0));
        scene.finish(key, success());
        assert_eq!(scene.settled, [(SECOND, Fate::Ack)]);
        // Lost once more: the broker may not have heard of it.
        reconnect(&mut scene);
        comes_again(&mut scene, 2 * SECOND, is_marked);
        assert_eq!(scene.settled.last(), Some(&(2 * SECOND, Fate::Ack)));
        assert_eq!(scene.jobs.len(), 0);
    }
}

#[test]
fn a_task_that_ended_meanwhile_does_not_run_again() {
    let mut scene = scene(late(), 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    reconnect(&mut scene);
    scene.finish(key, success());
    assert_eq!(scene.settled, [], "there is nobody to tell yet");
    comes_again(&mut scene, SECOND, true);
    assert_eq!(scene.settled, [(SECOND, Fate::Ack)]);
    assert_eq!(scene.jobs.len(), 0);
}

#[test]
fn an_acknowledgement_that_was_lost_on_its_way_is_given_again() {
    let mut scene = scene(TaskOptions::default(), 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    assert_eq!(scene.settled, [(1, Fate::Ack)]);
    reconnect(&mut scene);
    comes_again(&mut scene, SECOND, true);
    assert_eq!(scene.settled.last(), Some(&(SECOND, Fate::Ack)));
    scene.finish(key, success());
    assert_eq!(scene.settled.len(), 2);
}

#[test]
fn a_task_that_is_to_run_again_does() {
    let mut scene = scene(late(), 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    reconnect(&mut scene);
    let failure = Failure::default();
    let requeue = Outcome::Reject {
        requeue: true,
        failure,
    };
    scene.finish(key, requeue);
    comes_again(&mut scene, SECOND, true);
    assert_eq!((scene.jobs.len(), scene.settled.len()), (1, 0));
}

#[test]
fn other_messages_of_the_same_id_are_not_taken_for_it() {
    let other = |headers: &str, body: &str| {
        let mut scene = scene(late(), 1);
        scene.deliver(1, json!({}));
        let key = scene.begin();
        scene.finish(key, success());
        reconnect(&mut scene);
        let mut other = message(headers, body);
        other.delivery_info.redelivered = true;
        scene.deliver_message(SECOND, other);
        scene.jobs.len()
    };
    let body = "[[], {}, {}]";
    assert_eq!(other(r#"{"task": "t", "id": "id-1"}"#, body), 0);
    assert_eq!(
        other(r#"{"task": "t", "id": "id-1", "retries": 1}"#, body),
        1
    );
    assert_eq!(other(r#"{"task": "t", "id": "id-1"}"#, "[[2], {}, {}]"), 1);
    assert_eq!(other(r#"{"task": "t", "id": "id-2"}"#, body), 1);
}

#[test]
fn a_message_that_was_sent_twice_runs_twice_but_for_a_lost_connection() {
    let mut scene = scene(late(), 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.finish(key, success());
    // The same connection: somebody has sent it again.
    comes_again(&mut scene, 2, true);
    assert_eq!(scene.jobs.len(), 1);
    let key = scene.begin();
    scene.finish(key, success());
    // Another connection, but it is not marked, and it was long ago.
    reconnect(&mut scene);
    scene.pass(Duration::from_secs(61));
    comes_again(&mut scene, SECOND, false);
    assert_eq!(scene.jobs.len(), 1);
}

#[test]
fn a_task_that_runs_through_a_shutdown_takes_its_message_over_as_well() {
    let mut scene = scene(late(), 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    let now = scene.now;
    scene.core.signalled(Signal::Terminate, now);
    scene.look();
    reconnect(&mut scene);
    assert_eq!(scene.core.want(0, scene.free).runnable, 1);
    scene.deliver(SECOND, json!({}));
    assert_eq!(scene.settled, [], "it would be found again at once");
    comes_again(&mut scene, SECOND + 1, true);
    assert_eq!(scene.settled, [(SECOND, Fate::Release)]);
    scene.finish(key, success());
    assert_eq!(scene.settled.last(), Some(&(SECOND + 1, Fate::Ack)));
    scene.tell([PoolEvent::Closed]);
    assert!(scene.core.is_done());
}

#[test]
fn a_task_that_replaces_itself_is_another_one() {
    let mut scene = scene(late(), 1);
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene.finish(key, success());
    reconnect(&mut scene);
    let headers = r#"{"task": "t", "id": "id-1", "replaced_task_nesting": 1}"#;
    scene.deliver_message(SECOND, message(headers, "[[], {}, {}]"));
    assert_eq!(scene.jobs.len(), 1);
}

#[test]
fn messages_of_running_tasks_are_looked_for_beyond_what_can_run() {
    let mut scene = scene(late(), 1);
    scene.deliver(1, json!({}));
    scene.begin();
    assert_eq!(scene.core.want(0, scene.free).runnable, 0);
    reconnect(&mut scene);
    assert_eq!(scene.core.want(0, scene.free).runnable, 1);
    // Another one comes first: it is kept while the search goes on.
    scene.deliver(SECOND, json!({}));
    scene.pass(Duration::from_secs(1));
    assert_eq!(
        (scene.settled.len(), scene.core.want(0, scene.free).runnable),
        (0, 1)
    );
    comes_again(&mut scene, SECOND + 1, true);
    assert_eq!(scene.core.want(0, scene.free).runnable, 0);
    scene.pass(Duration::from_secs(1));
    assert_eq!(
        scene.settled,
        [(SECOND, Fate::Release)],
        "it can't run here"
    );
}

#[test]
fn what_had_not_begun_when_its_connection_was_lost_is_left_to_its_copy() {
    let began_and_was_not_read = |key| {
        let started = PoolEvent::Started { key, pid: PID };
        let cause = LossCause::Unread;
        vec![
            started,
            PoolEvent::Lost {
                key,
                pid: PID,
                cause,
                evidence: Evidence::default(),
            },
        ]
    };
    let came_back = |key| vec![PoolEvent::Returned { key }];
    let ways: [&dyn Fn(RequestKey) -> Vec<PoolEvent>; 2] = [&came_back, &began_and_was_not_read];
    for way in ways {
        let mut scene = scene(late(), 1);
        scene.deliver(1, json!({}));
        let key = scene.jobs[0].key;
        reconnect(&mut scene);
        scene.tell(way(key));
        assert_eq!((scene.jobs.len(), scene.settled.len()), (0, 0));
        comes_again(&mut scene, SECOND, true);
        assert_eq!(
            scene.jobs.len(),
            1,
            "another worker may have got it as well"
        );
    }
}
