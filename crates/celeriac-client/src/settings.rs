//! Celery's settings by their names, as a file or an app's configuration has them.

use std::collections::BTreeMap;
use std::time::Duration;

use celeriac_core::queue::{ExchangeKind, Queue};
use serde_json::{Map, Value};

use crate::config::{Config, DeliveryMode, PublishRetry};
use crate::error::Error;

impl Config {
    /// What settings by Celery's names say (lower case, as in `app.conf`), over the defaults. Those
    /// that are not a client's are not looked at.
    ///
    /// # Errors
    /// When one of them is not of the type that it is to have.
    pub fn from_settings(settings: &Map<String, Value>) -> Result<Self, Error> {
        let mut config = Self::default();
        let mut retry = Some(PublishRetry::default());
        let mut policy = Map::new();
        let is_set = |name: &str| settings.get(name).is_some_and(|value| !value.is_null());
        for (name, value) in settings {
            if value.is_null() {
                // For all others that is what they are anyhow.
                if name == "result_expires" {
                    config.results.expires = None;
                }
                continue;
            }
            let setting = Setting { name, value };
            match name.as_str() {
                // The one to write to is the one that a client needs.
                "broker_url" if is_set("broker_write_url") => {}
                "broker_url" | "broker_write_url" => config.broker_url = setting.urls()?,
                "broker_transport_options" => {
                    config.broker_transport_options = setting.mapping()?;
                }
                "broker_use_ssl" => {
                    config.broker_use_ssl = (*value != Value::Bool(false)).then(|| value.clone());
                }
                "broker_connection_timeout" => {
                    config.broker_connection_timeout = Some(setting.span()?);
                }
                "result_backend" => config.result_backend = Some(setting.text()?),
                "result_expires" => {
                    // Nothing is kept for ever by a zero.
                    config.results.expires =
                        Some(setting.span()?).filter(|expires| !expires.is_zero());
                }
                "result_failure_expires" => {
                    config.results.failure_expires = Some(setting.span()?);
                }
                "result_chord_expires" => config.results.chord_expires = Some(setting.span()?),
                "result_chord_join_timeout" => {
                    config.results.chord_join_timeout = setting.span()?;
                }
                "result_persistent" => config.results.persistent = setting.flag()?,
                "result_extended" => config.results.extended = setting.flag()?,
                "result_backend_transport_options" => {
                    config.results.options.extend(setting.mapping()?);
                }
                "task_routes" => config.task_routes = setting.routes()?,
                "task_queues" => config.task_queues = setting.queues()?,
                "task_default_queue" => config.task_default_queue = setting.text()?,
                "task_default_exchange" => config.task_default_exchange = Some(setting.text()?),
                "task_default_routing_key" => {
                    config.task_default_routing_key = Some(setting.text()?);
                }
                "task_default_queue_type" => {
                    config.task_default_queue_type = Some(setting.text()?);
                }
                "task_create_missing_queues" => {
                    config.task_create_missing_queues = setting.flag()?;
                }
                "task_create_missing_queue_type" => {
                    config.task_create_missing_queue_type = Some(setting.text()?);
                }
                "task_queue_max_priority" => {
                    config.task_queue_max_priority = Some(setting.octet()?);
                }
                "task_default_priority" => {
                    config.task_default_priority = Some(setting.octet()?);
                }
                "task_default_delivery_mode" => {
                    config.task_default_delivery_mode = setting.delivery_mode()?;
                }
                "task_inherit_parent_priority" => {
                    config.task_inherit_parent_priority = setting.flag()?;
                }
                "task_ignore_result" => config.task_ignore_result = setting.flag()?,
                "task_publish_retry" => retry = retry.filter(|_| is_on(value)),
                "task_publish_retry_policy" => policy = setting.mapping()?,
                "task_serializer" if value != "json" => {
                    return Err(setting.wrong("\"json\": messages are sent in no other format"));
                }
                name if is_a_backends_own(name) => {
                    config
                        .results
                        .options
                        .insert(name.to_owned(), value.clone());
                }
                _ => {}
            }
        }
        config.task_publish_retry = retry.map(|retry| retry.changed(&policy)).transpose()?;
        Ok(config)
    }
}

