//! Children that run many jobs at once live through anything in any order.

use super::shared::Shared;
use super::*;

/// Anything that may happen.
#[derive(Debug, Clone)]
enum Happens {
    Submit { soft: bool, hard: bool },
    Read,
    Finish(usize),
    EndAsTold(usize),
    Terminate(u64, i32),
    Dies(usize),
    Outgrows(usize),
    Restart,
    Resize(usize),
    Time(u64),
}

fn anything() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (any::<bool>(), any::<bool>()).prop_map(|(soft, hard)| Happens::Submit { soft, hard }),
        4 => Just(Happens::Read),
        4 => (0..8_usize).prop_map(Happens::Finish),
        2 => (0..8_usize).prop_map(Happens::EndAsTold),
        2 => (0..30_u64, prop_oneof![Just(9), Just(15), Just(SIGUSR1)])
            .prop_map(|(key, signal)| Happens::Terminate(key, signal)),
        1 => (0..3_usize).prop_map(Happens::Dies),
        1 => (0..3_usize).prop_map(Happens::Outgrows),
        1 => Just(Happens::Restart),
        1 => (1..9_usize).prop_map(Happens::Resize),
        4 => (1..3000_u64).prop_map(Happens::Time),
    ]
}

proptest! {
    #[test]
    fn every_job_comes_to_exactly_one_end(
        processes in 1..4_usize,
        size in 1..9_usize,
        most in prop_oneof![Just(None), (1..6_u64).prop_map(Some)],
        happens in prop::collection::vec(anything(), 0..80),
    ) {
        let limits = Limits { max_tasks_per_child: most, memory: MEMORY, ..LIMITS };
        let mut world = Shared::new(processes, size, limits);
        let mut submitted = 0;
        let mut events = Vec::new();
        for event in happens {
            let running: Vec<u64> =
                world.runs.values().flatten().map(|key| key.0).collect();
            let child = |at: usize, world: &Shared| {
                world.runs.keys().nth(at % world.runs.len().max(1)).copied()
            };
            match event {
                Happens::Submit { soft, hard } => {
                    submitted += 1;
                    let limit = |is_set: bool, limit| is_set.then_some(limit);
                    world.submit(limited(submitted, limit(soft, 0.5), limit(hard, 1.0)));
                }
                Happens::Read => world.read(),
                Happens::Finish(at) => {
                    if !running.is_empty() { world.finish(running[at % running.len()]); }
                }
                Happens::EndAsTold(at) => {
                    if !running.is_empty() { world.ends_as_told(running[at % running.len()]); }
                }
                Happens::Terminate(key, signal) => {
                    world.machine.terminate(RequestKey(key), signal, world.now);
                    world.settle();
                }
                Happens::Dies(at) => {
                    if let Some(number) = child(at, &world) {
                        world.exits(number, ExitStatus::Signal(11));
                        world.settle();
                    }
                }
                Happens::Outgrows(at) => {
                    if let Some(number) = child(at, &world) {
                        world.machine.memory(number, 1500, world.now);
                        world.settle();
                    }
                }
                Happens::Restart => {
                    world.machine.restart(world.now);
                    world.settle();
                }
                Happens::Resize(size) => {
                    world.machine.resize(size, world.now);
                    world.settle();
                }
                Happens::Time(millis) => world.advance(ms(millis)),
            }
            events.extend(world.told());
        }
        // Everything that still runs ends, and the pool closes.
        world.machine.close(world.now);
        world.settle();
        for _ in 0..3 {
            world.read();
            for key in world.runs.values().flatten().map(|key| key.0).collect::<Vec<_>>() {
                world.finish(key);
            }
            world.advance(ms(20_000));
        }
        events.extend(world.told());
        prop_assert_eq!(events.last(), Some(&PoolEvent::Closed));
        for key in 1..=submitted {
            let key = RequestKey(key);
            let count = |is: fn(&PoolEvent) -> Option<RequestKey>| {
                events.iter().filter(|event| is(event) == Some(key)).count()
            };
            let ends = count(|event| match event {
                PoolEvent::Finished { key, .. }
                | PoolEvent::Lost { key, .. }
                | PoolEvent::Returned { key } => Some(*key),
                _ => None,
            });
            prop_assert_eq!(ends, 1, "{:?}", key);
            let begins = count(|event| match event {
                PoolEvent::Started { key, .. } => Some(*key),
                _ => None,
            });
            let returns = count(|event| match event {
                PoolEvent::Returned { key } => Some(*key),
                _ => None,
            });
            prop_assert_eq!(begins + returns, 1, "{:?} begins or comes back", key);
        }
    }
}
