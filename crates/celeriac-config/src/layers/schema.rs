//! The sections of `celeriac.toml`, and what may stand in them.

use super::kind::Kind;
use super::nearest::nearest;
use super::setting;

/// The section of Celery's settings.
pub(super) const CELERY: &str = "celery";
/// The section of the worker's options.
pub(super) const WORKER: &str = "worker";
/// The section of pools.
pub(super) const POOLS: &str = "pools";
/// The section of tasks that run commands.
pub(super) const COMMANDS: &str = "commands";
/// The section of tasks that run containers.
pub(super) const CONTAINERS: &str = "containers";

const SECTIONS: &[&str] = &[
    CELERY, WORKER, POOLS, COMMANDS, CONTAINERS, "limits", "unique",
];
/// Keys that stand before all sections.
const TOP: &[&str] = &["app", "python"];
/// Sections that are settings of celeriac's own.
const SETTINGS_AS_SECTIONS: &[(&str, &str)] =
    &[("limits", "celeriac_limits"), ("unique", "celeriac_unique")];

/// Keys of `[worker]` that are options of `celeriac worker`, by their long names.
pub const WORKER_OPTIONS: &[(&str, Kind)] = &[
    ("autoscale", Kind::Autoscale),
    ("beat", Kind::Bool),
    ("concurrency", Kind::Concurrency),
    ("detach", Kind::Bool),
    ("disable_prefetch", Kind::Bool),
    ("exclude_queues", Kind::Texts),
    ("executable", Kind::Text),
    ("gid", Kind::TextOrWhole),
    ("hard_memory_per_child", Kind::Whole),
    ("health_address", Kind::Text),
    ("heartbeat_interval", Kind::Whole),
    ("hostname", Kind::Text),
    ("include", Kind::Texts),
    ("log_format", Kind::Text),
    ("logfile", Kind::Text),
    ("loglevel", Kind::Text),
    ("max_memory", Kind::Whole),
    ("max_memory_per_child", Kind::Whole),
    ("max_tasks_per_child", Kind::Whole),
    ("optimization", Kind::Text),
    ("pidfile", Kind::Text),
    ("pool", Kind::Text),
    ("pool_start_method", Kind::Text),
    ("prefetch_multiplier", Kind::Whole),
    ("purge", Kind::Bool),
    ("queues", Kind::Texts),
    ("schedule_filename", Kind::Text),
    ("scheduler", Kind::Text),
    ("shutdown_deadline", Kind::Number),
    ("soft_memory_per_child", Kind::Whole),
    ("soft_time_limit", Kind::Number),
    ("statedb", Kind::Text),
    ("task_events", Kind::Bool),
    ("time_limit", Kind::Number),
    ("uid", Kind::TextOrWhole),
    ("umask", Kind::Text),
    ("without_gossip", Kind::Bool),
    ("without_heartbeat", Kind::Bool),
    ("without_mingle", Kind::Bool),
];

/// Keys of `[worker]` that are settings `celeriac_<key>`.
const WORKER_SETTINGS: &[&str] = &[
    "dead_letter_expires",
    "dead_letter_limit",
    "delay_store",
    "limit_store",
    "max_deaths",
    "memory_pressure",
    "revoke_store",
    "unknown_task_grace",
];

/// Settings that are counted only where an option of the worker is not given.
pub(super) const SETTINGS_BELOW_OPTIONS: &[(&str, &str)] = &[
    ("concurrency", "worker_concurrency"),
    ("disable_prefetch", "worker_disable_prefetch"),
    ("gid", "worker_gid"),
    ("hard_memory_per_child", "celeriac_hard_memory_per_child"),
    ("health_address", "celeriac_health_address"),
    ("logfile", "worker_logfile"),
    ("max_memory", "celeriac_max_memory"),
    ("max_memory_per_child", "worker_max_memory_per_child"),
    ("max_tasks_per_child", "worker_max_tasks_per_child"),
    ("pidfile", "worker_pidfile"),
    ("pool", "worker_pool"),
    ("pool_start_method", "worker_pool_start_method"),
    ("prefetch_multiplier", "worker_prefetch_multiplier"),
    ("schedule_filename", "beat_schedule_filename"),
    ("scheduler", "beat_scheduler"),
    ("shutdown_deadline", "celeriac_shutdown_deadline"),
    ("soft_memory_per_child", "celeriac_soft_memory_per_child"),
    ("soft_time_limit", "task_soft_time_limit"),
    ("statedb", "worker_state_db"),
    ("task_events", "worker_send_task_events"),
    ("time_limit", "task_time_limit"),
    ("uid", "worker_uid"),
    ("umask", "worker_umask"),
];

