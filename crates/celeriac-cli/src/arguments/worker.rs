//! Options of `celeriac worker`: those of `celery worker`.

use std::path::PathBuf;

use celeriac_config::pools::is_named;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::truth;

/// How log records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Celery's lines, as the app's settings shape them.
    Celery,
    /// One JSON object a line.
    Json,
}

/// Options of a worker.
#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    /// The node's name, such as w1@%h. %h is the host's name, %n its first part, %d its domain.
    #[arg(short = 'n', long, env = "CELERY_WORKER_HOSTNAME", help_heading = WORKER)]
    hostname: Option<String>,
    /// Start in the background.
    #[arg(short = 'D', long, env = "CELERY_WORKER_DETACH", help_heading = WORKER)]
    #[arg(value_parser = truth())]
    pub(crate) detach: bool,
    /// Keep the ids of revoked tasks in this file.
    #[arg(short = 'S', long, env = "CELERY_WORKER_STATEDB", help_heading = WORKER)]
    #[arg(value_name = "FILE")]
    statedb: Option<String>,
    /// DEBUG, INFO, WARNING, ERROR, CRITICAL or FATAL.
    #[arg(short, long, env = "CELERY_WORKER_LOGLEVEL", help_heading = WORKER)]
    #[arg(default_value = "WARNING", ignore_case = true, value_name = "LEVEL")]
    #[arg(value_parser = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL"])]
    #[arg(hide_possible_values = true)]
    loglevel: String,
    /// How log records are written.
    #[arg(long, env = "CELERIAC_LOG_FORMAT", help_heading = WORKER, default_value = "celery")]
    pub(crate) log_format: LogFormat,
    /// Both mean what Celery calls fair: a process gets its next task when it can begin it.
    #[arg(short = 'O', long, env = "CELERY_WORKER_OPTIMIZATION", help_heading = WORKER)]
    #[arg(value_parser = ["default", "fair"], default_value = "default")]
    optimization: String,
    /// A bound on the tasks that may wait here for their rate limit, for each process. Others are
    /// fetched when a process is free.
    #[arg(long, env = "CELERY_WORKER_PREFETCH_MULTIPLIER", help_heading = WORKER)]
    #[arg(value_name = "NUMBER")]
    prefetch_multiplier: Option<u32>,
    /// Changes nothing: a task is fetched when a process is free.
    #[arg(long, env = "CELERY_WORKER_DISABLE_PREFETCH", help_heading = WORKER)]
    #[arg(value_parser = truth())]
    disable_prefetch: bool,

    /// Seconds that running tasks have to end once the worker was told to end (SIGTERM). Then
    /// SoftTimeLimitExceeded is raised in those that still run, and 5 s later they are ended: those
    /// that are acknowledged late run again [default: without end]
    #[arg(long, env = "CELERIAC_SHUTDOWN_DEADLINE", help_heading = WORKER)]
    #[arg(value_name = "SECONDS")]
    pub(crate) shutdown_deadline: Option<f64>,
    /// Answer the HTTP probes /livez, /readyz and /startupz here [default: nowhere]. `celeriac
    /// health` needs no address.
    #[arg(long, env = "CELERIAC_HEALTH_ADDRESS", help_heading = WORKER)]
    #[arg(value_name = "HOST:PORT")]
    pub(crate) health_address: Option<String>,

    /// Number of processes, or auto for what the machine and its limits give [default: its CPUs]
    #[arg(short, long, env = "CELERY_WORKER_CONCURRENCY", help_heading = POOL)]
    #[arg(value_name = "NUMBER")]
    concurrency: Option<String>,
    /// The kind of pool: prefork (processes), solo, threads, gevent or asyncio. Or a pool with a name, of which there may be
    /// several: NAME=KIND:N@QUEUE,QUEUE, such as io=gevent:512@mail (N*M: N tasks at once in each of
    /// M processes).
    #[arg(short = 'P', long = "pool", id = "pool", env = "CELERY_WORKER_POOL")]
    #[arg(help_heading = POOL, default_value = "prefork", value_name = "KIND")]
    pub(crate) pools: Vec<String>,
    /// Send events about tasks to monitors.
    #[arg(
        short = 'E',
        long,
        visible_alias = "events",
        env = "CELERY_WORKER_TASK_EVENTS"
    )]
    #[arg(value_parser = truth(), help_heading = POOL)]
    task_events: bool,
    /// Seconds after which a task's process is killed.
    #[arg(long, env = "CELERY_WORKER_TIME_LIMIT", help_heading = POOL, value_name = "SECONDS")]
    time_limit: Option<f64>,
    /// Seconds after which SoftTimeLimitExceeded is raised in a task.
    #[arg(long, env = "CELERY_WORKER_SOFT_TIME_LIMIT", help_heading = POOL)]
    #[arg(value_name = "SECONDS")]
    soft_time_limit: Option<f64>,
    /// Replace a process after so many tasks.
    #[arg(long, env = "CELERY_WORKER_MAX_TASKS_PER_CHILD", help_heading = POOL)]
    #[arg(value_name = "NUMBER")]
    max_tasks_per_child: Option<u64>,
    /// Replace a process that holds more than so many KiB after its task.
    #[arg(long, env = "CELERY_WORKER_MAX_MEMORY_PER_CHILD", help_heading = POOL)]
    #[arg(value_name = "KIB")]
    max_memory_per_child: Option<u64>,
    /// Raise SoftMemoryLimitExceeded in a task whose process group holds more than so many KiB.
    #[arg(long, env = "CELERIAC_SOFT_MEMORY_PER_CHILD", help_heading = POOL, value_name = "KIB")]
    soft_memory_per_child: Option<u64>,
    /// Kill a process whose group holds more than so many KiB [default: twice
    /// --max-memory-per-child]
    #[arg(long, env = "CELERIAC_HARD_MEMORY_PER_CHILD", help_heading = POOL, value_name = "KIB")]
    hard_memory_per_child: Option<u64>,
    /// KiB that the worker with all its processes may hold: it stops fetching before, and then
    /// kills the process that holds the most.
    #[arg(long, env = "CELERIAC_MAX_MEMORY", help_heading = POOL, value_name = "KIB")]
    max_memory: Option<u64>,
    /// Changes nothing: processes are always forked, from one that has no threads.
    #[arg(long, env = "CELERY_WORKER_POOL_START_METHOD", help_heading = POOL)]
    #[arg(value_parser = ["fork", "spawn"])]
    pool_start_method: Option<String>,

    /// Delete all messages that wait in the queues first.
    #[arg(long, visible_alias = "discard", env = "CELERY_WORKER_PURGE", help_heading = QUEUES)]
    #[arg(value_parser = truth())]
    pub(crate) purge: bool,
    /// Consume from these queues, with commas between.
    #[arg(short = 'Q', long, env = "CELERY_WORKER_QUEUES", help_heading = QUEUES)]
    #[arg(value_name = "NAMES")]
    queues: Option<String>,
    /// Don't consume from these queues.
    #[arg(short = 'X', long, env = "CELERY_WORKER_EXCLUDE_QUEUES", help_heading = QUEUES)]
    #[arg(value_name = "NAMES")]
    exclude_queues: Option<String>,
    /// Import these modules as well.
    #[arg(short = 'I', long, env = "CELERY_WORKER_INCLUDE", help_heading = QUEUES)]
    #[arg(value_name = "MODULES")]
    include: Option<String>,

    /// Do not listen to the events of other workers.
    #[arg(long, env = "CELERY_WORKER_WITHOUT_GOSSIP", help_heading = FEATURES)]
    #[arg(value_parser = truth())]
    without_gossip: bool,
    /// Do not greet other workers at the start.
    #[arg(long, env = "CELERY_WORKER_WITHOUT_MINGLE", help_heading = FEATURES)]
    #[arg(value_parser = truth())]
    without_mingle: bool,
    /// Do not tell monitors that the worker lives.
    #[arg(long, env = "CELERY_WORKER_WITHOUT_HEARTBEAT", help_heading = FEATURES)]
    #[arg(value_parser = truth())]
    without_heartbeat: bool,
    /// Seconds between two heartbeats [default: 2].
    #[arg(long, env = "CELERY_WORKER_HEARTBEAT_INTERVAL", help_heading = FEATURES)]
    #[arg(value_name = "SECONDS")]
    heartbeat_interval: Option<u32>,
    /// Most and fewest processes, such as 10,3; the pool grows and shrinks with its work.
    #[arg(long, env = "CELERY_WORKER_AUTOSCALE", help_heading = FEATURES)]
    #[arg(value_name = "MAX,MIN", value_parser = autoscale)]
    autoscale: Option<(u32, u32)>,

    /// Run beat as well. This version accepts the option, and runs none.
    #[arg(short = 'B', long, env = "CELERY_WORKER_BEAT", help_heading = BEAT)]
    #[arg(value_parser = truth())]
    beat: bool,
    /// Beat's file.
    #[arg(
        short,
        long,
        visible_alias = "schedule",
        env = "CELERY_WORKER_SCHEDULE_FILENAME"
    )]
    #[arg(value_name = "FILE", help_heading = BEAT)]
    schedule_filename: Option<String>,
    /// Beat's scheduler class.
    #[arg(long, env = "CELERY_WORKER_SCHEDULER", help_heading = BEAT, value_name = "CLASS")]
    scheduler: Option<String>,

    /// Write the log to this file [default: standard error]. %n, %h, %d: the node's name; %i, %I:
    /// the process's index.
    #[arg(short = 'f', long, env = "CELERY_WORKER_LOGFILE", help_heading = DAEMON)]
    #[arg(value_name = "FILE")]
    logfile: Option<String>,
    /// Write the process id to this file.
    #[arg(long, env = "CELERY_WORKER_PIDFILE", help_heading = DAEMON, value_name = "FILE")]
    pidfile: Option<String>,
    /// Become this user.
    #[arg(long, env = "CELERY_WORKER_UID", help_heading = DAEMON, value_name = "USER")]
    uid: Option<String>,
    /// Become this group.
    #[arg(long, env = "CELERY_WORKER_GID", help_heading = DAEMON, value_name = "GROUP")]
    gid: Option<String>,
    /// Mask for the permissions of new files, in octal.
    #[arg(long, env = "CELERY_WORKER_UMASK", help_heading = DAEMON, value_name = "MASK")]
    umask: Option<String>,
    /// As --python, which counts over it.
    #[arg(long, env = "CELERY_WORKER_EXECUTABLE", help_heading = DAEMON)]
    #[arg(value_name = "PROGRAM")]
    pub(crate) executable: Option<PathBuf>,

    /// Settings, such as worker.prefetch_multiplier=1 broker.url=…
    #[arg(last = true, value_name = "SETTINGS")]
    extra: Vec<String>,
}

