//! What signals do to a worker.
//!
//! Celery's counterpart: the handlers of `celery.apps.worker`. The [`Deadline`] is ours.

use std::time::Duration;

/// Signals that a worker reacts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT, Ctrl+C.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGHUP of a worker without a terminal.
    Hangup,
    /// The control command `shutdown`.
    Remote,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Hangup => "SIGHUP",
            Self::Remote => "shutdown",
        }
    }
}

/// What is to be done about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Show this on standard output.
    Print(&'static str),
    /// Send `worker_shutting_down`.
    Announce {
        /// The signal's name.
        sig: &'static str,
        /// `Warm` or `Cold`.
        how: &'static str,
        /// What Celery would say the worker exits with.
        exitcode: i32,
    },
    /// Take no more messages; wait for running tasks.
    Warm,
    /// Wait a while for running tasks, if that is configured, then stop them.
    SoftThenCold,
    /// Stop running tasks now.
    Cold,
    /// Raise the soft time limit's exception in the tasks that still run.
    RaiseSoftLimits,
    /// End the processes of the tasks that still run.
    EndTasks,
    /// Leave everything and exit with this status.
    ExitNow(i32),
}

/// How far a shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// There is none.
    #[default]
    Running,
    /// Waiting for running tasks without end.
    Warm,
    /// Waiting for running tasks for a while.
    Soft,
    /// Running tasks are being stopped.
    Cold,
}

/// How long a warm shutdown waits for running tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// From the first signal until the soft time limit's exception is raised in them.
    pub patience: Duration,
    /// From then on until their processes are ended, and from that until the worker leaves
    /// whatever may still be to do.
    pub grace: Duration,
}

impl Deadline {
    /// What the end of a worker may take beyond its tasks, where all of it has to fit a given time.
    const REST: Duration = Duration::from_secs(10);

    /// Tasks have this time; then they have 5 s to clean up.
    pub fn after(patience: Duration) -> Self {
        Self {
            patience,
            grace: Self::REST / 2,
        }
    }

    /// All is over within this time: a third of it, at most 10 s, is kept for cleaning up, for
    /// leaving the broker, and for the app's exit handlers.
    pub fn within(total: Duration) -> Self {
        let rest = (total / 3).min(Self::REST);
        Self {
            patience: total.saturating_sub(rest),
            grace: rest / 3,
        }
    }
}

/// The state that decides what the next signal does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shutdown {
    phase: Phase,
    exit_status: i32,
    was_interrupted: bool,
    restarts: bool,
    /// `REMAP_SIGTERM=SIGQUIT`
    term_is_quit: bool,
    deadline: Option<Deadline>,
    /// What comes next of the deadline, and when.
    due: Option<(Duration, Order)>,
    is_overdue: bool,
}

const AGAIN_COLD: &str =
    "worker: Hitting Ctrl+C again will initiate cold shutdown, terminating all running tasks!";
const AGAIN_TERMINATE: &str = "worker: Hitting Ctrl+C again will terminate all running tasks!";
const WARM: &str = "worker: Warm shutdown (MainProcess)";
const COLD: &str = "worker: Cold shutdown (MainProcess)";

