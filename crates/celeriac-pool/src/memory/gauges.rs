//! Reads how much memory there is: of the machine, of the worker's control group and all that it is
//! in, and of what the worker may hold.

use std::fs;
use std::path::{Path, PathBuf};

use celeriac_core::pool::ShortOf;

use super::Cgroup;
use super::pressure::{Gauge, Readings};

/// Where it is read.
#[derive(Debug)]
pub struct Gauges {
    proc: PathBuf,
    cgroup: Option<Cgroup>,
}

impl Gauges {
    /// `proc` is where procfs is.
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_path_buf(),
            cgroup: Cgroup::of_self(proc),
        }
    }

    /// Reads all. What is not there counts as no pressure.
    pub fn read(&self) -> Readings {
        let machine = fs::read_to_string(self.proc.join("meminfo"));
        let machine = machine.ok().and_then(|text| machine_gauge(&text));
        let groups = self.cgroup.iter().flat_map(Cgroup::gauges);
        let own = self.cgroup.as_ref().and_then(Cgroup::stalls);
        let of_machine = || fs::read_to_string(self.proc.join("pressure/memory")).ok();
        Readings {
            gauges: machine.into_iter().chain(groups).collect(),
            stalled: own
                .or_else(of_machine)
                .and_then(|text| stalled(&text))
                .unwrap_or_default(),
        }
    }
}

/// What is left of what the worker may hold.
pub fn worker_gauge(held: u64, limit: u64) -> Gauge {
    Gauge {
        of: ShortOf::Worker,
        available: limit.saturating_sub(held),
        total: limit,
        is_hard: true,
    }
}

/// Reads `/proc/meminfo`. While there is swap space, the kernel kills nobody.
fn machine_gauge(meminfo: &str) -> Option<Gauge> {
    let field = |name: &str| -> Option<u64> {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let (swap, free) = (
        field("SwapTotal:").unwrap_or(0),
        field("SwapFree:").unwrap_or(0),
    );
    Some(Gauge {
        of: ShortOf::Machine,
        available: field("MemAvailable:")?,
        total: field("MemTotal:")?,
        is_hard: free <= swap / 10,
    })
}

/// Reads `full avg10` of pressure stall information.
fn stalled(text: &str) -> Option<f64> {
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    let mut words = full.split(' ');
    words
        .find_map(|word| word.strip_prefix("avg10="))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        8000000 kB\nMemFree:          100000 kB\n\
        MemAvailable:     900000 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n";
    const PSI: &str = "some avg10=31.25 avg60=1.00 avg300=0.10 total=7\n\
        full avg10=12.50 avg60=0.50 avg300=0.05 total=3\n";

    #[test]
    fn the_machine_is_read() {
        let gauge = machine_gauge(MEMINFO).unwrap();
        assert_eq!((gauge.available, gauge.total), (900_000, 8_000_000));
        let swap = |total: u64, free: u64| {
            let text = "SwapTotal:             0 kB\nSwapFree:              0 kB\n";
            let swap = format!("SwapTotal: {total} kB\nSwapFree: {free} kB\n");
            machine_gauge(&MEMINFO.replace(text, &swap))
                .unwrap()
                .is_hard
        };
        let table = [((0, 0), true), ((1000, 900), false), ((1000, 50), true)];
        for ((total, free), is_hard) in table {
            assert_eq!(swap(total, free), is_hard, "{free} of {total}");
        }
        assert_eq!(machine_gauge("MemTotal: 1 kB\n"), None);
        assert_eq!(stalled(PSI), Some(12.5));
        assert_eq!(stalled("some avg10=31.25\n"), None);
    }

    /// A root with a procfs and one mounted hierarchy.
    struct Root(tempfile::TempDir);

    impl Root {
        fn new(groups: &str, kind: &str) -> Self {
            let root = Self(tempfile::tempdir().unwrap());
            let mount_point = root.0.path().join("cgroup");
            root.write("proc/self/cgroup", groups);
            let mounts = format!(
                "1 1 0:1 / {} rw - {kind} none rw,memory\n",
                mount_point.display()
            );
            root.write("proc/self/mountinfo", &mounts);
            root.write("proc/meminfo", MEMINFO);
            root
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn read(&self) -> Vec<(ShortOf, u64, u64, bool)> {
            let readings = Gauges::new(&self.0.path().join("proc")).read();
            let rows = readings.gauges.iter();
            rows.map(|it| (it.of, it.available, it.total, it.is_hard))
                .collect()
        }
    }

    const MACHINE: (ShortOf, u64, u64, bool) = (ShortOf::Machine, 900_000, 8_000_000, true);

    #[test]
    fn groups_of_version_2_are_read_with_all_that_they_are_in() {
        let root = Root::new("0::/slice/w\n", "cgroup2");
        root.write("cgroup/slice/w/memory.max", "max\n");
        root.write("cgroup/slice/w/memory.high", "1048576\n");
        root.write("cgroup/slice/w/memory.current", "1000000\n");
        root.write(
            "cgroup/slice/w/memory.stat",
            "anon 1\ninactive_file 204800\nactive_file 204800\n",
        );
        root.write("cgroup/slice/memory.max", "2097152\n");
        root.write("cgroup/slice/memory.high", "max\n");
        root.write("cgroup/slice/memory.current", "2097152\n");
        root.write("cgroup/slice/memory.stat", "anon 1\n");
        // (1048576 - 1000000 + 204800 + 204800 / 2) / 1024
        let expected = [
            MACHINE,
            (ShortOf::Cgroup, 347, 1024, false),
            (ShortOf::Cgroup, 0, 2048, true),
        ];
        assert_eq!(root.read(), expected);
        root.write("cgroup/slice/w/memory.pressure", PSI);
        let readings = Gauges::new(&root.0.path().join("proc")).read();
        assert!((readings.stalled - 12.5).abs() < 0.01);
    }

    #[test]
    fn groups_of_version_1_are_read() {
        let root = Root::new("3:memory:/w\n", "cgroup");
        root.write("cgroup/w/memory.limit_in_bytes", "1048576\n");
        root.write("cgroup/w/memory.usage_in_bytes", "524288\n");
        root.write("cgroup/w/memory.stat", "total_inactive_file 102400\n");
        // The root's limit is none.
        root.write("cgroup/memory.limit_in_bytes", "9223372036854771712\n");
        root.write("cgroup/memory.usage_in_bytes", "524288\n");
        root.write("cgroup/memory.stat", "");
        let expected = [MACHINE, (ShortOf::Cgroup, 612, 1024, true)];
        assert_eq!(root.read(), expected);
        root.write("proc/pressure/memory", PSI);
        let readings = Gauges::new(&root.0.path().join("proc")).read();
        assert!((readings.stalled - 12.5).abs() < 0.01, "the machine's");
    }

    #[test]
    fn what_cannot_be_read_is_no_pressure() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Gauges::new(root.path()).read(), Readings::default());
        assert_eq!(worker_gauge(700, 1000).available, 300);
        assert_eq!(worker_gauge(1700, 1000).available, 0);
    }
}
