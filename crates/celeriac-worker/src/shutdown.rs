//! What signals do to a worker.
//!
//! Celery's counterpart: the handlers of `celery.apps.worker`.

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

/// The state that decides what the next signal does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shutdown {
    phase: Phase,
    exit_status: i32,
    was_interrupted: bool,
    restarts: bool,
    /// `REMAP_SIGTERM=SIGQUIT`
    term_is_quit: bool,
}

const AGAIN_COLD: &str =
    "worker: Hitting Ctrl+C again will initiate cold shutdown, terminating all running tasks!";
const AGAIN_TERMINATE: &str = "worker: Hitting Ctrl+C again will terminate all running tasks!";
const WARM: &str = "worker: Warm shutdown (MainProcess)";
const COLD: &str = "worker: Cold shutdown (MainProcess)";

impl Shutdown {
    /// A worker that runs. `term_is_quit` is true where `REMAP_SIGTERM` names SIGQUIT.
    pub fn new(term_is_quit: bool) -> Self {
        Self {
            term_is_quit,
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

    /// The worker can't go on.
    pub fn fail(&mut self) -> Vec<Order> {
        self.exit_status = 1;
        if self.phase != Phase::Running {
            return Vec::new();
        }
        self.phase = Phase::Warm;
        vec![Order::Warm]
    }

    /// A signal has come.
    pub fn signal(&mut self, signal: Signal) -> Vec<Order> {
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
            self.phase = Phase::Warm;
            self.exit_status = exit_status;
            orders.push(Order::Warm);
        }
        orders
    }

    fn cold(&mut self, signal: Signal) -> Vec<Order> {
        match self.phase {
            Phase::Running | Phase::Warm => {
                self.phase = Phase::Soft;
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

    fn after(signals: &[Signal]) -> (Shutdown, Vec<Order>) {
        let mut shutdown = Shutdown::default();
        let orders = signals
            .iter()
            .flat_map(|signal| shutdown.signal(*signal))
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
        assert_eq!(shutdown.signal(Interrupt), [Order::ExitNow(1)]);
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
        assert_eq!(shutdown.fail(), [Order::Warm]);
        assert_eq!((shutdown.fail(), shutdown.exit_status()), (vec![], 1));
    }

    #[test]
    fn term_may_mean_quit_and_hup_restarts() {
        let mut shutdown = Shutdown::new(true);
        assert!(shutdown.signal(Terminate).contains(&Order::SoftThenCold));
        let (shutdown, orders) = after(&[Hangup]);
        assert!(shutdown.restarts());
        assert_eq!(orders, [Order::Warm]);
    }
}
