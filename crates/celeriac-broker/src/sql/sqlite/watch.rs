//! Tells when another process may have written to the database.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};

/// How long to wait without being told: where the file system tells nothing, as on some networks,
/// this is how often the database is asked.
const POLL: Duration = Duration::from_secs(1);

/// Watches the files of one database.
pub(super) struct Watch {
    events: Option<EventStream<[u8; 1024]>>,
}

impl Watch {
    /// Begins to watch; without the system's help, [`Watch::changed`] is a slow poll.
    pub(super) fn new(database: &Path) -> Self {
        let events = Self::register(database)
            .inspect_err(|error| {
                tracing::debug!(%error, "no notice of changes of {}: polling", database.display());
            })
            .ok();
        Self { events }
    }

    fn register(database: &Path) -> std::io::Result<EventStream<[u8; 1024]>> {
        let inotify = Inotify::init()?;
        // Commits go into the write-ahead log, or into the file itself where there is none.
        let mut log = database.as_os_str().to_owned();
        log.push("-wal");
        let files = [PathBuf::from(log), database.to_owned()];
        let watched = files.map(|file| inotify.watches().add(file, WatchMask::MODIFY));
        if let [Err(error), Err(_)] = watched {
            return Err(error);
        }
        inotify.into_event_stream([0; 1024])
    }

    /// Returns when a file was written, or after a while. Safe to cancel.
    pub(super) async fn changed(&mut self) {
        match &mut self.events {
            // What was written matters not: the database knows.
            Some(events) => drop(tokio::time::timeout(POLL, events.next()).await),
            None => tokio::time::sleep(POLL).await,
        }
    }
}
