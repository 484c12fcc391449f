//! One connection to the server.

use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use mysql_async::prelude::{FromRow, Queryable as _};
use mysql_async::{Conn, Opts, Params, Row};
use tokio::time::timeout;

use super::error::broker_error;

/// No statement takes so long, unless the table is locked or the server is out of reach.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection.
pub struct Connection {
    inner: Conn,
}

impl Connection {
    pub(super) async fn open(options: Opts, limit: Duration) -> Result<Self, Error> {
        let inner = answer(limit, Conn::new(options)).await?;
        Ok(Self { inner })
    }

    /// Runs statements that hold nothing but numbers and names, and answers with their rows.
    ///
    /// # Errors
    /// What the server said, or that it said nothing.
    pub async fn run<T: FromRow + Send + 'static>(
        &mut self,
        statements: String,
    ) -> Result<Vec<T>, Error> {
        let all = async {
            let mut result = self.inner.query_iter(statements).await?;
            let mut rows = Vec::new();
            // Statements without rows have an empty set of them.
            while !result.is_empty() {
                rows.extend(result.collect::<T>().await?);
            }
            // A later statement that failed looks like one without rows until then, and like an
            // error of whatever is executed next.
            result.drop_result().await?;
            Ok(rows)
        };
        answer(RESPONSE_TIMEOUT, all).await
    }

    /// As [`Connection::run`], for statements without rows.
    ///
    /// # Errors
    /// What the server said, or that it said nothing.
    pub async fn execute(&mut self, statements: String) -> Result<(), Error> {
        self.run::<Row>(statements).await.map(drop)
    }

    /// The first row that a statement with parameters answers with.
    ///
    /// # Errors
    /// What the server said, or that it said nothing.
    pub async fn first<T: FromRow + Send + 'static>(
        &mut self,
        statement: &str,
        parameters: impl Into<Params> + Send,
    ) -> Result<Option<T>, Error> {
        answer(
            RESPONSE_TIMEOUT,
            self.inner.exec_first(statement, parameters.into()),
        )
        .await
    }

    /// All rows that a statement with parameters answers with.
    ///
    /// # Errors
    /// What the server said, or that it said nothing.
    pub async fn all<T: FromRow + Send + 'static>(
        &mut self,
        statement: &str,
        parameters: impl Into<Params> + Send,
    ) -> Result<Vec<T>, Error> {
        answer(
            RESPONSE_TIMEOUT,
            self.inner.exec(statement, parameters.into()),
        )
        .await
    }

    /// Executes a statement with parameters, and tells how many rows that changed.
    ///
    /// # Errors
    /// What the server said, or that it said nothing.
    pub async fn change(
        &mut self,
        statement: &str,
        parameters: impl Into<Params> + Send,
    ) -> Result<u64, Error> {
        answer(
            RESPONSE_TIMEOUT,
            self.inner.exec_drop(statement, parameters.into()),
        )
        .await?;
        Ok(self.inner.affected_rows())
    }
}

/// Waits for an answer, but not for ever.
async fn answer<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, mysql_async::Error>>,
) -> Result<T, Error> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(|error| broker_error(&error)),
        Err(_) => Err(Error::new(
            ErrorKind::Connection,
            format!(
                "the database server did not answer within {} s",
                limit.as_secs()
            ),
        )),
    }
}
