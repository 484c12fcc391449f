//! Commands that tell how the worker stands: `celery inspect`.

use std::collections::HashSet;

use celeriac_core::clock::Now;
use celeriac_core::journal::Level;
use serde_json::{Map, Value, json};

use super::Core;
use super::command::{Answer, Arguments, CONTROL};
use super::lane::Lane;
use crate::control::info::info;
use crate::request::{Request, Stage};

/// The attributes of tasks that `registered` shows unless it is asked for others.
const TASK_INFO_ITEMS: [&str; 3] = ["exchange", "routing_key", "rate_limit"];

impl Core {
    fn infos(&self, safe: bool, is_shown: impl Fn(&Request) -> bool) -> Vec<Value> {
        let mut shown: Vec<&Request> = self
            .requests
            .values()
            .filter(|request| is_shown(request))
            .collect();
        shown.sort_unstable_by_key(|request| request.key);
        let hostname = &self.options.hostname;
        shown
            .into_iter()
            .map(|request| info(request, hostname, safe))
            .collect()
    }

    pub(super) fn active(&self, arguments: &Arguments) -> Answer {
        let is_active = |request: &Request| state(request) == "active";
        Answer::Reply(self.infos(arguments.is_true("safe"), is_active).into())
    }

    pub(super) fn reserved(&self) -> Answer {
        let is_reserved = |request: &Request| state(request) == "reserved";
        Answer::Reply(self.infos(false, is_reserved).into())
    }

    pub(super) fn query_task(&self, arguments: &Arguments) -> Answer {
        if arguments.get("ids").is_none() {
            let error = "TypeError(\"'NoneType' object is not iterable\")";
            return Answer::Raised(error.to_owned());
        }
        let ids: HashSet<String> = arguments.texts("ids").into_iter().collect();
        let hostname = &self.options.hostname;
        let known = self
            .requests
            .values()
            .filter(|request| ids.contains(&*request.head.id))
            .map(|request| {
                let told = json!([state(request), info(request, hostname, false)]);
                (request.head.id.to_string(), told)
            });
        Answer::Reply(Value::Object(known.collect()))
    }

    pub(super) fn active_queues(&self) -> Answer {
        let queues = self.remote.queues.iter().map(|queue| queue.info.clone());
        Answer::Reply(queues.collect())
    }

    pub(super) fn registered(&self, arguments: Arguments) -> Answer {
        let items = arguments.texts("taskinfoitems");
        let items: Vec<&str> = if items.is_empty() {
            TASK_INFO_ITEMS.to_vec()
        } else {
            items.iter().map(String::as_str).collect()
        };
        if items.iter().any(|item| !TASK_INFO_ITEMS.contains(item)) {
            return self.for_main("registered", arguments);
        }
        let builtins = arguments.is_true("builtins");
        let mut names: Vec<_> = self
            .options
            .tasks
            .iter()
            .filter(|(name, _)| builtins || !name.starts_with("celery."))
            .collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let tasks = names.into_iter().map(|(name, task)| {
            let value = |item: &str| match item {
                "exchange" => task.exchange.as_deref(),
                "routing_key" => task.routing_key.as_deref(),
                _ => task.rate_limit.as_deref(),
            };
            let shown: Vec<String> = items
                .iter()
                .filter_map(|item| Some(format!("{item}={}", value(item)?)))
                .collect();
            if shown.is_empty() {
                Value::from(&**name)
            } else {
                Value::from(format!("{name} [{}]", shown.join(" ")))
            }
        });
        Answer::Reply(tasks.collect())
    }

    pub(super) fn hello(&mut self, arguments: &Arguments, now: Now) -> Answer {
        let from = arguments.text("from_node").unwrap_or_default();
        if from == self.options.hostname {
            return Answer::Reply(Value::Null);
        }
        self.notice(Level::Info, CONTROL, &format!("sync with {from}"));
        // Celery before 5.7 sends a mapping from ids to moments.
        let revoked = match arguments.get("revoked") {
            Some(Value::Object(ids)) => ids.keys().cloned().collect(),
            _ => arguments.texts("revoked"),
        };
        self.merge_revoked(&revoked, now);
        let clock = self.remote.clock.forward();
        Answer::Reply(json!({"revoked": self.revoked.ids(), "clock": clock}))
    }

