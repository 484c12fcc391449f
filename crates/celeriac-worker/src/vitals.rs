//! How a worker is, and what that means to whoever watches over it.
//!
//! Probes have the worker's own wheel take its [`Vitals`]: a wheel that does not turn gives no answer
//! at all, which is one. What they mean is decided here.

use std::time::Duration;

use celeriac_core::pool::Condition;
use tokio::sync::{mpsc, oneshot};

/// How long the broker may take for an answer before the worker counts as cut off.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);
/// Processes that die while they start, one after the other, are a crash loop from so many on.
const CRASH_LOOP: u32 = 3;
/// Probes that wait for the wheel; more than probes that are answered at a time.
const QUEUED: usize = 64;

/// How far a worker's life has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It starts, and waits for this.
    Starting(&'static str),
    /// It works.
    Working,
    /// It was told to end; so many tasks still run.
    Draining {
        /// Tasks that run.
        running: usize,
    },
    /// It can't go on, and ends when so many tasks have.
    Failed {
        /// Tasks that run.
        running: usize,
    },
}

/// What a worker knows of itself. Times are readings of its monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vitals {
    /// How far its life has come.
    pub life: Life,
    /// Since when it has a connection to the broker, or has none.
    pub connection: Connection,
    /// Whether what consumes has ended although the worker has not: nothing starts it again.
    pub consumer_is_gone: bool,
    /// Queues that it consumes from.
    pub queues: usize,
    /// The processes of each pool.
    pub pools: Vec<Condition>,
    /// Whether so many hooks wait for main that nothing is fetched.
    pub waits_for_main: bool,
}

/// The connection to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// There is none.
    Down {
        /// Since when.
        since: Duration,
    },
    /// There is one.
    Up {
        /// Since when the broker owes an answer, if it does.
        asked: Option<Duration>,
    },
}

/// What the vitals mean. An empty list of reasons is a yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Why only a restart can help.
    pub dead_because: Vec<String>,
    /// Why it does not run tasks that come.
    pub unready_because: Vec<String>,
    /// Why its start is not over.
    pub unstarted_because: Vec<String>,
}

impl Health {
    /// That of a worker which can't say more than that it starts, and waits for this.
    pub fn starting(awaited: &str) -> Self {
        let reason = format!("it is starting: {awaited}");
        Self {
            dead_because: Vec::new(),
            unready_because: vec![reason.clone()],
            unstarted_because: vec![reason],
        }
    }

    /// That of a worker which has done its work, and waits for the app's last words.
    pub fn leaving() -> Self {
        Self {
            dead_because: Vec::new(),
            unready_because: vec!["it has shut down, and leaves".to_owned()],
            unstarted_because: Vec::new(),
        }
    }
}

impl Vitals {
    /// What they mean at this time.
    pub fn health(&self, now: Duration) -> Health {
        Health {
            dead_because: self.dead_because(),
            unready_because: self.unready_because(now),
            unstarted_because: match self.life {
                Life::Starting(awaited) => vec![format!("it is starting: {awaited}")],
                _ => Vec::new(),
            },
        }
    }

    fn dead_because(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Life::Failed { running } = self.life {
            reasons.push(format!(
                "it can't go on, and ends when its {running} running tasks have"
            ));
        }
        // A worker that ends has its consumer end before it.
        if self.consumer_is_gone && self.life == Life::Working {
            reasons.push("its consumer has ended".to_owned());
        }
        reasons
    }

    fn unready_because(&self, now: Duration) -> Vec<String> {
        let mut reasons = self.dead_because();
        match self.life {
            Life::Starting(awaited) => reasons.push(format!("it is starting: {awaited}")),
            Life::Draining { running } => {
                reasons.push(format!("it is shutting down; {running} tasks still run"));
            }
            Life::Working | Life::Failed { .. } => {}
        }
        match self.connection {
            Connection::Down { since } => reasons.push(format!(
                "it has had no connection to the broker for {} s",
                now.saturating_sub(since).as_secs()
            )),
            Connection::Up { asked: Some(since) } if since + BROKER_PATIENCE <= now => {
                reasons.push(format!(
                    "the broker has owed an answer for {} s",
                    now.saturating_sub(since).as_secs()
                ));
            }
            Connection::Up { .. } => {}
        }
        if self.queues == 0 {
            reasons.push("it consumes from no queue".to_owned());
        }
        reasons.extend(self.pools.iter().filter_map(unready));
        if self.waits_for_main {
            reasons.push("the main process is behind: too many hooks wait for it".to_owned());
        }
        reasons
    }
}

/// Why a pool can run no task.
fn unready(pool: &Condition) -> Option<String> {
    let Condition {
        wanted,
        up,
        can_fork,
        failures,
    } = *pool;
    if failures >= CRASH_LOOP {
        let text = "processes of the pool died while they started";
        Some(format!("the last {failures} {text}"))
    } else if !can_fork {
        Some("there is no process yet that the pool's can be forked from".to_owned())
    } else if wanted > 0 && up == 0 {
        Some("no process of the pool is up".to_owned())
    } else {
        None
    }
}

/// Has the vitals of a worker taken. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Probe(mpsc::Sender<oneshot::Sender<Health>>);

