//! Where calls go. Celery's counterparts: `celery.app.routes` and, for the exchange and the routing
//! key, `celery.app.amqp.AMQP.send_task_message`.

use std::collections::BTreeMap;

use celeriac_core::queue::{ExchangeKind, Queue};
use regex::Regex;
use serde_json::{Map, Value};

use crate::config::Config;
use crate::error::Error;

/// The settings that tell where calls go, read.
#[derive(Debug)]
pub(crate) struct Routes {
    exact: BTreeMap<String, Map<String, Value>>,
    patterns: Vec<(Regex, Map<String, Value>)>,
    queues: BTreeMap<String, Queue>,
    default_queue: Queue,
    creates_missing: bool,
    /// The type of queues that are made because a call names them.
    missing_type: Option<String>,
    max_priority: Option<u8>,
}

/// Where a call goes, and with which options.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Destination {
    /// The queue that is made sure of before.
    pub(crate) queue: Queue,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// The call's options, and below them those of its route.
    pub(crate) options: Map<String, Value>,
}

impl Routes {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let mut exact = BTreeMap::new();
        let mut patterns = Vec::new();
        for (name, options) in &config.task_routes {
            if name.contains('*') {
                patterns.push((glob(name)?, options.clone()));
            } else {
                exact.insert(name.clone(), options.clone());
            }
        }
        let name = &config.task_default_queue;
        let mut default_queue = match config.task_queues.get(name) {
            Some(queue) => queue.clone(),
            None => Queue::direct(name.clone()),
        };
        if !config.task_queues.contains_key(name) {
            if let Some(exchange) = &config.task_default_exchange {
                default_queue.exchange.name.clone_from(exchange);
            }
            if let Some(key) = &config.task_default_routing_key {
                default_queue.routing_key.clone_from(key);
            }
            of_type(
                &mut default_queue,
                config.task_default_queue_type.as_deref(),
            );
        }
        let max_priority = config.task_queue_max_priority;
        let mut queues = config.task_queues.clone();
        for queue in queues.values_mut().chain([&mut default_queue]) {
            with_priorities(queue, max_priority);
        }
        Ok(Self {
            exact,
            patterns,
            queues,
            default_queue,
            creates_missing: config.task_create_missing_queues,
            missing_type: config.task_create_missing_queue_type.clone(),
            max_priority,
        })
    }

    /// The name of the queue that calls of a task go to.
    pub(crate) fn queue_of(&self, task: &str) -> String {
        let route = self.route(task).and_then(|route| route.get("queue"));
        let queue = route.and_then(Value::as_str);
        queue.unwrap_or(&self.default_queue.name).to_owned()
    }

    /// Where a call of a task with these options goes.
    pub(crate) fn destination(
        &self,
        task: &str,
        options: Map<String, Value>,
    ) -> Result<Destination, Error> {
        let mut all = self.route(task).cloned().unwrap_or_default();
        let given = options.into_iter().filter(|(_, value)| !value.is_null());
        all.extend(given);
        let mut text = |name: &str| match all.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Error::Invalid(format!(
                "the option {name} of a call of {task} is {other}: it is to be a name"
            ))),
        };
        let queue = match text("queue")? {
            Some(name) => self.queue(&name)?,
            None => self.default_queue.clone(),
        };
        let exchange = text("exchange")?.filter(|exchange| !exchange.is_empty());
        let routing_key = text("routing_key")?.filter(|key| !key.is_empty());
        let kind = text("exchange_type")?;
        let kind = kind.map_or_else(|| queue.exchange.kind.clone(), ExchangeKind::from);
        let (exchange, routing_key) = match (exchange, routing_key) {
            (Some(exchange), Some(key)) => (exchange, key),
            // The default exchange leads to every queue.
            _ if kind == ExchangeKind::Direct => (String::new(), queue.name.clone()),
            (Some(exchange), None) => (exchange, String::new()),
            (None, key) => {
                let key = key.unwrap_or_else(|| queue.routing_key.clone());
                (queue.exchange.name.clone(), key)
            }
        };
        Ok(Destination {
            queue,
            exchange,
            routing_key,
            options: all,
        })
    }

    fn route(&self, task: &str) -> Option<&Map<String, Value>> {
        let pattern = || {
            let fits = self.patterns.iter().find(|(regex, _)| regex.is_match(task));
            fits.map(|(_, options)| options)
        };
        self.exact.get(task).or_else(pattern)
    }

    fn queue(&self, name: &str) -> Result<Queue, Error> {
        if let Some(queue) = self.queues.get(name) {
            return Ok(queue.clone());
        }
        if name == self.default_queue.name {
            return Ok(self.default_queue.clone());
        }
        if !self.creates_missing {
            return Err(Error::Invalid(format!(
                "the queue {name:?} is missing from task_queues: declare it there, or let \
                 task_create_missing_queues be true"
            )));
        }
        let mut queue = Queue::direct(name);
        of_type(&mut queue, self.missing_type.as_deref());
        with_priorities(&mut queue, self.max_priority);
        Ok(queue)
    }
}

