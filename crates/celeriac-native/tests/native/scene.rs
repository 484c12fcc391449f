//! A native pool with a result backend and a sender that remember what they were asked.

#![allow(unreachable_pub, reason = "nothing reaches into a test")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::backend::{self, Backend, ChordPart, Chords, Claimed, Meta, Stored};
use celeriac_core::clock::SystemClock;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::pool::{Job, Outcome, Pool, PoolEvent, RequestKey};
use celeriac_native::sender::{Apply, Sent, Unsent};
use celeriac_native::{
    Arguments, Context, NativeOptions, NativePool, Options, Registry, Result, ResultSettings,
    Results, Sender, Task, TraceSettings, Tracer,
};
use celeriac_protocol::{Signature, TimeLimits};
use serde_json::{Map, Value, json};

type Code = dyn Fn(Context, Arguments) -> futures::Boxed + Send + Sync;

/// Futures of tasks.
pub mod futures {
    use std::pin::Pin;

    use celeriac_native::Result;
    use serde_json::Value;

    pub type Boxed = Pin<Box<dyn Future<Output = Result<Value>> + Send>>;
}

/// A task of a test.
pub struct Scripted {
    name: String,
    options: Options,
    code: Box<Code>,
}

#[async_trait]
impl Task for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, context: Context, arguments: Arguments) -> Result<Value> {
        (self.code)(context, arguments).await
    }
}

/// A task from a closure.
pub fn task<F>(
    name: &str,
    options: Options,
    code: impl Fn(Context, Arguments) -> F + Send + Sync + 'static,
) -> Arc<dyn Task>
where
    F: Future<Output = Result<Value>> + Send + 'static,
{
    Arc::new(Scripted {
        name: name.to_owned(),
        options,
        code: Box::new(move |context, arguments| Box::pin(code(context, arguments))),
    })
}

/// What was asked, in order.
#[derive(Debug, Default)]
pub struct Memory {
    pub metas: Mutex<HashMap<String, Meta>>,
    pub log: Mutex<Vec<String>>,
    pub sent: Mutex<Vec<(Signature, Apply)>>,
    pub parts: Mutex<Vec<ChordPart>>,
    pub claim: Mutex<Option<Claimed>>,
    pub failing_stores: Mutex<Vec<backend::Error>>,
    pub refuses: Mutex<Option<Unsent>>,
    pub lines: Mutex<Vec<String>>,
    pub batches: Mutex<Vec<usize>>,
    pub replies: Mutex<Vec<(Option<String>, Option<String>)>>,
    pub chords: Mutex<Option<Chords>>,
}

#[async_trait]
impl Backend for Memory {
    fn display_url(&self) -> String {
        "test://".to_owned()
    }

    fn chords(&self) -> Chords {
        self.chords.lock().unwrap().unwrap_or(Chords::Counted)
    }

    async fn expect(&self, _id: &str) -> Result<(), backend::Error> {
        Ok(())
    }

    async fn store(&self, results: &[Stored]) -> Result<(), backend::Error> {
        if let Some(error) = self.failing_stores.lock().unwrap().pop() {
            return Err(error);
        }
        self.batches.lock().unwrap().push(results.len());
        for stored in results {
            let meta = stored.meta.clone();
            if meta.result == json!("unstorable") {
                let kind = backend::ErrorKind::Refused;
                return Err(backend::Error::new(kind, "it is too large"));
            }
            let reply = (stored.reply_to.clone(), stored.correlation_id.clone());
            self.replies.lock().unwrap().push(reply);
            let line = format!("store {} {}", meta.task_id, meta.status);
            self.log.lock().unwrap().push(line);
            self.metas
                .lock()
                .unwrap()
                .insert(meta.task_id.clone(), meta);
        }
        Ok(())
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, backend::Error> {
        let metas = self.metas.lock().unwrap();
        Ok(ids.iter().map(|id| metas.get(id).cloned()).collect())
    }

    async fn changed(&self, _id: &str, _known: Option<&Meta>) -> Result<Meta, backend::Error> {
        std::future::pending().await
    }

    async fn forget(&self, _ids: &[String]) -> Result<(), backend::Error> {
        Ok(())
    }

    async fn save_group(&self, _group_id: &str, _members: &Value) -> Result<(), backend::Error> {
        Ok(())
    }

    async fn group(&self, _group_id: &str) -> Result<Option<Value>, backend::Error> {
        Ok(None)
    }

    async fn forget_group(&self, _group_id: &str) -> Result<(), backend::Error> {
        Ok(())
    }

    async fn chord_part(&self, part: &ChordPart) -> Result<Option<Claimed>, backend::Error> {
        self.log
            .lock()
            .unwrap()
            .push(format!("part {} {}", part.task_id, part.status));
        self.parts.lock().unwrap().push(part.clone());
        Ok(self.claim.lock().unwrap().take())
    }

    async fn close_chord(&self, group_id: &str, _claim: &Claimed) -> Result<(), backend::Error> {
        self.log.lock().unwrap().push(format!("close {group_id}"));
        Ok(())
    }

    async fn cleanup(&self) -> Result<(), backend::Error> {
        self.log.lock().unwrap().push("cleanup".to_owned());
        Ok(())
    }
}

#[async_trait]
impl Sender for Memory {
    async fn apply(&self, signature: &Signature, with: Apply) -> Result<Sent, Unsent> {
        if let Some(unsent) = self.refuses.lock().unwrap().clone() {
            return Err(unsent);
        }
        self.log
            .lock()
            .unwrap()
            .push(format!("send {}", signature.task));
        let mut sent = self.sent.lock().unwrap();
        sent.push((signature.clone(), with));
        let id = signature
            .id()
            .map_or_else(|| format!("sent-{}", sent.len()), str::to_owned);
        Ok(Sent {
            tuple: json!([[id, null], null]),
            id,
        })
    }
}

impl Journal for Memory {
    fn writes(&self, level: Level) -> bool {
        level >= Level::Info
    }

