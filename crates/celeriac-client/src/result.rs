//! The result of a call, as it comes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::backend::{Backend, Meta};
use celeriac_protocol::Exception;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Error, TaskError};

/// The result of a call, as it comes. Celery's counterparts: `celery.result.AsyncResult` and, where
/// it has members, `celery.result.GroupResult`. Cheap to clone.
#[derive(Clone)]
pub struct AsyncResult {
    id: String,
    parent: Option<Arc<AsyncResult>>,
    members: Option<Arc<[AsyncResult]>>,
    backend: Option<Arc<dyn Backend>>,
}

impl AsyncResult {
    /// The result of the call with this id.
    pub fn new(id: impl Into<String>, backend: Option<Arc<dyn Backend>>) -> Self {
        Self {
            id: id.into(),
            parent: None,
            members: None,
            backend,
        }
    }

    /// The result of a call that was frozen with others.
    pub(crate) fn frozen(
        id: String,
        parent: Option<AsyncResult>,
        members: Option<Vec<AsyncResult>>,
        backend: Option<Arc<dyn Backend>>,
    ) -> Self {
        Self {
            id,
            parent: parent.map(Arc::new),
            members: members.map(Arc::from),
            backend,
        }
    }

    /// The call's id; the group's, where there are members.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The result of the call before this one in a chain, or of the header of a chord.
    pub fn parent(&self) -> Option<&Self> {
        self.parent.as_deref()
    }

    /// The results of a group's members.
    pub fn members(&self) -> Option<&[Self]> {
        self.members.as_deref()
    }

    /// Waits until the call has ended well, and answers with its result; for a group with the results
    /// of all members in order.
    ///
    /// # Errors
    /// [`Error::Task`] when it has ended otherwise, [`Error::Unfit`] when the result is no `T`.
    pub async fn get<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let value = self.value().await?;
        serde_json::from_value(value).map_err(|error| Error::Unfit {
            id: self.id.clone(),
            reason: error.to_string(),
        })
    }

    /// The same, and gives up after so long.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it took longer, else as [`AsyncResult::get`].
    pub async fn wait<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, Error> {
        match tokio::time::timeout(timeout, self.get()).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout {
                id: self.id.clone(),
                waited: timeout,
            }),
        }
    }

    /// The state: `PENDING` where nothing is known of the call.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub async fn state(&self) -> Result<String, Error> {
        let meta = self.meta().await?;
        Ok(meta.map_or_else(|| "PENDING".to_owned(), |meta| meta.status))
    }

    /// What is stored of the call; of a state such as `PROGRESS` the description is its result.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub async fn meta(&self) -> Result<Option<Meta>, Error> {
        let metas = self.backend()?.get(std::slice::from_ref(&self.id)).await?;
        Ok(metas.into_iter().next().flatten())
    }

    /// Forgets the result, and those of a group's members.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub async fn forget(&self) -> Result<(), Error> {
        let ids: Vec<String> = self.leaves().iter().map(|leaf| leaf.id.clone()).collect();
        Ok(self.backend()?.forget(&ids).await?)
    }

    async fn value(&self) -> Result<Value, Error> {
        let Some(members) = self.members() else {
            return self.own_value().await;
        };
        let mut values = Vec::with_capacity(members.len());
        for member in members {
            values.push(Box::pin(member.value()).await?);
        }
        Ok(Value::Array(values))
    }

    async fn own_value(&self) -> Result<Value, Error> {
        let backend = self.backend()?;
        let mut known = None;
        loop {
            let meta = backend.changed(&self.id, known.as_ref()).await?;
            if meta.is_ready() {
                return outcome(meta);
            }
            known = Some(meta);
        }
    }

    /// The calls behind it: the members of a group and of groups within it, or itself.
    fn leaves(&self) -> Vec<&Self> {
        match self.members() {
            Some(members) => members.iter().flat_map(Self::leaves).collect(),
            None => vec![self],
        }
    }

    fn backend(&self) -> Result<&Arc<dyn Backend>, Error> {
        self.backend.as_ref().ok_or(Error::NoBackend)
    }

    /// `AsyncResult.as_tuple()` as JSON: what is stored of children and of groups.
    pub fn as_tuple(&self) -> Value {
        let parent = self.parent().map(Self::as_tuple);
        let members: Option<Vec<_>> = self
            .members()
            .map(|members| members.iter().map(Self::as_tuple).collect());
        json!([[self.id, parent], members])
    }
}

/// The result of a call that has ended, or what it has ended with.
fn outcome(meta: Meta) -> Result<Value, Error> {
    if meta.status == "SUCCESS" {
        return Ok(meta.result);
    }
    let exception = meta.exception().unwrap_or_else(|| Exception {
        exc_type: meta.status.clone(),
        exc_message: vec![meta.result.clone()],
        exc_module: None,
    });
    let id = meta.task_id;
    Err(Error::Task(if meta.status == "REVOKED" {
        TaskError::Revoked { id, exception }
    } else {
        TaskError::Failure {
            id,
            exception,
            traceback: meta.traceback,
        }
    }))
}

impl fmt::Debug for AsyncResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult")
            .field("id", &self.id)
            .field("parent", &self.parent)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}
