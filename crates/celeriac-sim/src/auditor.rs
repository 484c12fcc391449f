//! Holds what is true of the world, and says what must not be.
//!
//! Each published message has a serial number of its own, by which it is known wherever it goes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio::time::Instant;

use crate::process::ProcessId;

pub(crate) type Serial = u64;

/// How often a message may be fetched: one that is given back can be fetched again at once.
const CLAIMS: usize = 2000;

/// How a run ended in its child, which has done what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Success,
    Failure,
    Retry,
    Ignore,
    Reject,
    /// It rejected its message, and wants it to run again.
    Requeue,
    /// It ended its process: that is a loss.
    Left,
}

impl Finish {
    fn is_final(self) -> bool {
        !matches!(self, Self::Requeue | Self::Left)
    }
}

/// One run of a message's task.
#[derive(Debug)]
struct Run {
    process: ProcessId,
    /// When its worker had fetched the message.
    claimed: Instant,
    finish: Option<Finish>,
    /// Its child reported it, or is dead.
    is_over: bool,
    /// Its child was dead before it could report.
    died: bool,
}

/// What is known of a message.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) id: String,
    pub(crate) task: &'static str,
    pub(crate) is_late: bool,
    pub(crate) ignores_result: bool,
    pub(crate) retries: u32,
    pub(crate) eta: Option<Timestamp>,
    pub(crate) expires: Option<Timestamp>,
    runs: Vec<Run>,
    /// What became of it, when that is stored.
    outcome: Option<&'static str>,
    /// A hook about it failed: it did not do what it was to do.
    hook_failed: bool,
    /// Who had it removed from the broker.
    gone: Option<ProcessId>,
    claims: Vec<(ProcessId, Instant)>,
    /// From whom the broker took it back without being asked, because of a fault.
    taken_back: Vec<(ProcessId, Instant)>,
}

#[derive(Debug, Default)]
pub(crate) struct Auditor {
    lives: BTreeMap<Serial, Life>,
    /// Ids of tasks whose success is stored.
    successes: BTreeSet<String>,
    revoked: BTreeSet<String>,
    /// The first thing that must not be.
    violation: Option<String>,
    pub(crate) begun: usize,
    pub(crate) repeated: usize,
}

impl Auditor {
    pub(crate) fn accuse(&mut self, text: impl Into<String>) {
        self.violation.get_or_insert(text.into());
    }

    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub(crate) fn life(&mut self, serial: Serial) -> &mut Life {
        self.lives.get_mut(&serial).expect("it was published")
    }

    pub(crate) fn published(&mut self, serial: Serial, life: Life) {
        self.lives.insert(serial, life);
    }

    pub(crate) fn revoked(&mut self, id: String) {
        self.revoked.insert(id);
    }

