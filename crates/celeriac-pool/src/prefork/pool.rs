//! The pool in the world: carries out what the machine decides, tells it what happens.
//!
//! To be run on a current-thread runtime: what a child sent before it ended is collected when its
//! end is told, which relies on nobody else reading at that moment.

mod memory;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::Evidence;
use celeriac_core::backoff::Doubling;
use celeriac_core::clock::Clock;
use celeriac_core::pool::{Condition, ExitStatus, Job, Pool, PoolEvent, RequestKey};
use nix::sys::signal::Signal;
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::child::{Child, Unread, is_gone, read_messages};
use super::frame::{self, ChildMessage};
use super::kind::PoolKind;
use super::machine::{Action, Kill, Limits, Machine, Shape};
use crate::memory::{MemoryWatch, WatchOptions};
use crate::python::host::Becomes;
use crate::python::main::Lost;
use crate::python::zygote::{Zygote, ZygoteEvent};
use crate::python::{Host, StartOptions};
use crate::sys::memory_file::ControlPage;
use crate::sys::process::{self, GroupLeaders, ProcessHandle};
use crate::sys::seqpacket;

/// Messages of children that wait to be read.
const QUEUED_MESSAGES: usize = 256;
/// Between two attempts to fork a main.
const MAIN_INTERVAL: Duration = Duration::from_millis(50);
/// Waits between attempts to get a new zygote.
const ZYGOTE_RESTARTS: Doubling = Doubling {
    start: Duration::from_millis(200),
    max: Duration::from_secs(30),
};
/// Where the kernel tells of processes and of memory.
const PROC: &str = "/proc";
/// Where it says what it did about too little of it.
const KERNEL_LOG: &str = "/dev/kmsg";
/// Numbers of mains that the zygote forks: those of children begin at 1.
const MAIN_NUMBER: u32 = 0;

/// What a pool of Python tasks is made of.
#[derive(Debug, Clone)]
pub struct PreforkOptions {
    /// What its children do.
    pub kind: PoolKind,
    /// Number of children, where each runs many jobs at once.
    pub processes: usize,
    /// Number of jobs at once: of children, where each runs one.
    pub size: usize,
    /// Limits on each child.
    pub limits: Limits,
    /// Which memory is watched beside theirs.
    pub watch: WatchOptions,
    /// How the host was started: a new zygote is made the same way.
    pub start: StartOptions,
}

/// Asks the pool for a new main. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MainForks(mpsc::Sender<oneshot::Sender<UnixStream>>);

impl MainForks {
    /// Has the zygote fork a main, and gives the channel to it.
    ///
    /// # Errors
    /// When the pool is gone.
    pub async fn fork(&self) -> Result<UnixStream, Lost> {
        let (reply, answer) = oneshot::channel();
        self.0.send(reply).await.map_err(|_| Lost)?;
        answer.await.map_err(|_| Lost)
    }
}

/// Children forked from a zygote.
pub struct PreforkPool {
    machine: Machine,
    kind: PoolKind,
    clock: Arc<dyn Clock>,
    start: StartOptions,
    zygote: Option<Zygote>,
    /// A new zygote that is being made.
    new_zygote: Option<oneshot::Receiver<Zygote>>,
    children: HashMap<u32, Child>,
    leaders: GroupLeaders,
    messages: mpsc::Receiver<(u32, ChildMessage)>,
    to_messages: mpsc::Sender<(u32, ChildMessage)>,
    main_forks: mpsc::Receiver<oneshot::Sender<UnixStream>>,
    /// A main that was asked for while none could be forked.
    main_waits: Option<oneshot::Sender<UnixStream>>,
    main_attempts: Interval,
    ended: SignalStream,
    memory: MemoryWatch,
    /// When what children hold is looked at again.
    next_look: Duration,
    /// Whether it was told that the worker holds too much without its children.
    is_told_of_rest: bool,
    told: VecDeque<PoolEvent>,
    is_closed: bool,
}

