//! A worker with several pools: each has its own queues, room and connection.

use std::sync::Arc;
use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::broker::{Delivery, DeliveryTag, Fate, Settlement};
use celeriac_core::bus::{Destination, Heard, Kind, Outgoing};
use celeriac_core::clock::Now;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::pool::{Outcome, PoolEvent, RequestKey, ShortOf, Shortage};
use serde_json::{Value, json};

use super::scene::{START, lane, message, options};
use crate::control::mailbox::json_message;
use crate::core::{Consumed, Core, Effect, LaneOptions, Options};
use crate::shutdown::Signal;

struct Nowhere;

impl Journal for Nowhere {
    fn writes(&self, _: Level) -> bool {
        false
    }

    fn write(&self, _: Record) {}
}

/// Two lanes, `cpu` and `io`, with a pool for two jobs each.
struct Pair {
    core: Core,
    now: Now,
    free: [usize; 2],
    effects: Vec<Effect>,
}

impl Pair {
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        let named = |name: &str, consumes: &str, at| {
            let options = lane(|lane| lane.name = Some(name.to_owned())).remove(0);
            let queue = Consumed {
                name: consumes.to_owned(),
                info: json!({"name": consumes}),
                lane: at,
            };
            (options, queue)
        };
        let (lanes, queues): (Vec<LaneOptions>, Vec<Consumed>) =
            [named("cpu", "celery", 0), named("io", "io_bound", 1)]
                .into_iter()
                .unzip();
        let mut options = options([("t", TaskOptions::default()), ("r", TaskOptions::default())]);
        options.lanes = lanes;
        options.remote.queues = queues;
        options.remote.mingles = false;
        change(&mut options);
        let now = Now {
            wall: START.parse().unwrap(),
            monotonic: Duration::from_secs(1000),
        };
        let mut core = Core::new(options, [], Arc::new(Nowhere), now);
        for lane in 0..2 {
            core.pool_resized(lane, 2);
            core.connected(lane, now);
        }
        Self {
            core,
            now,
            free: [2, 2],
            effects: Vec::new(),
        }
    }

    fn deliver(&mut self, lane: usize, tag: u64, task: &str) {
        let headers = json!({"task": task, "id": format!("id-{tag}")}).to_string();
        let delivery = Delivery {
            tag: DeliveryTag(tag),
            queue: "q".into(),
            message: Ok(message(&headers, "[[], {}, {}]")),
        };
        self.core
            .delivered(lane, vec![delivery], &self.free, self.now);
        self.look();
    }

    fn look(&mut self) {
        for effect in self.core.take_effects() {
            if let Effect::Submit(lane, _) = effect {
                self.free[lane] -= 1;
            }
            self.effects.push(effect);
        }
    }

    fn submitted(&self) -> Vec<(usize, RequestKey)> {
        let submitted = self.effects.iter().filter_map(|effect| match effect {
            Effect::Submit(lane, job) => Some((*lane, job.key)),
            _ => None,
        });
        submitted.collect()
    }

    fn wants(&self) -> [usize; 2] {
        [0, 1].map(|lane| self.core.want(lane, self.free[lane]).runnable)
    }

    fn ask(&mut self, method: &str, arguments: &Value) -> Value {
        let body = json!({"method": method, "arguments": arguments, "ticket": "7", "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "me"}});
        let heard = Heard {
            kind: Kind::Command,
            message: Ok(json_message(
                body.to_string(),
                json!({"clock": 1}).to_string(),
            )),
        };
        self.core.heard(heard, self.now);
        let is_reply = |sent: &Outgoing| matches!(sent.to, Destination::Reply { .. });
        let sent = self.core.take_outgoing();
        let reply = sent.into_iter().find(is_reply).expect("a reply");
        let body: Value = serde_json::from_slice(&reply.message.body).unwrap();
        body["celery@here"].clone()
    }
}

#[test]
fn a_full_pool_does_not_keep_another_from_fetching() {
    let mut pair = Pair::new(|_| ());
    assert_eq!(pair.wants(), [2, 2]);
    pair.deliver(0, 1, "t");
    pair.deliver(0, 2, "t");
    assert_eq!(pair.wants(), [0, 2]);
    pair.deliver(1, 3, "t");
    let lanes: Vec<usize> = pair.submitted().iter().map(|(lane, _)| *lane).collect();
    assert_eq!(lanes, [0, 0, 1], "each stays in its lane");
    assert_eq!(pair.wants(), [0, 1]);
}

#[test]
fn a_lost_connection_concerns_its_own_lane() {
    let mut pair = Pair::new(|options| options.tags_outlive_connections = false);
    for (lane, tag) in [(0, 1), (1, 2)] {
        pair.deliver(lane, tag, "t");
        let (_, key) = pair.submitted()[lane];
        pair.core.pool_told(
            lane,
            vec![PoolEvent::Started { key, pid: 9 }],
            &[1, 1],
            pair.now,
        );
    }
    pair.look();
    pair.effects.clear();
    pair.core.disconnected(1);
    assert_eq!(pair.wants(), [1, 0]);
    for lane in 0..2 {
        let key = RequestKey(lane as u64 + 1);
        let outcome = Outcome::Success {
            runtime: None,
            result: String::new(),
        };
        let finished = PoolEvent::Finished { key, outcome };
        pair.core.pool_told(lane, vec![finished], &[2, 2], pair.now);
    }
    pair.look();
    assert!(pair.core.holds_nothing());
}

#[test]
fn a_task_that_a_pool_cannot_run_is_unknown_there() {
    let only = ["r".into()].into_iter().collect();
    let mut pair = Pair::new(|options| options.lanes[1].runs = Some(Arc::new(only)));
    pair.deliver(1, 1, "t");
    pair.deliver(1, 2, "r");
    pair.deliver(0, 3, "t");
    let keys: Vec<usize> = pair.submitted().iter().map(|(lane, _)| *lane).collect();
    assert_eq!(keys, [1, 0]);
    let is_unknown = |effect: &Effect| {
        matches!(effect, Effect::Call(_, crate::hooks::HookCall::TaskUnknown { task, .. })
            if task == "t")
    };
    assert_eq!(pair.effects.iter().filter(|it| is_unknown(it)).count(), 1);
}

#[test]
fn stats_tell_the_pools_apart() {
    let mut pair = Pair::new(|options| {
        let implementation = |name: &str| {
            let Value::Object(info) = json!({"implementation": name}) else {
                unreachable!("it is an object");
            };
            info
        };
        options.lanes[0].pool_info = implementation("prefork");
        options.lanes[1].pool_info = implementation("gevent");
    });
    pair.core.observed(
        vec![vec![(11, 3), (12, 1)], vec![(13, 9)]],
        serde_json::Map::new(),
    );
    let stats = pair.ask("stats", &json!({}));
    assert_eq!(stats["pool"]["max-concurrency"], 4);
    assert_eq!(stats["pool"]["processes"], json!([11, 12, 13]));
    for (name, implementation, processes, queues) in [
        ("cpu", "prefork", json!([11, 12]), json!(["celery"])),
        ("io", "gevent", json!([13]), json!(["io_bound"])),
    ] {
        let pool = &stats["pools"][name];
        assert_eq!(pool["implementation"], implementation);
        assert_eq!(pool["processes"], processes);
        assert_eq!(pool["queues"], queues);
    }
}

#[test]
fn commands_name_the_pool_that_they_are_for() {
    let mut pair = Pair::new(|_| ());
    let grown = pair.ask("pool_grow", &json!({"n": 3, "pool": "io"}));
    assert_eq!(grown, json!({"ok": "pool will grow"}));
    let scaled = crate::autoscale::Scale::Up(3);
    assert_eq!(pair.core.take_effects(), [Effect::Scale(1, scaled)]);
    let unknown = pair.ask("pool_grow", &json!({"n": 3, "pool": "gpu"}));
    let error = json!({"error": "there is no pool gpu; the pools are: cpu, io"});
    assert_eq!(unknown, error);
}

#[test]
fn short_memory_is_one_for_all() {
    let mut pair = Pair::new(|_| ());
    let short = PoolEvent::Pressure(Some(Shortage {
        of: ShortOf::Machine,
        available: 1,
        total: 9,
    }));
    pair.core.pool_told(1, vec![short], &[2, 2], pair.now);
    assert_eq!(pair.wants(), [1, 1]);
    pair.deliver(0, 1, "t");
    assert_eq!(pair.wants(), [0, 0], "one at a time, in whichever pool");
    let over = PoolEvent::Pressure(None);
    pair.core.pool_told(1, vec![over], &[1, 2], pair.now);
    assert_eq!(pair.wants(), [1, 2]);
}

#[test]
fn a_worker_is_done_when_all_its_pools_are() {
    let mut pair = Pair::new(|_| ());
    pair.deliver(1, 1, "t");
    pair.core.signalled(Signal::Terminate, pair.now);
    pair.look();
    assert!(pair.effects.contains(&Effect::ClosePools));
    pair.core
        .pool_told(0, vec![PoolEvent::Closed], &[0, 0], pair.now);
    assert!(!pair.core.is_done());
    let (_, key) = pair.submitted()[0];
    let events = vec![PoolEvent::Returned { key }, PoolEvent::Closed];
    pair.core.pool_told(1, events, &[0, 0], pair.now);
    pair.look();
    assert!(pair.core.is_done() && pair.core.holds_nothing());
    let released = Settlement {
        tag: DeliveryTag(1),
        fate: Fate::Release,
    };
    assert!(pair.effects.contains(&Effect::Settle(released)));
}
