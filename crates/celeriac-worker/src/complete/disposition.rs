//! What becomes of a message when its task has ended.
//!
//! Celery's counterpart: `Request.on_success`, `on_failure`, `on_timeout` of
//! `celery.worker.request`. Celery acknowledges first and stores then; here a message leaves the
//! broker when its outcome is stored.

use celeriac_config::TaskOptions;
use celeriac_core::broker::Fate;
use celeriac_core::pool::Outcome;

/// What becomes of a message when its task's process has reported the end, if it is still the
/// worker's to decide. Not for [`Outcome::Left`], which is a loss.
pub fn reported(outcome: &Outcome, task: &TaskOptions) -> Fate {
    let on_failure = if task.acks_on_failure {
        Fate::Ack
    } else {
        Fate::Reject
    };
    match outcome {
        Outcome::Success { .. } | Outcome::Retry(_) | Outcome::Ignore(_) => Fate::Ack,
        Outcome::Failure(_) | Outcome::Raised(_) | Outcome::Left { .. } => on_failure,
        Outcome::Reject { requeue: true, .. } => Fate::Requeue,
        Outcome::Reject { requeue: false, .. } | Outcome::Invalid { .. } => Fate::Reject,
        Outcome::Undecodable { .. } => Fate::Ack,
    }
}

/// What becomes of a task whose process is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It runs again.
    Requeue,
    /// It has failed; then this becomes of its message.
    Fail(Fate),
}

/// The process of a task is lost, and the task neither had succeeded nor was sent again.
/// `retries_are_spent`: it would have been sent again, but for its number of retries.
pub fn lost(task: &TaskOptions, is_settled: bool, retries_are_spent: bool) -> Loss {
    if task.acks_late && !is_settled && task.reject_on_worker_lost && !retries_are_spent {
        Loss::Requeue
    } else {
        Loss::Fail(if task.acks_on_failure {
            Fate::Ack
        } else {
            Fate::Reject
        })
    }
}

/// Whether a lost task is to be sent again, and if not whether its retries are spent.
pub fn retry_lost(task: &TaskOptions, retries: u32) -> (bool, bool) {
    let is_spent = task
        .max_retries
        .is_some_and(|max| i64::from(retries) >= max);
    (
        task.retry_on_worker_lost && !is_spent,
        task.retry_on_worker_lost && is_spent,
    )
}

/// A task is over its hard time limit: whether it runs again instead of failing.
pub fn runs_again_after_timeout(task: &TaskOptions, is_settled: bool) -> bool {
    task.acks_late && !is_settled && !task.acks_on_timeout
}

#[cfg(test)]
mod tests {
    use celeriac_core::pool::Failure;

    use super::*;

    fn late() -> TaskOptions {
        TaskOptions {
            acks_late: true,
            ..TaskOptions::default()
        }
    }

    #[test]
    fn what_a_process_reports() {
        let failure = Failure::default;
        let success = Outcome::Success {
            runtime: None,
            result: String::new(),
        };
        let requeue = Outcome::Reject {
            requeue: true,
            failure: failure(),
        };
        let reject = Outcome::Reject {
            requeue: false,
            failure: failure(),
        };
        let unforgiving = TaskOptions {
            acks_on_failure: false,
            ..late()
        };
        for (outcome, task, fate) in [
            (&success, late(), Fate::Ack),
            (&success, unforgiving.clone(), Fate::Ack),
            (&Outcome::Failure(failure()), late(), Fate::Ack),
            (
                &Outcome::Failure(failure()),
                unforgiving.clone(),
                Fate::Reject,
            ),
            (&Outcome::Retry(failure()), unforgiving.clone(), Fate::Ack),
            (&Outcome::Ignore(failure()), unforgiving.clone(), Fate::Ack),
            (&requeue, late(), Fate::Requeue),
            (&reject, late(), Fate::Reject),
            (&Outcome::Raised(failure()), late(), Fate::Ack),
            (
                &Outcome::Raised(failure()),
                unforgiving.clone(),
                Fate::Reject,
            ),
            (
                &Outcome::Undecodable {
                    reason: String::new(),
                },
                late(),
                Fate::Ack,
            ),
            (
                &Outcome::Invalid {
                    reason: String::new(),
                },
                late(),
                Fate::Reject,
            ),
        ] {
            assert_eq!(reported(outcome, &task), fate, "{outcome:?}");
        }
    }

    #[test]
    fn what_a_lost_process_leaves() {
        let early = TaskOptions {
            reject_on_worker_lost: true,
            ..TaskOptions::default()
        };
        let requeue = TaskOptions {
            reject_on_worker_lost: true,
            ..late()
        };
        let unforgiving = TaskOptions {
            acks_on_failure: false,
            ..late()
        };
        for (task, is_settled, spent, expected) in [
            (early, true, false, Loss::Fail(Fate::Ack)),
            (late(), false, false, Loss::Fail(Fate::Ack)),
            (unforgiving, false, false, Loss::Fail(Fate::Reject)),
            (requeue.clone(), false, false, Loss::Requeue),
            (requeue.clone(), true, false, Loss::Fail(Fate::Ack)),
            (requeue, false, true, Loss::Fail(Fate::Ack)),
        ] {
            assert_eq!(lost(&task, is_settled, spent), expected, "{task:?}");
        }
    }

    #[test]
    fn how_often_a_lost_task_is_sent_again() {
        let task = |max_retries| TaskOptions {
            retry_on_worker_lost: true,
            max_retries,
            ..TaskOptions::default()
        };
        assert_eq!(retry_lost(&task(Some(3)), 2), (true, false));
        assert_eq!(retry_lost(&task(Some(3)), 3), (false, true));
        assert_eq!(retry_lost(&task(None), 1000), (true, false));
        assert_eq!(retry_lost(&TaskOptions::default(), 3), (false, false));
    }

    #[test]
    fn only_a_late_acknowledged_task_runs_again_after_its_time() {
        let again = TaskOptions {
            acks_on_timeout: false,
            ..late()
        };
        assert!(runs_again_after_timeout(&again, false));
        assert!(!runs_again_after_timeout(&again, true));
        assert!(!runs_again_after_timeout(&late(), false));
        let early = TaskOptions {
            acks_on_timeout: false,
            ..TaskOptions::default()
        };
        assert!(!runs_again_after_timeout(&early, false));
    }
}