const WORKER: &str = "Worker Options";
const POOL: &str = "Pool Options";
const QUEUES: &str = "Queue Options";
const FEATURES: &str = "Features";
const BEAT: &str = "Embedded Beat Options";
const DAEMON: &str = "Daemonization Options";

impl WorkerArguments {
    /// The options by the names that Celery's code has for them; those that nobody gave are left
    /// out, for the app's settings to count. `user` are words that only the app knows.
    pub(crate) fn options(&self, user: &[String]) -> Map<String, Value> {
        let options = json!({
            "hostname": self.hostname,
            "statedb": self.statedb,
            "loglevel": self.loglevel.to_uppercase(),
            "optimization": self.optimization,
            "prefetch_multiplier": self.prefetch_multiplier,
            "disable_prefetch": self.disable_prefetch.then_some(true),
            "concurrency": self.concurrency,
            "pool": self.pool(),
            "task_events": self.task_events.then_some(true),
            "time_limit": self.time_limit.map(number),
            "soft_time_limit": self.soft_time_limit.map(number),
            "max_tasks_per_child": self.max_tasks_per_child,
            "max_memory_per_child": self.max_memory_per_child,
            "soft_memory_per_child": self.soft_memory_per_child,
            "hard_memory_per_child": self.hard_memory_per_child,
            "max_memory": self.max_memory,
            "pool_start_method": self.pool_start_method,
            "purge": self.purge,
            "queues": names(self.queues.as_deref()),
            "exclude_queues": names(self.exclude_queues.as_deref()),
            "include": names(self.include.as_deref()),
            "without_gossip": self.without_gossip,
            "without_mingle": self.without_mingle,
            "without_heartbeat": self.without_heartbeat,
            "heartbeat_interval": self.heartbeat_interval,
            "autoscale": self.autoscale,
            "beat": self.beat,
            "schedule_filename": self.schedule_filename,
            "scheduler": self.scheduler,
            "logfile": self.logfile,
            "pidfile": self.pidfile,
            "uid": self.uid,
            "gid": self.gid,
            "umask": self.umask,
            "detach": self.detach,
            "extra": self.extra,
            "user": user,
        });
        match options {
            Value::Object(mut options) => {
                options.retain(|_, value| !value.is_null());
                options
            }
            _ => Map::new(),
        }
    }

