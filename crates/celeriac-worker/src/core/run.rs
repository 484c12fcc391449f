//! Requests go to the pool, come back from it, or back to their queues.

use std::time::Duration;

use celeriac_core::broker::Fate;
use celeriac_core::clock::Now;
use celeriac_core::pool::RequestKey;

use super::lane::Lane;
use super::{Core, Effect, Free};
use crate::admit::{Admission, admit};
use crate::request::{Request, Stage};
use crate::shutdown::Phase;

/// How long a request may wait for a process before its message goes back to the queue, where
/// another worker may take it.
const RELEASE_AFTER: Duration = Duration::from_millis(200);
/// Its number is the same on every Linux.
const SIGTERM: i32 = 15;

impl Lane {
    /// A request that waits since then goes back to its queue if it can't begin in time.
    fn release_later(&mut self, is_bound: bool, since: Duration) {
        if !is_bound {
            let at = since + RELEASE_AFTER;
            self.next_release = Some(self.next_release.map_or(at, |next| next.min(at)));
        }
    }
}

impl Core {
    /// A request may begin as soon as there is a process for it.
    pub(super) fn make_ready(&mut self, key: RequestKey, is_bound: bool, now: Now) {
        let Some(lane) = self.lane_of(key) else {
            return;
        };
        self.set_stage(key, Stage::Ready { is_bound });
        let lane = &mut self.lanes[lane];
        lane.ready.push_back((key, now.monotonic));
        lane.release_later(is_bound, now.monotonic);
    }

    /// The lane that a request is in.
    pub(super) fn lane_of(&self, key: RequestKey) -> Option<usize> {
        self.requests.get(&key).map(|request| request.lane)
    }

    /// Gives requests to the pools, as many as they can take, and gives back what waited too long.
    pub(super) fn dispatch(&mut self, free: Free<'_>, now: Now) {
        for (lane, free) in free.iter().enumerate() {
            self.dispatch_in(lane, *free, now);
        }
    }

    fn dispatch_in(&mut self, at: usize, free: usize, now: Now) {
        let mut free = free;
        // A worker that was stopped, or could not reach its broker, may have lost what it fetched:
        // that it has not it must hear of before anything begins.
        let leased_until = self.lanes[at].leased_until;
        let is_leased = leased_until.is_none_or(|until| now.monotonic < until);
        while free > 0 && is_leased {
            let Some((key, _)) = self.lanes[at].ready.pop_front() else {
                break;
            };
            free -= usize::from(self.submit(key, now));
        }
        self.end_search();
        let lane = &mut self.lanes[at];
        // Tens of thousands may be here whose ETA has come: they are not looked through each time.
        if lane.ready.is_empty() {
            lane.next_release = None;
        }
        let is_due = lane.next_release.is_some_and(|at| at <= now.monotonic);
        if !is_due || self.searches(at) {
            return;
        }
        let lane = &mut self.lanes[at];
        lane.next_release = None;
        for (key, since) in std::mem::take(&mut lane.ready) {
            let is_bound = self
                .requests
                .get(&key)
                .is_none_or(|request| request.stage == Stage::Ready { is_bound: true });
            if !is_bound && since + RELEASE_AFTER <= now.monotonic {
                self.release(key);
            } else {
                let lane = &mut self.lanes[at];
                lane.release_later(is_bound, since);
                lane.ready.push_back((key, since));
            }
        }
    }

    /// Gives a request to the pool, unless it is not to run any more.
    fn submit(&mut self, key: RequestKey, now: Now) -> bool {
        let Some(request) = self.requests.get(&key) else {
            return false;
        };
        let Stage::Ready { is_bound } = request.stage else {
            return false;
        };
        // It may have waited for long.
        if let Admission::Discard(why) = admit(&request.head, &self.revoked, now) {
            self.discard(key, why, now);
            return false;
        }
        let is_told = self.is_told_of(request.task.send_events);
        let lane = request.lane;
        let time_limits = self.lanes[lane].options.time_limits;
        let job = request.job(&self.options.hostname, time_limits, is_told);
        self.set_stage(key, Stage::Submitted { is_bound });
        self.effects.push(Effect::Submit(lane, job));
        true
    }

