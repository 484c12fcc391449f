//! Limits of memory, and what is done when there is too little.

use celeriac_core::pool::{ShortOf, Shortage};

use super::super::memory::LOOK_INTERVAL;
use super::*;

const SHORTAGE: Shortage = Shortage {
    of: ShortOf::Machine,
    available: 1,
    total: 100,
};

fn world() -> World {
    let limits = Limits {
        memory: MEMORY,
        ..LIMITS
    };
    let mut world = World::new(1, limits);
    world.submit(job(1));
    world.told();
    world.done();
    world
}

fn holds(world: &mut World, number: u32, held: u64) {
    world.machine.memory(number, held, world.now);
    world.settle();
}

fn too_much(pid: u32, resident: u64, limit: u64, killed: Option<u64>) -> PoolEvent {
    PoolEvent::TooMuchMemory {
        pid,
        resident,
        limit,
        killed: killed.map(RequestKey),
    }
}

fn killed(number: u32) -> Action {
    Action::Kill {
        number,
        kill: Kill::KillGroup,
    }
}

#[test]
fn the_soft_limit_raises_once_and_the_child_is_replaced_after_its_task() {
    let mut world = world();
    let raised = Action::SoftLimit {
        number: 1,
        key: RequestKey(1),
        limit: SoftLimit::Memory,
    };
    let told = PoolEvent::SoftMemoryLimit {
        key: RequestKey(1),
        resident: 501,
        limit: 500,
    };
    holds(&mut world, 1, 500);
    assert_eq!((world.told(), world.done()), (vec![], vec![]));
    holds(&mut world, 1, 501);
    assert_eq!(world.told(), [told, too_much(1001, 501, 500, None)]);
    assert!(world.done().contains(&raised));
    holds(&mut world, 1, 700);
    assert_eq!(world.told(), [], "once");
    // What is left of it is not held against the next task.
    world.finish(1);
    assert_eq!(world.told(), [finished(1), PoolEvent::Up { pid: 1002 }]);
}

#[test]
fn who_does_not_heed_an_operators_signal_has_its_limits() {
    let mut world = world();
    world.machine.terminate(RequestKey(1), 1, world.now);
    world.settle();
    assert!(!world.done().contains(&killed(1)));
    holds(&mut world, 1, 10 * MEMORY.hard.unwrap());
    assert!(world.done().contains(&killed(1)));
}

#[test]
fn a_child_over_celerys_limit_is_replaced_after_its_task() {
    let mut world = world();
    world.machine.limits.memory.soft = None;
    holds(&mut world, 1, 1500);
    assert_eq!(world.told(), [too_much(1001, 1500, 1000, None)]);
    let done = world.done();
    assert!(
        !done
            .iter()
            .any(|action| matches!(action, Action::Kill { .. })),
        "the job may end"
    );
    world.finish(1);
    assert_eq!(world.told(), [finished(1), PoolEvent::Up { pid: 1002 }]);
    // What it held between two looks is told when it is done.
    world.submit(job(2));
    world.told();
    let (key, _) = world.channels.get_mut(&2).unwrap().pop_front().unwrap();
    world.machine.done(2, key, success(), Some(1001), world.now);
    world.settle();
    let told = [
        finished(2),
        too_much(1002, 1001, 1000, None),
        PoolEvent::Up { pid: 1003 },
    ];
    assert_eq!(world.told(), told);
}

#[test]
fn a_child_over_the_hard_limit_is_ended_with_its_group() {
    let mut world = world();
    holds(&mut world, 1, 2001);
    assert!(world.done().contains(&killed(1)));
    assert!(world.machine.is_freeing());
    world.exit(1, ExitStatus::Signal(9));
    assert!(!world.machine.is_freeing());
    let cause = LossCause::Memory {
        resident: 2001,
        limit: 2000,
    };
    let lost = PoolEvent::Lost {
        key: RequestKey(1),
        pid: 1001,
        cause,
        evidence: Evidence {
            peak: Some(2001),
            ..left_by(ExitStatus::Signal(9), ms(0))
        },
    };
    let told = world.told();
    assert_eq!(told[0], too_much(1001, 2001, 2000, Some(1)));
    assert!(told.contains(&lost), "{told:?}");
    let died = |event: &PoolEvent| matches!(event, PoolEvent::Died { .. });
    assert!(!told.iter().any(died));
}

