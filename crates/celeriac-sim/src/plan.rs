//! What a seed decides: the broker, the workers, the tasks, and what breaks how often.

use std::time::Duration;

use celeriac_config::TaskOptions;

use crate::chance::Chance;

/// How a broker keeps what it has handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Claims under a lease, each with a tag of its own. The loss of a lease is told late.
    Redis,
    /// Claims under a lease; the tag is the message's own number.
    Sql,
    /// Deliveries that are bound to their connection.
    Amqp,
}

/// Something that is wrong on purpose: the auditor has to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The broker loses what it takes back from a dead worker.
    RestoreLoses,
    /// The broker hands out a message that somebody has.
    DeliversTwice,
    /// The broker forgets acknowledgements.
    AcksVanish,
    /// Messages are acknowledged when they are fetched.
    AcksEarly,
    /// Children report before they have stored the outcome.
    ReportsEarly,
    /// Signs of life are not given.
    NoSignOfLife,
    /// The workers' clocks are ahead of the time.
    ClockAhead,
    /// The worker takes the tags of a broker for such as outlive connections that do not.
    TagsOutlive,
    /// Messages are given to nobody.
    Silence,
}

/// How often what breaks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Probabilities for each command: the connection is lost, or the answer takes for ever.
    pub(crate) command: f64,
    pub(crate) hang: f64,
    pub(crate) slow: f64,
    /// For each run, and each start of a process.
    pub(crate) child: f64,
    /// For each call of a hook: it raises, or takes long.
    pub(crate) hook: f64,
    pub(crate) slow_hook: f64,
    /// Means of the time between two of them.
    pub(crate) kill: Option<Duration>,
    pub(crate) pause: Option<Duration>,
    pub(crate) clock: Option<Duration>,
    pub(crate) restart: Option<Duration>,
    pub(crate) main: Option<Duration>,
    pub(crate) zygote: Option<Duration>,
    pub(crate) stop: Option<Duration>,
    pub(crate) command_of_operator: Option<Duration>,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) family: Family,
    pub(crate) workers: usize,
    pub(crate) processes: usize,
    pub(crate) autoscale: Option<usize>,
    pub(crate) max_tasks_per_child: Option<u64>,
    pub(crate) messages: usize,
    /// How long things break.
    pub(crate) chaos: Duration,
    pub(crate) faults: Faults,
    /// Whether there are tasks that take less than a round trip.
    pub(crate) has_short_tasks: bool,
    pub(crate) signals_received: bool,
    pub(crate) keeps_revokes: bool,
    /// Whether there are a delay store and dead letters.
    pub(crate) has_store: bool,
    /// Whether a warm shutdown has a deadline.
    pub(crate) has_deadline: bool,
    pub(crate) cancels_on_loss: bool,
    pub(crate) held_limit: Option<usize>,
    pub(crate) soft_shutdown: Duration,
    pub(crate) mutation: Option<Mutation>,
}

impl Plan {
    pub(crate) fn new(chance: &mut Chance, mutation: Option<Mutation>) -> Self {
        let family = match mutation {
            Some(Mutation::NoSignOfLife | Mutation::RestoreLoses) => Family::Sql,
            Some(Mutation::TagsOutlive) => Family::Amqp,
            _ => chance.pick(&[Family::Redis, Family::Sql, Family::Amqp]),
        };
        let is_calm = chance.happens(0.05);
        let on = |chance: &mut Chance| !is_calm && chance.happens(0.35);
        let every = |chance: &mut Chance, least: usize, most: usize| {
            let mean = chance.ms(least * 1000, most * 1000);
            (!is_calm && chance.happens(0.35)).then_some(mean)
        };
        let mut faults = Faults {
            kill: every(chance, 8, 40),
            pause: every(chance, 10, 40),
            clock: every(chance, 5, 30),
            restart: every(chance, 15, 60),
            main: every(chance, 3, 30),
            zygote: every(chance, 10, 40),
            stop: every(chance, 10, 40),
            command_of_operator: every(chance, 1, 10),
            ..Faults::default()
        };
        for (rate, most) in [
            (&mut faults.command, 0.05),
            (&mut faults.hang, 0.01),
            (&mut faults.slow, 0.1),
            (&mut faults.child, 0.2),
            (&mut faults.hook, 0.1),
            (&mut faults.slow_hook, 0.2),
        ] {
            if on(chance) {
                *rate = most * (1 + chance.below(10)) as f64 / 10.0;
            }
        }
        if mutation == Some(Mutation::RestoreLoses) {
            faults.kill = Some(Duration::from_secs(10));
        }
        if mutation == Some(Mutation::TagsOutlive) {
            faults.command = 0.05;
        }
        Self {
            family,
            workers: 1 + chance.below(3),
            processes: 1 + chance.below(3),
            autoscale: chance.happens(0.15).then(|| 1 + chance.below(4)),
            max_tasks_per_child: chance.happens(0.2).then(|| 1 + chance.below(4) as u64),
            messages: 10 + chance.below(40),
            chaos: chance.ms(20_000, 60_000),
            faults,
            has_short_tasks: chance.happens(0.5),
            signals_received: chance.happens(0.2),
            keeps_revokes: chance.happens(0.3),
            has_store: chance.happens(0.7),
            has_deadline: chance.happens(0.4),
            cancels_on_loss: chance.happens(0.15),
            held_limit: chance.happens(0.2).then(|| 1 + chance.below(5)),
            soft_shutdown: chance.pick(&[Duration::ZERO, Duration::from_secs(2)]),
            mutation,
        }
    }

    pub(crate) fn is_leased(&self) -> bool {
        self.family != Family::Amqp
    }

    pub(crate) fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

/// The tasks of the simulated app.
pub(crate) fn tasks() -> Vec<(&'static str, TaskOptions)> {
    let late = TaskOptions {
        acks_late: true,
        send_events: false,
        ..TaskOptions::default()
    };
    let early = TaskOptions {
        acks_late: false,
        ..late.clone()
    };
    vec![
        ("late", late.clone()),
        ("early", early.clone()),
        (
            "late.again",
            TaskOptions {
                reject_on_worker_lost: true,
                ..late.clone()
            },
        ),
        (
            "late.strict",
            TaskOptions {
                reject_on_worker_lost: true,
                acks_on_failure: false,
                acks_on_timeout: false,
                time_limit: Some(2.into()),
                ..late.clone()
            },
        ),
        (
            "late.timed",
            TaskOptions {
                soft_time_limit: Some(1.into()),
                time_limit: Some(2.into()),
                ..late.clone()
            },
        ),
        (
            "late.ignored",
            TaskOptions {
                reject_on_worker_lost: true,
                ignore_result: true,
                ..late.clone()
            },
        ),
        (
            "late.limited",
            TaskOptions {
                rate_limit: Some("3/s".to_owned()),
                ..late
            },
        ),
        (
            "early.sent.again",
            TaskOptions {
                retry_on_worker_lost: true,
                max_retries: Some(3),
                ..early.clone()
            },
        ),
        (
            "early.limited",
            TaskOptions {
                rate_limit: Some("60/m".to_owned()),
                time_limit: Some(2.into()),
                ..early
            },
        ),
    ]
}

/// A task that no worker knows.
pub(crate) const UNKNOWN: &str = "unknown";
