//! A client's configuration from settings by Celery's names, as an app, a file or the environment
//! gives them.

use std::time::Duration;

use celeriac_core::backend;
use serde_json::{Map, Value};

use crate::config::{Config, DeliveryMode, PublishRetry};
use crate::error::Error;

/// The beginnings of the names of settings that are a result backend's own.
const BACKENDS: [&str; 6] = [
    "result_backend_",
    "redis_",
    "database_",
    "mongodb_",
    "s3_",
    "filesystem_",
];

impl Config {
    /// From settings by Celery's names; those that do not concern a client are left alone.
    ///
    /// # Errors
    /// When one of them is of the wrong type: which, and what is expected.
    pub fn from_settings(settings: &Map<String, Value>) -> Result<Self, Error> {
        let read = Settings(settings);
        let defaults = Self::default();
        let url = read.text("broker_write_url")?.or(read.text("broker_url")?);
        Ok(Self {
            broker_url: url.unwrap_or(defaults.broker_url),
            broker_transport_options: read.table("broker_transport_options")?,
            broker_use_ssl: read
                .get("broker_use_ssl")
                .filter(|ssl| **ssl != Value::Bool(false))
                .cloned(),
            broker_connection_timeout: read.span("broker_connection_timeout")?,
            result_backend: read
                .text("result_backend")?
                .filter(|url| !url.starts_with("disabled")),
            results: read.results()?,
            task_routes: read.routes()?,
            task_queues: defaults.task_queues,
            task_default_queue: read
                .text("task_default_queue")?
                .unwrap_or(defaults.task_default_queue),
            task_default_exchange: read.text("task_default_exchange")?,
            task_default_routing_key: read.text("task_default_routing_key")?,
            task_default_queue_type: read.text("task_default_queue_type")?,
            task_create_missing_queues: read.get("task_create_missing_queues")
                != Some(&Value::Bool(false)),
            task_create_missing_queue_type: read.text("task_create_missing_queue_type")?,
            task_queue_max_priority: read.small("task_queue_max_priority")?,
            task_default_delivery_mode: match read.get("task_default_delivery_mode") {
                Some(Value::String(mode)) if mode == "transient" => DeliveryMode::Transient,
                Some(Value::Number(mode)) if mode.as_u64() == Some(1) => DeliveryMode::Transient,
                _ => defaults.task_default_delivery_mode,
            },
            task_default_priority: read.small("task_default_priority")?,
            task_inherit_parent_priority: read.flag("task_inherit_parent_priority")?,
            task_ignore_result: read.flag("task_ignore_result")?,
            task_publish_retry: read.publish_retry()?,
        })
    }
}

struct Settings<'a>(&'a Map<String, Value>);

