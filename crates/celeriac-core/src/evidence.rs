//! What is known of the death of a process that ran a task.

use std::fmt;
use std::time::Duration;

use crate::pool::ExitStatus;

/// What a process left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// How it ended.
    pub status: ExitStatus,
    /// The most memory that it held, or its process group where more was seen there, in KiB.
    pub peak: Option<u64>,
    /// Who says that the kernel ended it for want of memory; `None` where nobody does.
    pub oom: Option<OutOfMemory>,
    /// How long its task had run.
    pub run_time: Option<Duration>,
    /// The last lines that its task logged or wrote to the standard error stream.
    pub log: Vec<String>,
}

impl Evidence {
    /// Of a process of which only its end is known.
    pub fn of(status: ExitStatus) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }
}

/// Who says that the kernel's out-of-memory killer ended a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutOfMemory {
    /// A line of the kernel's log, which names the process.
    KernelLog(String),
    /// The count of such kills in the worker's cgroup, which grew when the process was killed.
    Cgroup,
    /// The count of such kills on the machine, which grew when the process was killed.
    Host,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KernelLog(line) => write!(f, "kernel log: {line}"),
            Self::Cgroup => f.write_str("the cgroup counts one more out-of-memory kill"),
            Self::Host => f.write_str("the machine counts one more out-of-memory kill"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn witnesses_are_named() {
        let line = OutOfMemory::KernelLog("Killed process 7 (python)".to_owned());
        assert_eq!(line.to_string(), "kernel log: Killed process 7 (python)");
        assert!(OutOfMemory::Cgroup.to_string().contains("cgroup"));
        assert!(OutOfMemory::Host.to_string().contains("machine"));
    }
}
