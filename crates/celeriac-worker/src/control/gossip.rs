//! What a worker knows of the others, by their events.
//!
//! Celery's counterparts: `celery.worker.consumer.gossip.Gossip` and the workers of
//! `celery.events.state.State`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// How often absent workers are looked for (`Gossip.interval`).
pub const INTERVAL: Duration = Duration::from_secs(5);
/// After how many times its interval without a heartbeat a worker is missed
/// (`HEARTBEAT_EXPIRE_WINDOW`: 200 %).
const WINDOW: f64 = 2.0;
/// The longest that a worker is believed to be silent, whatever interval it tells.
const LONGEST: Duration = Duration::from_hours(24);
/// After this an election is forgotten: of those that were called elsewhere nobody tells the end,
/// and candidates may come after the decision.
const FORGOTTEN: Duration = Duration::from_mins(1);
/// Candidates of all elections at most, and workers that are known at most: whoever writes to the
/// bus must not be able to fill the memory.
const BOUND: usize = 10_000;

/// Other workers, and the elections that are under way.
#[derive(Debug, Default)]
pub struct Gossip {
    /// When each worker is missed.
    workers: BTreeMap<String, Duration>,
    elections: BTreeMap<String, Election>,
    /// How many candidates all of them have.
    candidates: usize,
}

#[derive(Debug)]
struct Election {
    /// When it was first heard of.
    since: Duration,
    /// Whether it was called through this worker, which then counts.
    is_ours: bool,
    candidates: Vec<Candidate>,
    acknowledged: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    clock: u64,
    name: String,
    topic: String,
    action: Value,
}

/// What an event of a worker leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A worker is new.
    Joined(String),
    /// A worker has left in order.
    Left(String),
    /// A candidate of an election: it is to be acknowledged.
    Elect(String),
    /// An election is decided.
    Elected {
        /// Its id.
        id: String,
        /// The winner: node name, a point, process id.
        leader: String,
        /// What it was about.
        topic: String,
        /// What the winner is to do.
        action: Value,
    },
}

impl Gossip {
    /// An event of a worker; `own` is this worker's name.
    pub fn event(&mut self, event: &Value, own: &str, now: Duration) -> Option<News> {
        let kind = event.get("type")?.as_str()?;
        let hostname = event.get("hostname")?.as_str()?;
        match kind {
            "worker-elect" => self.elect(event, hostname, now),
            "worker-elect-ack" => self.acknowledged(event.get("id")?.as_str()?),
            _ if hostname == own => None,
            "worker-offline" => self
                .workers
                .remove(hostname)
                .map(|_| News::Left(hostname.to_owned())),
            "worker-online" | "worker-heartbeat" => {
                let interval = event.get("freq").and_then(Value::as_f64).unwrap_or(60.0);
                let missed = Duration::try_from_secs_f64(interval * WINDOW).unwrap_or(INTERVAL);
                let missed = missed.min(LONGEST);
                let is_new = !self.workers.contains_key(hostname);
                if is_new && self.workers.len() >= BOUND {
                    return None;
                }
                self.workers.insert(hostname.to_owned(), now + missed);
                is_new.then(|| News::Joined(hostname.to_owned()))
            }
            _ => None,
        }
    }

