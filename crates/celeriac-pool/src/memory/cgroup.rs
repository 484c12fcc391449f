//! The control group that this process is in, as far as memory is concerned.

use std::fs;
use std::path::{Path, PathBuf};

use celeriac_core::pool::ShortOf;

use super::counter;
use super::pressure::Gauge;

/// Version 1 has a number where there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// The version of the kernel's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy of the memory controller's own.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A control group of the memory controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    version: Version,
    /// Its directory, then those of the groups that it is in, as far as they can be seen.
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// That of this process, `proc` being where procfs is; `None` where there is no such thing.
    pub fn of_self(proc: &Path) -> Option<Self> {
        let groups = fs::read_to_string(proc.join("self/cgroup")).ok()?;
        let mounts = fs::read_to_string(proc.join("self/mountinfo")).ok()?;
        locate(&groups, &mounts)
    }

    /// What is left of its limits, and of those of the groups that it is in.
    pub fn gauges(&self) -> impl Iterator<Item = Gauge> + '_ {
        let limits: &[(&str, bool)] = match self.version {
            Version::V1 => &[("memory.limit_in_bytes", true)],
            Version::V2 => &[("memory.high", false), ("memory.max", true)],
        };
        let pairs = self
            .directories
            .iter()
            .flat_map(move |directory| limits.iter().map(move |limit| (directory, limit)));
        pairs.filter_map(|(directory, (name, is_hard))| {
            let limit = number(&directory.join(name)).filter(|limit| *limit < NO_LIMIT)?;
            let (usage, prefix) = match self.version {
                // There what is counted with the groups inside has names of its own.
                Version::V1 => ("memory.usage_in_bytes", "total_"),
                Version::V2 => ("memory.current", ""),
            };
            let usage = number(&directory.join(usage))?;
            let stat = fs::read_to_string(directory.join("memory.stat")).ok()?;
            Some(Gauge {
                of: ShortOf::Cgroup,
                available: available(limit, usage, &stat, prefix),
                total: limit / 1024,
                is_hard: *is_hard,
            })
        })
    }

    /// Its pressure stall information, where the kernel has it.
    pub fn stalls(&self) -> Option<String> {
        fs::read_to_string(self.directories.first()?.join("memory.pressure")).ok()
    }

    /// How many of its processes any out-of-memory killer has ended; `None` where it does not
    /// count them, as the root group of version 2.
    pub fn oom_kills(&self) -> Option<u64> {
        let name = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.directories.first()?.join(name)).ok()?;
        counter(&text, "oom_kill")
    }
}

/// The number in a file; none where it says `max`.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What is left of a limit, in KiB, as the kernel reckons for the machine (`MemAvailable`): what
/// files have in memory can be had back, half of what is in use with them.
fn available(limit: u64, usage: u64, stat: &str, prefix: &str) -> u64 {
    let stat = |name: &str| counter(stat, &format!("{prefix}{name}")).unwrap_or(0);
    let files = stat("inactive_file") + stat("active_file") / 2;
    (limit + files).saturating_sub(usage).min(limit) / 1024
}

/// Finds the group by `/proc/self/cgroup` and `/proc/self/mountinfo`. Where both versions are
/// mounted, memory belongs to version 1 if that has a hierarchy for it.
fn locate(groups: &str, mounts: &str) -> Option<Cgroup> {
    let path = |wanted: fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then_some(path)
        })
    };
    let (version, path) = path(|controllers| controllers.split(',').any(|name| name == "memory"))
        .map(|path| (Version::V1, path))
        .or_else(|| Some((Version::V2, path(str::is_empty)?)))?;
    let (root, mount_point) = mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, mount_point) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next()?, file_system.nth(1)?);
        let is_it = match version {
            Version::V1 => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
            Version::V2 => kind == "cgroup2",
        };
        is_it.then_some((root, mount_point))
    })?;
    let mount_point = Path::new(mount_point);
    // In a container the group itself may be what is mounted, or may lie outside what is.
    let inner = Path::new(path)
        .strip_prefix(root)
        .ok()
        .filter(|inner| !inner.starts_with(".."))
        .unwrap_or(Path::new(""));
    let own = mount_point.join(inner);
    let directories = own
        .ancestors()
        .take_while(|directory| directory.starts_with(mount_point))
        .map(Path::to_path_buf)
        .collect();
    Some(Cgroup {
        version,
        directories,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "24 20 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        32 24 0:28 / /sys/fs/cgroup/memory rw,noexec shared:9 - cgroup cgroup rw,memory\n";
    const CONTAINER: &str =
        "700 690 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";

    fn group(version: Version, directories: &[&str]) -> Cgroup {
        Cgroup {
            version,
            directories: directories.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn the_group_is_found() {
        let v2 = |directories: &[&str]| Some(group(Version::V2, directories));
        let v1 = |directories: &[&str]| Some(group(Version::V1, directories));
        let root = "/sys/fs/cgroup";
        let slice = "/sys/fs/cgroup/system.slice";
        let service = "/sys/fs/cgroup/system.slice/w.service";
        let unified = ["/sys/fs/cgroup/unified/c", "/sys/fs/cgroup/unified"];
        let memory = ["/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"];
        let table = [
            (
                "0::/system.slice/w.service\n",
                UNIFIED,
                v2(&[service, slice, root]),
            ),
            ("0::/\n", UNIFIED, v2(&[root])),
            // Outside the namespace.
            ("0::/../other\n", UNIFIED, v2(&[root])),
            ("4:memory:/a\n1:cpu:/b\n0::/c\n", HYBRID, v1(&memory)),
            ("9:name=systemd:/\n0::/c\n", HYBRID, v2(&unified)),
            ("4:cpu,memory:/docker/abc\n", CONTAINER, v1(&memory[1..])),
            ("0::/a\n", CONTAINER, None),
            ("", "", None),
        ];
        for (groups, mounts, expected) in table {
            assert_eq!(locate(groups, mounts), expected, "{groups}");
        }
    }
}
