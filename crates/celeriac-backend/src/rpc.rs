//! `rpc://`: results as messages to whoever asked, over the broker.
//!
//! Nothing is kept for others: who awaits a result has a queue of its own, whose name goes with each
//! task as `reply_to`, and keeps what comes there until it is forgotten.
//!
//! Celery's counterpart: `celery.backends.rpc`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytestring::ByteString;
use celeriac_core::backend::{Backend, Chords, Error, ErrorKind, Meta, Settings, Stored};
use celeriac_core::backoff::Linear;
use celeriac_core::broker::{self, Broker, Delivery, Fate, Session, Settlement, Want};
use celeriac_core::publisher::{Published, Publisher};
use celeriac_core::queue::{Exchange, ExchangeKind, Queue};
use celeriac_protocol::{DeliveryInfo, Message};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::awaited::Awaited;
use crate::document;
use crate::retry::Retry;

/// How many results are taken from the broker at once.
const PER_FETCH: usize = 500;
/// How many results that nobody has asked for are kept (Celery: `MESSAGE_BUFFER_MAX`).
const KEPT: usize = 8192;
/// Between attempts to reach the broker.
const RECONNECT: Linear = Linear::BROKER;

/// Sends results as messages, and receives those of the tasks that this process has sent.
pub struct RpcBackend {
    shared: Arc<Shared>,
    publisher: Arc<dyn Publisher>,
    retry: Retry,
    is_persistent: bool,
    consumer: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// What the consumer shares with those who wait.
struct Shared {
    broker: Arc<dyn Broker>,
    queue: Queue,
    results: Mutex<Results>,
    awaited: Arc<Awaited>,
}

/// The newest state of each task, and in which order they came first.
#[derive(Default)]
struct Results {
    by_id: HashMap<String, (u64, Meta)>,
    came: u64,
}

impl RpcBackend {
    /// Results over `broker`, to which `publisher` sends.
    pub fn new(
        broker: Arc<dyn Broker>,
        publisher: Arc<dyn Publisher>,
        settings: &Settings,
    ) -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        let queue = Queue {
            exchange: Exchange::new("", ExchangeKind::Direct),
            auto_delete: true,
            expires: settings.expires.map(|expires| expires.as_secs_f64()),
            ..Queue::direct(id)
        };
        Self {
            shared: Arc::new(Shared {
                broker,
                queue,
                results: Mutex::default(),
                awaited: Arc::default(),
            }),
            publisher,
            retry: Retry::new(settings),
            is_persistent: settings.persistent,
            consumer: tokio::sync::Mutex::default(),
        }
    }

    /// Has the consumer run; returns when its queue exists.
    async fn consume(&self) -> Result<(), Error> {
        let mut consumer = self.consumer.lock().await;
        if consumer.as_ref().is_some_and(|task| !task.is_finished()) {
            return Ok(());
        }
        let session = self.retry.run("rpc://", || self.shared.subscribe()).await?;
        *consumer = Some(tokio::spawn(receive(Arc::clone(&self.shared), session)));
        Ok(())
    }

    fn message(&self, result: &Stored, reply_to: &str) -> Result<Published, Error> {
        let correlation_id = result.correlation_id.as_ref();
        let properties = json!({
            "correlation_id": correlation_id.unwrap_or(&result.meta.task_id),
            "delivery_mode": if self.is_persistent { 2 } else { 1 },
            "priority": 0,
        });
        Ok(Published {
            exchange: ByteString::new(),
            routing_key: reply_to.into(),
            // Whoever has asked may be gone.
            mandatory: false,
            message: Message {
                body: Bytes::from(document::encode(&result.meta)?),
                content_type: Some("application/json".into()),
                content_encoding: Some("utf-8".into()),
                headers: "{}".into(),
                properties: properties.to_string().into(),
                delivery_info: DeliveryInfo::default(),
            },
        })
    }
}

impl Shared {
    fn results(&self) -> MutexGuard<'_, Results> {
        // Nothing panics while it is held.
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn subscribe(&self) -> Result<Box<dyn Session>, Error> {
        let mut session = self.broker.connect().await.map_err(backend_error)?;
        session.declare(&self.queue).await.map_err(backend_error)?;
        session
            .subscribe(&self.queue)
            .await
            .map_err(backend_error)?;
        Ok(session)
    }

    /// Takes a result from a message.
    fn take(&self, delivery: &Delivery) {
        let decoded = match &delivery.message {
            Ok(message) => document::decode(&message.body).map_err(|error| {
                let id = message.property("correlation_id");
                let id = id.and_then(|id| serde_json::from_str::<String>(&id).ok());
                (id, error)
            }),
            Err(unreadable) => {
                let error = Error::new(ErrorKind::Unreadable, unreadable.reason.clone());
                Err((None, error))
            }
        };
        let meta = match decoded {
            Ok(meta) => meta,
            Err((id, error)) => {
                tracing::warn!(target: "celeriac.backend", "a result can't be read: {error}");
                if let Some(id) = id {
                    self.awaited.tell(&id, Err(error));
                }
                return;
            }
        };
        let id = meta.task_id.clone();
        {
            let mut results = self.results();
            let before = results.by_id.get(&id);
            if before.is_some_and(|(_, before)| before.status == "SUCCESS") {
                return;
            }
            results.came += 1;
            let came = results.came;
            results.by_id.insert(id.clone(), (came, meta.clone()));
            if results.by_id.len() > KEPT {
                let oldest = results
                    .by_id
                    .iter()
                    .filter(|(id, _)| !self.awaited.contains(id))
                    .min_by_key(|(_, (came, _))| *came)
                    .map(|(id, _)| id.clone());
                if let Some(oldest) = oldest {
                    results.by_id.remove(&oldest);
                }
            }
        }
        self.awaited.tell(&id, Ok(meta));
    }
}

