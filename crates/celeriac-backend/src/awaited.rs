//! The tasks whose results somebody waits for, and what is told of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use celeriac_core::backend::{Error, Meta};
use tokio::sync::{Notify, watch};

/// What was told of one task.
#[derive(Debug, Clone, Default)]
pub(crate) struct News {
    /// Grows whenever listening begins, anew after a lost connection: what is stored has to be looked
    /// at again. Zero while nobody listens yet.
    pub(crate) listening: u64,
    /// What came last.
    pub(crate) last: Option<Result<Arc<Meta>, Error>>,
}

#[derive(Debug)]
struct Entry {
    waiting: usize,
    news: watch::Sender<News>,
}

/// By the task's id.
#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<String, Entry>,
    /// What came and went since [`Awaited::changes`].
    changes: Changes,
}

/// Whose results are waited for now and were not before, and the reverse.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) begun: HashSet<String>,
    pub(crate) ended: HashSet<String>,
}

/// All that is waited for.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    entries: Mutex<Entries>,
    /// Somebody began or ceased to wait.
    pub(crate) changed: Notify,
}

impl Awaited {
    /// Begins to wait for a task.
    pub(crate) fn enter(self: &Arc<Self>, id: &str) -> Interest {
        let mut entries = self.entries();
        if !entries.by_id.contains_key(id) {
            entries.changes.ended.remove(id);
            entries.changes.begun.insert(id.to_owned());
            self.changed.notify_one();
        }
        let entry = entries.by_id.entry(id.to_owned()).or_insert_with(|| Entry {
            waiting: 0,
            news: watch::Sender::default(),
        });
        entry.waiting += 1;
        let mut news = entry.news.subscribe();
        if news.borrow().listening > 0 {
            news.mark_changed();
        }
        Interest {
            id: id.to_owned(),
            news,
            awaited: Arc::clone(self),
        }
    }

    /// The ids of all that is waited for. Nothing of them counts as changed any more.
    pub(crate) fn all(&self) -> HashSet<String> {
        let mut entries = self.entries();
        entries.changes = Changes::default();
        entries.by_id.keys().cloned().collect()
    }

    /// What came and went since this or [`Awaited::all`] was called last.
    pub(crate) fn changes(&self) -> Changes {
        std::mem::take(&mut self.entries().changes)
    }

    /// Whether somebody waits for a task.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.entries().by_id.contains_key(id)
    }

    /// Tells whoever waits for a task what is stored now.
    pub(crate) fn tell(&self, id: &str, last: Result<Meta, Error>) {
        if let Some(entry) = self.entries().by_id.get(id) {
            entry
                .news
                .send_modify(|news| news.last = Some(last.map(Arc::new)));
        }
    }

    /// The same, unless it was told before; answers with whether it was new.
    pub(crate) fn tell_if_new(&self, id: &str, last: Meta) -> bool {
        self.entries().by_id.get(id).is_some_and(|entry| {
            entry.news.send_if_modified(|news| {
                let is_new = !matches!(&news.last, Some(Ok(told)) if **told == last);
                if is_new {
                    news.last = Some(Ok(Arc::new(last)));
                }
                is_new
            })
        })
    }

    /// From now on nothing is missed of this task.
    pub(crate) fn listen(&self, id: &str, generation: u64) {
        if let Some(entry) = self.entries().by_id.get(id) {
            entry.news.send_modify(|news| news.listening = generation);
        }
    }

    /// Tells all that nothing more can be told.
    pub(crate) fn fail(&self, error: &Error) {
        for entry in self.entries().by_id.values() {
            entry
                .news
                .send_modify(|news| news.last = Some(Err(error.clone())));
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing panics while it is held.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits, until this is dropped.
#[derive(Debug)]
pub(crate) struct Interest {
    id: String,
    pub(crate) news: watch::Receiver<News>,
    awaited: Arc<Awaited>,
}

impl Interest {
    /// Waits until something is told that was not seen yet. Safe to cancel.
    pub(crate) async fn next(&mut self) -> News {
        // The sender lives as long as this does.
        drop(self.news.changed().await);
        self.news.borrow_and_update().clone()
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut entries = self.awaited.entries();
        let Some(entry) = entries.by_id.get_mut(&self.id) else {
            return;
        };
        entry.waiting -= 1;
        if entry.waiting == 0 {
            entries.by_id.remove(&self.id);
            entries.changes.begun.remove(&self.id);
            entries.changes.ended.insert(self.id.clone());
            self.awaited.changed.notify_one();
        }
    }
}
