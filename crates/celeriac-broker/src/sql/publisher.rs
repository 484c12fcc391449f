//! Publishing for clients: what is sent meanwhile goes in one transaction.
//!
//! Celery's counterpart: `kombu.transport.sqlalchemy.Channel._put`.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::publisher::{Published, Publisher};
use celeriac_core::queue::Queue;
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::store::{Engine, Sent, Store};
use crate::addressed::addressed;
use crate::bindings::{Bindings, unroutable};

/// How many requests wait for the transaction before theirs; more wait to be let in.
const MOST_WAITING: usize = 1000;
/// How many messages go in one transaction, where no request has more.
const MOST_AT_ONCE: usize = 500;

/// Publishes over a connection of its own, which is made anew when it is lost.
pub(super) struct SqlPublisher {
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    bindings: Mutex<Bindings>,
    /// To the task that has the connection; it ends with this.
    writer: Mutex<Option<mpsc::Sender<Request>>>,
}

/// Messages that are to be stored together, or queues that are to be made.
struct Request {
    messages: Vec<Sent>,
    queues: Vec<String>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl SqlPublisher {
    pub(super) fn new(shared: Arc<Shared>, engine: Arc<dyn Engine>) -> Self {
        Self {
            shared,
            engine,
            bindings: Mutex::default(),
            writer: Mutex::default(),
        }
    }

    fn bindings(&self) -> MutexGuard<'_, Bindings> {
        // Nothing panics while it is held.
        self.bindings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to the writer, which is started where there is none: it ends with its runtime.
    fn writer(&self) -> mpsc::Sender<Request> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.as_ref().filter(|writer| !writer.is_closed()) {
            return writer.clone();
        }
        let (to, requests) = mpsc::channel(MOST_WAITING);
        let engine = Arc::clone(&self.engine);
        let name = self.shared.name.clone();
        tokio::spawn(Writer::new(engine, name).run(requests));
        *writer = Some(to.clone());
        to
    }

    async fn ask(&self, messages: Vec<Sent>, queues: Vec<String>) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let request = Request {
            messages,
            queues,
            done,
        };
        let lost = || Error::new(ErrorKind::Connection, "the publisher has ended");
        self.writer().send(request).await.map_err(|_| lost())?;
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

impl fmt::Debug for SqlPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlPublisher({})", self.shared.display)
    }
}

#[async_trait]
impl Publisher for SqlPublisher {
    async fn declare(&self, queue: &Queue) -> Result<(), Error> {
        self.bindings().declare(queue);
        self.ask(Vec::new(), vec![queue.name.clone()]).await
    }

    async fn publish(&self, messages: &[Published]) -> Result<(), Error> {
        let mut sent = Vec::with_capacity(messages.len());
        for published in messages {
            let (exchange, key) = (&published.exchange, &published.routing_key);
            let bindings = self.bindings();
            let queues = bindings.queues(exchange, key);
            if queues.is_empty() && published.mandatory {
                return Err(unroutable(exchange, key));
            }
            let payload = addressed(&published.message, exchange, key);
            sent.extend(queues.into_iter().map(|queue| Sent {
                queue: queue.to_owned(),
                payload: payload.clone(),
            }));
        }
        if sent.is_empty() {
            return Ok(());
        }
        self.ask(sent, Vec::new()).await
    }

    async fn close(&self) -> Result<(), Error> {
        // What was asked for is done all the same.
        drop(
            self.writer
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        Ok(())
    }
}

/// The task that has the connection.
struct Writer {
    engine: Arc<dyn Engine>,
    name: String,
    store: Option<Box<dyn Store>>,
    /// The queues that were made over this connection.
    made: Vec<String>,
}

impl Writer {
    fn new(engine: Arc<dyn Engine>, name: String) -> Self {
        Self {
            engine,
            name,
            store: None,
            made: Vec::new(),
        }
    }

    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.recv().await {
            let mut count = first.messages.len();
            let mut batch = vec![first];
            while count < MOST_AT_ONCE
                && let Ok(next) = requests.try_recv()
            {
                count += next.messages.len();
                batch.push(next);
            }
            self.serve(batch).await;
        }
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        let together = self.write(&batch).await;
        // One that is refused is not to take others with it. After a lost connection it is not known
        // what was written: nothing is written again.
        let each = match &together {
            Err(error) => error.kind != ErrorKind::Connection && batch.len() > 1,
            Ok(()) => false,
        };
        for request in batch {
            let result = if each {
                self.write(std::slice::from_ref(&request)).await
            } else {
                together.clone()
            };
            // Who asked may have left.
            drop(request.done.send(result));
        }
    }

    async fn write(&mut self, batch: &[Request]) -> Result<(), Error> {
        let result = self.try_write(batch).await;
        if result
            .as_ref()
            .is_err_and(|error| error.kind == ErrorKind::Connection)
        {
            self.store = None;
            self.made.clear();
        }
        result
    }

    async fn try_write(&mut self, batch: &[Request]) -> Result<(), Error> {
        let store = match &mut self.store {
            Some(store) => store,
            none => none.insert(self.engine.open(&self.name).await?),
        };
        for queue in batch.iter().flat_map(|request| &request.queues) {
            if !self.made.contains(queue) {
                store.queue_id(queue).await?;
                self.made.push(queue.clone());
            }
        }
        let messages: Vec<Sent> = batch
            .iter()
            .flat_map(|request| request.messages.iter().cloned())
            .collect();
        if messages.is_empty() {
            return Ok(());
        }
        store.publish(messages).await
    }
}