impl Settings<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn wrong<T>(name: &str, value: &Value, wanted: &str) -> Result<T, Error> {
        // The value of a URL may be a password's: only its kind is told.
        let kind = match value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "a table",
        };
        Err(Error::Invalid(format!(
            "the setting {name} is {kind}; write {wanted}"
        )))
    }

    /// A text, or a list of them with `;` between.
    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok((!text.is_empty()).then(|| text.clone())),
            Some(list @ Value::Array(parts)) => {
                let texts: Option<Vec<&str>> = parts.iter().map(Value::as_str).collect();
                match texts {
                    Some(texts) => Ok(Some(texts.join(";"))),
                    None => Self::wrong(name, list, "a text, or a list of texts"),
                }
            }
            Some(other) => Self::wrong(name, other, "a text"),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => Self::wrong(name, value, "a number"),
            },
        }
    }

    /// A number up to 255.
    fn small(&self, name: &str) -> Result<Option<u8>, Error> {
        let number = self.number(name)?;
        Ok(number.map(|number| number.clamp(0.0, 255.0) as u8))
    }

    fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(is_on)) => Ok(*is_on),
            Some(other) => Self::wrong(name, other, "true or false"),
        }
    }

    fn table(&self, name: &str) -> Result<Map<String, Value>, Error> {
        match self.get(name) {
            None => Ok(Map::new()),
            Some(Value::Object(members)) => Ok(members.clone()),
            Some(other) => Self::wrong(name, other, "a table"),
        }
    }

    /// Seconds, or kombu's JSON of a `timedelta`.
    fn span(&self, name: &str) -> Result<Option<Duration>, Error> {
        let Some(seconds) = self.number(name)? else {
            return Ok(None);
        };
        match Duration::try_from_secs_f64(seconds) {
            Ok(span) => Ok(Some(span)),
            Err(_) => Self::wrong(name, &seconds.into(), "a number of seconds"),
        }
    }

    fn results(&self) -> Result<backend::Settings, Error> {
        let defaults = backend::Settings::default();
        let expires = match self.0.get("result_expires") {
            Some(Value::Null) => None,
            Some(_) => self.span("result_expires")?.filter(|span| !span.is_zero()),
            None => defaults.expires,
        };
        let own = |name: &str| BACKENDS.iter().any(|beginning| name.starts_with(beginning));
        let mut options = self.table("result_backend_transport_options")?;
        let others = self
            .0
            .iter()
            .filter(|(name, value)| own(name) && !value.is_null());
        options.extend(others.map(|(name, value)| (name.clone(), value.clone())));
        Ok(backend::Settings {
            expires,
            failure_expires: self.span("result_failure_expires")?,
            chord_expires: self.span("result_chord_expires")?,
            chord_join_timeout: self
                .span("result_chord_join_timeout")?
                .unwrap_or(defaults.chord_join_timeout),
            persistent: self.flag("result_persistent")?,
            extended: self.flag("result_extended")?,
            options,
        })
    }

    /// `{"proj.*": {"queue": "math"}}`, or `{"proj.add": "math"}`; a list of these counts in its order.
    fn routes(&self) -> Result<Vec<(String, Map<String, Value>)>, Error> {
        const WANTED: &str = "a table of tasks (or patterns) with their queues";
        let Some(value) = self.get("task_routes") else {
            return Ok(Vec::new());
        };
        let tables: Vec<&Value> = match value {
            Value::Array(tables) => tables.iter().collect(),
            one => vec![one],
        };
        let mut routes = Vec::new();
        for table in tables {
            let pairs: Vec<(&str, &Value)> = match table {
                Value::Object(members) => members
                    .iter()
                    .map(|(name, route)| (name.as_str(), route))
                    .collect(),
                // A pair, as Python's tuples are.
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(name), route] => vec![(name, route)],
                    _ => return Self::wrong("task_routes", table, WANTED),
                },
                other => return Self::wrong("task_routes", other, WANTED),
            };
            for (name, route) in pairs {
                let options = match route {
                    Value::Object(options) => options.clone(),
                    Value::String(queue) => {
                        Map::from_iter([("queue".to_owned(), queue.as_str().into())])
                    }
                    other => return Self::wrong("task_routes", other, WANTED),
                };
                routes.push((name.to_owned(), options));
            }
        }
        Ok(routes)
    }

    fn publish_retry(&self) -> Result<Option<PublishRetry>, Error> {
        if self.get("task_publish_retry") == Some(&Value::Bool(false)) {
            return Ok(None);
        }
        let policy = self.table("task_publish_retry_policy")?;
        let policy = Settings(&policy);
        let defaults = PublishRetry::default();
        let max_retries = match policy.0.get("max_retries") {
            Some(Value::Null) => None,
            Some(_) => policy
                .number("max_retries")?
                .map(|most| most.max(0.0) as u32),
            None => defaults.max_retries,
        };
        let span = |name, default| Ok::<_, Error>(policy.span(name)?.unwrap_or(default));
        Ok(Some(PublishRetry {
            max_retries,
            interval_start: span("interval_start", defaults.interval_start)?,
            interval_step: span("interval_step", defaults.interval_step)?,
            interval_max: span("interval_max", defaults.interval_max)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(settings: &Value) -> Result<Config, Error> {
        Config::from_settings(settings.as_object().unwrap())
    }

    #[test]
    fn settings_have_celerys_names() {
        let config = config(&json!({
            "broker_url": ["redis://a", "redis://b"],
            "result_backend": "redis://c",
            "result_expires": 60,
            "result_extended": true,
            "redis_max_connections": 5,
            "task_routes": [{"proj.add": "math", "io.*": {"queue": "io", "priority": 3}}, ["x", "y"]],
            "task_default_queue": "main",
            "task_publish_retry_policy": {"max_retries": null, "interval_max": 0.5},
            "worker_concurrency": 3,
            "timezone": null,
        }))
        .unwrap();
        assert_eq!(config.broker_url, "redis://a;redis://b");
        assert_eq!(config.results.expires, Some(Duration::from_mins(1)));
        assert!(config.results.extended);
        assert_eq!(config.results.options["redis_max_connections"], 5);
        let routes: Vec<_> = config.task_routes.iter().map(|(name, _)| &**name).collect();
        assert_eq!(routes, ["io.*", "proj.add", "x"]);
        assert_eq!(config.task_default_queue, "main");
        let retry = config.task_publish_retry.unwrap();
        assert_eq!(
            (retry.max_retries, retry.interval_max),
            (None, Duration::from_millis(500))
        );
    }

    #[test]
    fn results_may_be_kept_for_ever() {
        for never in [json!(null), json!(0)] {
            let config = config(&json!({"result_expires": never})).unwrap();
            assert_eq!(config.results.expires, None);
        }
        assert!(config(&json!({})).unwrap().results.expires.is_some());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (settings, text) in [
            (
                json!({"broker_url": 5}),
                "the setting broker_url is a number; write a text",
            ),
            (
                json!({"result_expires": "soon"}),
                "result_expires is a text; write a number",
            ),
            (
                json!({"task_routes": {"a": 1}}),
                "the setting task_routes is a number",
            ),
            (json!({"result_extended": "yes"}), "write true or false"),
        ] {
            let error = config(&settings).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