/// Whether a setting is for one result backend.
fn is_a_backends_own(name: &str) -> bool {
    ["database_", "filesystem_", "mongodb_", "redis_", "s3_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Options by the names or patterns of tasks.
type Routes = Vec<(String, Map<String, Value>)>;

fn is_on(value: &Value) -> bool {
    *value != Value::Bool(false)
}

struct Setting<'s> {
    name: &'s str,
    value: &'s Value,
}

impl Setting<'_> {
    fn wrong(&self, expected: &str) -> Error {
        // A URL may hold a password.
        let shown = match self.name {
            "broker_url" | "broker_write_url" | "result_backend" => String::new(),
            _ => format!(" ({})", self.value),
        };
        Error::Invalid(format!(
            "the setting {}{shown} is to be {expected}",
            self.name
        ))
    }

    fn text(&self) -> Result<String, Error> {
        let text = self.value.as_str().map(str::to_owned);
        text.ok_or_else(|| self.wrong("a text"))
    }

    /// One URL, or several.
    fn urls(&self) -> Result<String, Error> {
        match self.value {
            Value::Array(urls) => {
                let urls: Option<Vec<&str>> = urls.iter().map(Value::as_str).collect();
                let urls = urls.ok_or_else(|| self.wrong("a URL, or a list of URLs"))?;
                Ok(urls.join(";"))
            }
            _ => self.text(),
        }
    }

    fn flag(&self) -> Result<bool, Error> {
        let flag = self.value.as_bool();
        flag.ok_or_else(|| self.wrong("true or false"))
    }

    fn span(&self) -> Result<Duration, Error> {
        let seconds = self.value.as_f64();
        let span = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        span.ok_or_else(|| self.wrong("a number of seconds"))
    }

    fn octet(&self) -> Result<u8, Error> {
        let number = self.value.as_u64();
        let octet = number.and_then(|number| u8::try_from(number).ok());
        octet.ok_or_else(|| self.wrong("a number from 0 to 255"))
    }

    fn mapping(&self) -> Result<Map<String, Value>, Error> {
        let mapping = self.value.as_object().cloned();
        mapping.ok_or_else(|| self.wrong("a mapping"))
    }

    fn delivery_mode(&self) -> Result<DeliveryMode, Error> {
        match self.value {
            Value::String(text) if text == "persistent" => Ok(DeliveryMode::Persistent),
            Value::String(text) if text == "transient" => Ok(DeliveryMode::Transient),
            other => match other.as_u64() {
                Some(1) => Ok(DeliveryMode::Transient),
                Some(2) => Ok(DeliveryMode::Persistent),
                _ => Err(self.wrong("1 or \"transient\", or 2 or \"persistent\"")),
            },
        }
    }

    /// A mapping of names and patterns, or a list of pairs or of mappings.
    fn routes(&self) -> Result<Routes, Error> {
        let expected = "a mapping from names or patterns of tasks to options or queues, or a list of \
                        such: routers written in Python are for Python";
        let wrong = || self.wrong(expected);
        let route = |options: &Value| match options {
            Value::String(queue) => {
                let queue = Value::from(queue.clone());
                Ok(Map::from_iter([("queue".to_owned(), queue)]))
            }
            Value::Object(options) => Ok(options.clone()),
            _ => Err(wrong()),
        };
        let mut routes = Vec::new();
        let routers = match self.value {
            Value::Array(routers) => routers.as_slice(),
            one => std::slice::from_ref(one),
        };
        for router in routers {
            match router {
                Value::Object(map) => {
                    for (name, options) in map {
                        routes.push((name.clone(), route(options)?));
                    }
                }
                Value::Array(pair) => match &pair[..] {
                    [Value::String(name), options] => routes.push((name.clone(), route(options)?)),
                    _ => return Err(wrong()),
                },
                _ => return Err(wrong()),
            }
        }
        Ok(routes)
    }

    /// A mapping from names to how the queues are, or a list of names and of queues.
    fn queues(&self) -> Result<BTreeMap<String, Queue>, Error> {
        let expected = "a mapping from names of queues to their exchange, exchange_type and \
                        routing_key, or a list of names";
        let wrong = || self.wrong(expected);
        let mut queues = BTreeMap::new();
        match self.value {
            Value::Object(map) => {
                for (name, described) in map {
                    queues.insert(
                        name.clone(),
                        described_queue(name, described).ok_or_else(wrong)?,
                    );
                }
            }
            Value::Array(list) => {
                for queue in list {
                    let queue = match queue {
                        Value::String(name) => Queue::direct(name.clone()),
                        other => serde_json::from_value(other.clone()).map_err(|_| wrong())?,
                    };
                    queues.insert(queue.name.clone(), queue);
                }
            }
            _ => return Err(wrong()),
        }
        Ok(queues)
    }
}

