//! What sends calls of tasks.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use celeriac_core::backend::{Backend, Chords};
use celeriac_core::broker::{self, Broker, ErrorKind};
use celeriac_core::bus::{BusOptions, BusSettings};
use celeriac_core::publisher::{Published, Publisher};
use celeriac_core::queue::Queue;
use celeriac_protocol::Signature;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use serde_json::Value;

use crate::apply::Apply;
use crate::canvas::apply::{Planner, Step, chords_unsupported};
use crate::canvas::freeze::{Freezer, Place, Results};
use crate::canvas::node::Node;
use crate::config::{Config, PublishRetry};
use crate::error::Error;
use crate::outgoing::{Outgoing, Sender};
use crate::result::AsyncResult;
use crate::routes::Routes;

/// How many messages are published at once at most.
const MOST_AT_ONCE: usize = 256;

/// What sends calls of tasks, and knows where their results are. Connects by itself when it is first
/// used, and again when a connection is lost. Cheap to clone; may be used by many at once.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    routes: Routes,
    publisher: Arc<dyn Publisher>,
    backend: Option<Arc<dyn Backend>>,
    /// Where the bus is; none where only a publisher was given.
    broker: Option<Arc<dyn Broker>>,
    origin: String,
}

/// What a call comes to.
struct Plan {
    steps: Vec<Step>,
    results: Results,
    result: Place,
}