    /// Ids of tasks that may be there.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let is_unfinished = |life: &&Life| life.gone.is_none();
        let unfinished = self.lives.values().filter(is_unfinished);
        unfinished.map(|life| life.id.clone()).collect()
    }

    pub(crate) fn claimed(&mut self, serial: Serial, by: ProcessId) {
        let life = self.lives.get_mut(&serial).expect("it was published");
        life.claims.push((by, Instant::now()));
        if life.claims.len() > CLAIMS {
            self.accuse(format!("message {serial} goes to and fro"));
        }
    }

    /// The broker gives a message to somebody else, for its worker is not to be seen.
    pub(crate) fn taken_back(&mut self, serial: Serial, from: ProcessId) {
        self.life(serial).taken_back.push((from, Instant::now()));
    }

    /// A child begins to run a message's task; answers with the number of the run.
    pub(crate) fn begins(
        &mut self,
        serial: Serial,
        process: ProcessId,
        latest: Timestamp,
        is_leased: bool,
    ) -> usize {
        self.begun += 1;
        let life = self.lives.get_mut(&serial).expect("it was published");
        let mut wrong = None;
        if life.eta.is_some_and(|eta| eta > latest) {
            wrong = Some("begins before its ETA".to_owned());
        }
        let mut claims = life.claims.iter().rev();
        let claimed = claims.find(|(by, _)| *by == process).map(|(_, at)| *at);
        if claimed.is_none() {
            wrong = Some("begins where it never came".to_owned());
        }
        for (number, run) in life.runs.iter().enumerate() {
            let is_lost =
                |(from, at): &(ProcessId, Instant)| *from == run.process && *at >= run.claimed;
            let was_taken_back = life.taken_back.iter().any(is_lost);
            // Over connections that take their messages along, the worker has to notice by itself
            // that it knows a message.
            let must_know = !is_leased && run.process == process && !run.died && !life.hook_failed;
            let excused = was_taken_back && !must_know;
            let name = format!("run {number} in {}", run.process);
            if !run.is_over && !excused {
                wrong = Some(format!("begins while it runs: {name}"));
            } else if run.finish.is_some_and(Finish::is_final) && !excused {
                // Its end was not heard of. That of a success is asked for.
                let is_known = run.finish == Some(Finish::Success) && !life.ignores_result;
                if !run.died || is_known && !life.hook_failed {
                    wrong = Some(format!("begins again though it has ended: {name}"));
                }
            } else if !life.is_late && !was_taken_back {
                wrong = Some(format!("begins again though it acknowledges early: {name}"));
            }
        }
        self.repeated += usize::from(!life.runs.is_empty());
        life.runs.push(Run {
            process,
            claimed: claimed.unwrap_or_else(Instant::now),
            finish: None,
            is_over: false,
            died: false,
        });
        let number = life.runs.len() - 1;
        if let Some(wrong) = wrong {
            let task = life.task;
            self.accuse(format!("message {serial} ({task}) {wrong}"));
        }
        number
    }

    /// A run has ended, and its child has stored what came of it.
    pub(crate) fn finishes(&mut self, serial: Serial, run: usize, finish: Finish) {
        let life = self.lives.get_mut(&serial).expect("it was published");
        life.runs[run].finish = Some(finish);
        // What asks to run again after its message was acknowledged has asked too late.
        if finish.is_final() || finish == Finish::Requeue && !life.is_late {
            life.outcome.get_or_insert("stored by its run");
        }
        if finish == Finish::Success && !life.ignores_result {
            self.successes.insert(life.id.clone());
        }
    }

    /// A run's child has told of its end.
    pub(crate) fn reported(&mut self, serial: Serial, run: usize) {
        self.life(serial).runs[run].is_over = true;
    }

    /// A run's child is dead.
    pub(crate) fn died(&mut self, serial: Serial, run: usize) {
        let run = &mut self.life(serial).runs[run];
        run.is_over = true;
        run.died = true;
    }

    pub(crate) fn has_succeeded(&mut self, serial: Serial) -> bool {
        let id = &self.lives[&serial].id;
        self.successes.contains(id)
    }

    /// Main stores what became of a message.
    pub(crate) fn stored(&mut self, serial: Serial, outcome: &'static str) {
        self.life(serial).outcome.get_or_insert(outcome);
    }

    /// A dead letter of this id is stored.
    pub(crate) fn buried(&mut self, id: &str) {
        for life in self.lives.values_mut() {
            if life.id == id && life.gone.is_none() {
                life.outcome.get_or_insert("dead letter");
            }
        }
    }

    /// A message is discarded, for the reason that is stored.
    pub(crate) fn discarded(&mut self, serial: Serial, reason: &str, latest: Timestamp) {
        let life = self.lives.get_mut(&serial).expect("it was published");
        life.outcome.get_or_insert("discarded");
        let has_expired = life.expires.is_some_and(|at| at <= latest);
        if reason == "expired" && has_expired {
            // From now on it counts as revoked.
            self.revoked.insert(life.id.clone());
        } else if reason == "expired" || !self.revoked.contains(&life.id) {
            self.accuse(format!("message {serial} is discarded as {reason}"));
        }
    }

    pub(crate) fn hook_failed(&mut self, serial: Serial) {
        self.life(serial).hook_failed = true;
    }

    /// The broker removes a message, as a worker told it.
    pub(crate) fn gone(&mut self, serial: Serial, by: ProcessId) {
        let life = self.lives.get_mut(&serial).expect("it was published");
        // Messages that were sent again share an id, and what is stored by it.
        let is_stored = life.outcome.is_some() || self.successes.contains(&life.id);
        if life.gone.replace(by).is_some() {
            self.accuse(format!("message {serial} is removed twice"));
        } else if life.is_late && !is_stored && !life.hook_failed {
            let task = life.task;
            self.accuse(format!(
                "message {serial} ({task}) is removed by {by}, and no outcome is stored"
            ));
        }
    }

    /// All messages up to `last` are done with: are they?
    pub(crate) fn closes(&mut self, last: Serial, was_killed: impl Fn(ProcessId) -> bool) {
        let mut wrong = None;
        for (serial, life) in self.lives.range(..=last) {
            let task = life.task;
            let is_stored = life.outcome.is_some() || self.successes.contains(&life.id);
            match life.gone {
                None => wrong = Some(format!("message {serial} ({task}) is lost")),
                // What is acknowledged early is lost with its worker.
                Some(by)
                    if !is_stored && !life.hook_failed && (life.is_late || !was_killed(by)) =>
                {
                    wrong = Some(format!("message {serial} ({task}) came to no end in {by}"));
                }
                Some(_) => {}
            }
        }
        if let Some(wrong) = wrong {
            self.accuse(wrong);
        }
    }
}

impl Life {
    pub(crate) fn new(id: String, task: &'static str) -> Self {
        Self {
            id,
            task,
            is_late: task != "early" && !task.starts_with("early."),
            ignores_result: task == "late.ignored",
            retries: 0,
            eta: None,
            expires: None,
            runs: Vec::new(),
            outcome: None,
            hook_failed: false,
            gone: None,
            claims: Vec::new(),
            taken_back: Vec::new(),
        }
    }
}