    pub(super) fn stats(&mut self, now: Now) -> Answer {
        let remote = &self.remote;
        let uptime = now.monotonic.saturating_sub(remote.started).as_secs();
        let all: Vec<(u32, u64)> = self
            .lanes
            .iter()
            .flat_map(|it| it.processes.clone())
            .collect();
        let first = self.lanes.first().map(|lane| &lane.options.pool_info);
        let pool = pool_stats(first, self.pool_size(), &all);
        let mut stats = json!({
            "total": remote.totals,
            // Not in Celery's.
            "expired": remote.expired,
            "pid": remote.options.pid,
            "clock": remote.clock.value().to_string(),
            "uptime": uptime,
            "pool": pool,
            "broker": remote.options.broker_info,
            // What it may fetch besides what it has: never more than can run.
            "prefetch_count": self.pool_size() + self.held.len(),
            "rusage": self.rusage,
        });
        let Value::Object(members) = &mut stats else {
            return Answer::Reply(stats);
        };
        if let Some(shortage) = self.shortage() {
            // A member that Celery does not have, and only there while it says something.
            members.insert("memory_pressure".to_owned(), shortage.to_string().into());
        }
        if let Some(autoscaler) = self.lanes.iter().find_map(autoscaler) {
            members.insert("autoscaler".to_owned(), autoscaler);
        }
        if self.lanes.len() > 1 {
            // Celery's workers have one pool each.
            let pools = (0..self.lanes.len()).filter_map(|lane| self.named_pool(lane));
            members.insert("pools".to_owned(), Value::Object(pools.collect()));
        }
        Answer::Reply(stats)
    }

    /// One of several pools: as `pool` where there is only one, with its queues and requests.
    fn named_pool(&self, at: usize) -> Option<(String, Value)> {
        let lane = self.lanes.get(at)?;
        let info = Some(&lane.options.pool_info);
        let mut pool = pool_stats(info, lane.pool_size, &lane.processes);
        let queues = self.remote.queues.iter().filter(|queue| queue.lane == at);
        let queues: Value = queues.map(|queue| queue.name.as_str()).collect();
        pool.insert("queues".to_owned(), queues);
        pool.insert("running".to_owned(), lane.running.into());
        pool.extend(autoscaler(lane).map(|scale| ("autoscaler".to_owned(), scale)));
        Some((lane.options.name.clone()?, pool.into()))
    }

    /// What only the world can tell: the processes of each pool, with how many jobs each was given,
    /// and what the worker has used. To be told before a command is heard.
    pub fn observed(&mut self, processes: Vec<Vec<(u32, u64)>>, rusage: Map<String, Value>) {
        for (lane, processes) in self.lanes.iter_mut().zip(processes) {
            lane.processes = processes;
        }
        self.rusage = rusage;
    }
}

/// What `stats` tells of a pool.
fn pool_stats(
    info: Option<&Map<String, Value>>,
    size: usize,
    processes: &[(u32, u64)],
) -> Map<String, Value> {
    let mut pool = info.cloned().unwrap_or_default();
    pool.insert("max-concurrency".to_owned(), size.into());
    pool.insert("processes".to_owned(), pids(processes));
    pool.insert("writes".to_owned(), writes(processes));
    pool
}

/// What `stats` tells of how a pool is scaled.
fn autoscaler(lane: &Lane) -> Option<Value> {
    let scale = lane.options.autoscale?;
    Some(json!({
        "max": scale.max,
        "min": scale.min,
        "current": lane.pool_size,
        "qty": lane.busy + lane.ready.len(),
    }))
}

/// Where Celery would say that a request stands.
fn state(request: &Request) -> &'static str {
    match request.stage {
        Stage::Running { .. } | Stage::Dying => "active",
        Stage::Submitted { .. } | Stage::Ready { .. } | Stage::Throttled | Stage::Limited => {
            "reserved"
        }
        Stage::Held => "scheduled",
        Stage::Concluding => "ready",
    }
}

fn pids(processes: &[(u32, u64)]) -> Value {
    processes.iter().map(|(pid, _)| *pid).collect()
}

/// How the jobs were spread over the processes: billiard's `human_write_stats`.
fn writes(processes: &[(u32, u64)]) -> Value {
    let total: u64 = processes.iter().map(|(_, jobs)| jobs).sum();
    let share = |jobs: u64| jobs as f64 / total.max(1) as f64;
    let shares: Vec<String> = processes
        .iter()
        .map(|(_, jobs)| format!("{:.2}", share(*jobs)))
        .collect();
    let raw: Vec<String> = processes.iter().map(|(_, jobs)| jobs.to_string()).collect();
    let average = 1.0 / processes.len().max(1) as f64;
    json!({
        "total": total,
        "avg": format!("{average:.2}"),
        "all": shares.join(", "),
        "raw": raw.join(", "),
        "strategy": "fair",
        "inqueues": {"total": processes.len(), "active": 0},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_work_are_told_as_billiard_does() {
        let told = writes(&[(11, 7), (12, 6)]);
        for (name, expected) in [
            ("total", json!(13)),
            ("avg", json!("0.50")),
            ("all", json!("0.54, 0.46")),
            ("raw", json!("7, 6")),
        ] {
            assert_eq!(told[name], expected, "{name}");
        }
        assert_eq!(writes(&[])["total"], 0);
    }
}
