//! What the table `[containers.<name>]` of `celeriac.toml` says of tasks that run containers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use celeriac_command::options::{LogLevel, Size};
use celeriac_config::TaskOptions;
use celeriac_native::{Options, RetryPolicy};
use serde::Deserialize;
use serde_json::Number;

/// A task that runs containers: what a call asks for is bounded by what stands here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerOptions {
    /// The task's name.
    pub name: String,
    /// The engine's socket: `unix:///run/docker.sock`. Otherwise `DOCKER_HOST`, `CONTAINER_HOST`,
    /// or the first that is there of the places where Docker and Podman have theirs.
    pub host: Option<String>,
    /// The images that callers may run, any if there are none: whole names (`busybox:1.36`), or all
    /// that begin with what stands before a final `*`.
    pub images: Vec<String>,
    /// The folders in which, or below which, `inputpath`, `outputpath` and the log files of callers
    /// have to be; any if there are none.
    pub paths: Vec<PathBuf>,
    /// When images are pulled.
    pub pull: Pull,
    /// The most memory that a container may have, without swap: bytes, or a number with `K`, `M`,
    /// `G` (powers of 1024). Callers may ask for less.
    pub memory: Option<Size>,
    /// The most processors that a container may use. Callers may ask for less.
    pub cpus: Option<f64>,
    /// The most processes that a container may have. Callers may ask for less.
    pub pids_limit: u32,
    /// The network: the engine's default one if there is none. Callers may ask for `none`.
    pub network: Option<String>,
    /// The capabilities that containers don't have, of those that the engine gives: with which
    /// nobody who works on files has to do. Callers may drop more.
    pub cap_drop: Vec<String>,
    /// Whether programs may get more privileges than who starts them (`setuid`).
    pub new_privileges: bool,
    /// Variables of each container's environment. Callers may add others.
    pub env: BTreeMap<String, String>,
    /// The working directory, unless the caller names another; the image's if there is none.
    pub workdir: Option<String>,
    /// How much of the end of the output is in the result.
    pub output_tail: Size,
    /// At which level lines of the output are logged.
    pub log: LogLevel,
    /// How often a container whose exit code is not 0 is tried again.
    pub max_retries: u32,
    /// Seconds until the first retry; later ones wait two to four times longer each.
    pub retry_delay: f64,
    /// Seconds between SIGTERM and SIGKILL when a container is to end.
    pub grace: f64,
    /// For how many hours results are stored (`celery_docker_store_tasks_hours`).
    #[serde(alias = "celery_docker_store_tasks_hours")]
    pub store_tasks_hours: f64,
    /// Hard limit on the run time, in seconds.
    pub time_limit: Option<Number>,
    /// Soft limit on the run time, in seconds: the container is stopped then.
    pub soft_time_limit: Option<Number>,
    /// Acknowledge after the task, not before it: only then does a worker go on with the containers
    /// of one that was killed.
    pub acks_late: bool,
    /// The queue that calls go to, unless the caller names another.
    pub queue: Option<String>,
    /// Whether a state STARTED is stored; the setting's value if it is not said.
    pub track_started: Option<bool>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// When the engine does not have it.
    #[default]
    Missing,
    /// Before each container.
    Always,
    /// Not at all.
    Never,
}

impl Default for ContainerOptions {
    fn default() -> Self {
        let cap_drop = [
            "AUDIT_WRITE",
            "MKNOD",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SETFCAP",
            "SETPCAP",
            "SYS_CHROOT",
        ];
        Self {
            name: "tasks.run_docker".to_owned(),
            host: None,
            images: Vec::new(),
            paths: Vec::new(),
            pull: Pull::default(),
            memory: None,
            cpus: None,
            pids_limit: 4096,
            network: None,
            cap_drop: cap_drop.map(str::to_owned).to_vec(),
            new_privileges: false,
            env: BTreeMap::new(),
            workdir: None,
            output_tail: Size(64 << 10),
            log: LogLevel::Off,
            max_retries: 3,
            retry_delay: 10.0,
            grace: 10.0,
            store_tasks_hours: 384.0,
            time_limit: None,
            soft_time_limit: None,
            acks_late: true,
            queue: None,
            track_started: None,
        }
    }
}

impl ContainerOptions {
    /// How the task is dealt with.
    pub fn task_options(&self) -> Options {
        Options {
            celery: TaskOptions {
                acks_late: self.acks_late,
                reject_on_worker_lost: self.acks_late,
                max_retries: Some(i64::from(self.max_retries)),
                time_limit: self.time_limit.clone(),
                soft_time_limit: self.soft_time_limit.clone(),
                ..TaskOptions::default()
            },
            retry: RetryPolicy {
                max_retries: Some(self.max_retries),
                ..RetryPolicy::default()
            },
            track_started: self.track_started,
            result_expires: Some(self.result_expires()),
            queue: self.queue.clone(),
            priority: None,
            cancel_grace: self.grace() + crate::task::END,
        }
    }

    /// The time between SIGTERM and SIGKILL.
    pub fn grace(&self) -> Duration {
        Duration::try_from_secs_f64(self.grace).unwrap_or_default()
    }

    /// For how long results are stored.
    pub fn result_expires(&self) -> Duration {
        Duration::try_from_secs_f64(self.store_tasks_hours * 3600.0).unwrap_or(Duration::MAX)
    }

    /// How long to wait after the attempt that followed `retries` retries: whole seconds, as
    /// `int(uniform(2, 4) ** retries * delay)`. `random` is from 0 to below 1.
    pub fn retry_wait(&self, retries: u32, random: f64) -> Duration {
        let exponent = i32::try_from(retries).unwrap_or(i32::MAX);
        let seconds = (2.0 + 2.0 * random).powi(exponent) * self.retry_delay;
        Duration::from_secs(seconds.max(0.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_defaults_are_celery_docker_s() {
        let options: ContainerOptions = serde_json::from_value(json!({})).unwrap();
        assert_eq!(options, ContainerOptions::default());
        assert_eq!(options.result_expires(), Duration::from_hours(384));
        let task = options.task_options();
        assert!(task.celery.acks_late && task.celery.reject_on_worker_lost);
        assert_eq!(task.retry.max_retries, Some(3));
    }

    #[test]
    fn what_is_unknown_is_refused() {
        let error = serde_json::from_value::<ContainerOptions>(json!({"memroy": 1})).unwrap_err();
        assert!(error.to_string().contains("unknown field `memroy`"));
    }

    proptest! {
        #[test]
        fn waits_grow_as_celery_docker_s(random in 0.0..1.0) {
            let options = ContainerOptions::default();
            let seconds = |retries| options.retry_wait(retries, random).as_secs();
            prop_assert_eq!(seconds(0), 10);
            prop_assert!((20..40).contains(&seconds(1)));
            prop_assert!((40..160).contains(&seconds(2)));
            prop_assert!(options.retry_wait(u32::MAX, random) > Duration::from_secs(160));
        }
    }
}
