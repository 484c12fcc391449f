//! Calls of the task, and a worker that keeps what it is told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_container::{ContainerOptions, run_docker};
use celeriac_core::journal::{Level, Record};
use celeriac_native::cancellation::{Canceller, cancellation};
use celeriac_native::context::{Request, Worker};
use celeriac_native::error::Result;
use celeriac_native::{Arguments, Context, Task};
use celeriac_protocol::Signature;
use serde_json::Value;

pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// A worker that keeps states and records.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) states: Mutex<Vec<(String, Value)>>,
    pub(crate) records: Mutex<Vec<Record>>,
}

#[async_trait]
impl Worker for Told {
    async fn update_state(&self, _: &Request, state: &str, meta: Value) -> Result<()> {
        self.states.lock().unwrap().push((state.to_owned(), meta));
        Ok(())
    }

    async fn send(&self, _: &Request, signature: Signature) -> Result<String> {
        panic!("a container sends nothing: {signature:?}");
    }

    fn writes(&self, _: Level) -> bool {
        true
    }

    fn write(&self, record: Record) {
        self.records.lock().unwrap().push(record);
    }
}

/// A call that can be begun.
pub(crate) struct Call {
    pub(crate) task: Arc<dyn Task>,
    pub(crate) context: Context,
    pub(crate) canceller: Canceller,
    pub(crate) told: Arc<Told>,
}

impl Call {
    /// A call of the task with these options at the engine behind this socket.
    pub(crate) fn new(socket: &str, mut options: Value, id: &str, retries: u32) -> Self {
        options["host"] = socket.into();
        let options: ContainerOptions = serde_json::from_value(options).unwrap();
        let task = run_docker(options).unwrap();
        let request = Request {
            id: id.to_owned(),
            task: task.name().to_owned(),
            hostname: "celery@test".to_owned(),
            retries,
            ..Request::default()
        };
        let (canceller, cancellation) = cancellation();
        let told = Arc::new(Told::default());
        Self {
            task,
            context: Context::new(Arc::new(request), cancellation, told.clone()),
            canceller,
            told,
        }
    }

    pub(crate) async fn run(&self, kwargs: Value) -> Result<Value> {
        let arguments = Arguments {
            kwargs: serde_json::from_value(kwargs).unwrap(),
            ..Arguments::default()
        };
        let run = self.task.run(self.context.clone(), arguments);
        tokio::time::timeout(DEADLINE, run).await.unwrap()
    }
}

/// Waits until something is so.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, met).await.unwrap();
}
