//! Limits that all workers keep together: settings of celeriac's own.

use std::sync::Arc;

use celeriac_broker::open::{self, open};
use celeriac_config::Description;
use celeriac_core::broker::Broker;
use celeriac_core::limit::SharedLimitStore;
use celeriac_worker::limit::{Limits, config};

use crate::app_broker::{Unusable, broker_options};

const STORE: &str = "celeriac_limit_store";
/// What may be done where there is no store.
const REMEDY: &str = "set celeriac_limit_store to a redis:// or sqla+postgresql:// URL that all \
                      workers can reach";

/// The limits, and where they are kept.
pub(in crate::worker) struct Limited {
    pub(in crate::worker) limits: Arc<Limits>,
    /// `None` where there are no limits.
    pub(in crate::worker) store: Option<SharedLimitStore>,
    /// What the operator should know.
    pub(in crate::worker) warnings: Vec<String>,
}

/// Reads the limits, and finds a store for them: the one that is named, or else the broker, or else
/// the result backend.
pub(in crate::worker) fn limits(
    description: &Description,
    brokers: &[Arc<dyn Broker>],
) -> Result<Limited, Unusable> {
    let settings = &description.settings;
    let tasks = description.tasks.keys().map(String::as_str);
    let read = config::parse(&settings.celeriac_limits, &settings.celeriac_unique, &tasks);
    let (limits, warnings) = read.map_err(|wrong| Unusable {
        message: wrong.message,
        hint: Some(wrong.hint),
    })?;
    let mut store = None;
    if !limits.is_empty() {
        let options = broker_options(&description.broker, settings, None);
        store = Some(match &settings.celeriac_limit_store {
            Some(url) => named(&url.0, &options)?,
            None => {
                let of_broker = brokers.first().and_then(|broker| broker.limits());
                let backend = &description.result_backend_url.0;
                of_broker
                    .or_else(|| of_backend(backend, &options))
                    .ok_or_else(none)?
            }
        });
    }
    Ok(Limited {
        limits: Arc::new(limits),
        store,
        warnings,
    })
}

fn none() -> Unusable {
    Unusable {
        message: "celeriac_limits and celeriac_unique need a store that all workers share, and \
                  neither the broker nor the result backend is Redis or a database"
            .to_owned(),
        hint: Some(REMEDY.to_owned()),
    }
}

fn named(url: &str, options: &open::Options) -> Result<SharedLimitStore, Unusable> {
    let unusable = |message: String, hint: Option<String>| Unusable {
        message: format!("{STORE}: {message}"),
        hint: hint.or_else(|| Some(REMEDY.to_owned())),
    };
    let broker = open(url, &elsewhere(options))
        .map_err(|error| unusable(error.message.clone(), error.hint.clone()))?;
    broker.limits().ok_or_else(|| {
        let message = format!("{} can't keep limits", broker.display_url());
        unusable(message, None)
    })
}

/// The store in the result backend, if that is a server or database that can be one.
fn of_backend(url: &str, options: &open::Options) -> Option<SharedLimitStore> {
    let url = url.strip_prefix("db+").unwrap_or(url);
    let is_database = ["sqlite", "postgres", "mysql", "mariadb"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    let url = if is_database {
        format!("sqla+{url}")
    } else {
        url.to_owned()
    };
    // One in the memory of this process is nobody else's.
    let broker = open(&url, &elsewhere(options)).ok();
    broker
        .filter(|_| !url.starts_with("memory"))
        .and_then(|broker| broker.limits())
}

/// The options for a server that is not the broker: its certificates are not the broker's.
fn elsewhere(options: &open::Options) -> open::Options {
    open::Options {
        ssl: None,
        ..options.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> open::Options {
        open::Options::default()
    }

    #[test]
    fn a_result_backend_may_keep_limits() {
        for (url, shown) in [
            (
                "redis://:secret@localhost:7/3",
                Some("redis://:**@localhost:7/3"),
            ),
            ("db+sqlite:///results.db", Some("sqla+sqlite:///results.db")),
            ("sqlite:///results.db", Some("sqla+sqlite:///results.db")),
            ("disabled://", None),
            ("rpc://", None),
            ("cache+memory://", None),
        ] {
            let store = of_backend(url, &options());
            let found = store.map(|store| store.display_url());
            assert_eq!(found.as_deref(), shown, "{url}");
        }
    }

    #[test]
    fn a_store_that_can_be_none_is_refused() {
        for (url, words) in [
            (
                "amqp://localhost",
                "celeriac_limit_store: amqp://:**@localhost can't keep limits",
            ),
            ("nonsense", "celeriac_limit_store: "),
        ] {
            let unusable = named(url, &options()).err().unwrap();
            assert!(unusable.message.starts_with(words), "{}", unusable.message);
            assert!(unusable.hint.is_some(), "{url}");
        }
    }
}
