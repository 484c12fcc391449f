//! Limits of memory: of each child, and what is done when there is too little for all.

use std::time::Duration;

use celeriac_core::pool::{LossCause, PoolEvent, Shortage};

use super::child::{Child, Ending};
use super::{Action, Kill, Machine, Shape, SoftLimit};
use crate::memory::pace::{self, Seen};

/// Between two looks at the memory of children that have a limit.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Limits of a child's memory, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryLimits {
    /// At more, an exception is raised in the task, and the child is replaced after it: what is left
    /// of it would be held against the next one.
    pub soft: Option<u64>,
    /// A child that has held more is replaced after its task, as Celery does.
    pub replace: Option<u64>,
    /// At more, the child is ended with its process group.
    pub hard: Option<u64>,
}

impl Machine {
    /// Numbers and process ids of the children that run a job and have a limit of memory.
    pub fn watched(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let is_limited = self.limits.memory != MemoryLimits::default();
        self.children
            .iter()
            .filter(move |(_, child)| is_limited && !child.jobs.is_empty())
            .filter_map(|(number, child)| Some((*number, child.pid?)))
    }

    /// Numbers and process ids of the children that are up.
    pub fn members(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let up = self.children.iter().filter(|(_, child)| child.is_up);
        up.filter_map(|(number, child)| Some((*number, child.pid?)))
    }

    /// Whether it matters what a child has held when its job is done.
    pub fn replaces_by_memory(&self) -> bool {
        self.replaced_above().is_some()
    }

    /// A child that has held more is replaced after its task.
    fn replaced_above(&self) -> Option<u64> {
        let MemoryLimits { soft, replace, .. } = self.limits.memory;
        soft.into_iter().chain(replace).min()
    }

    /// Whether no child has a job.
    pub fn is_idle(&self) -> bool {
        self.busy() == 0
    }

    /// From so many KiB on it matters what a child holds.
    pub fn least_limit(&self) -> u64 {
        let MemoryLimits {
            soft,
            replace,
            hard,
        } = self.limits.memory;
        let limits = [soft, replace, hard].into_iter().flatten();
        limits.min().unwrap_or(u64::MAX)
    }

    /// How long to wait before the next look at what the watched children hold.
    pub fn look_interval(&self) -> Duration {
        self.children
            .values()
            .filter(|child| !child.jobs.is_empty())
            .map(|child| child.look_after)
            .min()
            .unwrap_or(LOOK_INTERVAL)
    }

    /// What a child's process group holds, in KiB, while its job runs.
    pub fn memory(&mut self, number: u32, held: u64, now: Duration) {
        let limits = self.limits.memory;
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        child.peak = child.peak.max(Some(held));
        let Some(pid) = child.pid.filter(|_| !child.will_end()) else {
            return;
        };
        let running = child.jobs.front_mut().and_then(|job| {
            let key = job.key;
            job.started.as_mut().map(|started| (key, started))
        });
        let Some((key, started)) = running else {
            return;
        };
        let over = |limit: Option<u64>| limit.filter(|limit| held > *limit);
        // Of many jobs nobody knows whose the memory is: their child is replaced.
        let is_shared = matches!(self.shape, Shape::Shared { .. });
        let soft = over(limits.soft).filter(|_| !started.is_warned && !is_shared);
        started.is_warned |= soft.is_some();
        let ahead = [
            limits.soft.filter(|_| !started.is_warned && !child.retires),
            limits.hard.or(limits.replace),
        ];
        let ahead = ahead.into_iter().flatten().min().unwrap_or(u64::MAX);
        let seen = Seen { held, at: now };
        child.look_after = pace::wait(child.seen.replace(seen), seen, ahead, LOOK_INTERVAL);
        if let Some(limit) = over(limits.hard) {
            let cause = LossCause::Memory {
                resident: held,
                limit,
            };
            self.tell(PoolEvent::TooMuchMemory {
                pid,
                resident: held,
                limit,
                killed: Some(key),
            });
            self.end(number, cause);
        } else {
            if let Some(limit) = soft {
                self.tell(PoolEvent::SoftMemoryLimit {
                    key,
                    resident: held,
                    limit,
                });
                let limit = SoftLimit::Memory;
                self.actions.push(Action::SoftLimit { number, key, limit });
            }
            self.outgrown(number, held, now);
        }
    }

    /// A child has held so much, in KiB: it is replaced after its job where that is too much.
    pub(super) fn outgrown(&mut self, number: u32, peak: u64, now: Duration) {
        let Some(limit) = self.replaced_above().filter(|limit| peak > *limit) else {
            return;
        };
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        let Some(pid) = child.pid.filter(|_| !child.retires && !child.is_leaving()) else {
            return;
        };
        child.retires = true;
        child.is_replaced |= matches!(self.shape, Shape::Shared { .. });
        self.tell(PoolEvent::TooMuchMemory {
            pid,
            resident: peak,
            limit,
            killed: None,
        });
        self.take_back_from(number);
        self.retire_if_done(number, now);
        self.fork_missing(now);
    }

    /// Memory is short, or is not any more. Meanwhile no children are started, but one where there
    /// is none.
    pub fn pressure(&mut self, shortage: Option<Shortage>, now: Duration) {
        if self.is_held_back != shortage.is_some() {
            self.is_held_back = shortage.is_some();
            self.tell(PoolEvent::Pressure(shortage));
            self.tick(now);
        }
    }

    /// Whether the memory of a child that was ended has yet to come back.
    pub fn is_freeing(&self) -> bool {
        let frees = |child: &Child| {
            let cause = child.ending.map(|ending| ending.cause);
            matches!(
                cause,
                Some(LossCause::Memory { .. } | LossCause::Pressure { .. })
            )
        };
        self.children.values().any(frees)
    }

    /// Ends the child that holds the most of these, each with its KiB, if that is at least so much.
    pub fn end_largest(&mut self, held: &[(u32, u64)], at_least: u64, shortage: Shortage) {
        let stays = |number: &u32| {
            let child = self.children.get(number);
            child.is_some_and(|child| !child.will_end())
        };
        let largest = held
            .iter()
            .filter(|(number, held)| *held >= at_least && stays(number))
            .max_by_key(|(_, held)| *held);
        if let Some((number, resident)) = largest.copied() {
            let cause = LossCause::Pressure { resident, shortage };
            if let Some(child) = self.children.get_mut(&number) {
                child.peak = child.peak.max(Some(resident));
            }
            self.end(number, cause);
        }
    }

    /// Ends a child with its process group, at once.
    fn end(&mut self, number: u32, cause: LossCause) {
        if let Some(child) = self.children.get_mut(&number) {
            child.ending = Some(Ending {
                cause,
                kill_at: None,
            });
            self.take_back_from(number);
            self.actions.push(Action::Kill {
                number,
                kill: Kill::KillGroup,
            });
        }
    }
}
