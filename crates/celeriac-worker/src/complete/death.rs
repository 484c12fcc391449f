//! What becomes of a task that has killed its process, or its worker, and is to run again.
//!
//! Celery runs it again for ever (`task_reject_on_worker_lost`). Here it has a number of attempts,
//! each later than the one before, and then it is a dead letter.

use std::time::Duration;

use celeriac_core::dead_letter::Cause;
use celeriac_core::evidence::Evidence;
use celeriac_core::pool::{ExitStatus, LossCause};
use celeriac_protocol::Marks;

/// The longest wait before another attempt.
const LONGEST: Duration = Duration::from_mins(5);

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It runs again, after this wait, and with these marks.
    Again(Duration, Marks),
    /// It has had its attempts.
    GiveUp,
}

/// Decides about a task that has killed its process now, with the marks that its message came with.
/// `most`: how many processes it may kill, `None` for any number.
pub fn after(marks: Marks, most: Option<u32>) -> Verdict {
    let deaths = marks.deaths.saturating_add(1);
    if most.is_some_and(|most| deaths >= most) {
        return Verdict::GiveUp;
    }
    // The first may have been an accident. Then 1 s, 4 s, 16 s, ...
    let wait = match deaths.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => Duration::from_secs(4_u64.saturating_pow(doublings)).min(LONGEST),
    };
    Verdict::Again(wait, Marks { deaths, ..marks })
}

/// Whether a message that comes has killed as many workers as it may.
pub fn is_spent(marks: Marks, most: Option<u32>) -> bool {
    most.is_some_and(|most| marks.deaths >= most)
}

/// Why a message is dead whose process was lost.
pub fn cause(loss: LossCause, evidence: &Evidence) -> Cause {
    match loss {
        LossCause::Memory { .. } | LossCause::Pressure { .. } => Cause::OutOfMemory,
        LossCause::TimeLimit => Cause::TimeLimit,
        _ if evidence.oom.is_some() => Cause::OutOfMemory,
        LossCause::Died(ExitStatus::Code(_)) => Cause::Exited,
        LossCause::Died(_) | LossCause::Terminated | LossCause::Unread | LossCause::Neighbor => {
            Cause::Killed
        }
    }
}

#[cfg(test)]
mod tests {
    use celeriac_core::evidence::OutOfMemory;

    use super::*;

    #[test]
    fn attempts_come_later_and_later_until_they_are_spent() {
        let marks = |deaths| Marks {
            deaths,
            told: true,
            ..Marks::default()
        };
        let again = |seconds, deaths| Verdict::Again(Duration::from_secs(seconds), marks(deaths));
        for (deaths, most, verdict) in [
            (0, Some(3), again(0, 1)),
            (1, Some(3), again(1, 2)),
            (2, Some(3), Verdict::GiveUp),
            (7, Some(3), Verdict::GiveUp),
            (0, Some(1), Verdict::GiveUp),
            (2, None, again(4, 3)),
            (3, None, again(16, 4)),
            (90, None, again(300, 91)),
            (u32::MAX, None, again(300, u32::MAX)),
        ] {
            assert_eq!(after(marks(deaths), most), verdict, "{deaths} {most:?}");
        }
        assert!(is_spent(marks(3), Some(3)) && !is_spent(marks(2), Some(3)));
        assert!(!is_spent(marks(99), None));
    }

    #[test]
    fn causes_are_those_of_the_evidence() {
        let none = Evidence::default();
        let kernel = Evidence {
            oom: Some(OutOfMemory::Cgroup),
            ..Evidence::default()
        };
        let killed = LossCause::Died(ExitStatus::Signal(9));
        let memory = LossCause::Memory {
            resident: 2,
            limit: 1,
        };
        for (loss, evidence, expected) in [
            (killed, &none, Cause::Killed),
            (killed, &kernel, Cause::OutOfMemory),
            (memory, &none, Cause::OutOfMemory),
            (LossCause::Died(ExitStatus::Code(3)), &none, Cause::Exited),
            (LossCause::Died(ExitStatus::Unknown), &none, Cause::Killed),
            (LossCause::TimeLimit, &kernel, Cause::TimeLimit),
        ] {
            assert_eq!(cause(loss, evidence), expected, "{loss:?}");
        }
    }
}
