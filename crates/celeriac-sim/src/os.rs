//! Children of simulated workers: how they live and die.

use std::time::Duration;

use celeriac_core::pool::{ExitStatus, Failure, Job, Outcome, RequestKey};
use celeriac_pool::prefork::frame::AfterJob;
use celeriac_pool::prefork::machine::SoftLimit;

use crate::auditor::{Finish, Serial};
use crate::plan::Mutation;
use crate::process::{Busy, Child, Dies, Mail, ProcessId, Said, ZygoteSaid};
use crate::world::{Event, World};

const SIGUSR1: i32 = 10;
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

impl World {
    /// Orders a child; false when there is no zygote.
    pub(crate) fn fork(&mut self, process: ProcessId, number: u32) -> bool {
        let (takes, ignores_term) = (self.chance.ms(1, 10), self.chance.happens(0.1));
        let Some(it) = self.living(process) else {
            return true;
        };
        if !it.has_zygote {
            return false;
        }
        it.next_pid += 1;
        let child = Child {
            pid: it.next_pid,
            is_alive: true,
            is_up: false,
            channel: std::collections::VecDeque::new(),
            busy: None,
            ignores_term,
        };
        it.children.insert(number, child);
        self.plan_in(takes, Event::Forked(process, number));
        let is_forked = takes;
        let takes = self.chance.ms(1, 60);
        if !self.is_calm && self.chance.happens(self.plan.faults.child / 2.0) {
            let status = ExitStatus::Signal(SIGKILL);
            self.plan_in(is_forked + takes, Event::Dies(process, number, status));
        } else {
            self.plan_in(takes, Event::Up(process, number));
        }
        true
    }

    pub(crate) fn child_is_forked(&mut self, process: ProcessId, number: u32) {
        if let Some(it) = self.living(process)
            && let Some(child) = it.children.get(&number)
            && it.has_zygote
        {
            let pid = child.pid;
            it.zygote_said.push_back(ZygoteSaid::Forked { number, pid });
            it.heard.notify_one();
        }
    }

    pub(crate) fn child_is_up(&mut self, process: ProcessId, number: u32) {
        if let Some(it) = self.living(process)
            && let Some(child) = it.children.get_mut(&number)
            && child.is_alive
        {
            child.is_up = true;
            it.said.push_back((number, Said::Up));
            it.heard.notify_one();
            self.child_reads_soon(process, number);
        }
    }

    /// Puts a message into a child's channel; false when it is dead.
    pub(crate) fn post(&mut self, process: ProcessId, number: u32, mail: Mail) -> bool {
        let Some(it) = self.living(process) else {
            return false;
        };
        let Some(child) = it.children.get_mut(&number).filter(|child| child.is_alive) else {
            return false;
        };
        child.channel.push_back(mail);
        let is_idle = child.busy.is_none() && child.channel.len() == 1;
        if is_idle {
            self.child_reads_soon(process, number);
        }
        true
    }

    /// Sends a job: `Some(false)` when the child is gone, `None` when its channel is full.
    pub(crate) fn send(
        &mut self,
        process: ProcessId,
        number: u32,
        job: &Job,
        after: AfterJob,
    ) -> Option<bool> {
        let serial = serial_of_job(job);
        self.log(|| format!("{process} sends {serial} to child {number}"));
        if !self.is_calm && self.chance.happens(self.plan.faults.child / 20.0) {
            return None;
        }
        let key = job.key;
        Some(self.post(process, number, Mail::Job { key, serial, after }))
    }

    fn child_reads_soon(&mut self, process: ProcessId, number: u32) {
        let takes = self.chance.ms(0, 1);
        self.plan_in(takes, Event::Reads(process, number));
    }

    pub(crate) fn child_reads(&mut self, process: ProcessId, number: u32) {
        let dies = self.death();
        let Some(it) = self.living(process) else {
            return;
        };
        let Some(child) = it.children.get_mut(&number) else {
            return;
        };
        if !child.is_alive || !child.is_up || child.busy.is_some() {
            return;
        }
        match child.channel.front().copied() {
            None => {}
            Some(Mail::Leave) => {
                let takes = self.chance.ms(0, 30);
                self.plan_in(takes, Event::Dies(process, number, ExitStatus::Code(0)));
            }
            Some(Mail::Job { .. }) if dies == Some(Dies::BeforeItReads) => {
                let status = ExitStatus::Signal(SIGKILL);
                self.child_dies(process, number, status);
            }
            Some(Mail::Job { key, serial, after }) => {
                child.channel.pop_front();
                self.begin(process, number, (key, serial, after), dies);
            }
        }
    }