impl Shutdown {
    /// A worker that runs. `term_is_quit` is true where `REMAP_SIGTERM` names SIGQUIT; without a
    /// `deadline` a warm shutdown waits without end, as in Celery.
    pub fn new(term_is_quit: bool, deadline: Option<Deadline>) -> Self {
        Self {
            term_is_quit,
            deadline,
            ..Self::default()
        }
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What the worker exits with when it is done.
    pub fn exit_status(&self) -> i32 {
        self.exit_status
    }

    /// The app asks for another status.
    pub fn exit_with(&mut self, status: i32) {
        self.exit_status = status;
    }

    /// Whether the worker is to begin anew when it is done.
    pub fn restarts(&self) -> bool {
        self.restarts
    }

    /// The time for tasks to finish is over.
    pub fn soft_wait_is_over(&mut self) {
        if self.phase == Phase::Soft {
            self.phase = Phase::Cold;
        }
    }

    /// Whether the processes of tasks were ended because the deadline is over.
    pub fn is_overdue(&self) -> bool {
        self.is_overdue
    }

    /// When [`Shutdown::came_due`] has something to say, by the monotonic clock.
    pub fn next_due(&self) -> Option<Duration> {
        self.due.map(|(at, _)| at)
    }

    /// When the worker leaves whatever may still be to do, if there is a deadline.
    pub fn leaves_by(&self) -> Option<Duration> {
        let (at, order) = self.due?;
        let graces = match order {
            Order::RaiseSoftLimits => 2,
            Order::EndTasks => 1,
            _ => 0,
        };
        at.checked_add(self.deadline?.grace.saturating_mul(graces))
    }

    /// What the deadline asks for at this time; to be asked until there is nothing more.
    pub fn came_due(&mut self, now: Duration) -> Option<Order> {
        let (_, order) = self.due.filter(|(at, _)| *at <= now)?;
        let next = match order {
            Order::RaiseSoftLimits => Some(Order::EndTasks),
            Order::EndTasks => {
                self.is_overdue = true;
                Some(Order::ExitNow(self.exit_status))
            }
            _ => None,
        };
        let grace = self
            .deadline
            .map_or(Duration::ZERO, |deadline| deadline.grace);
        self.due = next.and_then(|next| Some((now.checked_add(grace)?, next)));
        Some(order)
    }

    /// The worker can't go on.
    pub fn fail(&mut self, now: Duration) -> Vec<Order> {
        self.exit_status = 1;
        if self.phase != Phase::Running {
            return Vec::new();
        }
        self.begin_warm(now);
        vec![Order::Warm]
    }

    fn begin_warm(&mut self, now: Duration) {
        self.phase = Phase::Warm;
        self.due = self
            .deadline
            .and_then(|deadline| now.checked_add(deadline.patience))
            .map(|at| (at, Order::RaiseSoftLimits));
    }

    /// A signal has come.
    pub fn signal(&mut self, signal: Signal, now: Duration) -> Vec<Order> {
        let is_quit = signal == Signal::Quit || (signal == Signal::Terminate && self.term_is_quit);
        let is_second_interrupt =
            signal == Signal::Interrupt && (self.was_interrupted || self.phase >= Phase::Soft);
        if is_quit || is_second_interrupt {
            return self.cold(signal);
        }
        if self.phase >= Phase::Soft {
            return vec![Order::Print(WARM)];
        }
        let mut orders = Vec::new();
        let mut exit_status = 0;
        match signal {
            Signal::Interrupt => {
                self.was_interrupted = true;
                exit_status = 1;
                orders.push(Order::Print(AGAIN_COLD));
            }
            Signal::Hangup => self.restarts = true,
            _ => {}
        }
        // Celery says nothing of the others.
        if !matches!(signal, Signal::Hangup | Signal::Remote) {
            orders.push(Order::Print(WARM));
            orders.push(Order::Announce {
                sig: signal.name(),
                how: "Warm",
                exitcode: exit_status,
            });
        }
        if self.phase == Phase::Running {
            self.begin_warm(now);
            self.exit_status = exit_status;
            orders.push(Order::Warm);
        }
        orders
    }

    fn cold(&mut self, signal: Signal) -> Vec<Order> {
        match self.phase {
            Phase::Running | Phase::Warm => {
                self.phase = Phase::Soft;
                // A cold shutdown has a patience of its own.
                self.due = None;
                // Celery's flag for a failure does not survive its own termination: it exits
                // with 0 here.
                self.exit_status = 0;
                let mut orders = vec![Order::Print(AGAIN_TERMINATE), Order::SoftThenCold];
                if signal != Signal::Interrupt {
                    orders.push(Order::Print(COLD));
                }
                orders.push(Order::Announce {
                    sig: signal.name(),
                    how: "Cold",
                    exitcode: 1,
                });
                orders
            }
            Phase::Soft => {
                self.phase = Phase::Cold;
                vec![Order::Cold]
            }
            Phase::Cold => vec![Order::ExitNow(1)],
        }
    }
}

impl PartialOrd for Phase {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((*self as u8).cmp(&(*other as u8)))
    }
}

