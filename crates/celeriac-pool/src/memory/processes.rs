//! What processes hold in memory: one, a process group, and everything below the worker.
//!
//! Of the process that leads, the resident set counts, as Celery has it. Of every other process
//! that is in RAM for it alone counts: what programs share with each other is there once. Copies by
//! fork share nearly everything with their parent, which is only known from `smaps_rollup`; that is
//! slow, and is read where the rough sum says that it matters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks at which processes there are.
const SCAN_INTERVAL: Duration = Duration::from_millis(250);
/// A look costs some ten microseconds for each process: where there are very many, it is taken
/// less often, so that it never needs more than a few percent of the time.
const SCAN_PER_PROCESS: Duration = Duration::from_micros(500);

/// The processes of the machine, as of a moment ago.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    page_kib: u64,
    found: BTreeMap<u32, Kin>,
    next_scan: Duration,
}

/// Where a process belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kin {
    parent: u32,
    group: u32,
}

impl Processes {
    /// Knows none yet; `proc` is where procfs is.
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_path_buf(),
            page_kib: rustix::param::page_size() as u64 / 1024,
            found: BTreeMap::new(),
            next_scan: Duration::ZERO,
        }
    }

    /// Looks which processes there are, if that is due.
    pub fn refresh(&mut self, now: Duration) {
        if now < self.next_scan {
            return;
        }
        let entries = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        self.found = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|pid: u32| Some((pid, kin(&self.read(pid, "stat")?)?)))
            .collect();
        let number = u32::try_from(self.found.len()).unwrap_or(u32::MAX);
        self.next_scan = now + SCAN_INTERVAL.max(SCAN_PER_PROCESS.saturating_mul(number));
    }

    /// What the group that a process leads holds, in KiB; exact where it is more than `matters`.
    /// `None` when the leader is gone.
    pub fn held_by_group(&self, leader: u32, matters: u64) -> Option<u64> {
        let is_other = |(pid, kin): &(&u32, &Kin)| kin.group == leader && **pid != leader;
        let others: Vec<u32> = self.found.iter().filter(is_other).map(|it| *it.0).collect();
        self.sum(leader, &others, matters)
    }

    /// What a process and everything below it holds, in KiB; exact where it is more than `matters`.
    pub fn held_by_tree(&self, root: u32, matters: u64) -> Option<u64> {
        let mut tree = BTreeSet::from([root]);
        loop {
            let before = tree.len();
            let is_below = |kin: &Kin| tree.contains(&kin.parent);
            let below = self.found.iter().filter(|(_, kin)| is_below(kin));
            let below: Vec<u32> = below.map(|(pid, _)| *pid).collect();
            tree.extend(below);
            if tree.len() == before {
                break;
            }
        }
        tree.remove(&root);
        self.sum(root, &tree.into_iter().collect::<Vec<_>>(), matters)
    }

    fn sum(&self, first: u32, others: &[u32], matters: u64) -> Option<u64> {
        let statm = |pid| pages(&self.read(pid, "statm")?);
        let (resident, _) = statm(first)?;
        let resident = resident * self.page_kib;
        let own = |pid: u32| statm(pid).map_or(0, |it| it.0.saturating_sub(it.1) * self.page_kib);
        let rough = |pid: &u32| own(*pid);
        let sum = resident + others.iter().map(rough).sum::<u64>();
        if sum <= matters || others.is_empty() {
            return Some(sum);
        }
        let exact = |pid: &u32| {
            let text = self.read(*pid, "smaps_rollup");
            text.and_then(|text| proportional(&text))
                .unwrap_or_else(|| own(*pid))
        };
        Some(resident + others.iter().map(exact).sum::<u64>())
    }

    fn read(&self, pid: u32, name: &str) -> Option<String> {
        let bytes = fs::read(self.proc.join(pid.to_string()).join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Reads `/proc/<pid>/stat`, in which the name may hold anything.
fn kin(stat: &str) -> Option<Kin> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(1);
    Some(Kin {
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}

/// Resident and shared pages, from `/proc/<pid>/statm`.
fn pages(statm: &str) -> Option<(u64, u64)> {
    let mut fields = statm.split_ascii_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// A process's share of the memory that it has, in KiB, from `smaps_rollup`.
fn proportional(rollup: &str) -> Option<u64> {
    let value = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let table = [
            ("7 (python) S 3 7 1 0 -1", Some((3, 7))),
            ("7 (a) b (c)) R 1 9 1", Some((1, 9))),
            ("7 (python", None),
            ("7 (python) S 3", None),
            ("", None),
        ];
        for (stat, expected) in table {
            let expected = expected.map(|(parent, group)| Kin { parent, group });
            assert_eq!(kin(stat), expected, "{stat}");
        }
        assert_eq!(pages("100 50 20 1 0 5 0\n"), Some((50, 20)));
        assert_eq!(pages("100"), None);
        let rollup = "00400000-7fff ---p 00000000 [rollup]\nRss:  900 kB\nPss:   400 kB\n";
        assert_eq!(proportional(rollup), Some(400));
        assert_eq!(proportional("Rss: 900 kB\n"), None);
    }

    /// Processes as pid, parent, group, resident and shared pages, and their share in KiB.
    fn processes(rows: &[(u32, u32, u32, u64, u64, u64)]) -> (tempfile::TempDir, Processes) {
        let proc = tempfile::tempdir().unwrap();
        for (pid, parent, group, resident, shared, share) in rows {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
            write("stat", format!("{pid} (x) S {parent} {group} 1"));
            write("statm", format!("9999 {resident} {shared} 0 0 0 0"));
            write("smaps_rollup", format!("Pss: {share} kB\n"));
        }
        fs::create_dir(proc.path().join("self")).unwrap();
        let mut processes = Processes::new(proc.path());
        processes.page_kib = 4;
        processes.refresh(Duration::ZERO);
        (proc, processes)
    }

    #[test]
    fn a_group_and_a_tree_are_summed() {
        let (proc, mut processes) = processes(&[
            (10, 1, 10, 100, 50, 1),
            (11, 10, 10, 100, 60, 90),
            (12, 11, 10, 50, 40, 10),
            (13, 10, 13, 1000, 0, 1000),
            (20, 1, 20, 1000, 0, 1000),
        ]);
        let rough = 400 + 160 + 40;
        assert_eq!(processes.held_by_group(10, 1000), Some(rough));
        assert_eq!(processes.held_by_group(10, 599), Some(400 + 90 + 10));
        assert_eq!(processes.held_by_tree(10, 9000), Some(rough + 4000));
        assert_eq!(processes.held_by_group(20, 0), Some(4000));
        assert_eq!(processes.held_by_group(21, 0), None);
        // One that has ended counts for nothing, a new one from the next look on.
        fs::remove_dir_all(proc.path().join("11")).unwrap();
        fs::create_dir(proc.path().join("14")).unwrap();
        fs::write(proc.path().join("14/stat"), "14 (x) S 10 10 1").unwrap();
        fs::write(proc.path().join("14/statm"), "9 5 0 0 0 0 0").unwrap();
        assert_eq!(processes.held_by_group(10, 1000), Some(440));
        processes.refresh(SCAN_INTERVAL / 2);
        assert_eq!(processes.held_by_group(10, 1000), Some(440));
        processes.refresh(Duration::from_hours(1));
        assert_eq!(processes.held_by_group(10, 1000), Some(460));
    }

    #[test]
    fn this_process_is_among_them() {
        let mut processes = Processes::new(Path::new("/proc"));
        processes.refresh(Duration::ZERO);
        let pid = std::process::id();
        let rough = processes.held_by_tree(pid, u64::MAX).unwrap();
        let exact = processes.held_by_tree(pid, 0).unwrap();
        assert!(rough > 1000 && exact > 1000, "{rough} {exact}");
    }
}
