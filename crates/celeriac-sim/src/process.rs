//! A worker's process with its children and its main, as the operating system knows them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use celeriac_core::pool::{ExitStatus, Outcome, RequestKey};
use celeriac_pool::prefork::frame::AfterJob;
use celeriac_worker::parts::OperatorSignal;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::auditor::{Finish, Serial};
use crate::hooks::Main;

/// How often a worker may read its clock while no time passes.
const READS: usize = 20_000;

/// One start of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessId(pub(crate) u32);

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}", self.0)
    }
}

pub(crate) struct Process {
    /// Which of the workers it is.
    pub(crate) slot: usize,
    pub(crate) is_alive: bool,
    pub(crate) was_killed: bool,
    pub(crate) is_paused: bool,
    pub(crate) started: Instant,
    /// Told when it goes on, or never.
    pub(crate) resumed: Arc<Notify>,
    pub(crate) waker: Option<Waker>,
    pub(crate) task: Option<AbortHandle>,
    /// By how much its wall clock is wrong.
    pub(crate) clock_offset: i64,
    /// The latest that its wall clock has shown.
    pub(crate) latest: Timestamp,
    /// When something broke last that keeps it from the broker.
    pub(crate) disturbed: Instant,
    /// Since when it was told to end.
    pub(crate) ends_since: Option<Instant>,
    pub(crate) orders: mpsc::Sender<OperatorSignal>,
    pub(crate) asked: mpsc::Sender<(String, Map<String, Value>)>,
    pub(crate) children: BTreeMap<u32, Child>,
    /// What children have said.
    pub(crate) said: VecDeque<(u32, Said)>,
    /// What the zygote has said.
    pub(crate) zygote_said: VecDeque<ZygoteSaid>,
    pub(crate) has_zygote: bool,
    /// Told when something was said.
    pub(crate) heard: Arc<Notify>,
    pub(crate) next_pid: u32,
    /// When it read its clock last, and how often since time has passed.
    pub(crate) reads: (Instant, usize),
    /// By how many children the operator has made its pool larger.
    pub(crate) grown: u32,
    pub(crate) main: Main,
    pub(crate) main_died: Arc<Notify>,
}

impl Process {
    /// Notes that it reads its clock; true when it does nothing else any more.
    pub(crate) fn reads_clock(&mut self) -> bool {
        let now = Instant::now();
        let (last, reads) = self.reads;
        self.reads = (now, if last == now { reads + 1 } else { 0 });
        self.reads.1 > READS
    }
}

/// A child of the pool. It stays here until its end is collected.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    pub(crate) is_alive: bool,
    pub(crate) is_up: bool,
    /// What it has not read.
    pub(crate) channel: VecDeque<Mail>,
    pub(crate) busy: Option<Busy>,
    pub(crate) ignores_term: bool,
}

/// A message to a child.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mail {
    Job {
        key: RequestKey,
        serial: Serial,
        after: AfterJob,
    },
    Leave,
}

/// A job that a child runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Busy {
    pub(crate) key: RequestKey,
    pub(crate) serial: Serial,
    pub(crate) after: AfterJob,
    pub(crate) run: usize,
    pub(crate) finish: Finish,
    /// Which of the plans for its end counts: a soft limit makes another one.
    pub(crate) plan: u64,
    /// Where its child dies, if it does.
    pub(crate) dies: Option<Dies>,
}

/// Where a child dies of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dies {
    BeforeItReads,
    WhileItRuns,
    BeforeItReports,
    AfterItReported,
}

#[derive(Debug)]
pub(crate) enum Said {
    Up,
    Done { key: RequestKey, outcome: Outcome },
}

#[derive(Debug)]
pub(crate) enum ZygoteSaid {
    Hello,
    Forked { number: u32, pid: u32 },
    Exited { number: u32, status: ExitStatus },
    Gone,
}
