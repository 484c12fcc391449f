//! How many tasks that do nothing a native pool runs per second, with a result backend that keeps
//! results in memory: what decoding, the pool and the tracer cost, without broker and server.
//!
//! `cargo run --release -p celeriac-native --example throughput -- [tasks] [places] [threads]`

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use celeriac_core::Clock as _;
use celeriac_core::backend::{Backend, Chords, Error, Meta, Stored};
use celeriac_core::clock::SystemClock;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::pool::{Job, Pool, PoolEvent, RequestKey};
use celeriac_native::sender::{Apply, Sent, Unsent};
use celeriac_native::{
    Arguments, Context, NativeOptions, NativePool, Options, Registry, Result, ResultSettings,
    Results, Sender, Task, TraceSettings, Tracer,
};
use celeriac_protocol::{Signature, TimeLimits};
use serde_json::{Value, json};

struct Noop(Options);

#[async_trait]
impl Task for Noop {
    fn name(&self) -> &'static str {
        "noop"
    }

    fn options(&self) -> &Options {
        &self.0
    }

    async fn run(&self, _context: Context, _arguments: Arguments) -> Result<Value> {
        Ok(Value::Null)
    }
}

#[derive(Debug, Default)]
struct Memory {
    metas: Mutex<HashMap<String, Meta>>,
    batches: Mutex<u64>,
}

#[async_trait]
impl Backend for Memory {
    fn display_url(&self) -> String {
        "memory://".to_owned()
    }

    fn chords(&self) -> Chords {
        Chords::None
    }

    async fn expect(&self, _id: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn store(&self, results: &[Stored]) -> Result<(), Error> {
        let kept = results
            .iter()
            .map(|stored| (stored.meta.task_id.clone(), stored.meta.clone()));
        if let (Ok(mut metas), Ok(mut batches)) = (self.metas.lock(), self.batches.lock()) {
            metas.extend(kept);
            *batches += 1;
        }
        Ok(())
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error> {
        Ok(vec![None; ids.len()])
    }

    async fn changed(&self, _id: &str, _known: Option<&Meta>) -> Result<Meta, Error> {
        std::future::pending().await
    }

    async fn forget(&self, _ids: &[String]) -> Result<(), Error> {
        Ok(())
    }

    async fn save_group(&self, _group_id: &str, _members: &Value) -> Result<(), Error> {
        Ok(())
    }

    async fn group(&self, _group_id: &str) -> Result<Option<Value>, Error> {
        Ok(None)
    }

    async fn forget_group(&self, _group_id: &str) -> Result<(), Error> {
        Ok(())
    }
}

#[async_trait]
impl Sender for Memory {
    async fn apply(&self, signature: &Signature, _with: Apply) -> Result<Sent, Unsent> {
        Ok(Sent {
            id: signature.task.clone(),
            tuple: Value::Null,
        })
    }
}

impl Journal for Memory {
    fn writes(&self, level: Level) -> bool {
        level >= Level::Warning
    }

    fn write(&self, _record: Record) {}
}

/// A job as a worker makes it of a message that Celery has sent.
fn job(number: u64) -> Job {
    let id = format!("2c31690e-7029-4df1-a9aa-{number:012}");
    let request = json!({
        "lang": "py", "task": "noop", "id": id, "shadow": null, "eta": null, "expires": null,
        "group": null, "group_index": null, "retries": 0, "timelimit": [null, null], "root_id": id,
        "parent_id": null, "argsrepr": "(2, 3)", "kwargsrepr": "{}", "origin": "gen13906@vm",
        "ignore_result": false, "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {},
        "properties": {"correlation_id": id, "reply_to": "48579f8d-74d6-355d-ac7b-c17b7c0ba20a",
            "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0, "body_encoding": "base64", "delivery_tag": id},
        "reply_to": "48579f8d-74d6-355d-ac7b-c17b7c0ba20a", "correlation_id": id,
        "hostname": "w@host",
        "delivery_info": {"exchange": "", "routing_key": "celery", "priority": 0,
            "redelivered": false},
    });
    let body =
        r#"[[2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#;
    Job {
        key: RequestKey(number),
        task: "noop".into(),
        request: request.to_string(),
        body: body.as_bytes().into(),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        time_limits: TimeLimits::default(),
        wants_result: false,
        wants_exception: false,
    }
}

#[expect(clippy::print_stdout, reason = "its figures are what it is for")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut given = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let tasks = given.next().transpose()?.unwrap_or(200_000);
    let places = given.next().transpose()?.unwrap_or(64);
    let threads = given.next().transpose()?;

    let clock = Arc::new(SystemClock::new());
    let memory = Arc::<Memory>::default();
    let mut registry = Registry::default();
    registry.register(Arc::new(Noop(Options::default())))?;
    let options = NativeOptions {
        size: places,
        threads,
    };
    let mut pool = NativePool::new(options, clock.clone(), || {
        let (backend, sender, journal) = (memory.clone(), memory.clone(), memory.clone());
        let settings = ResultSettings::default();
        let results = Results::new(Some(backend), sender, clock.clone(), journal, settings);
        Tracer::new(Arc::new(registry), results, TraceSettings::default())
    })?;
    let mut jobs: Vec<Job> = (0..tasks as u64).map(job).collect();
    let (mut ended, begun) = (0, clock.monotonic());
    while ended < tasks {
        for job in jobs.split_off(jobs.len() - pool.free().min(jobs.len())) {
            pool.submit(job);
        }
        let events = pool.next().await;
        let is_end = |event: &&PoolEvent| matches!(event, PoolEvent::Finished { .. });
        ended += events.iter().filter(is_end).count();
    }
    let took = clock.monotonic().saturating_sub(begun).as_secs_f64();
    let batches = memory.batches.lock().map_or(0, |batches| *batches).max(1);
    println!(
        "{tasks} tasks in {took:.2} s: {:.0} a second, {places} at once, {:.1} results stored at once",
        tasks as f64 / took,
        tasks as f64 / batches as f64
    );
    Ok(())
}