impl PreforkPool {
    /// A pool over `zygote`.
    ///
    /// # Errors
    /// When signals can't be watched.
    pub fn new(
        options: PreforkOptions,
        zygote: Zygote,
        clock: Arc<dyn Clock>,
    ) -> io::Result<(Self, MainForks)> {
        let (to_messages, messages) = mpsc::channel(QUEUED_MESSAGES);
        let (ask_main, main_forks) = mpsc::channel(1);
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            ticks
        };
        let pool = Self {
            machine: Machine::with_shape(
                options.kind.shape(options.processes),
                options.size,
                options.limits,
            ),
            kind: options.kind,
            clock,
            start: options.start,
            zygote: Some(zygote),
            new_zygote: None,
            children: HashMap::new(),
            leaders: GroupLeaders::default(),
            messages,
            to_messages,
            main_forks,
            main_waits: None,
            main_attempts: every(MAIN_INTERVAL),
            ended: signal(SignalKind::child())?,
            memory: MemoryWatch::new(options.watch, Path::new(PROC), Path::new(KERNEL_LOG)),
            next_look: Duration::ZERO,
            is_told_of_rest: false,
            told: VecDeque::new(),
            is_closed: false,
        };
        Ok((pool, MainForks(ask_main)))
    }

    /// Process ids of the children that are up.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.machine.pids()
    }

    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Carries out what the machine decided, until it has nothing more to say.
    fn act(&mut self) {
        while self.machine.has_actions() {
            for action in self.machine.take_actions() {
                match action {
                    Action::Fork { number, index } => self.fork(number, index),
                    Action::Send { number, job, after } => self.send(number, job, after),
                    Action::Leave { number } => self.tell_to_leave(number),
                    Action::SoftLimit { number, key, limit } => {
                        self.tell_child(number, |child| child.raise(key, limit));
                    }
                    Action::Terminate { number, key } => {
                        self.tell_child(number, |child| child.terminate(key));
                    }
                    Action::Kill { number, kill } => self.kill_child(number, kill),
                    Action::TakeBack { number } => self.take_back(number),
                    Action::Forget { number } => drop(self.children.remove(&number)),
                    Action::Tell(PoolEvent::Closed) => {
                        self.is_closed = true;
                        // The end of its channel ends the zygote.
                        self.zygote = None;
                        self.main_waits = None;
                        self.told.push_back(PoolEvent::Closed);
                    }
                    Action::Tell(event) => self.told.push_back(event),
                }
            }
        }
    }

    fn fork(&mut self, number: u32, index: usize) {
        let forked = self.try_fork(number, index);
        if let Err(error) = forked {
            // A zygote that is gone says so by itself; anything else is a lack of descriptors.
            tracing::error!(%error, "a child could not be forked");
            self.machine
                .exited(number, &Evidence::default(), &[], self.now());
        }
    }

    fn try_fork(&mut self, number: u32, index: usize) -> io::Result<()> {
        let zygote = self
            .zygote
            .as_ref()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let (channel, their_end) = seqpacket::pair()?;
        let page = ControlPage::new()?;
        let kind = self.kind.name();
        zygote.fork_child(number, index, kind, &their_end, page.file().as_fd())?;
        let channel = Arc::new(channel);
        let reading = read_messages(number, Arc::clone(&channel), self.to_messages.clone());
        let reader = tokio::spawn(reading).abort_handle();
        self.children.insert(
            number,
            Child {
                channel,
                their_end,
                page,
                process: None,
                reader,
                is_shared: matches!(self.kind.shape(1), Shape::Shared { .. }),
                unsent: VecDeque::new(),
            },
        );
        Ok(())
    }

    fn send(&mut self, number: u32, job: Job, after: frame::AfterJob) {
        let now = self.now();
        let child = self.children.get(&number);
        match child.map(|child| child.send(&job, after)) {
            Some(Ok(())) => self.machine.sent(number, now),
            // The child is gone: the job, which it never had, is given back with its end.
            Some(Err(error)) if is_gone(&error) => {
                tracing::debug!(%error, "a child takes no job");
            }
            Some(Err(error)) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::error!(%error, "a job could not be sent to a process of the pool");
                }
                self.machine.unsent(number, job, now);
            }
            None => self.machine.unsent(number, job, now),
        }
    }

    fn tell_to_leave(&mut self, number: u32) {
        if let Some(child) = self.children.get(&number) {
            // One that can't be told is gone, or is killed for not leaving.
            drop(child.channel.try_send(&[&frame::leave()], &[]));
        }
    }

    fn tell_child(&mut self, number: u32, tell: impl FnOnce(&mut Child)) {
        if let Some(child) = self.children.get_mut(&number) {
            tell(child);
        }
    }

    fn kill_child(&mut self, number: u32, kill: Kill) {
        self.tell_child(number, |child| child.signal(kill));
    }

    /// Reads what a child has not read yet, in its place.
    fn take_back(&mut self, number: u32) {
        let Some(child) = self.children.get(&number) else {
            return;
        };
        // It counts as begun, though the child may not have come to it.
        let begun = self.machine.running(number);
        let is_taken = |unread: &Unread| unread.key.is_some() && unread.key != begun;
        // The job that has begun was not meant to be taken, nor was the order to leave.
        let (taken, returns): (Vec<_>, Vec<_>) = child.unread().into_iter().partition(is_taken);
        for unread in &returns {
            let descriptors: Vec<_> = unread.descriptors.iter().map(OwnedFd::as_fd).collect();
            if let Err(error) = child.channel.try_send(&[&unread.message], &descriptors) {
                // There was room for it before: the child is gone, or of no use.
                tracing::debug!(%error, "a child does not get its job back");
                child.signal(Kill::Kill);
            }
        }
        let keys: Vec<RequestKey> = taken.iter().filter_map(|unread| unread.key).collect();
        let now = self.now();
        self.machine.taken_back(number, &keys, now);
    }

    fn child_said(&mut self, number: u32, message: ChildMessage) {
        let now = self.now();
        if let Some(child) = self.children.get_mut(&number) {
            // It has read something: there may be room.
            child.flush();
        }
        match message {
            ChildMessage::Started { jobs } => {
                let keys: Vec<RequestKey> = jobs.into_iter().map(RequestKey).collect();
                self.machine.begun(number, &keys, now);
            }
            ChildMessage::Terminated { job } => {
                self.machine.terminated(number, RequestKey(job), now);
            }
            ChildMessage::Up => self.machine.up(number, now),
            // Its job is lost with it, as if it had died by itself: no job is without an end.
            ChildMessage::Nonsense => {
                tracing::error!("a process of the pool said something unexpected: it is killed");
                self.kill_child(number, Kill::Kill);
            }
            ChildMessage::Done { job, outcome } => {
                // Only looked at where it is limited: it costs more than a short task.
                let is_limited = self.machine.replaces_by_memory();
                let process = self
                    .children
                    .get(&number)
                    .and_then(|child| child.process.as_ref());
                let peak = process
                    .filter(|_| is_limited)
                    .and_then(|process| process::peak(process.pid()));
                self.machine
                    .done(number, RequestKey(job), outcome, peak, now);
            }
        }
    }

    fn zygote_said(&mut self, event: ZygoteEvent) {
        let now = self.now();
        match event {
            ZygoteEvent::Hello { .. } => self.machine.zygote_is_up(now),
            ZygoteEvent::Forked {
                number: MAIN_NUMBER,
                ..
            } => {}
            ZygoteEvent::Forked { number, pid } => {
                if let Some(child) = self.children.get_mut(&number) {
                    child.process = Some(ProcessHandle::open(pid));
                    self.leaders.insert(pid);
                }
                self.machine.forked(number, pid, now);
            }
            ZygoteEvent::Exited { pid, status, peak } => {
                let evidence = Evidence {
                    peak,
                    ..Evidence::of(status)
                };
                self.process_ended(pid, evidence);
            }
            ZygoteEvent::Gone => self.zygote_is_gone(),
        }
    }

    fn process_ended(&mut self, pid: u32, mut evidence: Evidence) {
        self.leaders.remove(pid);
        let Some(number) = self.number_of(pid) else {
            return;
        };
        // What the child said before it ended comes first.
        while let Ok((number, message)) = self.messages.try_recv() {
            self.child_said(number, message);
        }
        if let Some(child) = self.children.get(&number) {
            let channel = Arc::clone(&child.channel);
            let mut buffer = vec![0; frame::RECEIVE_BYTES];
            while let Ok(length @ 1..) = channel.try_receive(&mut buffer) {
                self.child_said(number, frame::read(&buffer[..length]));
            }
        }
        let unread = self
            .children
            .get(&number)
            .map_or_else(Vec::new, Child::unread);
        let unread: Vec<RequestKey> = unread.iter().filter_map(|unread| unread.key).collect();
        let now = self.now();
        if evidence.status == ExitStatus::Signal(Signal::SIGKILL as i32) {
            evidence.oom = self.memory.oom.explain(pid, now);
            if let Some(oom) = &evidence.oom {
                tracing::error!(
                    target: "celery.worker",
                    "The kernel ended process {pid} for want of memory: {oom}"
                );
            }
        }
        let running = self.machine.running(number);
        if let (Some(child), Some(job)) = (self.children.get(&number), running)
            // Of many jobs it is not known whose last words they are.
            && !child.is_shared
        {
            evidence.log = child.last_words(job);
        }
        self.machine.exited(number, &evidence, &unread, now);
    }

    fn number_of(&self, pid: u32) -> Option<u32> {
        let is_it = |child: &Child| child.process.as_ref().is_some_and(|p| p.pid() == pid);
        self.children
            .iter()
            .find(|(_, child)| is_it(child))
            .map(|(number, _)| *number)
    }

    /// The zygote is dead; its children are being killed by the kernel, and come to this process.
    fn zygote_is_gone(&mut self) {
        self.zygote = None;
        if self.is_closed {
            return;
        }
        tracing::error!(
            target: "celery.worker",
            "The zygote process is gone, and with it the pool's processes. Starting a new one."
        );
        self.machine.zygote_is_gone();
        let (ready, new_zygote) = oneshot::channel();
        self.new_zygote = Some(new_zygote);
        tokio::spawn(start_zygote(self.start.clone(), ready));
    }

    fn fork_main(&mut self, reply: oneshot::Sender<UnixStream>) {
        let forked = self.zygote.as_ref().and_then(|zygote| {
            let (ours, theirs) = seqpacket::stream_pair().ok()?;
            zygote.fork_main(MAIN_NUMBER, &theirs).ok()?;
            UnixStream::from_std(ours).ok()
        });
        match forked {
            Some(stream) => drop(reply.send(stream)),
            // After the end of the pool there is no zygote to come: whoever asks is told so.
            None if self.is_closed => {}
            None => self.main_waits = Some(reply),
        }
    }

    /// Waits for one thing to happen. Safe to cancel.
    async fn happen(&mut self) {
        let now = self.now();
        let look = self.next_look();
        if look.is_some_and(|at| at <= now) {
            // First: there may always be something else.
            return self.look_at_memory(now);
        }
        let next = self.machine.next_tick(now).into_iter().chain(look).min();
        let tick =
            next.map(|at| Instant::now() + at.saturating_sub(now).min(Duration::from_hours(24)));
        tokio::select! {
            biased;
            Some((number, message)) = self.messages.recv() => {
                self.child_said(number, message);
                // What others said meanwhile is concluded with it, in one turn.
                while let Ok((number, message)) = self.messages.try_recv() {
                    self.child_said(number, message);
                }
            }
            event = next_of(self.zygote.as_ref()) => self.zygote_said(event),
            _ = self.ended.recv() => {
                for (pid, status) in process::reap(&self.leaders) {
                    self.process_ended(pid, Evidence::of(status));
                }
            }
            Some(zygote) = new_zygote(&mut self.new_zygote) => {
                self.new_zygote = None;
                self.zygote = Some(zygote);
            }
            Some(reply) = self.main_forks.recv() => self.fork_main(reply),
            _ = self.main_attempts.tick(), if self.main_waits.is_some() => {
                if let Some(waiting) = self.main_waits.take() {
                    self.fork_main(waiting);
                }
            }
            () = sleep_until(tick.unwrap_or_else(Instant::now)), if tick.is_some() => {
                let now = self.now();
                self.machine.tick(now);
            }
        }
    }
}

