//! What a client is told of the app that it calls: Celery's settings.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use celeriac_core::backend;
use celeriac_core::queue::Queue;
use serde_json::{Map, Value};

/// What a client is told of the app that it calls. The names are those of Celery's settings.
#[derive(Clone)]
pub struct Config {
    /// `broker_url` (or `broker_write_url`): where messages go; `;` stands between several.
    pub broker_url: String,
    /// `broker_transport_options`.
    pub broker_transport_options: Map<String, Value>,
    /// `broker_use_ssl`, if it is on.
    pub broker_use_ssl: Option<Value>,
    /// `broker_connection_timeout`.
    pub broker_connection_timeout: Option<Duration>,
    /// `result_backend`: where results are; `None` for nowhere.
    pub result_backend: Option<String>,
    /// How results are kept.
    pub results: backend::Settings,
    /// `task_routes`: options of the calls of tasks, by their name or a pattern with `*` and `?`. The
    /// first that fits holds.
    pub task_routes: Vec<(String, Map<String, Value>)>,
    /// `task_queues`: queues that are not as [`Queue::direct`] makes them.
    pub task_queues: BTreeMap<String, Queue>,
    /// `task_default_queue`.
    pub task_default_queue: String,
    /// `task_default_exchange`; the queue's name where it is not set.
    pub task_default_exchange: Option<String>,
    /// `task_default_routing_key`; the queue's name where it is not set.
    pub task_default_routing_key: Option<String>,
    /// `task_default_queue_type`: `quorum`, or classic.
    pub task_default_queue_type: Option<String>,
    /// `task_create_missing_queues`: whether queues are made that calls name and nobody declares.
    pub task_create_missing_queues: bool,
    /// `task_create_missing_queue_type`: `quorum`, or classic.
    pub task_create_missing_queue_type: Option<String>,
    /// `task_queue_max_priority`: `x-max-priority` of all queues, for RabbitMQ.
    pub task_queue_max_priority: Option<u8>,
    /// `task_default_delivery_mode`: whether messages survive a restart of the broker.
    pub task_default_delivery_mode: DeliveryMode,
    /// `task_default_priority`.
    pub task_default_priority: Option<u8>,
    /// `task_inherit_parent_priority`.
    pub task_inherit_parent_priority: bool,
    /// `task_ignore_result`: whether results are not stored and not awaited, unless a call says so.
    pub task_ignore_result: bool,
    /// `task_publish_retry` and `task_publish_retry_policy`; `None` where publishing is not retried.
    pub task_publish_retry: Option<PublishRetry>,
}

/// Whether messages survive a restart of the broker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeliveryMode {
    /// They are only in memory.
    Transient,
    /// They are on disk.
    #[default]
    Persistent,
}

impl DeliveryMode {
    /// AMQP's number.
    pub fn number(self) -> u8 {
        match self {
            Self::Transient => 1,
            Self::Persistent => 2,
        }
    }
}

/// `task_publish_retry_policy`: how often it is tried to publish, and how long is waited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PublishRetry {
    /// How often it is tried again; `None` without end.
    pub max_retries: Option<u32>,
    /// How long is waited before the first time.
    pub interval_start: Duration,
    /// By how much each wait is longer than the one before.
    pub interval_step: Duration,
    /// The longest wait.
    pub interval_max: Duration,
}

impl Default for PublishRetry {
    /// Celery's defaults.
    fn default() -> Self {
        Self {
            max_retries: Some(3),
            interval_start: Duration::ZERO,
            interval_step: Duration::from_millis(200),
            interval_max: Duration::from_secs(1),
        }
    }
}

impl fmt::Debug for Config {
    /// Without URLs, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("task_default_queue", &self.task_default_queue)
            .field("task_routes", &self.task_routes)
            .finish_non_exhaustive()
    }
}

impl Default for Config {
    /// Celery's defaults, and no result backend.
    fn default() -> Self {
        Self {
            broker_url: "amqp://".to_owned(),
            broker_transport_options: Map::new(),
            broker_use_ssl: None,
            broker_connection_timeout: None,
            result_backend: None,
            results: backend::Settings::default(),
            task_routes: Vec::new(),
            task_queues: BTreeMap::new(),
            task_default_queue: "celery".to_owned(),
            task_default_exchange: None,
            task_default_routing_key: None,
            task_default_queue_type: None,
            task_create_missing_queues: true,
            task_create_missing_queue_type: None,
            task_queue_max_priority: None,
            task_default_delivery_mode: DeliveryMode::Persistent,
            task_default_priority: None,
            task_inherit_parent_priority: false,
            task_ignore_result: false,
            task_publish_retry: Some(PublishRetry::default()),
        }
    }
}
