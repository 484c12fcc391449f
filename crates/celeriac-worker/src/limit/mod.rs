//! Limits that all workers keep together, and unique tasks: what a request needs to begin.
//!
//! The settings `celeriac_limits` and `celeriac_unique` say it ([`config`]); a store that all workers
//! share decides ([`celeriac_core::limit`]), and [`keeper`] asks it. Celery has nothing like it.

mod arguments;
pub mod config;
pub mod keeper;

use std::collections::HashMap;
use std::time::Duration;

use celeriac_core::limit::{Claim, Permit, Rate};
use uuid::Uuid;

use crate::request::Request;
use arguments::{Arguments, Path};

/// How long a claim is kept without a sign of life, while a worker has the request.
const CLAIM_LEASE: Duration = Duration::from_secs(30);
/// Longer names are replaced by a hash: a store may have no room for them.
const LONGEST_NAME: usize = 200;

/// All limits of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    tasks: HashMap<String, Limit>,
    queues: HashMap<String, Limit>,
    unique: HashMap<String, Unique>,
}

/// The limit of a task or a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    rate: Option<Rate>,
    slots: Option<u32>,
    /// The arguments that it counts by; empty for none.
    key: Vec<Path>,
}

/// That a task be the only one of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unique {
    until: Until,
    /// The arguments that make a kind; empty for all of them.
    key: Vec<Path>,
}

/// How long a task is the only one of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until it begins.
    Start,
    /// Until it is done, retries included: between two of them for so long at most.
    Done(Duration),
    /// For so long since it came.
    Window(Duration),
}

/// What a request needs to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The limits that it is under.
    pub permits: Vec<Permit>,
    /// Its claim, if it is unique.
    pub claim: Option<(Claim, Until)>,
}

impl Limits {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.queues.is_empty() && self.unique.is_empty()
    }

    /// What a request needs; `None` when it is under no limit. Its arguments are opened only if
    /// something counts by them. What can't be read of them counts as absent, and a task whose
    /// arguments can't be read is not unique.
    pub fn needs(&self, request: &Request) -> Option<Needs> {
        let task = &*request.head.task;
        let of_task = self.tasks.get(task).map(|limit| ("task", task, limit));
        let of_queue = self.queues.get(&*request.queue);
        let of_queue = of_queue.map(|limit| ("queue", &*request.queue, limit));
        let unique = self.unique.get(task);
        if of_task.is_none() && of_queue.is_none() && unique.is_none() {
            return None;
        }
        let mut arguments = None;
        let mut open = || {
            let opened = arguments.get_or_insert_with(|| Arguments::open(&request.message));
            opened.clone()
        };
        let limits = of_task.into_iter().chain(of_queue);
        let permits = limits.map(|(kind, name, limit)| {
            let mut name = format!("{kind}:{name}");
            if !limit.key.is_empty() {
                let key = open().unwrap_or_default().select(&limit.key);
                name = format!("{name}:{}", hash(&key));
            }
            Permit {
                name: bounded(name),
                rate: limit.rate,
                slots: limit.slots,
            }
        });
        let permits: Vec<Permit> = permits.collect();
        let claim = unique.and_then(|unique| {
            let arguments = open()?;
            let key = if unique.key.is_empty() {
                arguments.all()
            } else {
                arguments.select(&unique.key)
            };
            let (lasts, is_window) = match unique.until {
                Until::Window(window) => (window, true),
                Until::Start | Until::Done(_) => (CLAIM_LEASE, false),
            };
            let claim = Claim {
                name: bounded(format!("unique:{task}:{}", hash(&key))),
                owner: request.head.id.to_string(),
                lasts,
                is_window,
            };
            Some((claim, unique.until))
        });
        let is_free = permits.is_empty() && claim.is_none();
        (!is_free).then_some(Needs { permits, claim })
    }
}

/// A name for a text, the same in all workers.
fn hash(text: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes())
}

fn bounded(name: String) -> String {
    if name.len() > LONGEST_NAME {
        hash(&name).to_string()
    } else {
        name
    }
}
