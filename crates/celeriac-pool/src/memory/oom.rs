//! Whether it was the kernel's out-of-memory killer that ended a process.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use celeriac_core::evidence::OutOfMemory;

use super::kernel_log::{KernelLog, Killed};
use super::{Cgroup, counter};

/// A kill explains the end of a process that is told no later than this: on a machine without
/// memory, news is slow.
const EXPLAINS_FOR: Duration = Duration::from_secs(5);
/// Lines of the log that are kept for the process that they name.
const KEPT_LINES: usize = 64;

/// Watches the kernel's counts of such kills, and its log where this process may read it.
#[derive(Debug)]
pub struct OomWatch {
    proc: PathBuf,
    cgroup: Option<Cgroup>,
    log: Option<KernelLog>,
    named: VecDeque<(Duration, Killed)>,
    kills: Kills,
}

impl OomWatch {
    /// Begins to watch, `proc` being where procfs is and `log` the kernel's log.
    pub fn new(proc: &Path, log: &Path) -> Self {
        let mut watch = Self {
            proc: proc.to_path_buf(),
            cgroup: Cgroup::of_self(proc),
            log: KernelLog::open(log),
            named: VecDeque::new(),
            kills: Kills::default(),
        };
        watch.look(Duration::ZERO);
        watch
    }

    /// Reads the counts, so that it is known when they grew.
    pub fn look(&mut self, now: Duration) {
        if let Some((_, count)) = self.count() {
            self.kills.count(count, now);
        }
    }

    /// Who says that the kernel ended this process, which SIGKILL has ended.
    pub fn explain(&mut self, pid: u32, now: Duration) -> Option<OutOfMemory> {
        let (witness, count) = self.count()?;
        self.kills.count(count, now);
        let is_counted = self.kills.explain(now);
        self.line(pid, now)
            .map(OutOfMemory::KernelLog)
            .or_else(|| is_counted.then_some(witness))
    }

    /// Who counts, and how many.
    fn count(&self) -> Option<(OutOfMemory, u64)> {
        if let Some(count) = self.cgroup.as_ref().and_then(Cgroup::oom_kills) {
            return Some((OutOfMemory::Cgroup, count));
        }
        let text = fs::read_to_string(self.proc.join("vmstat")).ok()?;
        Some((OutOfMemory::Host, counter(&text, "oom_kill")?))
    }

    /// The line that names this process.
    fn line(&mut self, pid: u32, now: Duration) -> Option<String> {
        let new = self.log.as_mut().map_or_else(Vec::new, KernelLog::kills);
        self.named
            .extend(new.into_iter().map(|killed| (now, killed)));
        self.named
            .retain(|(at, _)| now.saturating_sub(*at) <= EXPLAINS_FOR);
        let surplus = self.named.len().saturating_sub(KEPT_LINES);
        self.named.drain(..surplus);
        let at = self
            .named
            .iter()
            .position(|(_, killed)| killed.pid == pid)?;
        self.named.remove(at).map(|(_, killed)| killed.line)
    }
}

/// Kills that were counted and not yet told apart.
#[derive(Debug, Default)]
struct Kills {
    counted: Option<u64>,
    unexplained: u64,
    /// When the count was last seen to grow.
    grew_at: Duration,
}

impl Kills {
    fn count(&mut self, count: u64, now: Duration) {
        let grown = self
            .counted
            .map_or(0, |before| count.saturating_sub(before));
        self.counted = Some(count);
        if grown > 0 {
            if now.saturating_sub(self.grew_at) > EXPLAINS_FOR {
                self.unexplained = 0;
            }
            self.unexplained += grown;
            self.grew_at = now;
        }
    }

    /// Whether one of them explains a death; it explains no other.
    fn explain(&mut self, now: Duration) -> bool {
        let explains = self.unexplained > 0 && now.saturating_sub(self.grew_at) <= EXPLAINS_FOR;
        self.unexplained -= u64::from(explains);
        explains
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_kill_explains_one_death_for_a_while() {
        // What is counted at a second, and whether a death is explained then.
        let table: [&[(u64, u64, bool)]; 5] = [
            &[(0, 3, false), (1, 3, false)],
            &[(0, 3, false), (1, 4, true), (1, 4, false)],
            &[(0, 0, false), (9, 2, true), (10, 2, true), (10, 2, false)],
            // That of the second was of another process.
            &[
                (0, 0, false),
                (1, 2, true),
                (9, 2, false),
                (9, 3, true),
                (9, 3, false),
            ],
            // A count that begins anew, as in a group that was made again.
            &[(0, 7, false), (1, 0, false), (2, 1, true)],
        ];
        for steps in table {
            let mut kills = Kills::default();
            for (at, count, expected) in steps {
                kills.count(*count, s(*at));
                assert_eq!(kills.explain(s(*at)), *expected, "{steps:?} at {at}");
            }
        }
    }

    #[test]
    fn the_log_names_and_the_counts_do() {
        let root = tempfile::tempdir().unwrap();
        let (proc, group) = (root.path().join("proc"), root.path().join("cgroup"));
        let kmsg = root.path().join("kmsg");
        for directory in [proc.join("self"), group.join("w")] {
            fs::create_dir_all(directory).unwrap();
        }
        let oom_kills = |count| {
            fs::write(group.join("w/memory.events"), format!("oom_kill {count}\n")).unwrap();
        };
        let mounts = format!("1 1 0:1 / {} rw - cgroup2 cgroup2 rw\n", group.display());
        fs::write(proc.join("self/cgroup"), "0::/w\n").unwrap();
        fs::write(proc.join("self/mountinfo"), mounts).unwrap();
        fs::write(proc.join("vmstat"), "oom_kill 5\n").unwrap();
        fs::write(&kmsg, "").unwrap();
        oom_kills(0);

        let mut watch = OomWatch::new(&proc, &kmsg);
        assert_eq!(watch.explain(7, s(1)), None);
        oom_kills(2);
        let line = "Memory cgroup out of memory: Killed process 8 (x) total-vm:1kB";
        let mut log = fs::OpenOptions::new().append(true).open(&kmsg).unwrap();
        writeln!(log, "3,1,1,-;{line}").unwrap();
        assert_eq!(watch.explain(7, s(2)), Some(OutOfMemory::Cgroup));
        let named = OutOfMemory::KernelLog(line.to_owned());
        assert_eq!(watch.explain(8, s(2)), Some(named));
        assert_eq!(watch.explain(8, s(2)), None, "both are told apart");

        // Where the group does not count, the machine does.
        fs::remove_file(group.join("w/memory.events")).unwrap();
        let mut watch = OomWatch::new(&proc, &root.path().join("none"));
        fs::write(proc.join("vmstat"), "oom_kill 6\n").unwrap();
        assert_eq!(watch.explain(9, s(3)), Some(OutOfMemory::Host));
        fs::remove_file(proc.join("vmstat")).unwrap();
        assert_eq!(watch.explain(9, s(3)), None);
    }
}
