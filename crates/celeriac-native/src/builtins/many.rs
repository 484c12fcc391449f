//! One task with many arguments, one after the other.

use std::sync::Arc;

use async_trait::async_trait;
use celeriac_protocol::{Exception, Signature};
use serde_json::{Map, Value};

use super::{missing, taken};
use crate::arguments::Arguments;
use crate::context::Context;
use crate::error::Result;
use crate::registry::Registry;
use crate::results::Results;
use crate::sender::Apply;
use crate::task::{Options, Task};

/// `celery.map` or `celery.starmap`.
pub(super) struct Many {
    name: &'static str,
    tasks: Arc<Registry>,
    options: Options,
    /// Whether each item is all arguments of a call, or the only one.
    spreads: bool,
}

impl Many {
    /// Each item is the only argument of a call.
    pub(super) fn map(tasks: Arc<Registry>) -> Self {
        Self {
            name: "celery.map",
            tasks,
            options: Options::default(),
            spreads: false,
        }
    }

    /// Each item is all arguments of a call; also what a chunk of `celery.chunks` is.
    pub(super) fn starmap(tasks: Arc<Registry>) -> Self {
        Self {
            name: "celery.starmap",
            spreads: true,
            ..Self::map(tasks)
        }
    }

    fn arguments(&self, item: Value) -> Result<Arguments> {
        let args = match item {
            Value::Array(args) if self.spreads => args,
            item if !self.spreads => vec![item],
            _ => {
                let text = format!("{}: an item is no list of arguments", self.name);
                return Err(Exception::builtin("TypeError", text).into());
            }
        };
        Ok(Arguments {
            args,
            ..Arguments::default()
        })
    }
}

#[async_trait]
impl Task for Many {
    fn name(&self) -> &str {
        self.name
    }

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, context: Context, mut arguments: Arguments) -> Result<Value> {
        let called = taken(&mut arguments, 0, "task").ok_or_else(|| missing("map", "task"))?;
        let called: Signature = serde_json::from_value(called)?;
        let items = taken(&mut arguments, 1, "it").ok_or_else(|| missing("map", "it"))?;
        let items: Vec<Value> = serde_json::from_value(items)?;
        let Some(task) = self.tasks.get(&called.task) else {
            return Err(Exception::celery("NotRegistered", called.task).into());
        };
        let mut results = Vec::with_capacity(items.len());
        for item in items {
            let arguments = self.arguments(item)?;
            results.push(task.run(context.clone(), arguments).await?);
        }
        Ok(Value::Array(results))
    }
}

/// `celery.chunks`: sends a group of calls of `celery.starmap`.
pub(super) struct Chunks {
    results: Results,
    options: Options,
}

impl Chunks {
    pub(super) fn new(results: Results) -> Self {
        Self {
            results,
            options: Options::default(),
        }
    }
}

#[async_trait]
impl Task for Chunks {
    fn name(&self) -> &'static str {
        "celery.chunks"
    }

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, context: Context, mut arguments: Arguments) -> Result<Value> {
        let mut kwargs = Map::new();
        for (at, name) in ["task", "it", "n"].into_iter().enumerate() {
            let value = taken(&mut arguments, at, name).ok_or_else(|| missing("chunks", name))?;
            kwargs.insert(name.to_owned(), value);
        }
        let chunks = Signature {
            kwargs,
            subtask_type: Some("chunks".to_owned()),
            ..Signature::new("celery.chunks")
        };
        let request = context.request();
        let root = request.root_id.as_ref().unwrap_or(&request.id);
        let with = Apply::default()
            .option("parent_id", request.id.clone())
            .option("root_id", root.clone());
        Ok(self.results.sender().apply(&chunks, with).await?.tuple)
    }
}
