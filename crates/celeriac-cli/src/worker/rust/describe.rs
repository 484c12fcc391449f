//! What `celeriac.host.description` tells of a Python app, of one in Rust.

use std::collections::BTreeMap;

use celeriac_config::{Description, layers};
use celeriac_core::queue::Queue;
use celeriac_native::Registry;
use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// Names of settings that the worker reads itself: see `celeriac.host.description.SETTINGS`.
const SETTINGS: [&str; 28] = [
    "broker_connection_max_retries",
    "broker_connection_retry",
    "broker_connection_retry_on_startup",
    "broker_connection_timeout",
    "broker_heartbeat",
    "broker_native_delayed_delivery_queue_type",
    "celeriac_dead_letter_expires",
    "celeriac_dead_letter_limit",
    "celeriac_delay_store",
    "celeriac_hard_memory_per_child",
    "celeriac_health_address",
    "celeriac_limit_store",
    "celeriac_limits",
    "celeriac_max_deaths",
    "celeriac_max_memory",
    "celeriac_memory_pressure",
    "celeriac_shutdown_deadline",
    "celeriac_soft_memory_per_child",
    "celeriac_unique",
    "celeriac_unknown_task_grace",
    "worker_cancel_long_running_tasks_on_connection_loss",
    "worker_detect_quorum_queues",
    "worker_enable_soft_shutdown_on_idle",
    "worker_eta_task_limit",
    "worker_proc_alive_timeout",
    "worker_soft_shutdown_timeout",
    "broker_login_method",
    "worker_deduplicate_successful_tasks",
];
/// Celery's defaults of those that are not null.
const DEFAULTS: [(&str, Value); 3] = [
    ("broker_connection_retry", Value::Bool(true)),
    ("worker_detect_quorum_queues", Value::Bool(true)),
    (
        "worker_cancel_long_running_tasks_on_connection_loss",
        Value::Bool(false),
    ),
];
/// Celery's line formats.
const LOG_FORMAT: &str = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s";
const RECEIVED: &str = "Task %(name)s[%(id)s] received";

/// An app in Rust, as the worker takes it.
pub(in crate::worker) struct RustApp<'a> {
    pub(in crate::worker) name: &'a str,
    /// Its settings by Celery's names, from all layers.
    pub(in crate::worker) settings: &'a Map<String, Value>,
    /// The command line's options, by the names that Celery's code has for them.
    pub(in crate::worker) options: &'a Map<String, Value>,
    pub(in crate::worker) registry: &'a Registry,
    /// Whether the terminal has colours, and they are wanted.
    pub(in crate::worker) color: bool,
}