/// What is not said of a queue is declared by workers as well: it has to be the same.
fn of_type(queue: &mut Queue, kind: Option<&str>) {
    if kind == Some("quorum") {
        let arguments = &mut queue.arguments;
        arguments.insert("x-queue-type".to_owned(), "quorum".into());
    }
}

fn with_priorities(queue: &mut Queue, max: Option<u8>) {
    if let Some(max) = max {
        let priority = queue.arguments.entry("x-max-priority");
        priority.or_insert_with(|| max.into());
    }
}

/// A pattern as Python's `fnmatch` reads it.
fn glob(pattern: &str) -> Result<Regex, Error> {
    let mut regex = "(?s)^".to_owned();
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => {
                let class: String = rest.by_ref().take_while(|c| *c != ']').collect();
                let class = class.replace('\\', "\\\\");
                let class = match class.strip_prefix('!') {
                    Some(class) => format!("[^{class}]"),
                    None => format!("[{class}]"),
                };
                regex.push_str(&class);
            }
            c => regex.push_str(&regex::escape(&c.to_string())),
        }
    }
    regex.push('$');
    Regex::new(&regex).map_err(|error| {
        Error::Invalid(format!(
            "task_routes: the pattern {pattern:?} can't be read: {error}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use celeriac_core::queue::Exchange;
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    #[test]
    fn calls_go_where_celery_sends_them() {
        let topic = Queue {
            exchange: Exchange::new("media", ExchangeKind::Topic),
            routing_key: "media.#".to_owned(),
            ..Queue::direct("media")
        };
        let config = Config {
            task_routes: vec![
                (
                    "proj.mail".to_owned(),
                    map(json!({"queue": "mail", "priority": 3})),
                ),
                ("proj.media.*".to_owned(), map(json!({"queue": "media"}))),
                ("proj.*".to_owned(), map(json!({"queue": "proj"}))),
            ],
            task_queues: BTreeMap::from([("media".to_owned(), topic)]),
            ..Config::default()
        };
        let routes = Routes::new(&config).unwrap();
        for (task, options, queue, exchange, key) in [
            ("other", json!({}), "celery", "", "celery"),
            ("proj.mail", json!({}), "mail", "", "mail"),
            ("proj.x", json!({}), "proj", "", "proj"),
            ("proj.x", json!({"queue": "q"}), "q", "", "q"),
            ("proj.x", json!({"queue": null}), "proj", "", "proj"),
            ("proj.media.a", json!({}), "media", "media", "media.#"),
            (
                "proj.media.a",
                json!({"routing_key": "media.x"}),
                "media",
                "media",
                "media.x",
            ),
            (
                "other",
                json!({"exchange": "e", "routing_key": "k"}),
                "celery",
                "e",
                "k",
            ),
            ("other", json!({"routing_key": "k"}), "celery", "", "celery"),
        ] {
            let destination = routes.destination(task, map(options)).unwrap();
            assert_eq!(destination.queue.name, queue, "{task}");
            assert_eq!(
                (&*destination.exchange, &*destination.routing_key),
                (exchange, key),
                "{task}"
            );
        }
        let mail = routes.destination("proj.mail", Map::new()).unwrap();
        assert_eq!(mail.options, map(json!({"priority": 3})));
        let high = routes.destination("proj.mail", map(json!({"priority": 9})));
        assert_eq!(high.unwrap().options, map(json!({"priority": 9})));
        assert!(routes.destination("t", map(json!({"queue": 5}))).is_err());
    }

    #[test]
    fn a_queue_that_is_missing_is_an_error_where_none_is_made() {
        let config = Config {
            task_create_missing_queues: false,
            ..Config::default()
        };
        let routes = Routes::new(&config).unwrap();
        assert!(routes.destination("t", Map::new()).is_ok());
        let error = routes
            .destination("t", map(json!({"queue": "q"})))
            .unwrap_err();
        assert!(error.to_string().contains("task_queues"), "{error}");
    }
}
