//! From a URL to a broker.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::broker::{Broker, Error, ErrorKind};
use celeriac_net::ServerUrl;
use serde_json::{Map, Value};

/// What the app's configuration says about its broker.
#[derive(Debug, Clone)]
pub struct Options {
    /// The setting `broker_transport_options`.
    pub transport: Map<String, Value>,
    /// The setting `broker_use_ssl`, if it is on.
    pub ssl: Option<Value>,
    /// The setting `broker_connection_timeout`.
    pub connect_timeout: Option<Duration>,
    /// The setting `broker_heartbeat`; zero for none.
    pub heartbeat: Option<Duration>,
    /// The node's name, for a server that shows its connections.
    pub node: Option<String>,
    /// The setting `broker_login_method`: how to log in to RabbitMQ.
    pub login_method: Option<String>,
    /// The setting `worker_detect_quorum_queues`.
    pub detects_quorum_queues: bool,
    /// Whether the app has any, consumed from here or not.
    pub has_quorum_queues: bool,
    /// The setting `broker_native_delayed_delivery_queue_type`.
    pub delayed_delivery_queue_type: Option<String>,
}

impl Default for Options {
    /// Celery's defaults.
    fn default() -> Self {
        Self {
            transport: Map::new(),
            ssl: None,
            connect_timeout: None,
            heartbeat: None,
            node: None,
            login_method: None,
            detects_quorum_queues: true,
            has_quorum_queues: false,
            delayed_delivery_queue_type: None,
        }
    }
}

impl Options {
    /// A transport option that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.transport.get(name).and_then(Value::as_str)
    }

    /// A transport option that is a number of seconds.
    pub fn seconds(&self, name: &str) -> Option<Duration> {
        let seconds = match self.transport.get(name)? {
            Value::String(text) => text.trim().parse().ok()?,
            other => other.as_f64()?,
        };
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// The brokers that `urls` name, in their order. Several sentinels are one broker: the master that
/// they watch.
///
/// # Errors
/// When [`open`] fails for any of them.
pub fn open_all(urls: &[String], options: &Options) -> Result<Vec<Arc<dyn Broker>>, Error> {
    let is_sentinel = |url: &&String| url.starts_with("sentinel://");
    let sentinels: Vec<&str> = urls.iter().filter(is_sentinel).map(|url| &**url).collect();
    let mut brokers = Vec::new();
    let mut has_sentinels = false;
    for url in urls {
        if !is_sentinel(&url) {
            brokers.push(open(url, options)?);
        } else if !has_sentinels {
            has_sentinels = true;
            brokers.push(open(&sentinels.join(";"), options)?);
        }
    }
    Ok(brokers)
}

/// The broker that `url` names; several URLs of sentinels with `;` between them name one. Connects
/// to nothing yet.
///
/// # Errors
/// When the transport is unknown or not part of this build, or an option makes no sense.
#[cfg_attr(
    not(any(
        feature = "amqp",
        feature = "redis",
        feature = "sqlite",
        feature = "postgres",
        feature = "mysql"
    )),
    expect(
        unused_variables,
        reason = "only transports with servers or files have options"
    )
)]
pub fn open(url: &str, options: &Options) -> Result<Arc<dyn Broker>, Error> {
    let invalid = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Configuration, format!("broker_url: {error}"))
    };
    #[cfg(feature = "redis")]
    if url.starts_with("sentinel://") {
        let urls: Result<Vec<ServerUrl>, _> = url.split(';').map(ServerUrl::parse).collect();
        let urls = urls.map_err(|error| invalid(&error))?;
        return Ok(Arc::new(crate::redis::RedisBroker::watched(
            &urls, options,
        )?));
    }
    let url = ServerUrl::parse(url).map_err(|error| invalid(&error))?;
    let transport = url.scheme().split('+').next().unwrap_or_default();
    match transport {
        "memory" => Ok(Arc::new(crate::memory::MemoryBroker::new())),
        #[cfg(feature = "amqp")]
        "amqp" | "amqps" | "pyamqp" | "librabbitmq" => {
            Ok(Arc::new(crate::amqp::AmqpBroker::new(&url, options)?))
        }
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "valkey" | "valkeys" => {
            Ok(Arc::new(crate::redis::RedisBroker::new(&url, options)?))
        }
        #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
        "sqla" | "sqlalchemy" | "sqlite" | "postgresql" | "postgres" | "mysql" | "mariadb" => {
            Ok(Arc::new(crate::sql::SqlBroker::new(&url, options)?))
        }
        _ => Err(invalid(&format!(
            "the transport {:?} is not available",
            url.scheme()
        ))
        .with_hint(format!(
            "this build of celeriac knows {}",
            AVAILABLE.join(", ")
        ))),
    }
}

/// The transports of this build, as an error names them.
const AVAILABLE: &[&str] = &[
    #[cfg(feature = "amqp")]
    "amqp://, amqps://",
    #[cfg(feature = "redis")]
    "redis://, rediss://, redis+socket://, sentinel://",
    #[cfg(feature = "sqlite")]
    "sqla+sqlite://",
    #[cfg(feature = "postgres")]
    "sqla+postgresql://",
    #[cfg(feature = "mysql")]
    "sqla+mysql://, sqla+mariadb://",
    "memory://",
];