impl RustApp<'_> {
    /// Describes it.
    ///
    /// # Errors
    /// When an option or a setting makes no sense.
    pub(in crate::worker) fn describe(&self) -> Result<Description, Failure> {
        let hostname = self.hostname();
        let urls = self.text("broker_read_url").or(self.text("broker_url"));
        let urls: Vec<&str> = urls.unwrap_or_default().split(';').collect();
        let display = layers::without_passwords(urls.first().copied().unwrap_or_default());
        let backend = self.text("result_backend").unwrap_or("disabled://");
        let described = json!({
            "versions": {"python": "none", "celery": env!("CARGO_PKG_VERSION"),
                "celery_series": "celeriac", "kombu": "none", "billiard": "none"},
            "platform": platform(),
            "app": {"main": self.name, "id": "rust", "loader": null,
                "task_names": self.registry.iter().map(|(name, _)| name).collect::<Vec<_>>()},
            "worker": self.worker(&hostname)?,
            "daemon": {"pidfile": self.path("pidfile", &hostname)},
            "broker": {"urls": urls, "display": display,
                "failover_strategy": self.text("broker_failover_strategy").unwrap_or("round-robin"),
                "transport_options": self.setting("broker_transport_options").cloned()
                    .unwrap_or_else(|| json!({})),
                "ssl": self.setting("broker_use_ssl"),
                "login_method": self.setting("broker_login_method")},
            "bus": self.bus(),
            "remote": self.remote(&display),
            "result_backend": layers::without_passwords(backend),
            "result_backend_url": backend,
            "accept_content": ["application/json"],
            "queues": self.queues().iter().map(|name| queue(name)).collect::<Vec<_>>(),
            "tasks": {},
            "signals": [],
            "settings": self.settings(),
            "client": self.settings,
            "logging": {"level": self.level(), "format": self.text("worker_log_format")
                .unwrap_or(LOG_FORMAT), "datefmt": self.setting("worker_log_datefmt"),
                "file": self.path("logfile", &hostname), "color": self.color, "forward": false,
                "received_format": RECEIVED},
            "revoked": [],
            "threads": [],
            "has_worker_steps": false,
            "has_consumer_steps": false,
            "warnings": self.warnings(),
        });
        let text = described.to_string();
        let mut description: Description = celeriac_config::read(text.as_bytes())
            .map_err(|misfit| Failure::new(format!("A setting can't be used: {misfit}")))?;
        for (name, task) in self.registry.iter() {
            let options = task.options().celery.clone();
            description.tasks.insert(name.to_owned(), options);
        }
        Ok(description)
    }

    fn option(&self, name: &str) -> Option<&Value> {
        self.options.get(name).filter(|value| !value.is_null())
    }

    fn setting(&self, name: &str) -> Option<&Value> {
        self.settings.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, setting: &str) -> Option<&str> {
        let text = self.setting(setting)?.as_str();
        text.filter(|text| !text.is_empty())
    }

    /// What the command line says, or the setting `worker_<name>`.
    fn either(&self, name: &str) -> Option<&Value> {
        let setting = format!("worker_{name}");
        self.option(name).or_else(|| self.setting(&setting))
    }

    fn is_set(&self, option: &str) -> bool {
        self.option(option) == Some(&Value::Bool(true))
    }

    fn level(&self) -> u32 {
        match self.option("loglevel").and_then(Value::as_str) {
            Some("DEBUG") => 10,
            Some("INFO") => 20,
            Some("ERROR") => 40,
            Some("CRITICAL" | "FATAL") => 50,
            _ => 30,
        }
    }

    fn worker(&self, hostname: &str) -> Result<Value, Failure> {
        let concurrency = match self.option("concurrency").and_then(Value::as_str) {
            None | Some("" | "0" | "auto") => {
                let set = self.setting("worker_concurrency").and_then(Value::as_u64);
                set.filter(|number| *number > 0).unwrap_or_else(processors)
            }
            Some(text) => text.parse().map_err(|_| {
                let text = format!("--concurrency {text} can't be used");
                Failure::new(text)
                    .with_hint("write a number, or auto")
                    .with_status(2)
            })?,
        };
        Ok(json!({
            "hostname": hostname,
            "pool": "native",
            "loglevel": self.level(),
            "concurrency": concurrency,
            "autoscale": self.option("autoscale"),
            "max_tasks_per_child": null,
            "max_memory_per_child": null,
            "time_limit": self.option("time_limit").or(self.setting("task_time_limit")),
            "soft_time_limit":
                self.option("soft_time_limit").or(self.setting("task_soft_time_limit")),
            "prefetch_multiplier":
                self.either("prefetch_multiplier").cloned().unwrap_or_else(|| 4.into()),
            "disable_rate_limits": self.setting("worker_disable_rate_limits")
                == Some(&Value::Bool(true)),
            "task_events": self.is_set("task_events")
                || self.setting("worker_send_task_events") == Some(&Value::Bool(true)),
            "statedb": null,
        }))
    }

    /// The node's name: `celery@<host>` unless `-n` says otherwise, whose `%h`, `%n` and `%d` are the
    /// host's name and its parts.
    fn hostname(&self) -> String {
        let host = nix::unistd::gethostname();
        let host = host.map_or_else(|_| "localhost".to_owned(), |it| it.to_string_lossy().into());
        let wanted = self.option("hostname").and_then(Value::as_str);
        node_name(wanted.unwrap_or_default(), &host)
    }

    /// A path with the node's name in it, where it has `%n` and so on.
    fn path(&self, name: &str, hostname: &str) -> Option<String> {
        let path = self
            .either(name)?
            .as_str()
            .filter(|path| !path.is_empty())?;
        let (node, host) = hostname.split_once('@').unwrap_or((hostname, ""));
        let domain = host.split_once('.').map_or("", |(_, domain)| domain);
        let path = path
            .replace("%n", node)
            .replace("%h", hostname)
            .replace("%d", domain);
        Some(path.replace("%i", "").replace("%I", ""))
    }

    /// The queues to consume from: those of the command line, or the app's default one.
    fn queues(&self) -> Vec<String> {
        let names = |name: &str| -> Option<Vec<String>> {
            let names = self.option(name)?.as_array()?.iter();
            Some(
                names
                    .filter_map(|name| Some(name.as_str()?.to_owned()))
                    .collect(),
            )
        };
        let default = || {
            vec![
                self.text("task_default_queue")
                    .unwrap_or("celery")
                    .to_owned(),
            ]
        };
        let mut queues = names("queues").unwrap_or_else(|| {
            let own = self.registry.iter();
            let own = own.filter_map(|(_, task)| task.options().queue.clone());
            let mut queues = default();
            queues.extend(own);
            queues.sort();
            queues.dedup();
            queues
        });
        let excluded = names("exclude_queues").unwrap_or_default();
        queues.retain(|name| !excluded.contains(name));
        queues
    }

    fn bus(&self) -> Value {
        let names = [
            "control_exchange",
            "control_queue_ttl",
            "control_queue_expires",
            "control_queue_exclusive",
            "control_queue_durable",
            "event_exchange",
            "event_queue_prefix",
            "event_queue_ttl",
            "event_queue_expires",
            "event_queue_exclusive",
            "event_queue_durable",
        ];
        let set = names
            .iter()
            .filter_map(|name| Some((*name, self.setting(name)?)));
        json!(set.collect::<BTreeMap<_, _>>())
    }

    fn remote(&self, broker: &str) -> Value {
        json!({
            "control": self.setting("worker_enable_remote_control") != Some(&Value::Bool(false)),
            "gossip": !self.is_set("without_gossip"),
            "mingle": !self.is_set("without_mingle"),
            "heartbeat": !self.is_set("without_heartbeat"),
            "heartbeat_interval": self.option("heartbeat_interval"),
            "control_serializer": "json",
            "event_serializer": "json",
            "commands": {},
            "users": [],
            "broker_info": {"transport": broker.split("://").next(), "uri": broker},
            "sw_ver": env!("CARGO_PKG_VERSION"),
            "sw_sys": "Linux",
            // Celery's defaults.
            "revokes_max": 50_000,
            "revoke_expires": 10_800,
        })
    }

    fn settings(&self) -> Value {
        let defaults = DEFAULTS
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        let mut settings: Map<String, Value> = defaults.collect();
        for name in SETTINGS {
            if let Some(value) = self.setting(name) {
                settings.insert(name.to_owned(), value.clone());
            }
        }
        for name in [
            "soft_memory_per_child",
            "hard_memory_per_child",
            "max_memory",
        ] {
            if let Some(value) = self.option(name) {
                settings.insert(format!("celeriac_{name}"), value.clone());
            }
        }
        Value::Object(settings)
    }

    /// Options that mean nothing without processes of their own, or without Python.
    fn warnings(&self) -> Vec<String> {
        let processes = "tasks in Rust run in the worker's own process";
        let python = "it belongs to Python apps";
        let reasons = [
            ("max_tasks_per_child", processes),
            ("max_memory_per_child", processes),
            ("soft_memory_per_child", processes),
            ("hard_memory_per_child", processes),
            (
                "statedb",
                "revoked ids are asked of other workers at the start instead",
            ),
            ("include", python),
            ("extra", python),
        ];
        let given = |name: &&str| {
            let value = self.option(name);
            value.is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty()))
        };
        let reasons = reasons.into_iter().filter(|(name, _)| given(name));
        reasons
            .map(|(name, why)| format!("Option {name} has no effect in this worker: {why}."))
            .collect()
    }
}

