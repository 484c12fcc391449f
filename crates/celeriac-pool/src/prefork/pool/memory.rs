//! The pool looks at memory: at that of its children, and at what is left for all.

use std::time::Duration;

use celeriac_core::pool::ShortOf;

use super::PreforkPool;
use crate::memory::pressure::{self, Gauge};
use crate::memory::{Pressure, pace};

impl PreforkPool {
    /// When memory is to be looked at again, if it is.
    pub(super) fn next_look(&self) -> Option<Duration> {
        let children = self.machine.watched().next().map(|_| self.next_look);
        children.into_iter().chain(self.memory.next()).min()
    }

    pub(super) fn look_at_memory(&mut self, now: Duration) {
        if self.next_look <= now && self.machine.watched().next().is_some() {
            self.memory.processes.refresh(now);
            let matters = self.machine.least_limit();
            for (number, pid) in self.machine.watched().collect::<Vec<_>>() {
                if let Some(held) = self.memory.processes.held_by_group(pid, matters) {
                    self.machine.memory(number, held, now);
                }
            }
            self.next_look = pace::after(now, self.now(), self.machine.look_interval());
        }
        if self.memory.next().is_some_and(|at| at <= now) {
            let is_idle = self.machine.is_idle();
            let verdict = self.memory.look(std::process::id(), is_idle, now);
            self.memory.looked(now, self.now());
            let shortage = pressure::shortage(verdict.gauge, verdict.stalled);
            let is_short = verdict.pressure != Pressure::None;
            self.machine.pressure(is_short.then_some(shortage), now);
            if let (Pressure::EndLargest, Some(gauge)) = (verdict.pressure, verdict.gauge)
                && !self.machine.is_freeing()
            {
                self.memory.processes.refresh(now);
                let processes = &self.memory.processes;
                let held = self.machine.members().filter_map(|(number, pid)| {
                    let held = processes.held_by_group(pid, u64::MAX)?;
                    Some((number, held))
                });
                let held: Vec<_> = held.collect();
                if self.ends_help(gauge, &held) {
                    let least = gauge.least_to_end();
                    self.machine.end_largest(&held, least, shortage);
                }
            }
        }
    }

    /// Whether there would be enough without children. Where the worker holds more than it may
    /// without any, they would be ended one after the other, with their tasks, for nothing.
    fn ends_help(&mut self, gauge: Gauge, held: &[(u32, u64)]) -> bool {
        if gauge.of != ShortOf::Worker {
            return true;
        }
        let all = self
            .memory
            .processes
            .held_by_tree(std::process::id(), u64::MAX);
        let children: u64 = held.iter().map(|(_, held)| held).sum();
        let rest = all.unwrap_or_default().saturating_sub(children);
        let helps = rest < gauge.total;
        if !helps && !std::mem::replace(&mut self.is_told_of_rest, true) {
            tracing::error!(
                "The worker holds {rest} KiB without its children, more than the {} KiB that it may \
                 hold with them: no child is ended for that, and hardly any task is fetched. Raise \
                 --max-memory (celeriac_max_memory).",
                gauge.total
            );
        }
        helps
    }
}
