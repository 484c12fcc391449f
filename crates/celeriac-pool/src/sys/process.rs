//! Processes: signals without mistaken identity, and the end of orphans.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use celeriac_core::pool::ExitStatus;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

/// A process that is not ours to wait for, held so that its number can't come to mean another.
#[derive(Debug)]
pub struct ProcessHandle {
    pid: u32,
    handle: Option<OwnedFd>,
}

impl ProcessHandle {
    /// Takes hold of a process that is known to exist, or to have existed a moment ago.
    pub fn open(pid: u32) -> Self {
        let handle = rustix::process::Pid::from_raw(pid as i32)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Self { pid, handle }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to the process, and to nobody else: if it is gone, to nobody.
    pub fn signal(&self, signal: Signal) {
        let number = rustix::process::Signal::from_named_raw(signal as i32);
        if let (Some(handle), Some(number)) = (&self.handle, number) {
            // The process may just have ended: nothing is lost then.
            let _ = pidfd_send_signal(handle, number);
        }
    }

    /// Sends a signal to the process group that the process leads, while the process runs. The
    /// group of one that has ended is killed by who collects it.
    pub fn signal_group(&self, signal: Signal) {
        if self.is_running() {
            let _ = killpg(Pid::from_raw(self.pid as i32), signal);
        }
    }

    /// Whether the process has not ended yet.
    pub fn is_running(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| {
            let mut ended = [PollFd::new(handle, PollFlags::IN)];
            poll(
                &mut ended,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                }),
            ) == Ok(0)
        })
    }
}

/// Makes this process inherit the orphans of its descendants.
///
/// # Errors
/// On kernels that can't.
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(
        rustix::process::getpid(),
    ))?)
}

/// Processes that lead a group which must end with them.
#[derive(Debug, Clone, Default)]
pub struct GroupLeaders(Arc<Mutex<HashSet<u32>>>);

impl GroupLeaders {
    /// Adds a process.
    pub fn insert(&self, pid: u32) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid);
    }

    /// Forgets a process; tells whether it was known.
    pub fn remove(&self, pid: u32) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&pid)
    }
}

/// Collects every child of this process that has ended, its own and those it inherited, and kills
/// the groups of those that led one. To be called on SIGCHLD.
pub fn reap(leaders: &GroupLeaders) -> Vec<(u32, ExitStatus)> {
    let mut ended = Vec::new();
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // Looks first: while it is not collected, the process id and the group's stay taken.
    while let Ok(status) = waitid(Id::All, look) {
        let (pid, exit) = match status {
            WaitStatus::Exited(pid, code) => (pid, ExitStatus::Code(code)),
            WaitStatus::Signaled(pid, signal, _) => (pid, ExitStatus::Signal(signal as i32)),
            _ => break,
        };
        let number = pid.as_raw() as u32;
        if leaders.remove(number) {
            let _ = killpg(pid, Signal::SIGKILL);
        }
        if waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_err() {
            break;
        }
        ended.push((number, exit));
    }
    ended
}

/// The most that a process has had in RAM so far, in KiB; `None` when it is gone.
pub fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_signal_reaches_its_process_and_no_later_one() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let handle = ProcessHandle::open(child.id());
        assert!(handle.is_running());
        handle.signal(Signal::SIGTERM);
        child.wait().unwrap();
        assert!(!handle.is_running());
        handle.signal(Signal::SIGTERM);
        handle.signal_group(Signal::SIGTERM);
    }

    #[test]
    fn memory_is_read() {
        assert!(peak(std::process::id()).unwrap() > 100);
        assert_eq!(peak(u32::MAX), None);
    }
}