    fn death(&mut self) -> Option<Dies> {
        let is_so = !self.is_calm && self.chance.happens(self.plan.faults.child);
        is_so.then(|| {
            self.chance.pick(&[
                Dies::BeforeItReads,
                Dies::WhileItRuns,
                Dies::BeforeItReports,
                Dies::AfterItReported,
            ])
        })
    }

    fn begin(
        &mut self,
        process: ProcessId,
        number: u32,
        (key, serial, after): (RequestKey, Serial, AfterJob),
        dies: Option<Dies>,
    ) {
        let latest = self.latest(process);
        let is_leased = self.plan.is_leased();
        let run = self.auditor.begins(serial, process, latest, is_leased);
        self.log(|| format!("{process} child {number} begins {serial} (run {run})"));
        let finish = self.finish();
        let busy = Busy {
            key,
            serial,
            after,
            run,
            finish,
            plan: 0,
            dies,
        };
        if let Some(child) = self.child(process, number) {
            child.busy = Some(busy);
        }
        let is_short = self.plan.has_short_tasks && self.chance.happens(0.7);
        let (least, most) = if is_short { (0, 3) } else { (5, 800) };
        let is_long = !is_short && self.chance.happens(0.1);
        let takes = self.chance.ms(least, if is_long { 6000 } else { most });
        if dies == Some(Dies::WhileItRuns) {
            let status = ExitStatus::Signal(11);
            self.plan_in(takes / 2, Event::Dies(process, number, status));
        }
        self.plan_in(takes, Event::Finishes(process, number, run, 0));
    }

    fn finish(&mut self) -> Finish {
        if self.is_calm || self.chance.happens(0.8) {
            return Finish::Success;
        }
        self.chance.pick(&[
            Finish::Failure,
            Finish::Failure,
            Finish::Retry,
            Finish::Ignore,
            Finish::Reject,
            Finish::Requeue,
            Finish::Left,
        ])
    }

    fn child(&mut self, process: ProcessId, number: u32) -> Option<&mut Child> {
        let child = self.living(process)?.children.get_mut(&number)?;
        child.is_alive.then_some(child)
    }

    /// The run is done: what came of it is stored.
    pub(crate) fn child_finishes(
        &mut self,
        process: ProcessId,
        number: u32,
        run: usize,
        plan: u64,
    ) {
        let Some(busy) = self.child(process, number).and_then(|child| child.busy) else {
            return;
        };
        if busy.run != run || busy.plan != plan {
            return;
        }
        let takes = self.chance.ms(0, 2);
        if self.plan.is_mutated(Mutation::ReportsEarly) {
            let later = Duration::from_millis(100);
            self.plan_in(later, Event::Stores(process, number, busy.serial, run));
            self.plan_in(takes, Event::Reports(process, number, run));
            return;
        }
        self.auditor.finishes(busy.serial, run, busy.finish);
        self.log(|| {
            let (serial, finish) = (busy.serial, busy.finish);
            format!("{process} child {number} ends {serial}: {finish:?}")
        });
        if busy.finish == Finish::Retry {
            self.publish_retry(busy.serial);
        }
        if busy.dies == Some(Dies::BeforeItReports) {
            let status = ExitStatus::Signal(SIGKILL);
            self.plan_in(takes, Event::Dies(process, number, status));
            self.plan_in(takes, Event::Reports(process, number, run));
        } else {
            self.plan_in(takes, Event::Reports(process, number, run));
        }
    }

    pub(crate) fn child_reports(&mut self, process: ProcessId, number: u32, run: usize) {
        let Some(child) = self.child(process, number) else {
            return;
        };
        let Some(busy) = child.busy.filter(|busy| busy.run == run) else {
            return;
        };
        child.busy = None;
        let outcome = outcome(busy.finish);
        let leaves = busy.after == AfterJob::Leave || busy.finish == Finish::Left;
        let key = busy.key;
        self.auditor.reported(busy.serial, run);
        if let Some(it) = self.living(process) {
            it.said.push_back((number, Said::Done { key, outcome }));
            it.heard.notify_one();
        }
        if leaves {
            let takes = self.chance.ms(0, 20);
            self.plan_in(takes, Event::Dies(process, number, ExitStatus::Code(0)));
        } else if busy.dies == Some(Dies::AfterItReported) {
            let status = ExitStatus::Signal(SIGKILL);
            self.child_dies(process, number, status);
        } else {
            self.child_reads_soon(process, number);
        }
    }

    pub(crate) fn child_dies(&mut self, process: ProcessId, number: u32, status: ExitStatus) {
        let takes = self.chance.ms(0, 5);
        let Some(child) = self.child(process, number) else {
            return;
        };
        child.is_alive = false;
        if let Some(busy) = child.busy.take() {
            self.auditor.died(busy.serial, busy.run);
        }
        self.log(|| format!("{process} child {number} dies: {status}"));
        self.plan_in(takes, Event::IsCollected(process, number, status));
    }

