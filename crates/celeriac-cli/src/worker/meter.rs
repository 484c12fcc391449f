//! What the worker uses of the machine, as monitors are told.

use celeriac_worker::parts::Meter;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde_json::{Map, Value, json};

/// Linux's own counts.
#[derive(Debug)]
pub(super) struct Linux;

impl Meter for Linux {
    fn loadavg(&self) -> [f64; 3] {
        let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let mut numbers = text
            .split_whitespace()
            .map(|number| number.parse().unwrap_or_default());
        std::array::from_fn(|_| numbers.next().unwrap_or_default())
    }

    fn rusage(&self) -> Map<String, Value> {
        getrusage(UsageWho::RUSAGE_SELF).map_or_else(|_| Map::new(), |usage| members(&usage))
    }
}

fn members(usage: &Usage) -> Map<String, Value> {
    let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
    let members = json!({
        "utime": seconds(usage.user_time()),
        "stime": seconds(usage.system_time()),
        "maxrss": usage.max_rss(),
        "ixrss": usage.shared_integral(),
        "idrss": usage.unshared_data_integral(),
        "isrss": usage.unshared_stack_integral(),
        "minflt": usage.minor_page_faults(),
        "majflt": usage.major_page_faults(),
        "nswap": usage.full_swaps(),
        "inblock": usage.block_reads(),
        "oublock": usage.block_writes(),
        "msgsnd": usage.ipc_sends(),
        "msgrcv": usage.ipc_receives(),
        "nsignals": usage.signals(),
        "nvcsw": usage.voluntary_context_switches(),
        "nivcsw": usage.involuntary_context_switches(),
    });
    match members {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
