//! One connection to the server, and the task that reads what comes over it.

use std::collections::HashSet;
use std::future::poll_fn;
use std::ops::Deref;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, Socket};

use super::error::broker_error;

/// No statement takes so long, unless the table is locked or the server is out of reach.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection; the task ends with it.
pub struct Connection {
    client: Client,
    pub(super) news: Arc<News>,
}

/// What the server told without being asked.
#[derive(Default)]
pub(super) struct News {
    /// The queues whose news wake; of the others there is none.
    queues: Mutex<HashSet<String>>,
    /// There may be something to claim, or the connection has ended.
    arrived: Notify,
}

impl News {
    /// Listens for news of a queue.
    pub(super) fn watch(&self, queue: i64) {
        self.queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(queue.to_string());
    }

    /// Returns when there is news since the last call. Safe to cancel.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn hear(&self, payload: &str) {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if queues.contains(payload) {
            self.arrived.notify_one();
        }
    }
}

impl Connection {
    pub(super) async fn open<T>(config: &Config, tls: T, limit: Duration) -> Result<Self, Error>
    where
        T: MakeTlsConnect<Socket>,
        T::Stream: Send + 'static,
    {
        // The library's own timeout ends with the TCP connection.
        let (client, connection) = timeout(limit, config.connect(tls))
            .await
            .map_err(|_| silent(limit))?
            .map_err(|error| broker_error(&error))?;
        let news = Arc::new(News::default());
        tokio::spawn(read(connection, Arc::clone(&news)));
        Ok(Self { client, news })
    }

    /// Waits for an answer, but not for ever.
    ///
    /// # Errors
    /// What the server said, or that it said nothing.
    pub async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        timeout(RESPONSE_TIMEOUT, answer)
            .await
            .map_err(|_| silent(RESPONSE_TIMEOUT))?
            .map_err(|error| broker_error(&error))
    }

    /// Whether the connection is still there.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self) -> Result<(), Error> {
        if self.client.is_closed() {
            return Err(Error::new(
                ErrorKind::Connection,
                "PostgreSQL has closed the connection",
            ));
        }
        Ok(())
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

fn silent(limit: Duration) -> Error {
    Error::new(
        ErrorKind::Connection,
        format!("PostgreSQL did not answer within {} s", limit.as_secs()),
    )
}

/// Drives the connection until its end, which each pending answer is told by the library.
async fn read<S, T>(connection: tokio_postgres::Connection<S, T>, news: Arc<News>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = pin!(connection);
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notification(notification)) => news.hear(notification.payload()),
            Ok(AsyncMessage::Notice(notice)) => {
                tracing::debug!("PostgreSQL says: {}", notice.message());
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "the connection to PostgreSQL has ended");
                break;
            }
        }
    }
    news.arrived.notify_one();
}