#[cfg(test)]
mod tests {
    use super::Signal::{Hangup, Interrupt, Quit, Terminate};
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const SECOND: Duration = Duration::from_secs(1);

    fn after(signals: &[Signal]) -> (Shutdown, Vec<Order>) {
        let mut shutdown = Shutdown::default();
        let orders = signals
            .iter()
            .flat_map(|signal| shutdown.signal(*signal, NOW))
            .collect();
        (shutdown, orders)
    }

    #[test]
    fn exit_statuses_are_celerys() {
        for (signals, status) in [
            (&[Terminate][..], 0),
            (&[Terminate, Terminate], 0),
            (&[Interrupt], 1),
            (&[Interrupt, Interrupt], 0),
            (&[Quit], 0),
            (&[Terminate, Quit], 0),
        ] {
            assert_eq!(after(signals).0.exit_status(), status, "{signals:?}");
        }
    }

    #[test]
    fn a_second_interrupt_is_cold_and_a_second_term_is_nothing() {
        let warm = |orders: &[Order]| orders.iter().filter(|o| **o == Order::Warm).count();
        let (shutdown, orders) = after(&[Terminate, Terminate]);
        assert_eq!((shutdown.phase(), warm(&orders)), (Phase::Warm, 1));
        let (shutdown, orders) = after(&[Interrupt, Interrupt]);
        assert_eq!(shutdown.phase(), Phase::Soft);
        assert!(orders.contains(&Order::SoftThenCold));
        assert!(
            !orders.contains(&Order::Print(COLD)),
            "Celery says nothing here"
        );
        let (shutdown, _) = after(&[Terminate, Interrupt]);
        assert_eq!(shutdown.phase(), Phase::Warm, "the first Ctrl+C only warns");
        let (shutdown, _) = after(&[Terminate, Interrupt, Interrupt]);
        assert_eq!(shutdown.phase(), Phase::Soft);
    }

    #[test]
    fn patience_ends_with_further_signals() {
        let (_, orders) = after(&[Quit, Quit]);
        assert_eq!(orders.last(), Some(&Order::Cold));
        let (_, orders) = after(&[Quit, Interrupt, Quit]);
        assert_eq!(orders.last(), Some(&Order::ExitNow(1)));
        let (mut shutdown, _) = after(&[Quit]);
        shutdown.soft_wait_is_over();
        assert_eq!(shutdown.phase(), Phase::Cold);
        assert_eq!(shutdown.signal(Interrupt, NOW), [Order::ExitNow(1)]);
    }

    #[test]
    fn words_and_announcements_are_celerys() {
        assert_eq!(
            after(&[Interrupt]).1,
            [
                Order::Print(AGAIN_COLD),
                Order::Print(WARM),
                Order::Announce {
                    sig: "SIGINT",
                    how: "Warm",
                    exitcode: 1
                },
                Order::Warm,
            ]
        );
        assert_eq!(
            after(&[Quit]).1,
            [
                Order::Print(AGAIN_TERMINATE),
                Order::SoftThenCold,
                Order::Print(COLD),
                Order::Announce {
                    sig: "SIGQUIT",
                    how: "Cold",
                    exitcode: 1
                },
            ]
        );
    }

    #[test]
    fn a_worker_that_cannot_go_on_exits_with_1() {
        let mut shutdown = Shutdown::default();
        assert_eq!(shutdown.fail(NOW), [Order::Warm]);
        assert_eq!((shutdown.fail(NOW), shutdown.exit_status()), (vec![], 1));
    }

