//! What the kernel says about memory: how much there is, who holds it, and whom it ended for want
//! of it.

pub mod cgroup;
pub mod gauges;
pub mod kernel_log;
pub mod oom;
pub mod pace;
pub mod pressure;
pub mod processes;
pub mod watch;

pub use cgroup::Cgroup;
pub use gauges::Gauges;
pub use oom::OomWatch;
pub use pressure::Pressure;
pub use processes::Processes;
pub use watch::{MemoryWatch, WatchOptions};

/// The value of a line `name value`, as in `memory.events` and `/proc/vmstat`.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let events = "low 0\nhigh 7\nmax 3\noom 2\noom_kill 1\noom_group_kill 9\n";
        let table = [
            (events, Some(1)),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 12\n", Some(12)),
            ("oom_kill\n", None),
            ("oom_kill many\n", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(counter(text, "oom_kill"), expected, "{text}");
        }
    }
}