/// Receives results, over one connection after the other.
async fn receive(shared: Arc<Shared>, session: Box<dyn Session>) {
    let mut session = Some(session);
    let mut attempt = 0;
    loop {
        if let Some(mut session) = session.take() {
            attempt = 0;
            if let Err(error) = follow(&shared, &mut *session).await {
                tracing::warn!(
                    target: "celeriac.backend",
                    "Connection for results lost: trying to reconnect: {error}"
                );
            }
        }
        match shared.subscribe().await {
            Ok(connected) => session = Some(connected),
            Err(error) if error.is_transient() => {
                sleep(RECONNECT.wait(attempt)).await;
                attempt += 1;
            }
            Err(error) => {
                // Whoever waits is told, and whoever waits next begins anew.
                shared.awaited.fail(&error);
                return;
            }
        }
    }
}

async fn follow(shared: &Shared, session: &mut dyn Session) -> Result<(), broker::Error> {
    let want = Want {
        runnable: PER_FETCH,
        total: PER_FETCH,
    };
    let mut settled: Vec<Settlement> = Vec::new();
    let mut maintenance = Instant::now();
    loop {
        if Instant::now() >= maintenance {
            maintenance = Instant::now() + session.maintain().await?.next;
        }
        let deliveries = session.exchange(&settled, want).await?;
        settled.clear();
        for delivery in &deliveries {
            shared.take(delivery);
            settled.push(Settlement {
                tag: delivery.tag,
                fate: Fate::Ack,
            });
        }
        if deliveries.is_empty() {
            tokio::select! {
                waited = session.wait() => waited?,
                () = tokio::time::sleep_until(maintenance) => {}
            }
        }
    }
}

fn backend_error(error: broker::Error) -> Error {
    let kind = match error.kind {
        broker::ErrorKind::Connection | broker::ErrorKind::Full => ErrorKind::Connection,
        broker::ErrorKind::Denied | broker::ErrorKind::Configuration => ErrorKind::Configuration,
        _ => ErrorKind::Refused,
    };
    Error {
        kind,
        message: error.message,
        hint: error.hint,
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the result backend rpc:// can't {what}"),
    )
    .with_hint("Redis, a database and files can")
}

impl fmt::Debug for RpcBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RpcBackend({})", self.shared.broker.display_url())
    }
}

impl Drop for RpcBackend {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.get_mut().take() {
            consumer.abort();
        }
    }
}

#[async_trait]
impl Backend for RpcBackend {
    fn display_url(&self) -> String {
        "rpc://".to_owned()
    }

    fn chords(&self) -> Chords {
        Chords::None
    }

    fn reply_to(&self) -> Option<String> {
        Some(self.shared.queue.name.clone())
    }

    async fn expect(&self, _id: &str) -> Result<(), Error> {
        self.consume().await
    }

    async fn store(&self, results: &[Stored]) -> Result<(), Error> {
        let messages: Result<Vec<Published>, Error> = results
            .iter()
            .filter_map(|result| {
                let reply_to = result.reply_to.as_deref().filter(|name| !name.is_empty())?;
                Some(self.message(result, reply_to))
            })
            .collect();
        let messages = messages?;
        if messages.is_empty() {
            return Ok(());
        }
        self.retry
            .run("rpc://", || async {
                let sent = self.publisher.publish(&messages).await;
                sent.map_err(backend_error)
            })
            .await
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error> {
        self.consume().await?;
        let results = self.shared.results();
        let found = ids
            .iter()
            .map(|id| results.by_id.get(id).map(|(_, meta)| meta.clone()));
        Ok(found.collect())
    }

    async fn changed(&self, id: &str, known: Option<&Meta>) -> Result<Meta, Error> {
        let mut interest = self.shared.awaited.enter(id);
        let found = self.get(&[id.to_owned()]).await?.pop().flatten();
        if let Some(meta) = found
            && known != Some(&meta)
        {
            return Ok(meta);
        }
        loop {
            if let Some(meta) = interest.next().await.last.transpose()?
                && known != Some(&*meta)
            {
                return Ok((*meta).clone());
            }
        }
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        let mut results = self.shared.results();
        for id in ids {
            results.by_id.remove(id);
        }
        Ok(())
    }

    async fn save_group(&self, _group_id: &str, _members: &Value) -> Result<(), Error> {
        Err(unsupported("keep groups"))
    }

    async fn group(&self, _group_id: &str) -> Result<Option<Value>, Error> {
        Err(unsupported("keep groups"))
    }

    async fn forget_group(&self, _group_id: &str) -> Result<(), Error> {
        Err(unsupported("keep groups"))
    }

    async fn close(&self) -> Result<(), Error> {
        let consumer = self.consumer.lock().await.take();
        if let Some(consumer) = consumer {
            consumer.abort();
            // What waits for an answer ends with it.
            drop(tokio::time::timeout(Duration::from_secs(1), consumer).await);
        }
        Ok(())
    }
}