    #[test]
    fn term_may_mean_quit_and_hup_restarts() {
        let mut shutdown = Shutdown::new(true, None);
        assert!(
            shutdown
                .signal(Terminate, NOW)
                .contains(&Order::SoftThenCold)
        );
        let (shutdown, orders) = after(&[Hangup]);
        assert!(shutdown.restarts());
        assert_eq!(orders, [Order::Warm]);
    }

    /// What a deadline of 20 s asks for, and how many seconds after the first signal.
    fn asked_for(mut shutdown: Shutdown) -> Vec<(u64, Order)> {
        let mut asked = Vec::new();
        let end = shutdown.leaves_by();
        while let Some(at) = shutdown.next_due() {
            assert_eq!(shutdown.leaves_by(), end);
            let before = at.saturating_sub(Duration::from_millis(1));
            assert_eq!(shutdown.came_due(before), None);
            let order = shutdown.came_due(at).unwrap();
            asked.push((at.saturating_sub(NOW).as_secs(), order));
        }
        asked
    }

    #[test]
    fn a_deadline_ends_a_warm_shutdown_whatever_began_it() {
        use Order::{EndTasks, ExitNow, RaiseSoftLimits};
        let all = |status| vec![(20, RaiseSoftLimits), (25, EndTasks), (30, ExitNow(status))];
        for (signals, expected) in [
            (&[Terminate][..], all(0)),
            (&[Terminate, Terminate], all(0)),
            (&[Terminate, Interrupt], all(0)),
            (&[Interrupt], all(1)),
            (&[Signal::Remote], all(0)),
            (&[Hangup], all(0)),
            (&[Quit], vec![]),
            (&[Terminate, Quit], vec![]),
            (&[Interrupt, Interrupt], vec![]),
        ] {
            for deadline in [Some(Deadline::after(20 * SECOND)), None] {
                let mut shutdown = Shutdown::new(false, deadline);
                for (second, signal) in (0..).zip(signals) {
                    shutdown.signal(*signal, NOW + second * SECOND);
                }
                let expected = deadline.map_or(vec![], |_| expected.clone());
                assert_eq!(asked_for(shutdown), expected, "{signals:?} {deadline:?}");
            }
        }
        let mut failed = Shutdown::new(false, Some(Deadline::after(20 * SECOND)));
        failed.fail(NOW);
        assert_eq!(asked_for(failed), all(1));
    }

    #[test]
    fn a_worker_is_overdue_when_its_tasks_were_ended() {
        let mut shutdown = Shutdown::new(false, Some(Deadline::after(20 * SECOND)));
        shutdown.signal(Terminate, NOW);
        for (seconds, is_overdue) in [(20, false), (25, true)] {
            shutdown.came_due(NOW + seconds * SECOND).unwrap();
            assert_eq!(shutdown.is_overdue(), is_overdue, "{seconds}");
            assert_eq!(shutdown.phase(), Phase::Warm, "it says goodbye in order");
        }
        // A cold shutdown takes over, even now.
        let orders = shutdown.signal(Quit, NOW + 26 * SECOND);
        assert!(orders.contains(&Order::SoftThenCold));
        assert_eq!(shutdown.next_due(), None);
    }

    #[test]
    fn a_deadline_within_a_given_time_leaves_room_for_the_rest() {
        for (total, patience, grace) in [
            (30 * SECOND, 20 * SECOND, 10 * SECOND / 3),
            (600 * SECOND, 590 * SECOND, 10 * SECOND / 3),
            (9 * SECOND, 6 * SECOND, SECOND),
            (Duration::ZERO, Duration::ZERO, Duration::ZERO),
        ] {
            assert_eq!(Deadline::within(total), Deadline { patience, grace });
        }
        // Longer than any clock runs: as without one.
        let mut shutdown = Shutdown::new(false, Some(Deadline::after(Duration::MAX)));
        shutdown.signal(Terminate, NOW);
        assert_eq!(shutdown.next_due(), None);
    }
}
