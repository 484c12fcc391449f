//! What a task asks of the worker while it runs.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use celeriac_core::journal::{Level, Record};
use celeriac_protocol::{Exception, Signature};
use serde_json::{Map, Value};

use crate::call::Call;
use crate::context::{Request, Worker};
use crate::error::Result;
use crate::pool::reports::Slot;
use crate::results::{Results, State};
use crate::sender::Apply;

/// The worker as the task of one run sees it. As long as anything of the task holds it, the task's
/// place in the pool is taken.
pub(crate) struct RunWorker {
    pub(crate) call: Arc<Call>,
    pub(crate) results: Results,
    pub(crate) children: Mutex<Vec<Value>>,
    pub(crate) slot: Slot,
}

impl RunWorker {
    fn children(&self) -> Vec<Value> {
        let children = self.children.lock();
        children.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The task has ended: the results of what it has sent, and whether its place is free.
    pub(crate) fn ended(self: Arc<Self>) -> (Vec<Value>, bool) {
        match Arc::try_unwrap(self) {
            Ok(worker) => {
                worker.slot.tell_with_end();
                let children = worker.children.into_inner();
                (children.unwrap_or_else(PoisonError::into_inner), true)
            }
            Err(shared) => (shared.children(), false),
        }
    }
}

#[async_trait]
impl Worker for RunWorker {
    async fn update_state(&self, _request: &Request, state: &str, meta: Value) -> Result<()> {
        let state = State {
            status: state,
            result: meta,
            traceback: None,
            children: Value::Array(self.children()),
        };
        Ok(self.results.store(&self.call, state).await?)
    }

    async fn send(&self, _request: &Request, signature: Signature) -> Result<String> {
        let inherits = self.results.settings().inherit_parent_priority;
        // What the signature says itself counts.
        let mut options: Map<String, Value> = self.call.descent(inherits);
        options.retain(|name, _| signature.options.get(name).is_none_or(Value::is_null));
        let with = Apply {
            options,
            ..Apply::default()
        };
        let sent = self.results.sender().apply(&signature, with).await;
        let sent = sent.map_err(|unsent| {
            let class = if unsent.is_operational {
                "OperationalError"
            } else {
                "EncodeError"
            };
            Exception::new("kombu.exceptions", class, unsent.reason)
        })?;
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.push(sent.tuple);
        Ok(sent.id)
    }

    fn writes(&self, level: Level) -> bool {
        self.results.writes(level)
    }

    fn write(&self, record: Record) {
        self.results.write(record);
    }
}
