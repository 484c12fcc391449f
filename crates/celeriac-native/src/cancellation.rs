//! How a task learns that it is to end.

use std::time::Duration;

use tokio::sync::watch;

/// Why a task is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was revoked with `terminate`.
    Revoked,
    /// Its soft time limit has passed: it may still end in its own way, with any outcome.
    SoftTimeLimit(Duration),
    /// Its hard time limit has passed.
    TimeLimit(Duration),
    /// The worker shuts down and can't wait any longer; the task runs again if its message is
    /// acknowledged late.
    Shutdown,
}

/// Tells a task when it is to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cancellation(watch::Receiver<Option<Cause>>);

/// Ends a task.
#[derive(Debug)]
pub struct Canceller(watch::Sender<Option<Cause>>);

/// A canceller, and what it cancels.
pub fn cancellation() -> (Canceller, Cancellation) {
    let (sender, receiver) = watch::channel(None);
    (Canceller(sender), Cancellation(receiver))
}

impl Canceller {
    /// Has the task end. A later cause takes the place of an earlier one.
    pub fn cancel(&self, cause: Cause) {
        self.0.send_replace(Some(cause));
    }
}

impl Cancellation {
    /// Why the task is to end; `None` as long as it may go on.
    pub fn cause(&self) -> Option<Cause> {
        *self.0.borrow()
    }

    /// Waits until the task is to end. Safe to cancel.
    pub async fn cancelled(&mut self) -> Cause {
        loop {
            if let Some(cause) = *self.0.borrow_and_update() {
                return cause;
            }
            if self.0.changed().await.is_err() {
                // Whoever could have cancelled it is gone: nobody will.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until there is another cause than `known`. Safe to cancel.
    pub async fn cancelled_beyond(&mut self, known: Cause) -> Cause {
        loop {
            if let Some(cause) = *self.0.borrow_and_update()
                && cause != known
            {
                return cause;
            }
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_learns_of_each_cause() {
        let (canceller, mut cancellation) = cancellation();
        assert_eq!(cancellation.cause(), None);
        let soft = Cause::SoftTimeLimit(Duration::from_secs(1));
        canceller.cancel(soft);
        assert_eq!(cancellation.cancelled().await, soft);
        canceller.cancel(Cause::Revoked);
        assert_eq!(cancellation.cancelled_beyond(soft).await, Cause::Revoked);
    }
}
