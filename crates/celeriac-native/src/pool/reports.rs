//! What runs tell the pool, which is on another thread.

use std::sync::{Arc, Mutex, PoisonError};

use celeriac_core::pool::{Outcome, RequestKey};
use tokio::sync::Notify;

/// What a run tells.
#[derive(Debug, PartialEq)]
pub(crate) enum Report {
    /// It is over.
    Ended {
        /// The request.
        key: RequestKey,
        /// How.
        end: End,
        /// Whether nothing of the task is left.
        is_free: bool,
    },
    /// Nothing of the task is left that was over before.
    Freed {
        /// The request.
        key: RequestKey,
    },
}

/// How a run is over.
#[derive(Debug, PartialEq)]
pub(crate) enum End {
    /// With an outcome; all that follows has been done.
    Finished(Outcome),
    /// It was lost, as it was told to be: nothing was done about it.
    Dropped,
}

/// Reports on their way to the pool: at most two for each job that it was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<Inbox>);

#[derive(Debug, Default)]
struct Inbox {
    reports: Mutex<Vec<Report>>,
    filled: Notify,
}

impl Reports {
    /// Tells the pool.
    pub(crate) fn tell(&self, report: Report) {
        let mut reports = self
            .0
            .reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        reports.push(report);
        let is_first = reports.len() == 1;
        drop(reports);
        // It takes all that there is.
        if is_first {
            self.0.filled.notify_one();
        }
    }

    /// What was told.
    pub(crate) fn take(&self) -> Vec<Report> {
        let mut reports = self
            .0
            .reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *reports)
    }

    /// Waits until something is told. Safe to cancel.
    pub(crate) async fn filled(&self) {
        self.0.filled.notified().await;
    }
}

/// A place in the pool, which is free when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Option<(Reports, RequestKey)>);

impl Slot {
    pub(crate) fn new(reports: Reports, key: RequestKey) -> Self {
        Self(Some((reports, key)))
    }

    /// That it is free is told with the end of the run.
    pub(crate) fn tell_with_end(mut self) {
        self.0 = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((reports, key)) = self.0.take() {
            reports.tell(Report::Freed { key });
        }
    }
}
