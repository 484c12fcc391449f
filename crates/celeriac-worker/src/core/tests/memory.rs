//! What the pool tells of memory.

use celeriac_config::TaskOptions;
use celeriac_core::Evidence;
use celeriac_core::broker::Want;
use celeriac_core::pool::{ExitStatus, LossCause, PoolEvent, RequestKey, ShortOf, Shortage};
use serde_json::json;

use super::scene::{PID, Scene, options};

const SHORTAGE: Shortage = Shortage {
    of: ShortOf::Cgroup,
    available: 1000,
    total: 500_000,
};

fn scene() -> Scene {
    Scene::new(options([("t", TaskOptions::default())]), 2)
}

#[test]
fn nothing_is_fetched_beside_a_task_while_memory_is_short() {
    let mut scene = scene();
    assert_eq!(scene.core.want(0, 2).runnable, 2);
    scene.tell([PoolEvent::Pressure(Some(SHORTAGE))]);
    assert_eq!(scene.core.want(0, 2).runnable, 1, "one at a time");
    let short = "Too little memory, no tasks are fetched while one runs: the cgroup has 1000 KiB of 500000 KiB left";
    assert_eq!(scene.log().last().map(String::as_str), Some(short));
    scene.deliver(1, json!({}));
    scene.begin();
    assert_eq!(scene.core.want(0, 1), Want::NONE);
    scene.tell([PoolEvent::Pressure(None)]);
    assert_ne!(scene.core.want(0, 1), Want::NONE);
    let enough = "There is enough memory again: tasks are fetched";
    assert!(scene.log().contains(&enough.to_owned()));
}

#[test]
fn a_task_that_holds_too_much_is_named() {
    let mut scene = scene();
    scene.deliver(1, json!({}));
    let key: RequestKey = scene.begin();
    scene.tell([PoolEvent::SoftMemoryLimit {
        key,
        resident: 600,
        limit: 500,
    }]);
    let log = scene.log();
    let is_told = |line: &String| line.starts_with("Soft memory limit (500KiB) exceeded for t[");
    assert!(log.iter().any(is_told), "{log:?}");
    scene.tell([PoolEvent::Lost {
        key,
        pid: PID,
        cause: LossCause::Pressure {
            resident: 9000,
            shortage: SHORTAGE,
        },
        evidence: Evidence::of(ExitStatus::Signal(9)),
    }]);
    let asked = format!("{:?}", scene.awaited);
    scene.answer(Ok(json!(null)));
    let lost = format!("{asked}{:?}", scene.awaited);
    assert!(
        lost.contains("killed for holding 9000 KiB of memory"),
        "{lost}"
    );
}