    fn write(&self, record: Record) {
        self.lines.lock().unwrap().push(record.message);
    }
}

/// A pool, and what its tasks have done.
pub struct Scene {
    pub pool: NativePool,
    pub memory: Arc<Memory>,
    next: u64,
}

/// The settings of a scene.
#[derive(Default)]
pub struct Settings {
    pub trace: TraceSettings,
    pub results: ResultSettings,
    pub size: Option<usize>,
}

impl Scene {
    pub fn new(tasks: impl IntoIterator<Item = Arc<dyn Task>>) -> Self {
        Self::with(tasks, Settings::default())
    }

    pub fn with(tasks: impl IntoIterator<Item = Arc<dyn Task>>, settings: Settings) -> Self {
        let mut registry = Registry::default();
        for task in tasks {
            registry.register(task).unwrap();
        }
        Self::over(|_| registry, settings)
    }

    pub fn over(registry: impl FnOnce(&Results) -> Registry, settings: Settings) -> Self {
        let memory = Arc::<Memory>::default();
        let clock = Arc::new(SystemClock::new());
        let options = NativeOptions {
            size: settings.size.unwrap_or(4),
            threads: Some(2),
        };
        let pool = NativePool::new(options, clock.clone(), || {
            let results = Results::new(
                Some(memory.clone()),
                memory.clone(),
                clock,
                memory.clone(),
                settings.results,
            );
            let registry = registry(&results);
            Tracer::new(Arc::new(registry), results, settings.trace)
        });
        Self {
            pool: pool.unwrap(),
            memory,
            next: 1,
        }
    }

    /// Runs a job, and answers with its outcome.
    pub async fn run(&mut self, job: Job) -> Outcome {
        let key = job.key;
        self.pool.submit(job);
        let is_finished =
            |event: &PoolEvent| matches!(event, PoolEvent::Finished { key: k, .. } if *k == key);
        match self.until(is_finished).await {
            PoolEvent::Finished { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for an event, for 30 s at most.
    pub async fn until(&mut self, is_it: impl Fn(&PoolEvent) -> bool) -> PoolEvent {
        let found = async {
            loop {
                let events = self.pool.next().await;
                if let Some(event) = events.into_iter().find(&is_it) {
                    return event;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found)
            .await
            .unwrap()
    }

    /// A call of a task, with `headers` and the third part of the body.
    pub fn job(&mut self, task: &str, args: Value, headers: Value, embed: Value) -> Job {
        self.next += 1;
        Job {
            key: RequestKey(self.next),
            ..job(task, args, headers, embed)
        }
    }

    pub fn simple(&mut self, task: &str, args: Value) -> Job {
        self.job(task, args, json!({}), json!({}))
    }

    pub fn meta(&self, id: &str) -> Option<Meta> {
        self.memory.metas.lock().unwrap().get(id).cloned()
    }

    pub fn log(&self) -> Vec<String> {
        self.memory.log.lock().unwrap().clone()
    }

    pub fn sent(&self) -> Vec<(Signature, Apply)> {
        self.memory.sent.lock().unwrap().clone()
    }
}

/// A call of a task, with `headers` and the third part of the body.
pub fn job(task: &str, args: Value, headers: Value, embed: Value) -> Job {
    let mut request: Map<String, Value> = serde_json::from_value(json!({
        "id": "the-id", "task": task, "retries": 0, "hostname": "w@h",
        "delivery_info": {"exchange": "", "routing_key": "celery", "priority": 3,
            "redelivered": false},
    }))
    .unwrap();
    request.extend(serde_json::from_value::<Map<_, _>>(headers).unwrap());
    Job {
        key: RequestKey(0),
        task: task.into(),
        request: serde_json::to_string(&request).unwrap(),
        body: serde_json::to_vec(&json!([args, {}, embed]))
            .unwrap()
            .into(),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        time_limits: TimeLimits::default(),
        wants_result: true,
        wants_exception: false,
    }
}

/// A signature.
pub fn signature(task: &str, options: Value) -> Value {
    json!({"task": task, "args": [], "kwargs": {}, "options": options, "subtask_type": null,
        "immutable": false})
}