/// How many processors this process may use.
fn processors() -> u64 {
    std::thread::available_parallelism().map_or(1, |number| number.get() as u64)
}

fn platform() -> String {
    let name = nix::sys::utsname::uname();
    name.map_or_else(
        |_| "Linux".to_owned(),
        |name| {
            let part = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
            format!(
                "{}-{}-{}",
                part(name.sysname()),
                part(name.release()),
                part(name.machine())
            )
        },
    )
}

/// `celery.utils.nodenames.host_format(default_nodename(…))`.
fn node_name(wanted: &str, host: &str) -> String {
    let (name, at) = match wanted.split_once('@') {
        Some((name, at)) => (name, at),
        None if wanted.contains('%') => return node_name(&format!("celery@{wanted}"), host),
        None => ("celery", wanted),
    };
    let name = if name.is_empty() { "celery" } else { name };
    let at = if at.is_empty() { host } else { at };
    let (short, domain) = host.split_once('.').unwrap_or((host, ""));
    let filled = |text: &str| {
        text.replace("%h", host)
            .replace("%n", short)
            .replace("%d", domain)
            .replace("%%", "%")
    };
    format!("{}@{}", filled(name), filled(at))
}

/// A queue by the members of `celeriac_core::queue::Queue`, as Celery makes missing queues; `info` is
/// what an operator who asks for the active queues is shown.
pub(in crate::worker) fn queue(name: &str) -> Value {
    let queue = Queue::direct(name);
    let exchange = json!({"name": queue.exchange.name, "type": "direct", "durable": true,
        "auto_delete": false, "delivery_mode": null, "passive": false, "arguments": {},
        "no_declare": false});
    json!({
        "name": name,
        "exchange": exchange,
        "routing_key": name,
        "durable": true,
        "info": {"name": name, "exchange": exchange, "routing_key": name, "queue_arguments": null,
            "binding_arguments": null, "consumer_arguments": null, "durable": true,
            "exclusive": false, "auto_delete": false, "no_ack": false, "alias": null,
            "bindings": [], "no_declare": null, "expires": null, "message_ttl": null,
            "max_length": null, "max_length_bytes": null, "max_priority": null},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_as_in_celery() {
        for (wanted, name) in [
            ("", "celery@box.example.org"),
            ("w1@%h", "w1@box.example.org"),
            ("w1@%n", "w1@box"),
            ("w1@%d", "w1@example.org"),
            ("w1@here", "w1@here"),
            ("here", "celery@here"),
            ("@here", "celery@here"),
            ("%h", "celery@box.example.org"),
        ] {
            assert_eq!(node_name(wanted, "box.example.org"), name, "{wanted}");
        }
    }

    #[test]
    fn an_app_without_settings_can_be_described() {
        let (settings, options) = (Map::new(), Map::new());
        let app = RustApp {
            name: "proj",
            settings: &settings,
            options: &options,
            registry: &Registry::default(),
            color: false,
        };
        let description = app
            .describe()
            .unwrap_or_else(|failure| panic!("{failure:?}"));
        assert_eq!(description.queues.len(), 1);
        assert_eq!(description.queues[0].queue.name, "celery");
        assert!(description.settings.broker_connection_retry);
    }
}
