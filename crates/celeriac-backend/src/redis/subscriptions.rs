//! Hearing of results: one connection that is subscribed to the keys of all tasks that somebody waits
//! for.
//!
//! Celery's counterpart: `celery.backends.redis.ResultConsumer`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use celeriac_core::backend::Error;
use celeriac_net::redis::RedisServer;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisError, Value, cmd};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::backend_error;
use crate::awaited::{Awaited, Changes, Interest};
use crate::document;
use crate::keys::Keys;
use crate::retry::Retry;

/// A connection that died without a word is noticed by asking (kombu: `health_check_interval`).
const HEALTH_CHECK: Duration = Duration::from_secs(25);
/// How many channels are named in one command.
const PER_COMMAND: usize = 1000;

/// What is waited for, and the task that listens while anything is.
#[derive(Debug)]
pub(super) struct Subscriptions {
    shared: Arc<Shared>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    server: RedisServer,
    display: String,
    keys: Keys,
    retry: Retry,
    awaited: Arc<Awaited>,
    /// The connection is lost.
    lost: Notify,
}

impl Subscriptions {
    pub(super) fn new(server: RedisServer, display: String, keys: Keys, retry: Retry) -> Self {
        Self {
            shared: Arc::new(Shared {
                server,
                display,
                keys,
                retry,
                awaited: Arc::default(),
                lost: Notify::new(),
            }),
            listener: Mutex::default(),
        }
    }

    /// Begins to listen for a task.
    pub(super) fn enter(&self, id: &str) -> Interest {
        let interest = self.shared.awaited.enter(id);
        // Nothing panics while it is held.
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if listener.as_ref().is_none_or(JoinHandle::is_finished) {
            *listener = Some(tokio::spawn(listen(Arc::clone(&self.shared))));
        }
        interest
    }

    pub(super) fn close(&self) {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listener.take() {
            listener.abort();
        }
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        self.close();
    }
}

/// Listens, over one connection after the other.
async fn listen(shared: Arc<Shared>) {
    let mut generation = 0;
    loop {
        let connected = shared.retry.run(&shared.display, || connect(&shared)).await;
        let mut connection = match connected {
            Ok(connection) => connection,
            Err(error) => {
                // Whoever waits is told, and whoever waits next begins anew.
                shared.awaited.fail(&error);
                return;
            }
        };
        generation += 1;
        if let Err(error) = follow(&shared, &mut connection, generation).await {
            tracing::debug!(target: "celeriac.backend", %error, "results are not heard of for now");
        }
    }
}

async fn connect(shared: &Arc<Shared>) -> Result<MultiplexedConnection, Error> {
    let heard = Arc::clone(shared);
    let connected = shared
        .server
        .connect_with_pushes(move |push| heard.take(&push));
    connected.await.map_err(|error| {
        let error = backend_error(&error);
        match error.hint {
            Some(_) => error,
            None => error.with_hint("waiting for results needs Redis 6 or later"),
        }
    })
}

/// Subscribes to what is waited for until the connection is lost.
async fn follow(
    shared: &Shared,
    connection: &mut MultiplexedConnection,
    generation: u64,
) -> Result<(), RedisError> {
    let mut changes = Changes {
        begun: shared.awaited.all(),
        ended: HashSet::new(),
    };
    loop {
        let begun: Vec<String> = changes.begun.into_iter().collect();
        for ids in begun.chunks(PER_COMMAND) {
            connection.subscribe(shared.channels(ids)).await?;
            for id in ids {
                shared.awaited.listen(id, generation);
            }
        }
        let ended: Vec<String> = changes.ended.into_iter().collect();
        for ids in ended.chunks(PER_COMMAND) {
            connection.unsubscribe(shared.channels(ids)).await?;
        }
        tokio::select! {
            () = shared.awaited.changed.notified() => {}
            () = shared.lost.notified() => return Ok(()),
            () = tokio::time::sleep(HEALTH_CHECK) => {
                let ping = cmd("PING");
                let answer = timeout(HEALTH_CHECK, ping.query_async::<()>(connection)).await;
                answer.unwrap_or_else(|_| {
                    Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
                })?;
            }
        }
        changes = shared.awaited.changes();
    }
}

impl Shared {
    fn channels(&self, ids: &[String]) -> Vec<String> {
        // Nobody waits for an id that is empty.
        ids.iter()
            .filter_map(|id| self.keys.task(id).ok())
            .collect()
    }

    /// Takes what the server sends.
    fn take(&self, push: &PushInfo) {
        match (&push.kind, push.data.as_slice()) {
            (PushKind::Message, [Value::BulkString(channel), Value::BulkString(document)]) => {
                let channel = String::from_utf8_lossy(channel);
                if let Some(id) = self.keys.task_of(&channel)
                    && self.awaited.contains(id)
                {
                    self.awaited.tell(id, document::decode(document));
                }
            }
            (PushKind::Disconnection, _) => self.lost.notify_one(),
            _ => {}
        }
    }
}
