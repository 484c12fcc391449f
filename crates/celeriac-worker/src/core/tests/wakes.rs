//! When the core wants to be told what time it is.

use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::broker::Fate;
use serde_json::json;

use super::scene::{Scene, at, lane, options};
use crate::autoscale::Autoscale;
use crate::core::Options;
use crate::shutdown::Signal;

const SECOND: Duration = Duration::from_secs(1);

impl Scene {
    /// Lets time pass as the worker does: from one wish to be woken to the next, so many times at
    /// most. Answers with how often the core was woken.
    fn sleep(&mut self, time: Duration, most: usize) -> usize {
        let until = self.now.monotonic + time;
        for woken in 0..most {
            let left = until.saturating_sub(self.now.monotonic);
            match self.core.next_tick(self.now).filter(|tick| *tick <= left) {
                Some(tick) => self.pass(tick),
                None => return woken,
            }
        }
        most
    }
}

#[test]
fn what_waits_behind_a_task_whose_eta_has_come_goes_back_in_time() {
    let mut scene = Scene::new(options([("t", TaskOptions::default())]), 0);
    scene.deliver(1, json!({"eta": at(1)}));
    scene.pass(SECOND);
    scene.deliver(2, json!({}));
    // The first is older and stays.
    scene.pass(SECOND / 10);
    let woken = scene.sleep(SECOND, 100);
    assert_eq!(scene.settled, [(2, Fate::Release)]);
    assert!(woken < 10, "it was woken {woken} times");
}

#[test]
fn a_worker_with_autoscale_that_shuts_down_sleeps_until_its_tasks_end() {
    let scaled = Options {
        lanes: lane(|lane| {
            lane.autoscale = Some(Autoscale::new(4, 1, Autoscale::KEEPALIVE));
        }),
        ..options([("t", TaskOptions::default())])
    };
    let mut scene = Scene::new(scaled, 1);
    scene.deliver(1, json!({}));
    scene.begin();
    scene.core.signalled(Signal::Terminate, scene.now);
    scene.pass(2 * Autoscale::KEEPALIVE);
    let woken = scene.sleep(SECOND, 100);
    assert_eq!(woken, 0);
}