#[async_trait]
impl Pool for PreforkPool {
    fn free(&self) -> usize {
        self.machine.free(self.now())
    }

    fn submit(&mut self, job: Job) {
        let now = self.now();
        self.memory.is_busy(now);
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
        // Celery's solo has one process, and neither grows nor shrinks.
        if self.kind != PoolKind::Solo {
            self.machine.resize(size, self.clock.monotonic());
            self.act();
        }
        self.machine.size()
    }

    fn shrink(&mut self, by: usize) {
        if self.kind != PoolKind::Solo {
            self.machine.shrink(by, self.clock.monotonic());
            self.act();
        }
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
        loop {
            self.act();
            if !self.told.is_empty() {
                return self.told.drain(..).collect();
            }
            self.happen().await;
        }
    }
}

/// Makes a new zygote, however long it takes.
async fn start_zygote(start: StartOptions, ready: oneshot::Sender<Zygote>) {
    for failure in 0.. {
        let started = async { Host::start(&start, Becomes::Zygote).await?.1.split().await };
        match started.await {
            Ok((_, channel)) => {
                drop(ready.send(Zygote::new(channel)));
                return;
            }
            Err(error) => {
                let wait = ZYGOTE_RESTARTS.wait(failure);
                tracing::error!(
                    target: "celery.worker",
                    "A new zygote process could not be started: {error}. Trying again in {wait:?}."
                );
                tokio::time::sleep(wait).await;
            }
        }
        if ready.is_closed() {
            return;
        }
    }
}

/// The next that a zygote says; for ever nothing where there is none.
async fn next_of(zygote: Option<&Zygote>) -> ZygoteEvent {
    match zygote {
        Some(zygote) => zygote.next().await,
        None => std::future::pending().await,
    }
}

/// The new zygote, once it is there; `None` when there won't be one.
async fn new_zygote(awaited: &mut Option<oneshot::Receiver<Zygote>>) -> Option<Zygote> {
    match awaited {
        Some(zygote) => zygote.await.ok(),
        None => std::future::pending().await,
    }
}