/// A queue as the mapping `task_queues` describes it.
fn described_queue(name: &str, described: &Value) -> Option<Queue> {
    let described = described.as_object()?;
    let text = |key: &str| described.get(key).and_then(Value::as_str);
    let mut queue = Queue::direct(name);
    if let Some(exchange) = text("exchange") {
        exchange.clone_into(&mut queue.exchange.name);
    }
    if let Some(kind) = text("exchange_type") {
        queue.exchange.kind = ExchangeKind::from(kind.to_owned());
    }
    if let Some(key) = text("routing_key").or(text("binding_key")) {
        key.clone_into(&mut queue.routing_key);
    }
    if let Some(arguments) = described.get("queue_arguments") {
        queue.arguments.clone_from(arguments.as_object()?);
    }
    Some(queue)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(settings: Value) -> Result<Config, Error> {
        match settings {
            Value::Object(settings) => Config::from_settings(&settings),
            _ => unreachable!(),
        }
    }

    #[test]
    fn settings_are_read_by_celerys_names() {
        let config = config(json!({
            "broker_url": ["redis://a/0", "redis://b/0"],
            "result_backend": "redis://c/1",
            "result_expires": 60,
            "result_extended": true,
            "redis_socket_timeout": 3,
            "task_routes": {"proj.mail": "mail", "proj.*": {"queue": "proj", "priority": 3}},
            "task_queues": {"media": {"exchange": "m", "exchange_type": "topic", "routing_key": "#"}},
            "task_default_delivery_mode": "transient",
            "task_publish_retry_policy": {"max_retries": null, "interval_max": 0.5},
            "worker_concurrency": 8,
        }))
        .unwrap();
        assert_eq!(config.broker_url, "redis://a/0;redis://b/0");
        assert_eq!(config.results.expires, Some(Duration::from_mins(1)));
        assert!(config.results.extended);
        assert_eq!(config.results.options["redis_socket_timeout"], 3);
        assert_eq!(config.task_routes[1].1["queue"], "mail");
        let media = &config.task_queues["media"];
        assert_eq!(media.exchange.kind, ExchangeKind::Topic);
        assert_eq!(config.task_default_delivery_mode.number(), 1);
        let retry = config.task_publish_retry.unwrap();
        assert_eq!(retry.max_retries, None);
        assert_eq!(retry.interval_max, Duration::from_millis(500));
    }

    #[test]
    fn what_is_wrong_is_named_without_passwords() {
        for (settings, named) in [
            (json!({"task_default_queue": 5}), "task_default_queue"),
            (json!({"task_serializer": "pickle"}), "json"),
            (json!({"task_routes": "proj.Router"}), "task_routes"),
            (
                json!({"broker_url": [{"password": "secret"}]}),
                "broker_url",
            ),
        ] {
            let error = config(settings).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
