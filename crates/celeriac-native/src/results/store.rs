//! Stores results in batches: what ends while a batch is on its way goes with the next one.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::backend::{Backend, Error, Stored};
use celeriac_core::backoff::Doubling;
use tokio::sync::{mpsc, oneshot};

/// Results that wait to be stored; whoever brings more waits.
const QUEUED: usize = 4096;
/// Results that are stored at once.
const AT_ONCE: usize = 512;
/// Waits between attempts (`result_backend_base_sleep_between_retries_ms` and `_max_`).
const RETRIES: Doubling = Doubling {
    start: Duration::from_millis(10),
    max: Duration::from_secs(1),
};

/// What is done when a result is safe, or can't be stored.
type Then = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Takes results for the task that stores them.
#[derive(Debug, Clone)]
pub(crate) struct Store(mpsc::Sender<Entry>);

struct Entry {
    stored: Stored,
    then: Then,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stored.fmt(f)
    }
}

impl Store {
    /// Where results go, and what stores them in `backend`: to be spawned. A connection that is lost
    /// is tried again `retries` times, without end where that is `None`.
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        retries: Option<u32>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, entries) = mpsc::channel(QUEUED);
        (Self(sender), write(entries, backend, retries))
    }

    /// Stores a result, then tells.
    pub(crate) async fn put(
        &self,
        stored: Stored,
        then: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let entry = Entry {
            stored,
            then: Box::new(then),
        };
        if let Err(mpsc::error::SendError(entry)) = self.0.send(entry).await {
            (entry.then)(Err(gone()));
        }
    }

    /// Stores a result, and waits until it is safe.
    pub(crate) async fn stored(&self, stored: Stored) -> Result<(), Error> {
        let (told, tells) = oneshot::channel();
        self.put(stored, move |result| drop(told.send(result)))
            .await;
        tells.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> Error {
    Error::new(
        celeriac_core::backend::ErrorKind::Connection,
        "results are not stored any more: the worker ends",
    )
}

async fn write(
    mut entries: mpsc::Receiver<Entry>,
    backend: Arc<dyn Backend>,
    retries: Option<u32>,
) {
    let mut taken = Vec::with_capacity(AT_ONCE);
    let mut batch = Vec::with_capacity(AT_ONCE);
    let mut thens = Vec::with_capacity(AT_ONCE);
    while entries.recv_many(&mut taken, AT_ONCE).await > 0 {
        for entry in taken.drain(..) {
            batch.push(entry.stored);
            thens.push(entry.then);
        }
        match store(&*backend, &batch, retries).await {
            Ok(()) => thens.drain(..).for_each(|then| then(Ok(()))),
            Err(error) if batch.len() == 1 || error.is_transient() => {
                thens.drain(..).for_each(|then| then(Err(error.clone())));
            }
            // One of them can't be stored: the others can.
            Err(_) => {
                for (stored, then) in batch.iter().zip(thens.drain(..)) {
                    then(store(&*backend, std::slice::from_ref(stored), retries).await);
                }
            }
        }
        batch.clear();
    }
}

async fn store(backend: &dyn Backend, batch: &[Stored], retries: Option<u32>) -> Result<(), Error> {
    for attempt in 0.. {
        match backend.store(batch).await {
            Err(error) if error.is_transient() && retries.is_none_or(|most| attempt < most) => {
                tracing::warn!(
                    target: "celery.backends",
                    "Results could not be stored: {error}. Trying again in {:?}.",
                    RETRIES.wait(attempt)
                );
                tokio::time::sleep(RETRIES.wait(attempt)).await;
            }
            result => return result,
        }
    }
    Ok(())
}
