//! What a shutdown does with requests.

use celeriac_core::clock::Now;
use celeriac_core::pool::RequestKey;

use super::{Core, Effect};
use crate::happening::Happening;
use crate::hooks::HookCall;
use crate::shutdown::{Order, Phase, Shutdown};

impl Core {
    /// Does what a shutdown asks for.
    pub(super) fn shut_down(&mut self, orders: Vec<Order>, now: Now) {
        for order in orders {
            match order {
                Order::Print(text) => self.effects.push(Effect::Print(text)),
                Order::Announce { sig, how, exitcode } => {
                    let call = HookCall::WorkerShuttingDown { sig, how, exitcode };
                    self.effects.push(Effect::Tell(call));
                }
                Order::Warm => self.stop_fetching(),
                Order::SoftThenCold => self.soft_shutdown(now),
                Order::Cold => self.cold_shutdown(),
                Order::RaiseSoftLimits => self.interrupt_running(),
                Order::EndTasks => self.end_running(),
                Order::ExitNow(status) => self.effects.push(Effect::ExitNow(status)),
            }
        }
    }

    /// Gives back what has not begun, and lets the pool finish.
    fn stop_fetching(&mut self) {
        if self.soft_until.is_none() && self.shutdown.phase() >= Phase::Warm {
            let mut unbegun = self.held.take_all();
            unbegun.extend(self.buckets.take_all());
            unbegun.extend(self.limited.waiting());
            for lane in &mut self.lanes {
                let ready = std::mem::take(&mut lane.ready);
                unbegun.extend(ready.into_iter().map(|(key, _)| key));
            }
            for key in unbegun {
                self.release(key);
            }
            self.effects.push(Effect::ClosePools);
        }
    }

    fn soft_shutdown(&mut self, now: Now) {
        self.stop_fetching();
        let timeout = self.options.soft_shutdown_timeout;
        let is_needed = self.running() > 0 || self.options.soft_shutdown_on_idle;
        if timeout.is_zero() || !is_needed {
            self.cold_shutdown();
        } else {
            let seconds = timeout.as_secs_f64();
            self.journal
                .write(Happening::SoftShutdown { seconds }.record());
            self.soft_until = Some(now.monotonic + timeout);
        }
    }

    pub(super) fn cold_shutdown(&mut self) {
        self.shutdown.soft_wait_is_over();
        self.soft_until = None;
        self.effects.push(Effect::Tell(HookCall::Terminating));
        self.effects.push(Effect::KillPools);
    }

    /// The deadline of a warm shutdown: tasks that still run are to clean up.
    fn interrupt_running(&mut self) {
        for key in self.running_in_order() {
            let Some(request) = self.requests.get(&key) else {
                continue;
            };
            // A message that is acknowledged can't come again: the task fails, and its result says
            // so.
            let (lane, requeues) = (request.lane, request.task.acks_late);
            self.tell(&Happening::Interrupted { request });
            self.effects.push(Effect::Interrupt {
                lane,
                key,
                requeues,
            });
        }
    }

    /// Tasks that are not done a while after the deadline are ended.
    fn end_running(&mut self) {
        for key in self.running_in_order() {
            if let Some(request) = self.requests.get(&key) {
                self.tell(&Happening::EndedAtShutdown { request });
            }
        }
        self.effects.push(Effect::KillPools);
    }

    fn running_in_order(&self) -> Vec<RequestKey> {
        let running = self.requests.values();
        let mut keys: Vec<RequestKey> = running
            .filter(|request| request.stage.is_running())
            .map(|request| request.key)
            .collect();
        keys.sort_unstable();
        keys
    }

    /// Whether nothing is left to do after a shutdown.
    pub fn is_done(&self) -> bool {
        let waits_idle = self.soft_until.is_some() && self.options.soft_shutdown_on_idle;
        self.shutdown.phase() != Phase::Running
            && !waits_idle
            && self.lanes.iter().all(|lane| lane.pool_is_closed)
            && self.requests.is_empty()
            && !self.has_set_aside()
            && self.continuations.is_empty()
    }

    /// How the shutdown stands.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }
}
