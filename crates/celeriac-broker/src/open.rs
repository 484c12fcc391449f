//! From a URL to a broker.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::broker::{Broker, Error, ErrorKind};
use celeriac_net::ServerUrl;
use serde_json::{Map, Value};

/// What the app's configuration says about its broker.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The setting `broker_transport_options`.
    pub transport: Map<String, Value>,
    /// The setting `broker_use_ssl`, if it is on.
    pub ssl: Option<Value>,
    /// The setting `broker_connection_timeout`.
    pub connect_timeout: Option<Duration>,
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

/// The broker that `url` names. Connects to nothing yet.
///
/// # Errors
/// When the transport is unknown or not part of this build, or an option makes no sense.
#[cfg_attr(
    not(any(feature = "redis", feature = "sqlite")),
    expect(
        unused_variables,
        reason = "only transports with servers or files have options"
    )
)]
pub fn open(url: &str, options: &Options) -> Result<Arc<dyn Broker>, Error> {
    let invalid = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Configuration, format!("broker_url: {error}"))
    };
    let url = ServerUrl::parse(url).map_err(|error| invalid(&error))?;
    let transport = url.scheme().split('+').next().unwrap_or_default();
    match transport {
        "memory" => Ok(Arc::new(crate::memory::MemoryBroker::new())),
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "valkey" | "valkeys" => {
            Ok(Arc::new(crate::redis::RedisBroker::new(&url, options)?))
        }
        #[cfg(feature = "sqlite")]
        "sqla" | "sqlalchemy" | "sqlite" => {
            Ok(Arc::new(crate::sql::SqliteBroker::new(&url, options)?))
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
    #[cfg(feature = "redis")]
    "redis://, rediss://, redis+socket://",
    #[cfg(feature = "sqlite")]
    "sqla+sqlite://",
    "memory://",
];