#[test]
fn what_grows_fast_is_looked_at_again_soon() {
    let mut world = world();
    assert_eq!(world.machine.look_interval(), LOOK_INTERVAL);
    assert_eq!(world.machine.least_limit(), 500);
    holds(&mut world, 1, 100);
    assert_eq!(world.machine.look_interval(), LOOK_INTERVAL);
    world.advance(ms(100));
    holds(&mut world, 1, 300);
    assert_eq!(
        world.machine.look_interval(),
        ms(50),
        "of 100 ms to the soft limit"
    );
    world.advance(ms(50));
    holds(&mut world, 1, 600);
    let waits = world.machine.look_interval();
    assert_eq!(waits, LOOK_INTERVAL, "of 233 ms to the hard one");
    world.finish(1);
    assert_eq!(world.machine.look_interval(), LOOK_INTERVAL);
}

#[test]
fn while_memory_is_short_no_children_are_started() {
    let mut world = World::new(3, LIMITS);
    world.submit(job(1));
    world.told();
    world.machine.pressure(Some(SHORTAGE), world.now);
    world.machine.pressure(Some(SHORTAGE), world.now);
    world.settle();
    assert_eq!(world.told(), [PoolEvent::Pressure(Some(SHORTAGE))]);
    world.exit(2, ExitStatus::Signal(9));
    assert_eq!(world.machine.processes().len(), 2, "not replaced");
    world.exit(3, ExitStatus::Signal(9));
    world.exit(1, ExitStatus::Signal(9));
    assert_eq!(world.machine.processes().len(), 1, "one there is always");
    world.told();
    world.machine.pressure(None, world.now);
    world.settle();
    assert_eq!(world.told()[0], PoolEvent::Pressure(None));
    assert_eq!(world.machine.processes().len(), 3);
}

#[test]
fn the_child_that_holds_the_most_is_ended_alone() {
    // What the children hold, the least of use, and which of them is ended.
    let table: [(&[u64], u64, Option<u32>); 5] = [
        (&[10, 900, 500], 0, Some(2)),
        (&[10, 900, 500], 900, Some(2)),
        (&[10, 900, 500], 901, None),
        (&[2000, 900, 500], 100, Some(1)),
        (&[], 0, None),
    ];
    for (held, at_least, expected) in table {
        let mut world = World::new(3, LIMITS);
        for key in 1..=3 {
            world.submit(job(key));
        }
        let held: Vec<(u32, u64)> = (1..).zip(held.iter().copied()).collect();
        world.done();
        world.machine.end_largest(&held, at_least, SHORTAGE);
        world.settle();
        let ended: Vec<Action> = expected.map(killed).into_iter().collect();
        let mut done = world.done();
        done.retain(|action| matches!(action, Action::Kill { .. }));
        assert_eq!(done, ended, "{held:?} {at_least}");
        assert_eq!(world.machine.is_freeing(), expected.is_some());
        let Some(number) = expected else { continue };
        // It is not ended twice, and the next in line waits for its memory.
        world
            .machine
            .end_largest(&held[number as usize - 1..][..1], 0, SHORTAGE);
        world.settle();
        world.told();
        world.exit(number, ExitStatus::Signal(9));
        let resident = held[number as usize - 1].1;
        let shortage = SHORTAGE;
        let told = world.told();
        let is_lost = told.iter().any(|event| {
            matches!(event, PoolEvent::Lost { cause, evidence, .. }
                if *cause == LossCause::Pressure { resident, shortage }
                    && evidence.peak == Some(resident))
        });
        assert!(is_lost, "{told:?}");
    }
}
