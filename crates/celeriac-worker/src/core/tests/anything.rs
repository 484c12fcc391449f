//! Whatever happens, and in whatever order: every message is settled once, and nothing is left.

use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::Evidence;
use celeriac_core::broker::DeliveryTag;
use celeriac_core::limit::Answer as LimitAnswer;
use celeriac_core::pool::{ExitStatus, Failure, LossCause, Outcome, PoolEvent};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::limits::under;
use super::scene::{PID, Scene, at, limited, options};
use crate::core::{Effect, Options};
use crate::shutdown::{Deadline, Signal};

/// One thing that happens; numbers choose among what there is at that moment.
#[derive(Debug, Clone)]
enum Step {
    Deliver {
        eta: Option<u8>,
        expires: Option<u8>,
    },
    Begin(u8),
    Finish(u8, u8),
    Lose(u8),
    GiveBack(u8),
    HardLimit(u8),
    Answer(bool),
    Limits(u8),
    Wait(u16),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let some = || proptest::option::weighted(0.2, any::<u8>());
    prop_oneof![
        4 => (some(), some()).prop_map(|(eta, expires)| Step::Deliver { eta, expires }),
        4 => any::<u8>().prop_map(Step::Begin),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(which, how)| Step::Finish(which, how)),
        1 => any::<u8>().prop_map(Step::Lose),
        1 => any::<u8>().prop_map(Step::GiveBack),
        1 => any::<u8>().prop_map(Step::HardLimit),
        3 => any::<bool>().prop_map(Step::Answer),
        3 => any::<u8>().prop_map(Step::Limits),
        2 => any::<u16>().prop_map(Step::Wait),
        1 => Just(Step::Reconnect),
    ]
}

fn task() -> impl Strategy<Value = TaskOptions> {
    any::<[bool; 6]>().prop_map(
        |[late, failure, timeout, reject, retry, ignore]| TaskOptions {
            acks_late: late,
            acks_on_failure: failure,
            acks_on_timeout: timeout,
            reject_on_worker_lost: reject,
            retry_on_worker_lost: retry,
            ignore_result: ignore,
            time_limit: Some(100.into()),
            ..TaskOptions::default()
        },
    )
}

/// A pool that keeps its word: a job begins before it ends, and ends once.
struct World {
    scene: Scene,
    begun: Vec<celeriac_core::pool::RequestKey>,
    /// Over their hard limit: they can only be lost, or finish at the last moment.
    condemned: Vec<celeriac_core::pool::RequestKey>,
    delivered: u64,
    /// What the store of limits has granted.
    granted: Vec<celeriac_core::pool::RequestKey>,
}

/// One of the answers that a store of limits may give.
fn limits_answer(how: u8) -> Option<LimitAnswer> {
    let denied = |milliseconds| LimitAnswer::Denied {
        wait: Duration::from_millis(milliseconds),
        turn: Some(i64::from(how)),
    };
    match how % 8 {
        0 => None,
        1 => Some(denied(500)),
        2 => Some(denied(60_000)),
        3 => Some(LimitAnswer::Duplicate {
            of: "another".to_owned(),
        }),
        _ => Some(LimitAnswer::Granted),
    }
}

impl World {
    fn choose(from: &[celeriac_core::pool::RequestKey], which: u8) -> Option<usize> {
        (!from.is_empty()).then(|| usize::from(which) % from.len())
    }

    fn happen(&mut self, step: &Step) {
        match *step {
            Step::Deliver { eta, expires } => {
                if self.scene.core.want(0, self.scene.free).is_none() {
                    return;
                }
                self.delivered += 1;
                let mut headers = json!({});
                if let Some(eta) = eta {
                    headers["eta"] = at(eta).into();
                }
                if let Some(expires) = expires {
                    headers["expires"] = at(expires).into();
                }
                self.scene.deliver(self.delivered, headers);
            }
            Step::Begin(which) => {
                let begun = self.begun.clone();
                let waiting: Vec<_> = self.scene.jobs.iter().map(|job| job.key).collect();
                let waiting: Vec<_> = waiting
                    .into_iter()
                    .filter(|key| !begun.contains(key))
                    .collect();
                if let Some(at) = Self::choose(&waiting, which) {
                    let key = waiting[at];
                    self.begun.push(key);
                    self.scene.tell([PoolEvent::Started { key, pid: PID }]);
                }
            }
            Step::Finish(which, how) => self.finish(which, how),
            Step::Lose(which) => {
                if let Some(at) = Self::choose(&self.begun, which) {
                    let key = self.begun.remove(at);
                    let cause = if self.condemned.contains(&key) {
                        LossCause::TimeLimit
                    } else {
                        LossCause::Died(ExitStatus::Signal(9))
                    };
                    self.scene.tell([PoolEvent::Lost {
                        key,
                        pid: PID,
                        cause,
                        evidence: Evidence::default(),
                    }]);
                }
            }
            Step::GiveBack(which) => {
                let waiting: Vec<_> = self.scene.jobs.iter().map(|job| job.key).collect();
                let waiting: Vec<_> = waiting
                    .into_iter()
                    .filter(|key| !self.begun.contains(key))
                    .collect();
                if let Some(at) = Self::choose(&waiting, which) {
                    self.scene.tell([PoolEvent::Returned { key: waiting[at] }]);
                }
            }
            Step::HardLimit(which) => {
                if let Some(at) = Self::choose(&self.begun, which) {
                    let key = self.begun[at];
                    if !self.condemned.contains(&key) {
                        self.condemned.push(key);
                        self.scene
                            .tell([PoolEvent::HardTimeLimit { key, pid: PID }]);
                    }
                }
            }
            Step::Answer(is_well) => {
                if !self.scene.awaited.is_empty() {
                    let answer = if is_well {
                        Ok(Value::Bool(true))
                    } else {
                        Err("no".to_owned())
                    };
                    self.scene.answer(answer);
                }
            }
            Step::Limits(how) => {
                if let Some((key, _)) = self.scene.asked.first() {
                    let answer = limits_answer(how);
                    if answer == Some(LimitAnswer::Granted) {
                        self.granted.push(*key);
                    }
                    self.scene.answer_limits(answer);
                }
            }
            Step::Wait(milliseconds) => self.scene.pass(Duration::from_millis(milliseconds.into())),
            Step::Reconnect => {
                self.scene.core.disconnected(0);
                self.scene.look();
                {
                    let now = self.scene.now;
                    self.scene.core.connected(0, now);
                }
            }
        }
    }

