//! The result of a call, as it comes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::backend::{Backend, Meta};
use celeriac_protocol::Exception;
use futures_util::Stream;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Error, TaskError};

/// The result of a call, as it comes. Celery's counterparts: `celery.result.AsyncResult` and, where
/// it has members, `celery.result.GroupResult`. Cheap to clone.
#[derive(Clone)]
pub struct AsyncResult {
    id: String,
    parent: Option<Arc<Self>>,
    members: Option<Arc<[Self]>>,
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
        parent: Option<Self>,
        members: Option<Vec<Self>>,
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
        Ok(self.backend()?.forget(&self.leaf_ids()).await?)
    }

    /// Whether the call has ended; for a group, whether all have.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub async fn is_ready(&self) -> Result<bool, Error> {
        Ok(self.completed_count().await? == self.leaves().len())
    }

    /// How many of a group's calls have ended (`GroupResult.completed_count` counts those that
    /// have ended well).
    ///
    /// # Errors
    /// When the backend does not answer.
    pub async fn completed_count(&self) -> Result<usize, Error> {
        let metas = self.backend()?.get(&self.leaf_ids()).await?;
        let ready = metas.iter().flatten().filter(|meta| meta.is_ready());
        Ok(ready.count())
    }

    /// What is stored of the call as it changes: each state once, `PROGRESS` with each description,
    /// until it has ended.
    pub fn changes(&self) -> impl Stream<Item = Result<Meta, Error>> + Send + use<> {
        struct Watch {
            result: AsyncResult,
            known: Option<Meta>,
            has_ended: bool,
        }
        let watch = Watch {
            result: self.clone(),
            known: None,
            has_ended: false,
        };
        futures_util::stream::unfold(watch, |mut watch| async move {
            if watch.has_ended {
                return None;
            }
            let changed = watch.result.changed(watch.known.as_ref()).await;
            match &changed {
                Ok(meta) => {
                    watch.has_ended = meta.is_ready();
                    watch.known = Some(meta.clone());
                }
                Err(_) => watch.has_ended = true,
            }
            Some((changed, watch))
        })
    }

    /// The calls that this one has sent, as far as they are stored.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub async fn children(&self) -> Result<Vec<Self>, Error> {
        let meta = self.meta().await?;
        let children = meta.map(|meta| meta.children).unwrap_or_default();
        let children = children.as_array().map_or(&[][..], Vec::as_slice);
        children
            .iter()
            .map(|child| Self::from_tuple(child, self.backend.clone()))
            .collect()
    }

    /// Keeps a group, so that [`AsyncResult::restore`] finds it by its id (`GroupResult.save`).
    ///
    /// # Errors
    /// When the backend does not answer.
    pub async fn save(&self) -> Result<(), Error> {
        Ok(self
            .backend()?
            .save_group(&self.id, &self.as_tuple())
            .await?)
    }

    /// A group that was kept; `None` where there is none.
    ///
    /// # Errors
    /// When the backend does not answer, or what is kept can't be read.
    pub async fn restore(id: &str, backend: &Arc<dyn Backend>) -> Result<Option<Self>, Error> {
        let kept = backend.group(id).await?;
        kept.map(|kept| Self::from_tuple(&kept, Some(Arc::clone(backend))))
            .transpose()
    }

    async fn changed(&self, known: Option<&Meta>) -> Result<Meta, Error> {
        Ok(self.backend()?.changed(&self.id, known).await?)
    }

    async fn value(&self) -> Result<Value, Error> {
        let backend = self.backend()?;
        self.check_parents(backend).await?;
        let ids = self.leaf_ids();
        let mut values = HashMap::with_capacity(ids.len());
        // What has ended is had at once; the rest as it ends.
        for (id, meta) in ids.iter().zip(backend.get(&ids).await?) {
            let mut known = meta;
            let ended = loop {
                match known {
                    Some(meta) if meta.is_ready() => break meta,
                    other => known = Some(backend.changed(id, other.as_ref()).await?),
                }
            };
            values.insert(id.clone(), outcome(ended)?);
        }
        Ok(self.assemble(&mut values))
    }

    /// The results in the shape of the groups.
    fn assemble(&self, values: &mut HashMap<String, Value>) -> Value {
        match self.members() {
            None => values.get(&self.id).cloned().unwrap_or_default(),
            Some(members) => members
                .iter()
                .map(|member| member.assemble(values))
                .collect(),
        }
    }

    /// What follows a call that has failed is never called: its failure is that of all.
    async fn check_parents(&self, backend: &Arc<dyn Backend>) -> Result<(), Error> {
        let mut ids = Vec::new();
        let mut parent = self.parent();
        while let Some(result) = parent {
            ids.extend(result.leaf_ids());
            parent = result.parent();
        }
        if ids.is_empty() {
            return Ok(());
        }
        ids.reverse();
        for meta in backend.get(&ids).await?.into_iter().flatten() {
            if matches!(&*meta.status, "FAILURE" | "REVOKED") {
                outcome(meta)?;
            }
        }
        Ok(())
    }

    fn leaf_ids(&self) -> Vec<String> {
        self.leaves().iter().map(|leaf| leaf.id.clone()).collect()
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

    /// The result that [`AsyncResult::as_tuple`] describes (`result_from_tuple`).
    ///
    /// # Errors
    /// When it is no such description.
    pub fn from_tuple(tuple: &Value, backend: Option<Arc<dyn Backend>>) -> Result<Self, Error> {
        let wrong = || Error::Invalid(format!("{tuple} describes no result"));
        // An id alone is one as well.
        if let Value::String(id) = tuple {
            return Ok(Self::new(id.clone(), backend));
        }
        let [head, members] = tuple.as_array().map_or(&[][..], Vec::as_slice) else {
            return Err(wrong());
        };
        let (id, parent) = match head {
            Value::Array(head) => match &head[..] {
                [id, parent] => (id, Some(parent)),
                [id] => (id, None),
                _ => return Err(wrong()),
            },
            id => (id, None),
        };
        let parent = parent
            .filter(|parent| !parent.is_null())
            .map(|parent| Self::from_tuple(parent, backend.clone()))
            .transpose()?;
        let members = match members {
            Value::Null => None,
            Value::Array(members) => Some(
                members
                    .iter()
                    .map(|member| Self::from_tuple(member, backend.clone()))
                    .collect::<Result<Vec<_>, _>>()?,
            ),
            _ => return Err(wrong()),
        };
        let id = id.as_str().ok_or_else(wrong)?.to_owned();
        Ok(Self::frozen(id, parent, members, backend))
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
