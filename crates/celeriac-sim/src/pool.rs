//! The pool of a simulated worker: the real machine over simulated processes.
//!
//! Counterpart: `celeriac_pool::prefork::pool`, which does the same with real ones.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::evidence::Evidence;
use celeriac_core::pool::{Condition, ExitStatus, Job, Pool, PoolEvent, RequestKey};
use celeriac_pool::prefork::frame::AfterJob;
use celeriac_pool::prefork::machine::{Action, Kill, Limits, Machine, MemoryLimits};
use tokio::time::{Instant, sleep_until};

use crate::process::{Mail, ProcessId, Said, ZygoteSaid};
use crate::world::{Shared, locked};

/// How long a child may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct SimulatedPool {
    machine: Machine,
    world: Shared,
    process: ProcessId,
    started: Instant,
    told: VecDeque<PoolEvent>,
}

impl SimulatedPool {
    pub(crate) fn new(
        world: Shared,
        process: ProcessId,
        started: Instant,
        size: usize,
        max_tasks_per_child: Option<u64>,
    ) -> Self {
        let limits = Limits {
            max_tasks_per_child,
            memory: MemoryLimits::default(),
            start_timeout: START_TIMEOUT,
        };
        Self {
            machine: Machine::new(size, limits),
            world,
            process,
            started,
            told: VecDeque::new(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn act(&mut self) {
        while self.machine.has_actions() {
            for action in self.machine.take_actions() {
                self.carry_out(action);
            }
        }
    }

    fn carry_out(&mut self, action: Action) {
        let now = self.now();
        let process = self.process;
        match action {
            Action::Fork { number, .. } => {
                let is_ordered = locked(&self.world).fork(process, number);
                if !is_ordered {
                    let evidence = Evidence::of(ExitStatus::Unknown);
                    self.machine.exited(number, &evidence, &[], now);
                }
            }
            Action::Send { number, job, after } => self.send(number, job, after),
            Action::Leave { number } => {
                locked(&self.world).post(process, number, Mail::Leave);
            }
            Action::SoftLimit { number, key, limit } => {
                locked(&self.world).soft_limit(process, number, key, limit);
            }
            // Of pools alone whose children run many jobs at once.
            Action::Terminate { .. } => {}
            Action::Kill { number, kill } => {
                let signal = match kill {
                    Kill::TerminateGroup => 15,
                    Kill::Kill | Kill::KillGroup => 9,
                    Kill::Signal(signal) => signal,
                };
                locked(&self.world).signal(process, number, signal);
            }
            Action::TakeBack { number } => {
                let begun = self.machine.running(number);
                let taken = locked(&self.world).take_back(process, number, begun);
                self.machine.taken_back(number, &taken, now);
            }
            Action::Forget { number } => locked(&self.world).forget(process, number),
            Action::Tell(event) => self.told.push_back(event),
        }
    }

    fn send(&mut self, number: u32, job: Job, after: AfterJob) {
        let now = self.now();
        let sent = locked(&self.world).send(self.process, number, &job, after);
        match sent {
            Some(true) => self.machine.sent(number, now),
            // The child is gone: the job is given back with its end.
            Some(false) => {}
            None => self.machine.unsent(number, job, now),
        }
    }

    /// Hears one thing that was said, what children said before what the zygote did.
    fn hear(&mut self) -> bool {
        let now = self.now();
        let (said, zygote_said) = {
            let mut world = locked(&self.world);
            let Some(process) = world.living(self.process) else {
                return false;
            };
            let said = process.said.pop_front();
            let zygote_said = if said.is_some() {
                None
            } else {
                process.zygote_said.pop_front()
            };
            (said, zygote_said)
        };
        match (said, zygote_said) {
            (Some((number, Said::Up)), _) => self.machine.up(number, now),
            (Some((number, Said::Done { key, outcome })), _) => {
                self.machine.done(number, key, outcome, None, now);
            }
            (None, Some(ZygoteSaid::Hello)) => self.machine.zygote_is_up(now),
            (None, Some(ZygoteSaid::Forked { number, pid })) => {
                self.machine.forked(number, pid, now);
            }
            (None, Some(ZygoteSaid::Exited { number, status })) => {
                let unread = locked(&self.world).unread(self.process, number);
                self.machine
                    .exited(number, &Evidence::of(status), &unread, now);
            }
            (None, Some(ZygoteSaid::Gone)) => self.machine.zygote_is_gone(),
            (None, None) => return false,
        }
        true
    }
}

#[async_trait]
impl Pool for SimulatedPool {
    fn free(&self) -> usize {
        self.machine.free(self.now())
    }

    fn submit(&mut self, job: Job) {
        let now = self.now();
        self.machine.submit(job, now);
        self.act();
    }

    fn terminate(&mut self, key: RequestKey, signal: i32) {
        let now = self.now();
        self.machine.terminate(key, signal, now);
        self.act();
    }

    fn interrupt(&mut self, key: RequestKey, requeues: bool) {
        self.machine.interrupt(key, requeues);
        self.act();
    }

    fn condition(&self) -> Condition {
        self.machine.condition()
    }

    fn size(&self) -> usize {
        self.machine.size()
    }

    fn processes(&self) -> Vec<(u32, u64)> {
        self.machine.processes()
    }

    fn resize(&mut self, size: usize) -> usize {
        let now = self.now();
        self.machine.resize(size, now);
        self.act();
        self.machine.size()
    }

    fn shrink(&mut self, by: usize) {
        let now = self.now();
        self.machine.shrink(by, now);
        self.act();
    }

    fn restart(&mut self) {
        let now = self.now();
        self.machine.restart(now);
        self.act();
    }

    fn close(&mut self) {
        let now = self.now();
        self.machine.close(now);
        self.act();
    }

    fn kill(&mut self) {
        let now = self.now();
        self.machine.kill_all(now);
        self.act();
    }

    async fn next(&mut self) -> Vec<PoolEvent> {
        let heard = locked(&self.world).processes[&self.process].heard.clone();
        loop {
            self.act();
            if !self.told.is_empty() {
                return self.told.drain(..).collect();
            }
            if self.hear() {
                continue;
            }
            let tick = self.machine.next_tick(self.now());
            let tick = tick.map(|at| self.started + at);
            tokio::select! {
                biased;
                () = heard.notified() => {}
                () = sleep_until(tick.unwrap_or_else(Instant::now)), if tick.is_some() => {
                    let now = self.now();
                    self.machine.tick(now);
                }
            }
        }
    }
}