    fn finish(&mut self, which: u8, how: u8) {
        let Some(at) = Self::choose(&self.begun, which) else {
            return;
        };
        let key = self.begun.remove(at);
        let failure = Failure::default();
        let outcome = match how % 8 {
            0 => Outcome::Failure(failure),
            1 => Outcome::Retry(failure),
            2 => Outcome::Ignore(failure),
            3 => Outcome::Reject {
                requeue: true,
                failure,
            },
            4 => Outcome::Reject {
                requeue: false,
                failure,
            },
            5 => Outcome::Raised(failure),
            6 => Outcome::Left { status: 1 },
            _ => Outcome::Success {
                runtime: None,
                result: String::new(),
            },
        };
        self.scene.finish(key, outcome);
    }

    /// Ends everything, as a pool and hooks do after a shutdown, whose deadline may be over.
    fn shut_down(&mut self, signal: Signal, after: Duration) {
        self.scene.core.signalled(signal, self.scene.now);
        self.scene.look();
        self.scene.pass(after);
        let is_cold = self.scene.others.contains(&Effect::KillPools);
        let begun = std::mem::take(&mut self.begun);
        for key in self.scene.running_keys() {
            let event = if !begun.contains(&key) {
                PoolEvent::Returned { key }
            } else if is_cold {
                let cause = LossCause::Terminated;
                PoolEvent::Lost {
                    key,
                    pid: PID,
                    cause,
                    evidence: Evidence::default(),
                }
            } else {
                let outcome = Outcome::Success {
                    runtime: None,
                    result: String::new(),
                };
                PoolEvent::Finished { key, outcome }
            };
            self.scene.tell([event]);
        }
        self.scene.tell([PoolEvent::Closed]);
        while !self.scene.awaited.is_empty() {
            self.scene.answer(Ok(Value::Bool(false)));
        }
    }
}

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(1))
}

/// Up to the moment at which the worker would leave everything.
fn after() -> impl Strategy<Value = Duration> {
    (0u64..11_000).prop_map(Duration::from_millis)
}

fn signal() -> impl Strategy<Value = Signal> {
    prop_oneof![Just(Signal::Terminate), Just(Signal::Quit)]
}

proptest! {
    #[test]
    fn every_message_is_settled_once(
        task in task(), is_limited in any::<bool>(), limits in any::<[bool; 2]>(),
        places in 1usize..4,
        steps in prop::collection::vec(step(), 0..120), signal in signal(),
        after in after(),
    ) {
        let [is_shared, has_store] = limits;
        let plain = if is_shared {
            let limits = json!({"t": {"concurrency": 2}});
            let unique = json!({"t": {"until": "start"}});
            under(&limits, &unique, task.clone())
        } else {
            options([("t", task.clone())])
        };
        let store = plain.store.filter(|_| has_store);
        let plain = Options {
            shutdown_deadline: Some(deadline()),
            store,
            ..plain
        };
        let options = if is_limited {
            Options { rate_limits: limited("2/s").rate_limits, ..plain }
        } else {
            plain
        };
        let scene = Scene::new(options, places);
        let mut world = World { scene, begun: Vec::new(), condemned: Vec::new(), delivered: 0, granted: Vec::new() };
        for step in &steps {
            world.happen(step);
            prop_assert!(world.scene.times_settled().values().all(|times| *times == 1));
        }
        world.shut_down(signal, after);
        let times = world.scene.times_settled();
        for tag in 1..=world.delivered {
            prop_assert_eq!(times.get(&tag), Some(&1), "message {}", tag);
        }
        prop_assert!(world.scene.core.is_done());
        for key in &world.granted {
            let given_back = world.scene.given_back.iter().any(|(of, holding, _)| {
                of == key && !holding.slots.is_empty()
            });
            prop_assert!(given_back, "{}", key);
        }
    }

    #[test]
    fn a_lost_lease_is_never_settled(
        task in task(), steps in prop::collection::vec(step(), 0..60),
        lost in prop::collection::vec(1u64..20, 0..10), signal in signal(),
        after in after(),
    ) {
        let options = Options { shutdown_deadline: Some(deadline()), ..options([("t", task)]) };
        let scene = Scene::new(options, 2);
        let mut world = World { scene, begun: Vec::new(), condemned: Vec::new(), delivered: 0, granted: Vec::new() };
        for step in &steps {
            world.happen(step);
        }
        let before = world.scene.times_settled();
        let lost: Vec<u64> = lost.into_iter().filter(|tag| !before.contains_key(tag)).collect();
        let tags: Vec<DeliveryTag> = lost.iter().copied().map(DeliveryTag).collect();
        world.scene.core.leases_lost(&tags);
        world.scene.look();
        world.shut_down(signal, after);
        let after = world.scene.times_settled();
        prop_assert!(lost.iter().all(|tag| !after.contains_key(tag)));
        prop_assert!(world.scene.core.is_done());
    }
}
