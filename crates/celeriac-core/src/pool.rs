//! What the worker asks of a pool: to run jobs, and to tell what became of them.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytestring::ByteString;
use celeriac_protocol::TimeLimits;

use crate::evidence::Evidence;

/// Something that runs jobs.
#[async_trait]
pub trait Pool: Send {
    /// How many jobs it can take now.
    fn free(&self) -> usize;

    /// Takes a job. Its end is told by [`Pool::next`], sooner or later, exactly once.
    fn submit(&mut self, job: Job);

    /// Ends a job: by a signal if it runs, otherwise by giving it back.
    fn terminate(&mut self, key: RequestKey, signal: i32);

    /// Raises the soft time limit's exception in a job that runs. If it `requeues`, the job ends
    /// with [`Outcome::Reject`] where the exception is not caught, otherwise with
    /// [`Outcome::Failure`].
    fn interrupt(&mut self, key: RequestKey, requeues: bool);

    /// How its processes are.
    fn condition(&self) -> Condition;

    /// The wanted number of jobs at once: of processes, where each runs one.
    fn size(&self) -> usize;

    /// The processes that there are, each with how many jobs it was given.
    fn processes(&self) -> Vec<(u32, u64)>;

    /// Changes the wanted number of jobs at once. Busy processes stay; answers with the number that
    /// will be left.
    fn resize(&mut self, size: usize) -> usize;

    /// Has so many processes leave for good: idle ones now, busy ones when their job is done.
    fn shrink(&mut self, by: usize);

    /// Replaces all processes: idle ones now, busy ones when their job is done.
    fn restart(&mut self);

    /// Takes no more jobs; processes end when their job does.
    fn close(&mut self);

    /// Ends every process now.
    fn kill(&mut self);

    /// Waits for something to tell. Safe to cancel.
    async fn next(&mut self) -> Vec<PoolEvent>;
}

/// How the processes of a pool are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Condition {
    /// The wanted number of processes.
    pub wanted: usize,
    /// Processes that can take jobs, or run them.
    pub up: usize,
    /// Whether there is something that processes can be forked from.
    pub can_fork: bool,
    /// Processes that died while they started, since the last one that came up.
    pub failures: u32,
}

/// Names a request from its delivery to its end, within one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey(pub u64);

impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A task as it is handed to a pool. Elsewhere it is a request: "job" is billiard's word for the
/// part of it that crosses to the process that runs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The request that it is.
    pub key: RequestKey,
    /// The task's name.
    pub task: ByteString,
    /// The request mapping, as JSON text.
    pub request: String,
    /// The body, unopened.
    pub body: Bytes,
    /// MIME type of the body.
    pub content_type: Option<ByteString>,
    /// Character set of the body.
    pub content_encoding: Option<ByteString>,
    /// Limits on its run time.
    pub time_limits: TimeLimits,
    /// Whether the result's representation is wanted.
    pub wants_result: bool,
    /// Whether a failure's exception object is wanted, for a hook.
    pub wants_exception: bool,
}

/// What a pool tells.
#[derive(Debug, Clone, PartialEq)]
pub enum PoolEvent {
    /// A process can take jobs.
    Up {
        /// Its process id.
        pid: u32,
    },
    /// A job has begun.
    Started {
        /// The request.
        key: RequestKey,
        /// The process that runs it.
        pid: u32,
    },
    /// A job has ended.
    Finished {
        /// The request.
        key: RequestKey,
        /// How.
        outcome: Outcome,
    },
    /// The soft time limit has passed; the exception is being raised in the task.
    SoftTimeLimit {
        /// The request.
        key: RequestKey,
    },
    /// The hard time limit has passed; the process is being killed.
    HardTimeLimit {
        /// The request.
        key: RequestKey,
        /// The process.
        pid: u32,
    },
    /// The process that ran the job is gone.
    Lost {
        /// The request.
        key: RequestKey,
        /// The process.
        pid: u32,
        /// Why it ended.
        cause: LossCause,
        /// What it left behind.
        evidence: Evidence,
    },
    /// A job that had not begun was given back: the request is the worker's again.
    Returned {
        /// The request.
        key: RequestKey,
    },
    /// A process ended although nobody told it to.
    Died {
        /// Its name, as in log lines.
        name: String,
        /// The process.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
    },
    /// A process holds more memory than it may: it is replaced after its job, or killed.
    TooMuchMemory {
        /// The process.
        pid: u32,
        /// What it holds, in KiB.
        resident: u64,
        /// What it may hold, in KiB.
        limit: u64,
        /// The request that is killed with it.
        killed: Option<RequestKey>,
    },
    /// The soft memory limit was passed; the exception is being raised in the task.
    SoftMemoryLimit {
        /// The request.
        key: RequestKey,
        /// What its process group holds, in KiB.
        resident: u64,
        /// What it may hold, in KiB.
        limit: u64,
    },
    /// Memory is so short that no tasks may be fetched while one runs; `None` when that is over.
    Pressure(Option<Shortage>),
    /// The pool can't start processes, and never could.
    CannotStart {
        /// What an operator has to know.
        reason: String,
    },
    /// All processes are gone, as it was asked.
    Closed,
}