    /// The kind of the only pool: the last that has no name.
    pub(crate) fn pool(&self) -> &str {
        let mut kinds = self.pools.iter().rev().filter(|word| !is_named(word));
        kinds.next().map_or("prefork", String::as_str)
    }

    /// What the operator should know about options that do less than they ask for.
    pub(crate) fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if self.beat {
            notices.push(
                "Option -B: this version of celeriac runs no beat. Run `celery beat` beside it."
                    .to_owned(),
            );
        }
        notices
    }
}

/// A number of seconds as the JSON number that Celery would have: a float.
fn number(seconds: f64) -> Value {
    json!(seconds)
}

/// Names with commas between, as `celery.utils.text.str_to_list` reads them.
fn names(list: Option<&str>) -> Option<Vec<&str>> {
    list.map(|list| {
        list.split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect()
    })
}

/// `max,min` in either order, or `max` alone.
fn autoscale(text: &str) -> Result<(u32, u32), String> {
    let numbers: Result<Vec<u32>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    match numbers.as_deref() {
        Ok([0, 0] | [0]) => Err("a pool needs a process at its largest".to_owned()),
        Ok([max]) => Ok((*max, 0)),
        Ok([a, b]) => Ok((*a.max(b), *a.min(b))),
        _ => Err("write one number, or two with a comma between: --autoscale=10,3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn options(line: &[&str]) -> Map<String, Value> {
        let line = ["celeriac", "worker"].iter().chain(line);
        match Arguments::try_parse_from(line).unwrap().command {
            Command::Worker(worker) => worker.options(&[]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_was_given_is_passed_on() {
        let options = options(&["-c", "3", "-Q", "a, b,", "-E", "--time-limit=5", "-linfo"]);
        assert_eq!(options["concurrency"], "3");
        assert_eq!(options["queues"], json!(["a", "b"]));
        assert_eq!(options["task_events"], true);
        assert_eq!(options["time_limit"], json!(5.0));
        assert_eq!(options["loglevel"], "INFO");
        for absent in ["exclude_queues", "hostname", "soft_time_limit", "statedb"] {
            assert!(!options.contains_key(absent), "{absent}");
        }
    }

    #[test]
    fn settings_follow_two_dashes() {
        let options = options(&["-c1", "--", "worker.prefetch_multiplier=1", "broker.url=x"]);
        assert_eq!(
            options["extra"],
            json!(["worker.prefetch_multiplier=1", "broker.url=x"])
        );
    }

    #[test]
    fn autoscale_takes_its_numbers_in_either_order() {
        for (text, expected) in [
            ("10,3", Ok((10, 3))),
            ("3,10", Ok((10, 3))),
            ("5", Ok((5, 0))),
        ] {
            assert_eq!(autoscale(text), expected, "{text}");
        }
        for text in ["", "a", "1,2,3", "-1,2", "0"] {
            assert!(autoscale(text).is_err(), "{text}");
        }
    }
}