    pub(crate) fn child_is_collected(
        &mut self,
        process: ProcessId,
        number: u32,
        status: ExitStatus,
    ) {
        if let Some(it) = self.living(process)
            && it.children.contains_key(&number)
        {
            it.zygote_said
                .push_back(ZygoteSaid::Exited { number, status });
            it.heard.notify_one();
        }
    }

    pub(crate) fn soft_limit(
        &mut self,
        process: ProcessId,
        number: u32,
        key: RequestKey,
        limit: SoftLimit,
    ) {
        let (heeds, takes) = (self.chance.happens(0.7), self.chance.ms(1, 20));
        let Some(child) = self.child(process, number) else {
            return;
        };
        if heeds && let Some(busy) = child.busy.as_mut().filter(|busy| busy.key == key) {
            busy.plan += 1;
            busy.finish = match limit {
                SoftLimit::Shutdown => Finish::Requeue,
                SoftLimit::Time | SoftLimit::Memory => Finish::Failure,
            };
            let (run, plan) = (busy.run, busy.plan);
            self.plan_in(takes, Event::Finishes(process, number, run, plan));
        }
    }

    pub(crate) fn signal(&mut self, process: ProcessId, number: u32, signal: i32) {
        let takes = self.chance.ms(0, 60);
        let Some(child) = self.child(process, number) else {
            return;
        };
        match signal {
            SIGUSR1 => {}
            SIGTERM if child.ignores_term => {}
            SIGKILL => self.child_dies(process, number, ExitStatus::Signal(SIGKILL)),
            _ => {
                let status = ExitStatus::Signal(signal);
                self.plan_in(takes, Event::Dies(process, number, status));
            }
        }
    }

    /// Takes out of a child's channel what it has not read, but for the job that counts as begun.
    pub(crate) fn take_back(
        &mut self,
        process: ProcessId,
        number: u32,
        begun: Option<RequestKey>,
    ) -> Vec<RequestKey> {
        let Some(it) = self.living(process) else {
            return Vec::new();
        };
        let Some(child) = it.children.get_mut(&number) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        child.channel.retain(|mail| match mail {
            Mail::Job { key, .. } if Some(*key) != begun => {
                taken.push(*key);
                false
            }
            _ => true,
        });
        taken
    }

    /// The jobs that a dead child has not read.
    pub(crate) fn unread(&mut self, process: ProcessId, number: u32) -> Vec<RequestKey> {
        self.take_back(process, number, None)
    }

    pub(crate) fn forget(&mut self, process: ProcessId, number: u32) {
        let Some(it) = self.living(process) else {
            return;
        };
        let Some(child) = it.children.remove(&number) else {
            return;
        };
        if let Some(busy) = child.busy {
            self.auditor.died(busy.serial, busy.run);
            self.auditor
                .accuse(format!("{process} forgets a child that runs a job"));
        }
    }

    pub(crate) fn zygote_dies(&mut self, process: ProcessId) {
        let Some(it) = self.living(process) else {
            return;
        };
        if !std::mem::replace(&mut it.has_zygote, false) {
            return;
        }
        it.zygote_said
            .retain(|said| !matches!(said, ZygoteSaid::Forked { .. }));
        it.zygote_said.push_back(ZygoteSaid::Gone);
        it.heard.notify_one();
        let children: Vec<u32> = it.children.keys().copied().collect();
        self.log(|| format!("{process} zygote dies"));
        for number in children {
            self.child_dies(process, number, ExitStatus::Signal(SIGKILL));
        }
        let takes = self.chance.ms(200, 2000);
        self.plan_in(takes, Event::ZygoteIsBack(process));
    }

    pub(crate) fn zygote_is_back(&mut self, process: ProcessId) {
        if let Some(it) = self.living(process) {
            it.has_zygote = true;
            it.zygote_said.push_back(ZygoteSaid::Hello);
            it.heard.notify_one();
        }
    }
}

fn outcome(finish: Finish) -> Outcome {
    let failure = Failure::default;
    match finish {
        Finish::Success => Outcome::Success {
            runtime: None,
            result: String::new(),
        },
        Finish::Failure => Outcome::Failure(failure()),
        Finish::Retry => Outcome::Retry(failure()),
        Finish::Ignore => Outcome::Ignore(failure()),
        Finish::Reject => Outcome::Reject {
            requeue: false,
            failure: failure(),
        },
        Finish::Requeue => Outcome::Reject {
            requeue: true,
            failure: failure(),
        },
        Finish::Left => Outcome::Left { status: 1 },
    }
}

/// The serial number that a job's request carries.
fn serial_of_job(job: &Job) -> Serial {
    crate::world::serial_in_text(&job.request)
}
