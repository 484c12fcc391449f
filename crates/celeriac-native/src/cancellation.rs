//! How a task learns that it is to end.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
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
pub struct Cancellation(watch::Receiver<Order>);

/// Ends a task.
#[derive(Debug)]
pub struct Canceller {
    order: watch::Sender<Order>,
    decision: Arc<Decision>,
}

/// What the code that runs a task asks: whether its time is over, and whether its end counts.
#[derive(Debug)]
pub(crate) struct Patience {
    order: watch::Receiver<Order>,
    decision: Arc<Decision>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Order {
    cause: Option<Cause>,
    /// The task is not waited for any longer.
    is_over: bool,
}

/// Who has decided how the run ends: the task, by its end, or whoever ended it. Told at one place,
/// so that no run has two ends.
#[derive(Debug, Default)]
struct Decision(AtomicU8);

const OPEN: u8 = 0;
/// The run is over, but its end, a failure, is dealt with as any other.
const RAISED: u8 = 1;
/// The task's end counts.
const ENDED: u8 = 2;
/// What the task does counts no more: somebody else concludes the call.
const LOST: u8 = 3;

impl Decision {
    fn change(&self, from: &[u8], to: u8) -> bool {
        let change = |from: &u8| self.0.compare_exchange(*from, to, AcqRel, Acquire).is_ok();
        from.iter().any(change)
    }
}

/// A canceller, and what it cancels.
pub fn cancellation() -> (Canceller, Cancellation) {
    let (canceller, cancellation, _) = cancellation_of_run();
    (canceller, cancellation)
}

/// The same, with what the code that runs the task asks.
pub(crate) fn cancellation_of_run() -> (Canceller, Cancellation, Patience) {
    let (order, receiver) = watch::channel(Order::default());
    let decision = Arc::<Decision>::default();
    let patience = Patience {
        order: receiver.clone(),
        decision: Arc::clone(&decision),
    };
    (
        Canceller { order, decision },
        Cancellation(receiver),
        patience,
    )
}

impl Canceller {
    /// Has the task end. A later cause takes the place of an earlier one.
    pub fn cancel(&self, cause: Cause) {
        self.order.send_modify(|order| order.cause = Some(cause));
    }

    /// Has the task's future be dropped; that it failed with the cause is dealt with as any other
    /// end. Answers with false if the task had ended before.
    pub(crate) fn raise(&self) -> bool {
        self.over(&[OPEN], RAISED)
    }

    /// Has the task's future be dropped; nobody deals with its end but who calls this. Answers with
    /// false if the task had ended before, with an end that counts.
    pub(crate) fn lose(&self) -> bool {
        self.over(&[OPEN, RAISED], LOST) || self.decision.0.load(Acquire) == LOST
    }

    fn over(&self, from: &[u8], to: u8) -> bool {
        let decided = self.decision.change(from, to);
        if decided {
            self.order.send_modify(|order| order.is_over = true);
        }
        decided
    }
}

impl Patience {
    /// Waits until the task is not waited for any longer, and answers why. Safe to cancel.
    pub(crate) async fn ends(&mut self) -> Cause {
        loop {
            let order = *self.order.borrow_and_update();
            if let (Some(cause), true) = (order.cause, order.is_over) {
                return cause;
            }
            if self.order.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Why the task was told to end, if it was.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.order.borrow().cause
    }

    /// Whether the end of the run, which it has come to, counts: from now on it can't be lost. That of
    /// a task which was revoked or is over its hard limit counts no more, even if it comes in time.
    pub(crate) fn counts(&self) -> bool {
        if matches!(self.cause(), Some(Cause::Revoked | Cause::TimeLimit(_))) {
            self.decision.change(&[OPEN, RAISED], LOST);
            return false;
        }
        self.decision.change(&[OPEN, RAISED], ENDED)
    }
}

impl Cancellation {
    /// Why the task is to end; `None` as long as it may go on.
    pub fn cause(&self) -> Option<Cause> {
        self.0.borrow().cause
    }

    /// Waits until the task is to end. Safe to cancel.
    pub async fn cancelled(&mut self) -> Cause {
        self.cause_but(None).await
    }

    /// Waits until there is another cause than `known`. Safe to cancel.
    pub async fn cancelled_beyond(&mut self, known: Cause) -> Cause {
        self.cause_but(Some(known)).await
    }

    async fn cause_but(&mut self, known: Option<Cause>) -> Cause {
        loop {
            let cause = self.0.borrow_and_update().cause;
            if let Some(cause) = cause.filter(|_| cause != known) {
                return cause;
            }
            if self.0.changed().await.is_err() {
                // Whoever could have cancelled it is gone: nobody will.
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

    #[tokio::test]
    async fn a_run_has_one_end() {
        let (canceller, _, mut patience) = cancellation_of_run();
        canceller.cancel(Cause::Revoked);
        assert!(canceller.raise() && !canceller.raise());
        assert_eq!(patience.ends().await, Cause::Revoked);
        assert!(canceller.lose());
        assert!(!patience.counts());

        // It ends in time, and is lost all the same.
        let (canceller, _, patience) = cancellation_of_run();
        canceller.cancel(Cause::Revoked);
        assert!(!patience.counts() && canceller.lose());

        let (canceller, _, patience) = cancellation_of_run();
        assert!(patience.counts());
        assert!(!canceller.raise() && !canceller.lose());
    }
}
