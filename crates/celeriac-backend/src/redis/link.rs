//! The connection that commands go over: made when it is needed, and again when it is lost.

use celeriac_core::backend::Error;
use celeriac_net::redis::RedisServer;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, Pipeline, RedisError, Script};
use tokio::sync::Mutex;

use super::error::backend_error;

/// What is sent over the connection while others send as well.
#[derive(Debug)]
pub(super) struct Link {
    server: RedisServer,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Grows with every connection, so that one that was lost is given up once.
    number: u64,
}

impl Link {
    pub(super) fn new(server: RedisServer) -> Self {
        Self {
            server,
            current: Mutex::default(),
        }
    }

    async fn connect(&self) -> Result<(MultiplexedConnection, u64), RedisError> {
        let mut current = self.current.lock().await;
        let connection = match &current.connection {
            Some(connection) => connection.clone(),
            None => {
                let connection = self.server.connect().await?;
                current.number += 1;
                current.connection = Some(connection.clone());
                connection
            }
        };
        Ok((connection, current.number))
    }

    /// Sorts an error; the next command gets a new connection if this one is lost.
    async fn judge(&self, error: RedisError, number: u64) -> Error {
        let judged = backend_error(&error);
        if judged.is_transient() {
            let mut current = self.current.lock().await;
            if current.number == number {
                current.connection = None;
            }
        }
        judged
    }

    /// Sends a command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let connected = self.connect().await;
        let (mut connection, number) = connected.map_err(|error| backend_error(&error))?;
        match command.query_async(&mut connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.judge(error, number).await),
        }
    }

    /// Sends commands in one go, all of them calls of one script, which is loaded if the server does
    /// not have it.
    pub(super) async fn call_all<T: FromRedisValue>(
        &self,
        script: &Script,
        calls: &Pipeline,
    ) -> Result<T, Error> {
        let connected = self.connect().await;
        let (mut connection, number) = connected.map_err(|error| backend_error(&error))?;
        let mut is_loaded = false;
        loop {
            match calls.query_async(&mut connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.code() == Some("NOSCRIPT") && !is_loaded => {
                    is_loaded = true;
                    let loaded = script.load_async(&mut connection).await;
                    if let Err(error) = loaded {
                        return Err(self.judge(error, number).await);
                    }
                }
                Err(error) => return Err(self.judge(error, number).await),
            }
        }
    }

    pub(super) async fn close(&self) {
        self.current.lock().await.connection = None;
    }
}