/// Keys of `[pools.<name>]`.
const POOL_KEYS: &[(&str, Kind)] = &[
    ("autoscale", Kind::Autoscale),
    ("concurrency", Kind::Whole),
    ("max_memory_per_child", Kind::Whole),
    ("max_tasks_per_child", Kind::Whole),
    ("pool", Kind::Text),
    ("prefetch_multiplier", Kind::Whole),
    ("processes", Kind::Whole),
    ("queues", Kind::Texts),
    ("soft_time_limit", Kind::Number),
    ("time_limit", Kind::Number),
];

/// What stands at a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// The path in the sections that count: what has two names is known by one.
    pub(super) path: Vec<String>,
    /// What its values are.
    pub(super) kind: Kind,
    /// How many parts of the path are the key; what follows is within its value.
    pub(super) key: usize,
    /// That nobody knows it, where that is no error, and what may be meant.
    pub(super) doubt: Option<Unknown>,
}

/// A key that there is not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    /// What is wrong.
    pub(super) message: String,
    /// What to write.
    pub(super) hint: Option<String>,
}

/// Finds what may stand at a path of a file or a variable.
pub(super) fn locate(path: &[String]) -> Result<Located, Unknown> {
    let located = |path: &[String], kind, key| Located {
        path: path.to_vec(),
        kind,
        key,
        doubt: None,
    };
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    match parts[..] {
        [key] if TOP.contains(&key) => Ok(located(path, Kind::Text, 1)),
        [key] if SECTIONS.contains(&key) => Ok(located(path, Kind::Table, 1)),
        [CELERY, name, ..] => setting_at(path, name),
        [WORKER, name, ..] => {
            if WORKER_SETTINGS.contains(&name) {
                return setting_at(path, &format!("celeriac_{name}"));
            }
            match kind_of(WORKER_OPTIONS, name) {
                Some(kind) => Ok(located(path, kind, 2)),
                None => {
                    let options = WORKER_OPTIONS.iter().map(|(name, _)| *name);
                    let names = options.chain(WORKER_SETTINGS.iter().copied());
                    let known = setting::find(name).map(|_| format!("write it in [{CELERY}]"));
                    Err(Unknown {
                        message: format!("[{WORKER}] has no key {name}"),
                        hint: known.or_else(|| meant(name, names)),
                    })
                }
            }
        }
        [POOLS, _] => Ok(located(path, Kind::Table, 2)),
        [POOLS, pool, name, ..] => match kind_of(POOL_KEYS, name) {
            Some(kind) => Ok(located(path, kind, 3)),
            None => {
                let names = POOL_KEYS.iter().map(|(name, _)| *name);
                let all = names.clone().collect::<Vec<_>>().join(", ");
                let hint = meant(name, names);
                Err(Unknown {
                    message: format!("[{POOLS}.{pool}] has no key {name}"),
                    hint: hint.or_else(|| Some(format!("the keys are {all}"))),
                })
            }
        },
        [COMMANDS | CONTAINERS, _] => Ok(located(path, Kind::Table, 2)),
        [COMMANDS | CONTAINERS, ..] => Ok(located(path, Kind::Any, path.len())),
        [section, ..] => {
            let setting = SETTINGS_AS_SECTIONS
                .iter()
                .find(|(name, _)| *name == section);
            match setting {
                Some((_, setting)) => {
                    let whole = [CELERY, setting].map(str::to_owned);
                    let below = path[1..].iter().cloned();
                    let path: Vec<String> = whole.into_iter().chain(below).collect();
                    Ok(located(&path, Kind::Table, 2))
                }
                None => Err(no_section(section, path.len() == 1)),
            }
        }
        [] => Err(no_section("", false)),
    }
}

fn no_section(name: &str, is_key: bool) -> Unknown {
    let what = if is_key { "key" } else { "section" };
    let hint = if setting::find(name).is_some() {
        Some(format!("write it in [{CELERY}]"))
    } else if is_key && kind_of(WORKER_OPTIONS, name).is_some() {
        Some(format!("write it in [{WORKER}]"))
    } else {
        let all = SECTIONS.join("], [");
        meant(name, SECTIONS.iter().chain(TOP).copied())
            .or_else(|| Some(format!("the sections are [{all}]")))
    };
    Unknown {
        message: format!("there is no {what} {name}"),
        hint,
    }
}