    /// The pool gives a request back that had not begun.
    pub(super) fn returned(&mut self, key: RequestKey, now: Now) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let Stage::Submitted { is_bound } = request.stage else {
            return;
        };
        // It is somebody else's, or will be delivered again.
        let is_gone = request.is_taken || request.is_lost && !request.is_settled;
        let lane = request.lane;
        self.set_stage(key, Stage::Ready { is_bound });
        if is_gone {
            self.remove(key);
        } else if self.shutdown.phase() == Phase::Running {
            let lane = &mut self.lanes[lane];
            lane.ready.push_front((key, now.monotonic));
            lane.release_later(is_bound, now.monotonic);
        } else {
            self.release(key);
        }
    }

    /// Puts a request's message back where it came from: it has not begun.
    pub(super) fn release(&mut self, key: RequestKey) {
        let is_bound = |request: &Request| request.is_bound_by_ack();
        if self.requests.get(&key).is_some_and(is_bound) {
            // It was acknowledged for a process that never read it.
            return self.never_will_begin(key);
        }
        self.settle(key, Fate::Release);
        self.remove(key);
    }

    /// Takes a request out of wherever it waits.
    pub(super) fn withdraw(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        match request.stage {
            Stage::Held => {
                if let Some(eta) = request.head.eta {
                    self.held.remove(eta, key);
                }
            }
            Stage::Throttled => {
                let task = request.head.task.clone();
                self.buckets.remove(&task, key);
            }
            Stage::Ready { .. } => {
                let lane = request.lane;
                self.lanes[lane].ready.retain(|(ready, _)| *ready != key);
            }
            Stage::Limited
            | Stage::Submitted { .. }
            | Stage::Running { .. }
            | Stage::Dying
            | Stage::Concluding => {}
        }
    }

    /// The connection is lost, and with it the messages that it fetched: the broker delivers them
    /// again. What does not run is forgotten; what runs goes on, and takes its message over.
    pub(super) fn forget_fetched(&mut self, lane: usize) {
        let fetched = self.requests.values().filter(|it| it.lane == lane);
        let fetched: Vec<RequestKey> = fetched.map(|request| request.key).collect();
        // They need not be taken out one by one. What is acknowledged stays: whether the broker has
        // heard of that shows when the message comes again, or does not.
        let requests = &self.requests;
        let is_bound = |key: &RequestKey| requests.get(key).is_some_and(Request::is_bound_by_ack);
        self.lanes[lane].ready.retain(|(key, _)| is_bound(key));
        for key in fetched {
            let Some(request) = self.requests.get_mut(&key) else {
                continue;
            };
            request.is_lost = true;
            if request.stage.is_waiting() && !request.is_bound_by_ack() {
                self.withdraw(key);
                self.remove(key);
            } else {
                self.lanes[lane].adoption.orphan(key);
            }
        }
        let requests = &self.requests;
        let is_elsewhere = |key: &RequestKey| requests.get(key).is_some_and(|it| it.lane != lane);
        self.by_tag.retain(|_, key| is_elsewhere(key));
    }

    /// Ends running tasks whose messages the lost connection gives to somebody else.
    pub(super) fn cancel_unsettled(&mut self, lane: usize) {
        let mut running: Vec<RequestKey> = self
            .requests
            .values()
            .filter(|request| {
                request.lane == lane
                    && matches!(request.stage, Stage::Running { .. })
                    && request.task.acks_late
                    && !request.is_settled
            })
            .map(|request| request.key)
            .collect();
        running.sort_unstable();
        for key in running {
            self.effects.push(Effect::Terminate(lane, key, SIGTERM));
        }
    }
}