    /// Forgets the workers whose heartbeats are missed, and tells their names; forgets elections
    /// that came to no end.
    pub fn take_missed(&mut self, now: Duration) -> Vec<String> {
        self.elections
            .retain(|_, election| election.since + FORGOTTEN > now);
        self.count_candidates();
        let missed: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, by)| **by < now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &missed {
            self.workers.remove(name);
        }
        missed
    }

    /// Calls an election: the replies are counted from now on.
    pub fn call(&mut self, id: &str, now: Duration) {
        if let Some(election) = self.election(id, now) {
            election.is_ours = true;
        }
    }

    fn elect(&mut self, event: &Value, hostname: &str, now: Duration) -> Option<News> {
        let id = event.get("id")?.as_str()?;
        let candidate = Candidate {
            clock: event.get("clock")?.as_u64()?,
            name: format!("{hostname}.{}", event.get("pid")?),
            topic: event.get("topic")?.as_str()?.to_owned(),
            action: event.get("action").cloned().unwrap_or_default(),
        };
        self.election(id, now)?.candidates.push(candidate);
        self.candidates += 1;
        Some(News::Elect(id.to_owned()))
    }

    /// The election of this id; `None` when too much is heard of elections to keep more of it.
    fn election(&mut self, id: &str, now: Duration) -> Option<&mut Election> {
        if self.elections.len() + self.candidates >= BOUND {
            return None;
        }
        let unknown = || Election {
            since: now,
            is_ours: false,
            candidates: Vec::new(),
            acknowledged: 0,
        };
        Some(self.elections.entry(id.to_owned()).or_insert_with(unknown))
    }

    fn count_candidates(&mut self) {
        let each = self.elections.values();
        self.candidates = each.map(|election| election.candidates.len()).sum();
    }

    /// One more worker knows of a candidate; when all do, the election is decided.
    fn acknowledged(&mut self, id: &str) -> Option<News> {
        // Celery counts the others alone, and is lost when there are none.
        let voters = self.workers.len().max(1);
        let election = self.elections.get_mut(id)?;
        election.acknowledged += 1;
        if !election.is_ours || election.acknowledged < voters {
            return None;
        }
        let winner = election
            .candidates
            .iter()
            .min_by(|a, b| (a.clock, &a.name).cmp(&(b.clock, &b.name)))?
            .clone();
        self.elections.remove(id);
        self.count_candidates();
        Some(News::Elected {
            id: id.to_owned(),
            leader: winner.name,
            topic: winner.topic,
            action: winner.action,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OWN: &str = "w1@h";

    fn heartbeat(hostname: &str) -> Value {
        json!({"type": "worker-heartbeat", "hostname": hostname, "freq": 2.0})
    }

    #[test]
    fn workers_come_and_go() {
        let at = Duration::from_secs;
        let mut gossip = Gossip::default();
        assert_eq!(gossip.event(&heartbeat(OWN), OWN, at(0)), None);
        let joined = |name: &str| Some(News::Joined(name.to_owned()));
        assert_eq!(gossip.event(&heartbeat("w2@h"), OWN, at(0)), joined("w2@h"));
        assert_eq!(gossip.event(&heartbeat("w3@h"), OWN, at(0)), joined("w3@h"));
        assert_eq!(gossip.event(&heartbeat("w2@h"), OWN, at(2)), None);
        let offline = json!({"type": "worker-offline", "hostname": "w3@h"});
        let left = Some(News::Left("w3@h".to_owned()));
        assert_eq!(gossip.event(&offline, OWN, at(3)), left);
        assert_eq!(gossip.take_missed(at(6)), Vec::<String>::new());
        assert_eq!(gossip.take_missed(at(7)), ["w2@h"]);
    }

    #[test]
    fn the_first_candidate_wins_when_all_have_heard() {
        let mut gossip = Gossip::default();
        for other in ["w2@h", "w3@h"] {
            gossip.event(&heartbeat(other), OWN, Duration::ZERO);
        }
        gossip.call("e", Duration::ZERO);
        let elect = |name: &str, clock: u64| {
            json!({"type": "worker-elect", "hostname": name, "id": "e", "clock": clock, "pid": 7,
                   "topic": "task", "action": {"task": "t"}, "cver": 1})
        };
        let is_candidate = Some(News::Elect("e".to_owned()));
        for (name, clock) in [("w3@h", 8), ("w2@h", 9), (OWN, 8)] {
            let news = gossip.event(&elect(name, clock), OWN, Duration::ZERO);
            assert_eq!(news, is_candidate);
        }
        let ack = json!({"type": "worker-elect-ack", "hostname": "w2@h", "id": "e"});
        assert_eq!(gossip.event(&ack, OWN, Duration::ZERO), None);
        let elected = News::Elected {
            id: "e".to_owned(),
            leader: "w1@h.7".to_owned(),
            topic: "task".to_owned(),
            action: json!({"task": "t"}),
        };
        assert_eq!(gossip.event(&ack, OWN, Duration::ZERO), Some(elected));
        assert_eq!(gossip.event(&ack, OWN, Duration::ZERO), None, "it is over");
    }

    #[test]
    fn a_lone_worker_elects_itself() {
        let mut gossip = Gossip::default();
        gossip.call("e", Duration::ZERO);
        let ack = json!({"type": "worker-elect-ack", "hostname": OWN, "id": "e"});
        assert_eq!(
            gossip.event(&ack, OWN, Duration::ZERO),
            None,
            "no candidate"
        );
        let elect = json!({"type": "worker-elect", "hostname": OWN, "id": "e", "clock": 1,
                           "pid": 7, "topic": "x", "action": null});
        gossip.event(&elect, OWN, Duration::ZERO);
        assert!(matches!(
            gossip.event(&ack, OWN, Duration::ZERO),
            Some(News::Elected { .. })
        ));
    }

    #[test]
    fn elections_are_forgotten_and_there_is_room_for_others() {
        let mut gossip = Gossip::default();
        let elect = |id: usize| {
            json!({"type": "worker-elect", "hostname": "w2@h", "id": id.to_string(), "clock": 1,
                   "pid": 7, "topic": "x", "action": null})
        };
        let take_part = |gossip: &mut Gossip, id: usize, now: Duration| {
            gossip.event(&elect(id), OWN, now).is_some()
        };
        let heard: Vec<bool> = (0..=BOUND)
            .map(|id| take_part(&mut gossip, id, Duration::ZERO))
            .collect();
        assert_eq!((heard[0], heard[BOUND]), (true, false));
        gossip.take_missed(FORGOTTEN);
        assert!(take_part(&mut gossip, BOUND, FORGOTTEN));
    }

    #[test]
    fn no_interval_is_too_long() {
        let mut gossip = Gossip::default();
        let long = json!({"type": "worker-heartbeat", "hostname": "w2@h",
                          "freq": 9_223_372_036_854_774_784_u64});
        let now = Duration::from_secs(1 << 20);
        assert!(gossip.event(&long, OWN, now).is_some());
    }
}
