//! Nothing begins that somebody else may have been given.

use std::time::Duration;

use celeriac_core::broker::DeliveryTag;
use celeriac_core::pool::PoolEvent;
use serde_json::json;

use super::life::{late, success};
use super::scene::{Scene, at};

const SECOND: Duration = Duration::from_secs(1);

/// A task whose ETA is in 5 s, in a worker that was stopped or out of reach for 11 s of its lease
/// of 10 s.
fn woken() -> Scene {
    let mut scene = Scene::with(late());
    let until = scene.now.monotonic + 10 * SECOND;
    scene.core.leased(0, Some(until), &[scene.free], scene.now);
    scene.deliver(1, json!({"eta": at(5)}));
    scene.pass(11 * SECOND);
    assert!(scene.jobs.is_empty());
    scene
}

#[test]
fn what_was_given_to_another_worker_does_not_begin() {
    let mut scene = woken();
    scene.core.leases_lost(&[DeliveryTag(1)]);
    let until = scene.now.monotonic + 10 * SECOND;
    scene.core.leased(0, Some(until), &[scene.free], scene.now);
    scene.look();
    assert!(scene.jobs.is_empty());
    assert_eq!(scene.settled, []);
}

#[test]
fn what_is_still_its_own_begins_as_soon_as_that_is_known() {
    let mut scene = woken();
    let until = scene.now.monotonic + 10 * SECOND;
    scene.core.leased(0, Some(until), &[scene.free], scene.now);
    scene.look();
    assert_eq!(scene.jobs.len(), 1);
}

#[test]
fn what_no_lease_binds_begins_at_once() {
    let mut scene = woken();
    scene.core.leased(0, None, &[scene.free], scene.now);
    scene.look();
    assert_eq!(scene.jobs.len(), 1);
}

#[test]
fn what_runs_goes_on_without_a_lease() {
    let mut scene = Scene::with(late());
    scene.deliver(1, json!({}));
    let key = scene.begin();
    scene
        .core
        .leased(0, Some(scene.now.monotonic), &[0], scene.now);
    scene.pass(SECOND);
    let outcome = success();
    scene.tell([PoolEvent::Finished { key, outcome }]);
    assert_eq!(scene.settled.len(), 1);
}
