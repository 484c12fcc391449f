//! Waiting for results of stores that tell nobody of changes: one of those who wait looks for all of
//! them, more and more slowly.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::Backend;
use celeriac_core::backend::{Error, ErrorKind, Meta};
use celeriac_core::backoff::Doubling;
use tokio::sync::Mutex;

use crate::awaited::Awaited;

/// Between two looks (Celery: always 0.5 s).
const PACE: Doubling = Doubling {
    start: Duration::from_millis(10),
    max: Duration::from_millis(500),
};
/// How many tasks are asked for at once.
const PER_LOOK: usize = 500;

/// Those who wait, and who of them looks.
#[derive(Debug, Default)]
pub(crate) struct Polling {
    awaited: Arc<Awaited>,
    looks: Mutex<()>,
}

impl Polling {
    /// Waits until something else than `known` is stored. Safe to cancel.
    pub(crate) async fn changed(
        &self,
        backend: &dyn Backend,
        id: &str,
        known: Option<&Meta>,
    ) -> Result<Meta, Error> {
        let mut interest = self.awaited.enter(id);
        let found = backend.get(&[id.to_owned()]).await?.pop().flatten();
        if let Some(meta) = found
            && known != Some(&meta)
        {
            return Ok(meta);
        }
        let mut looking = std::pin::pin!(self.look(backend));
        loop {
            let news = tokio::select! {
                news = interest.next() => news,
                error = &mut looking => return Err(error),
            };
            if let Some(meta) = news.last.transpose()?
                && known != Some(&*meta)
            {
                return Ok((*meta).clone());
            }
        }
    }

    /// Looks for all, once it is this one's turn; ends with an error only, which the others hear of
    /// when they look.
    async fn look(&self, backend: &dyn Backend) -> Error {
        let _turn = self.looks.lock().await;
        let mut looks = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep(PACE.wait(looks)) => looks += 1,
                () = self.awaited.changed.notified() => {
                    looks = 0;
                    continue;
                }
            }
            let ids: Vec<String> = self.awaited.all().into_iter().collect();
            for ids in ids.chunks(PER_LOOK) {
                match backend.get(ids).await {
                    Ok(found) => {
                        for (id, meta) in ids.iter().zip(found) {
                            if let Some(meta) = meta
                                && self.awaited.tell_if_new(id, meta)
                            {
                                looks = 0;
                            }
                        }
                    }
                    // One that can't be read keeps the others from nothing.
                    Err(error) if error.kind == ErrorKind::Unreadable => {
                        for id in ids {
                            match backend.get(std::slice::from_ref(id)).await {
                                Ok(mut found) => {
                                    if let Some(meta) = found.pop().flatten() {
                                        self.awaited.tell_if_new(id, meta);
                                    }
                                }
                                Err(error) => self.awaited.tell(id, Err(error)),
                            }
                        }
                    }
                    Err(error) => return error,
                }
            }
        }
    }
}