impl Client {
    /// A client of the broker and of the result backend that `config` names. Connects to nothing yet.
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
        let backend = config
            .result_backend
            .as_deref()
            .filter(|url| !url.is_empty());
        let backend = backend
            .map(|url| celeriac_backend::open(url, config.results.clone()))
            .transpose()?;
        let publisher = broker.publisher()?;
        Self::made(config, publisher, backend, Some(broker))
    }

    /// A client that sends with this publisher and finds results in this backend: the URLs of
    /// `config` are not read.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn over(
        config: Config,
        publisher: Arc<dyn Publisher>,
        backend: Option<Arc<dyn Backend>>,
    ) -> Result<Self, Error> {
        Self::made(config, publisher, backend, None)
    }

    fn made(
        config: Config,
        publisher: Arc<dyn Publisher>,
        backend: Option<Arc<dyn Backend>>,
        broker: Option<Arc<dyn Broker>>,
    ) -> Result<Self, Error> {
        let inner = Inner {
            routes: Routes::new(&config)?,
            config,
            publisher,
            backend,
            broker,
            origin: origin(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
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
    /// The options `root_id` and `parent_id` hold for all messages that are sent, as those of the
    /// task that runs do in a worker of Celery's.
    ///
    /// # Errors
    /// When the signature or an option makes no sense, in which case nothing is sent; when the broker
    /// does not take a message, or the backend does not answer.
    pub async fn apply(&self, signature: &Signature, with: Apply) -> Result<AsyncResult, Error> {
        let (outgoing, mut plan) = self.plan(signature, with)?;
        self.prepare_backend(&mut plan.steps, &outgoing).await?;
        self.send(outgoing).await?;
        Ok(self.async_result(&plan.results, plan.result))
    }

    /// The result of the call with this id.
    pub fn result(&self, id: impl Into<String>) -> AsyncResult {
        AsyncResult::new(id, self.inner.backend.clone())
    }

    /// Tells all workers not to begin these calls (`app.control.revoke`), and to terminate those that
    /// run already if a signal is given, such as `TERM`.
    ///
    /// # Errors
    /// When the broker can't be reached, has no remote control, or this client was made with a
    /// publisher alone.
    pub async fn revoke(&self, ids: &[String], terminate: Option<&str>) -> Result<(), Error> {
        let unable = |why: &str| Error::Invalid(format!("calls can't be revoked: {why}"));
        let Some(broker) = &self.inner.broker else {
            return Err(unable("this client has a publisher and no broker"));
        };
        let options = BusOptions {
            node: self.inner.origin.clone(),
            settings: BusSettings::default(),
            hears_commands: false,
            hears_workers: false,
        };
        let Some(mut bus) = broker.open_bus(&options).await? else {
            return Err(unable("this broker has no remote control"));
        };
        let command = crate::outgoing::revoke(ids, terminate)?;
        bus.broadcast(&command).await?;
        Ok(bus.close().await?)
    }

    /// Leaves broker and backend in order.
    ///
    /// # Errors
    /// When one of them can't be left so.
    pub async fn close(&self) -> Result<(), Error> {
        self.inner.publisher.close().await?;
        if let Some(backend) = &self.inner.backend {
            backend.close().await?;
        }
        Ok(())
    }

    fn plan(&self, signature: &Signature, with: Apply) -> Result<(Vec<Outgoing>, Plan), Error> {
        let Apply {
            args,
            kwargs,
            options,
        } = with;
        let inner = &*self.inner;
        let reply_to = inner
            .backend
            .as_ref()
            .and_then(|backend| backend.reply_to());
        let text = |name: &str| options.get(name).and_then(Value::as_str).map(str::to_owned);
        let sender = Sender {
            config: &inner.config,
            routes: &inner.routes,
            now: Timestamp::now(),
            origin: &inner.origin,
            reply_to: reply_to.as_deref(),
            root_id: text("root_id"),
            parent_id: text("parent_id"),
        };
        let mut ids = || uuid::Uuid::new_v4().to_string();
        let queue_of = |task: &str| inner.routes.queue_of(task);
        let mut planner = Planner {
            freezer: Freezer {
                results: Results::default(),
                reply_to: reply_to.clone(),
                ids: &mut ids,
            },
            steps: Vec::new(),
            chords: self.chords(),
            queue_of: &queue_of,
        };
        let node = Node::parse(signature.clone())?;
        let result = planner.apply(node, args, kwargs, options)?;
        let Planner { freezer, steps, .. } = planner;
        let mut outgoing = Vec::new();
        let mut others = Vec::new();
        for step in steps {
            match step {
                Step::Send(call) => outgoing.push(sender.outgoing(call)?),
                other => others.push(other),
            }
        }
        let plan = Plan {
            steps: others,
            results: freezer.results,
            result,
        };
        Ok((outgoing, plan))
    }

    fn chords(&self) -> Result<Chords, Error> {
        match &self.inner.backend {
            None => Err(Error::Invalid(
                "a chord, which a group that is followed by a task is as well, needs a result \
                 backend: set result_backend"
                    .to_owned(),
            )),
            Some(backend) => match backend.chords() {
                Chords::None => Err(chords_unsupported(&format!(
                    "the result backend {}",
                    backend.display_url()
                ))),
                chords => Ok(chords),
            },
        }
    }

    /// Does what has to be done before messages are sent.
    async fn prepare_backend(
        &self,
        steps: &mut Vec<Step>,
        outgoing: &[Outgoing],
    ) -> Result<(), Error> {
        let Some(backend) = &self.inner.backend else {
            return Ok(());
        };
        for step in steps.drain(..) {
            match step {
                Step::Send(_) => {}
                Step::OpenChord { group_id, size } => backend.open_chord(&group_id, size).await?,
                Step::SaveGroup { group_id, members } => {
                    backend.save_group(&group_id, &members).await?;
                }
            }
        }
        for some in outgoing.chunks(MOST_AT_ONCE) {
            let awaited = some.iter().filter(|one| !one.ignores_result);
            try_join_all(awaited.map(|one| backend.expect(&one.id))).await?;
        }
        Ok(())
    }

    async fn send(&self, outgoing: Vec<Outgoing>) -> Result<(), Error> {
        let mut declared = HashSet::new();
        let mut batch = Vec::new();
        let mut retry = None;
        for one in outgoing {
            if batch.len() == MOST_AT_ONCE || (!batch.is_empty() && one.retry != retry) {
                self.publish(&batch, retry).await?;
                batch.clear();
            }
            retry = one.retry;
            if declared.insert(one.queue.name.clone()) {
                self.declare(&one.queue, retry).await?;
            }
            batch.push(one.published);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.publish(&batch, retry).await
    }

    async fn declare(&self, queue: &Queue, retry: Option<PublishRetry>) -> Result<(), Error> {
        let publisher = &self.inner.publisher;
        retried(retry, || publisher.declare(queue)).await
    }

    async fn publish(
        &self,
        messages: &[Published],
        retry: Option<PublishRetry>,
    ) -> Result<(), Error> {
        let publisher = &self.inner.publisher;
        retried(retry, || publisher.publish(messages)).await
    }

    fn async_result(&self, results: &Results, place: Place) -> AsyncResult {
        // A chain may be long: no recursion from parent to parent.
        let mut places = vec![place];
        while let Some(parent) = places.last().and_then(|last| results.get(*last).parent) {
            places.push(parent);
        }
        let mut parent = None;
        for place in places.into_iter().rev() {
            let frozen = results.get(place);
            let members = frozen.members.as_ref().map(|members| {
                let members = members.iter();
                members
                    .map(|member| self.async_result(results, *member))
                    .collect()
            });
            let result = AsyncResult::frozen(
                frozen.id.clone(),
                parent.take(),
                members,
                self.inner.backend.clone(),
            );
            parent = Some(result);
        }
        parent.unwrap_or_else(|| self.result(String::new()))
    }
}

/// Tries again where the connection was lost, as a policy says.
async fn retried<F: Future<Output = Result<(), broker::Error>>>(
    policy: Option<PublishRetry>,
    mut work: impl FnMut() -> F,
) -> Result<(), Error> {
    let mut retries = 0;
    loop {
        let error = match work().await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let wait = policy
            .filter(|_| error.kind == ErrorKind::Connection)
            .and_then(|policy| policy.wait(retries));
        let Some(wait) = wait else {
            return Err(error.into());
        };
        tracing::debug!(%error, retries, "publishing is tried again");
        tokio::time::sleep(wait).await;
        retries += 1;
    }
}

/// `gen<pid>@<host>`, as Celery's clients call themselves (`anon_nodename`).
fn origin() -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    format!("gen{}@{host}", std::process::id())
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("publisher", &self.inner.publisher)
            .field("backend", &self.inner.backend)
            .finish_non_exhaustive()
    }
}
