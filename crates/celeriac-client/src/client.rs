//! What sends calls of tasks.

use std::fmt;
use std::sync::Arc;

use celeriac_core::backend::Backend;
use celeriac_core::publisher::Publisher;
use celeriac_protocol::Signature;

use crate::apply::Apply;
use crate::config::Config;
use crate::error::Error;
use crate::result::AsyncResult;

/// What sends calls of tasks, and knows where their results are. Connects by itself when it is first
/// used, and again when a connection is lost. Cheap to clone; may be used by many at once.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    publisher: Arc<dyn Publisher>,
    backend: Option<Arc<dyn Backend>>,
}

impl Client {
    /// A client of this broker and this result backend. Connects to nothing yet.
    ///
    /// # Errors
    /// When a URL or an option makes no sense.
    pub fn new(config: Config) -> Result<Self, Error> {
        let options = celeriac_broker::Options {
            transport: config.broker_transport_options.clone(),
            ssl: config.broker_use_ssl.clone(),
            connect_timeout: config.broker_connection_timeout,
            ..celeriac_broker::Options::default()
        };
        let broker = celeriac_broker::open(&config.broker_url, &options)?;
        Ok(Self::over(config, broker.publisher()?, None))
    }

    /// A client that sends with this publisher and finds results in this backend: the URLs of
    /// `config` are not read.
    pub fn over(
        config: Config,
        publisher: Arc<dyn Publisher>,
        backend: Option<Arc<dyn Backend>>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                publisher,
                backend,
            }),
        }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// What sends messages.
    pub fn publisher(&self) -> &Arc<dyn Publisher> {
        &self.inner.publisher
    }

    /// Where results are.
    pub fn backend(&self) -> Option<&Arc<dyn Backend>> {
        self.inner.backend.as_ref()
    }

    /// Calls what a signature describes: a task, or a primitive such as a chain or a chord. Returns
    /// when all messages are safe with the broker.
    ///
    /// # Errors
    /// When the signature or an option makes no sense, or the broker does not take a message.
    pub async fn apply(&self, signature: &Signature, with: Apply) -> Result<AsyncResult, Error> {
        let _ = (signature, with);
        Err(Error::Invalid("nothing can be applied yet".to_owned()))
    }

    /// The result of the call with this id.
    pub fn result(&self, id: impl Into<String>) -> AsyncResult {
        AsyncResult::new(id, self.inner.backend.clone())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
