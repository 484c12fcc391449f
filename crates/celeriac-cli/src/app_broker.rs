//! The app's broker, for commands that need no worker: the app tells of it in its own interpreter.

use std::fmt;
use std::sync::Arc;

use celeriac_broker::open::{self, open_all};
use celeriac_config::description::{BrokerSettings, Settings};
use celeriac_core::broker::{Broker, Session};
use celeriac_core::queue::Queue;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::arguments::Global;
use crate::celery;
use crate::failure::Failure;
use crate::native::NativeApp;
use crate::worker;

/// The commands that `celeriac.host.client` adds to Celery's.
const COMMAND: &str = "celeriac-broker";
const CLIENT_COMMAND: &str = "celeriac-client";

/// A setting that can't be worked with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// What is wrong.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Unusable> for Failure {
    fn from(unusable: Unusable) -> Self {
        let failure = Self::new(unusable.message);
        match unusable.hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

/// What an app tells of its broker.
#[derive(Deserialize)]
pub(crate) struct AppBroker {
    broker: BrokerSettings,
    settings: Settings,
    /// The queues that the app knows.
    queues: Vec<Queue>,
}

impl AppBroker {
    /// Asks the app.
    pub(crate) fn of(global: &Global) -> Result<Self, Failure> {
        if let Some(app) = global.only_native() {
            return Self::of_native(global, app);
        }
        let (_, answer) = celery::ask(global, COMMAND)?;
        celeriac_config::read(answer.as_bytes())
            .map_err(|misfit| Failure::new(format!("The app's broker is not known: {misfit}")))
    }

    /// That of an app whose tasks are in Rust.
    pub(crate) fn of_native(global: &Global, app: &NativeApp) -> Result<Self, Failure> {
        celeriac_net::install_tls_provider();
        let description = worker::describe_native(global)?;
        let queues = app.queues(global);
        Ok(Self {
            broker: description.broker,
            settings: description.settings,
            queues: queues.iter().map(Queue::direct).collect(),
        })
    }

    /// Connects to the first of the app's brokers that can be reached, with its queues subscribed to.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Session>, Failure> {
        let mut session = self.session().await?;
        for queue in &self.queues {
            session
                .subscribe(queue)
                .await
                .map_err(|error| Failure::new(error.in_full()))?;
        }
        Ok(session)
    }

    /// Connects to the first of the app's brokers that can be reached.
    pub(crate) async fn session(&self) -> Result<Box<dyn Session>, Failure> {
        let mut failure = None;
        for broker in brokers(&self.broker, &self.settings, None)? {
            match broker.connect().await {
                Ok(session) => return Ok(session),
                Err(error) => {
                    let url = broker.display_url();
                    let text = format!("Cannot connect to {url}: {}", error.in_full());
                    failure.get_or_insert(Failure::new(text));
                }
            }
        }
        Err(failure.unwrap_or_else(|| Failure::new("The app has no broker")))
    }
}

/// The settings that whoever sends tasks to an app in Python and reads their results goes by.
///
/// # Errors
/// When the app does not tell of them.
pub(crate) fn client_settings(global: &Global) -> Result<Map<String, Value>, Failure> {
    let (_, answer) = celery::ask(global, CLIENT_COMMAND)?;
    celeriac_config::read(answer.as_bytes())
        .map_err(|misfit| Failure::new(format!("The app's settings are not known: {misfit}")))
}

/// What an app's settings say of its brokers; `node` is the worker that connects.
pub(crate) fn broker_options(
    broker: &BrokerSettings,
    settings: &Settings,
    node: Option<String>,
) -> open::Options {
    open::Options {
        transport: broker.transport_options.clone(),
        ssl: broker.ssl.clone(),
        connect_timeout: settings.connection_timeout(),
        heartbeat: settings.heartbeat(),
        node,
        login_method: broker.login_method.clone(),
        detects_quorum_queues: settings.worker_detect_quorum_queues,
        has_quorum_queues: broker.has_quorum_queues,
        delayed_delivery_queue_type: settings.broker_native_delayed_delivery_queue_type.clone(),
    }
}

/// The brokers that an app's settings name; `node` is the worker that connects.
pub(crate) fn brokers(
    broker: &BrokerSettings,
    settings: &Settings,
    node: Option<String>,
) -> Result<Vec<Arc<dyn Broker>>, Unusable> {
    let options = broker_options(broker, settings, node);
    open_all(&broker.urls, &options).map_err(|error| Unusable {
        message: error.to_string(),
        hint: error.hint,
    })
}