/// A setting that `path` is, or is within.
fn setting_at(path: &[String], name: &str) -> Result<Located, Unknown> {
    let mut located = Located {
        path: [CELERY, name].map(str::to_owned).to_vec(),
        kind: Kind::Any,
        key: 2,
        doubt: None,
    };
    located.path.extend(path[2..].iter().cloned());
    if let Some(setting) = setting::find(name) {
        located.kind = setting.kind;
        return Ok(located);
    }
    let message = format!("there is no setting {name}");
    if let Some(setting) = setting::find_old(&name.to_uppercase()) {
        return Err(Unknown {
            message: format!("{name} is the name that the setting had before Celery 4"),
            hint: Some(format!("write {}", setting.name)),
        });
    }
    // An app may have settings of its own, and a later Celery others than this one.
    located.doubt = Some(Unknown {
        message,
        hint: meant(name, setting::SETTINGS.iter().map(|setting| setting.name)),
    });
    Ok(located)
}

fn kind_of(keys: &[(&str, Kind)], name: &str) -> Option<Kind> {
    let found = keys.iter().find(|(key, _)| *key == name);
    found.map(|(_, kind)| *kind)
}

fn meant<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    nearest(name, names).map(|near| format!("write {near}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Result<(String, Kind, usize), (String, Option<String>)> {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        match locate(&path) {
            Ok(located) => match located.doubt {
                None => Ok((located.path.join("/"), located.kind, located.key)),
                Some(doubt) => Err((format!("perhaps {}", doubt.message), doubt.hint)),
            },
            Err(unknown) => Err((unknown.message, unknown.hint)),
        }
    }

    #[test]
    fn keys_are_found() {
        for (path, expected, kind, key) in [
            ("app", "app", Kind::Text, 1),
            ("celery/broker_url", "celery/broker_url", Kind::Address, 2),
            (
                "celery/task_routes/a.b/queue",
                "celery/task_routes/a.b/queue",
                Kind::Any,
                2,
            ),
            (
                "worker/concurrency",
                "worker/concurrency",
                Kind::Concurrency,
                2,
            ),
            (
                "worker/max_deaths",
                "celery/celeriac_max_deaths",
                Kind::Whole,
                2,
            ),
            (
                "limits/a.b/rate",
                "celery/celeriac_limits/a.b/rate",
                Kind::Table,
                2,
            ),
            ("unique/a.b", "celery/celeriac_unique/a.b", Kind::Table, 2),
            ("pools/io/queues", "pools/io/queues", Kind::Texts, 3),
            ("pools/io", "pools/io", Kind::Table, 2),
            ("commands/ocr/argv", "commands/ocr/argv", Kind::Any, 3),
            (
                "containers/x/environment/A",
                "containers/x/environment/A",
                Kind::Any,
                4,
            ),
        ] {
            assert_eq!(at(path), Ok((expected.to_owned(), kind, key)), "{path}");
        }
    }

    #[test]
    fn keys_that_there_are_not_get_the_nearest_name() {
        for (path, message, hint) in [
            (
                "celery/broker_ulr",
                "perhaps there is no setting broker_ulr",
                "write broker_url",
            ),
            (
                "celery/CELERYD_CONCURRENCY",
                "CELERYD_CONCURRENCY is the name that the setting had before Celery 4",
                "write worker_concurrency",
            ),
            (
                "worker/concurency",
                "[worker] has no key concurency",
                "write concurrency",
            ),
            (
                "worker/max_death",
                "[worker] has no key max_death",
                "write max_deaths",
            ),
            (
                "worker/broker_url",
                "[worker] has no key broker_url",
                "write it in [celery]",
            ),
            ("pools/io/que", "[pools.io] has no key que", "write queues"),
            ("pool/io/queues", "there is no section pool", "write pools"),
            (
                "broker_url",
                "there is no key broker_url",
                "write it in [celery]",
            ),
            (
                "loglevel",
                "there is no key loglevel",
                "write it in [worker]",
            ),
        ] {
            let expected = (message.to_owned(), Some(hint.to_owned()));
            assert_eq!(at(path), Err(expected), "{path}");
        }
    }

    #[test]
    fn an_apps_own_setting_is_no_slip() {
        let expected = ("perhaps there is no setting tenant".to_owned(), None);
        assert_eq!(at("celery/tenant"), Err(expected));
    }

    #[test]
    fn the_settings_below_options_are_there() {
        // Celery looks for these, and names them nowhere.
        let unnamed = [
            "worker_gid",
            "worker_logfile",
            "worker_pidfile",
            "worker_uid",
            "worker_umask",
        ];
        for (option, name) in SETTINGS_BELOW_OPTIONS {
            assert!(kind_of(WORKER_OPTIONS, option).is_some(), "{option}");
            assert!(
                setting::find(name).is_some() || unnamed.contains(name),
                "{name}"
            );
        }
        for name in WORKER_SETTINGS {
            assert!(
                setting::find(&format!("celeriac_{name}")).is_some(),
                "{name}"
            );
        }
    }
}