/// How a process of the pool ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Nobody saw it end.
    #[default]
    Unknown,
}

impl fmt::Display for ExitStatus {
    /// billiard's words: `exitcode 1`, `signal 9 (SIGKILL)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exitcode {code}"),
            Self::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "signal {number} ({name})"),
                None => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("unknown status"),
        }
    }
}

/// The names of Linux's signals, the first being number 1.
const SIGNALS: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// The name of a signal of Linux, as Python spells it.
pub fn signal_name(number: i32) -> Option<&'static str> {
    SIGNALS
        .get(usize::try_from(number).ok()?.checked_sub(1)?)
        .copied()
}

/// The number of the signal of this name, such as `SIGTERM`.
pub fn signal_number(name: &str) -> Option<i32> {
    let at = SIGNALS.iter().position(|signal| *signal == name)?;
    Some(at as i32 + 1)
}

/// Why a process is gone while it ran a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossCause {
    /// It ended by itself, or something outside the worker ended it.
    Died(ExitStatus),
    /// The worker killed it for its memory.
    Memory {
        /// What it held, in KiB.
        resident: u64,
        /// What it was allowed, in KiB.
        limit: u64,
    },
    /// The worker killed it, which held the most, before the kernel had to.
    Pressure {
        /// What it held, in KiB.
        resident: u64,
        /// What was short.
        shortage: Shortage,
    },
    /// The worker terminated it: the task was revoked, or the worker shuts down.
    Terminated,
    /// It was killed for the hard time limit, which was told before.
    TimeLimit,
    /// It ended before it read the job, which it thus never began.
    Unread,
    /// It ran many jobs at once, and the worker killed it on account of another of them, which did
    /// not heed its hard time limit or its termination.
    Neighbor,
}

/// Memory that is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// What of.
    pub of: ShortOf,
    /// What is left, in KiB; in percent of [`ShortOf::Time`].
    pub available: u64,
    /// All of it, likewise.
    pub total: u64,
}

/// What may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShortOf {
    /// The machine's memory.
    Machine,
    /// That of the worker's cgroup, or of one that it is in.
    Cgroup,
    /// What the whole worker may hold.
    Worker,
    /// Time in which processes do anything but wait for memory.
    Time,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (available, total) = (self.available, self.total);
        match self.of {
            ShortOf::Machine => write!(f, "the machine has {available} KiB of {total} KiB left"),
            ShortOf::Cgroup => write!(f, "the cgroup has {available} KiB of {total} KiB left"),
            ShortOf::Worker => write!(f, "the worker has {available} KiB of {total} KiB left"),
            ShortOf::Time => {
                let stalled = total.saturating_sub(available);
                write!(f, "all processes wait for memory {stalled} % of the time")
            }
        }
    }
}

/// How a job ended in the process that ran it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The task returned; everything that follows a success has been done.
    Success {
        /// Run time, unknown for a duplicate that was not run again.
        runtime: Option<Duration>,
        /// Representation of the result, empty unless wanted.
        result: String,
    },
    /// The task raised; everything that follows a failure has been done.
    Failure(Failure),
    /// The task asked to be retried; the message for that has been sent.
    Retry(Failure),
    /// The task asked to be ignored.
    Ignore(Failure),
    /// The task rejected its message.
    Reject {
        /// Whether it is to run again.
        requeue: bool,
        /// The exception.
        failure: Failure,
    },
    /// The tracer itself raised: nothing has been done about it yet.
    Raised(Failure),
    /// The task raised `SystemExit` or `KeyboardInterrupt`; its process leaves.
    Left {
        /// The exit status that it asked for.
        status: i32,
    },
    /// The body can't be decoded.
    Undecodable {
        /// What the decoder said.
        reason: String,
    },
    /// The body is not that of a task.
    Invalid {
        /// Why.
        reason: String,
    },
}

/// An exception, as far as it could be brought over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// Its representation.
    pub exception: String,
    /// The traceback's text.
    pub traceback: Option<String>,
    /// The pickled `ExceptionInfo`, empty when it was not wanted or can't be pickled. Only main
    /// opens it.
    pub pickle: Bytes,
}
