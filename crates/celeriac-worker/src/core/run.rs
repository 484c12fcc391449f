//! Requests go to the pool, come back from it, or back to their queues.

use std::time::Duration;

use celeriac_core::broker::Fate;
use celeriac_core::clock::Now;
use celeriac_core::pool::RequestKey;

use super::{Core, Effect};
use crate::admit::{Admission, admit};
use crate::request::Stage;
use crate::shutdown::Phase;

/// How long a request may wait for a process before its message goes back to the queue, where
/// another worker may take it.
pub(super) const RELEASE_AFTER: Duration = Duration::from_millis(200);
/// Its number is the same on every Linux.
const SIGTERM: i32 = 15;

impl Core {
    /// A request may begin as soon as there is a process for it.
    pub(super) fn make_ready(&mut self, key: RequestKey, is_bound: bool, now: Now) {
        self.set_stage(key, Stage::Ready { is_bound });
        self.ready.push_back((key, now.monotonic));
    }

    /// Gives requests to the pool, as many as it can take, and gives back what waited too long.
    pub(super) fn dispatch(&mut self, free: usize, now: Now) {
        let mut free = free;
        while free > 0 {
            let Some((key, _)) = self.ready.pop_front() else {
                break;
            };
            free -= usize::from(self.submit(key, now));
        }
        self.end_search();
        // Tens of thousands may be here whose ETA has come: they are not looked through each time.
        if self.next_release > now.monotonic || self.searches() {
            return;
        }
        let is_old = |(_, since): &(_, Duration)| *since + RELEASE_AFTER <= now.monotonic;
        if self.ready.iter().any(is_old) {
            self.next_release = now.monotonic + RELEASE_AFTER;
            let waiting = std::mem::take(&mut self.ready);
            for (key, since) in waiting {
                let is_bound = self
                    .requests
                    .get(&key)
                    .is_none_or(|request| request.stage == Stage::Ready { is_bound: true });
                if !is_bound && is_old(&(key, since)) {
                    self.release(key);
                } else {
                    if !is_bound {
                        self.next_release = self.next_release.min(since + RELEASE_AFTER);
                    }
                    self.ready.push_back((key, since));
                }
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
        let job = request.job(&self.options.hostname, self.options.time_limits, is_told);
        self.set_stage(key, Stage::Submitted { is_bound });
        self.effects.push(Effect::Submit(job));
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
        let is_gone = request.is_settled || request.is_lost;
        self.set_stage(key, Stage::Ready { is_bound });
        if is_gone {
            self.remove(key);
        } else if self.shutdown.phase() == Phase::Running {
            self.ready.push_front((key, now.monotonic));
        } else {
            self.release(key);
        }
    }

    /// Puts a request's message back where it came from: it has not begun.
    pub(super) fn release(&mut self, key: RequestKey) {
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
            Stage::Ready { .. } => self.ready.retain(|(ready, _)| *ready != key),
            Stage::Submitted { .. } | Stage::Running { .. } | Stage::Dying | Stage::Concluding => {}
        }
    }

    /// The connection is lost, and with it the messages that it fetched: the broker delivers them
    /// again. What does not run is forgotten; what runs goes on, and takes its message over.
    pub(super) fn forget_fetched(&mut self) {
        let fetched: Vec<RequestKey> = self.requests.keys().copied().collect();
        // All that are in it go: they need not be taken out one by one.
        self.ready.clear();
        for key in fetched {
            let Some(request) = self.requests.get_mut(&key) else {
                continue;
            };
            request.is_lost = true;
            if request.stage.is_waiting() {
                self.withdraw(key);
                self.remove(key);
            } else {
                self.orphan(key);
            }
        }
        self.by_tag.clear();
    }

    /// Ends running tasks whose messages the lost connection gives to somebody else.
    pub(super) fn cancel_unsettled(&mut self) {
        let running: Vec<RequestKey> = self
            .requests
            .values()
            .filter(|request| {
                matches!(request.stage, Stage::Running { .. })
                    && request.task.acks_late
                    && !request.is_settled
            })
            .map(|request| request.key)
            .collect();
        for key in running {
            self.effects.push(Effect::Terminate(key, SIGTERM));
        }
    }
}