/// The worker's end of its probes.
#[derive(Debug)]
pub struct Probes(mpsc::Receiver<oneshot::Sender<Health>>);

/// Both ends.
pub fn probes() -> (Probe, Probes) {
    let (ask, asked) = mpsc::channel(QUEUED);
    (Probe(ask), Probes(asked))
}

impl Probe {
    /// How the worker is; `None` when it has ended. Waits for the worker's wheel, for ever where
    /// that does not turn.
    pub async fn health(&self) -> Option<Health> {
        let (answer, health) = oneshot::channel();
        self.0.send(answer).await.ok()?;
        health.await.ok()
    }
}

impl Probes {
    /// The next that asks; for ever none where nobody can. Safe to cancel.
    pub(crate) async fn next(&mut self) -> oneshot::Sender<Health> {
        match self.0.recv().await {
            Some(asker) => asker,
            None => std::future::pending().await,
        }
    }

    /// Waits for something that is not the wheel's to hurry, and answers with `health` meanwhile.
    pub(crate) async fn during<T>(
        &mut self,
        health: &Health,
        waiting: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                biased;
                done = &mut waiting => return done,
                asker = self.next() => drop(asker.send(health.clone())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn ago(seconds: u64) -> Duration {
        NOW.saturating_sub(Duration::from_secs(seconds))
    }

    fn working() -> Vitals {
        Vitals {
            life: Life::Working,
            connection: Connection::Up { asked: None },
            consumer_is_gone: false,
            queues: 1,
            pools: vec![Condition {
                wanted: 4,
                up: 4,
                can_fork: true,
                failures: 0,
            }],
            waits_for_main: false,
        }
    }

    fn with(change: impl FnOnce(&mut Vitals)) -> Vitals {
        let mut vitals = working();
        change(&mut vitals);
        vitals
    }

    fn pool(wanted: usize, up: usize, can_fork: bool, failures: u32) -> Vitals {
        with(|vitals| {
            vitals.pools = vec![Condition {
                wanted,
                up,
                can_fork,
                failures,
            }];
        })
    }

    /// The vitals, whether the worker is alive, ready and started, and words of a reason.
    type Row = (Vitals, [bool; 3], &'static str);

    #[test]
    fn probes_mean_what_they_say() {
        let connection = |connection| with(|vitals| vitals.connection = connection);
        let life = |life| with(|vitals| vitals.life = life);
        let table: Vec<Row> = vec![
            (working(), [true, true, true], ""),
            (
                life(Life::Starting("it waits for the broker")),
                [true, false, false],
                "it waits for the broker",
            ),
            (
                life(Life::Draining { running: 3 }),
                [true, false, true],
                "shutting down; 3 tasks",
            ),
            (
                life(Life::Failed { running: 2 }),
                [false, false, true],
                "can't go on",
            ),
            // That the broker is down is nothing that a restart mends.
            (
                connection(Connection::Down { since: ago(300) }),
                [true, false, true],
                "no connection to the broker for 300 s",
            ),
            (
                connection(Connection::Up {
                    asked: Some(ago(9)),
                }),
                [true, true, true],
                "",
            ),
            (
                connection(Connection::Up {
                    asked: Some(ago(10)),
                }),
                [true, false, true],
                "owed an answer for 10 s",
            ),
            (
                with(|vitals| vitals.consumer_is_gone = true),
                [false, false, true],
                "consumer has ended",
            ),
            (
                with(|vitals| vitals.queues = 0),
                [true, false, true],
                "no queue",
            ),
            // One of four is enough to run tasks.
            (pool(4, 1, true, 2), [true, true, true], ""),
            (pool(4, 0, true, 0), [true, false, true], "no process"),
            (pool(4, 1, true, 3), [true, false, true], "the last 3"),
            (pool(4, 4, false, 0), [true, false, true], "forked from"),
            // A pool that is scaled down to nothing is as it was asked to be.
            (pool(0, 0, true, 0), [true, true, true], ""),
            (
                with(|vitals| vitals.waits_for_main = true),
                [true, false, true],
                "main process is behind",
            ),
        ];
        for (vitals, expected, words) in table {
            let health = vitals.health(NOW);
            let found = [
                &health.dead_because,
                &health.unready_because,
                &health.unstarted_because,
            ]
            .map(Vec::is_empty);
            assert_eq!(found, expected, "{vitals:?}");
            let said = health.unready_because.join("; ");
            assert!(said.contains(words), "{said}");
            assert_eq!(said.is_empty(), words.is_empty(), "{said}");
        }
    }

    #[test]
    fn every_reason_is_told() {
        let vitals = Vitals {
            life: Life::Draining { running: 0 },
            connection: Connection::Down { since: ago(1) },
            queues: 0,
            ..pool(1, 0, true, 5)
        };
        assert_eq!(vitals.health(NOW).unready_because.len(), 4);
    }

    #[tokio::test]
    async fn who_waits_for_something_else_answers_all_the_same() {
        let (probe, mut probes) = probes();
        let health = working().health(NOW);
        let asking = async { probe.health().await };
        let asked = probes.during(&health, asking).await;
        assert_eq!(asked, Some(health));
        drop(probes);
        assert_eq!(probe.health().await, None, "the worker has ended");
    }
}
