//! Which broker to try next, and when.
//!
//! Celery's counterpart: `kombu.Connection.ensure_connection` with its `failover_strategy`.

use std::time::Duration;

use celeriac_core::backoff::Linear;

/// How brokers take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// In the order in which they are configured.
    RoundRobin,
    /// In a new order each time round.
    Shuffle,
}

impl Strategy {
    /// The strategy that `broker_failover_strategy` names; what is unknown is round robin.
    pub fn named(name: &str) -> Self {
        if name == "shuffle" {
            Self::Shuffle
        } else {
            Self::RoundRobin
        }
    }
}

/// What to do about attempts that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Try again when the first connection of all fails (`broker_connection_retry_on_startup`).
    pub on_startup: bool,
    /// Connect again when the connection is lost (`broker_connection_retry`).
    pub when_lost: bool,
    /// Attempts before it is given up (`broker_connection_max_retries`); `None` never.
    pub max_retries: Option<u32>,
}

/// What comes after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try the next broker at once.
    Failover,
    /// Try again after a while.
    Wait(Duration),
    /// That was the last one.
    GiveUp,
}

/// Takes turns among brokers.
#[derive(Debug)]
pub struct Failover {
    strategy: Strategy,
    policy: RetryPolicy,
    order: Vec<usize>,
    position: usize,
    failures: u32,
    /// How many in a row can't be helped by trying again.
    hopeless: usize,
    was_connected: bool,
}

impl Failover {
    /// Turns among `brokers`, at least one.
    pub fn new(brokers: usize, strategy: Strategy, policy: RetryPolicy) -> Self {
        Self {
            strategy,
            policy,
            order: (0..brokers.max(1)).collect(),
            position: 0,
            failures: 0,
            hopeless: 0,
            was_connected: false,
        }
    }

    /// The broker whose turn it is.
    pub fn current(&self) -> usize {
        self.order[self.position]
    }

    /// How many attempts have failed since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The broker answers, and does what it is asked.
    pub fn succeeded(&mut self) {
        self.was_connected = true;
        self.failures = 0;
        self.hopeless = 0;
    }

    /// The attempt failed; `is_hopeless` when only another configuration can help. `random` is any
    /// number, for a new order.
    pub fn failed(&mut self, is_hopeless: bool, random: u64) -> Next {
        self.failures += 1;
        self.hopeless = if is_hopeless { self.hopeless + 1 } else { 0 };
        self.position += 1;
        let completes_cycle = self.position >= self.order.len();
        if completes_cycle {
            self.position = 0;
            if self.strategy == Strategy::Shuffle {
                shuffle(&mut self.order, random);
            }
        }
        let retries = if self.was_connected {
            self.policy.when_lost
        } else {
            self.policy.on_startup
        };
        // A password that is wrong at the start stays wrong; later somebody is changing it.
        let is_hopeless = !self.was_connected && self.hopeless >= self.order.len();
        let is_spent = self
            .policy
            .max_retries
            .is_some_and(|max| self.failures > max);
        if completes_cycle && (!retries || is_hopeless || is_spent) {
            Next::GiveUp
        } else if completes_cycle {
            let cycles = self.failures / self.order.len() as u32;
            let waits = if self.was_connected {
                RETURNING
            } else {
                Linear::BROKER
            };
            Next::Wait(waits.wait(cycles.saturating_sub(1)))
        } else {
            Next::Failover
        }
    }
}

/// The waits of a worker that may hold messages: others, who are back already, take it for dead
/// after 10 s without a sign of life, and its own tasks look for the copies of their messages.
const RETURNING: Linear = Linear {
    start: Duration::from_millis(500),
    step: Duration::from_millis(500),
    max: Duration::from_secs(4),
};

/// Fisher and Yates' shuffle, with a small generator of its own (splitmix64).
fn shuffle(order: &mut [usize], mut random: u64) {
    for last in (1..order.len()).rev() {
        random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        order.swap(last, ((mixed ^ (mixed >> 31)) % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELERYS: RetryPolicy = RetryPolicy {
        on_startup: true,
        when_lost: true,
        max_retries: Some(100),
    };

    fn wait(seconds: u64) -> Next {
        Next::Wait(Duration::from_secs(seconds))
    }

    #[test]
    fn one_broker_is_tried_again_after_longer_and_longer_waits() {
        let mut failover = Failover::new(1, Strategy::RoundRobin, CELERYS);
        let waits: Vec<Next> = (0..3).map(|_| failover.failed(false, 0)).collect();
        assert_eq!(waits, [wait(2), wait(4), wait(6)]);
        failover.succeeded();
        let soon = Next::Wait(Duration::from_millis(500));
        assert_eq!(failover.failed(false, 0), soon, "it is missed elsewhere");
        assert_eq!(failover.failed(false, 0), wait(1));
    }

    #[test]
    fn it_waits_only_when_all_have_failed() {
        let mut failover = Failover::new(3, Strategy::RoundRobin, CELERYS);
        let mut tried = Vec::new();
        let mut next = Vec::new();
        for _ in 0..6 {
            tried.push(failover.current());
            next.push(failover.failed(false, 0));
        }
        assert_eq!(tried, [0, 1, 2, 0, 1, 2]);
        let on = Next::Failover;
        assert_eq!(next, [on, on, wait(2), on, on, wait(4)]);
    }

    #[test]
    fn it_gives_up_when_the_settings_say_so() {
        let policy = RetryPolicy {
            max_retries: Some(2),
            ..CELERYS
        };
        let mut failover = Failover::new(1, Strategy::RoundRobin, policy);
        let next: Vec<Next> = (0..3).map(|_| failover.failed(false, 0)).collect();
        assert_eq!(next, [wait(2), wait(4), Next::GiveUp]);

        let policy = RetryPolicy {
            on_startup: false,
            ..CELERYS
        };
        let mut failover = Failover::new(2, Strategy::RoundRobin, policy);
        assert_eq!(
            failover.failed(false, 0),
            Next::Failover,
            "each has its chance"
        );
        assert_eq!(failover.failed(false, 0), Next::GiveUp);

        let policy = RetryPolicy {
            when_lost: false,
            ..CELERYS
        };
        let mut failover = Failover::new(1, Strategy::RoundRobin, policy);
        assert_eq!(failover.failed(false, 0), wait(2));
        failover.succeeded();
        assert_eq!(failover.failed(false, 0), Next::GiveUp);

        let endless = RetryPolicy {
            max_retries: None,
            ..CELERYS
        };
        let mut failover = Failover::new(1, Strategy::RoundRobin, endless);
        assert!((0..1000).all(|_| failover.failed(false, 0) != Next::GiveUp));
    }

    #[test]
    fn what_trying_again_cannot_help_is_given_up_at_the_start_only() {
        let mut failover = Failover::new(2, Strategy::RoundRobin, CELERYS);
        assert_eq!(failover.failed(true, 0), Next::Failover);
        assert_eq!(failover.failed(false, 0), wait(2), "the second may come");
        assert_eq!(failover.failed(true, 0), Next::Failover);
        assert_eq!(failover.failed(true, 0), Next::GiveUp);

        let mut failover = Failover::new(1, Strategy::RoundRobin, CELERYS);
        failover.succeeded();
        let soon = Next::Wait(Duration::from_millis(500));
        assert_eq!(failover.failed(true, 0), soon);
    }

    #[test]
    fn a_shuffled_cycle_still_tries_each() {
        let mut failover = Failover::new(4, Strategy::Shuffle, CELERYS);
        let mut orders = Vec::new();
        for random in 0..20 {
            let mut order = Vec::new();
            for _ in 0..4 {
                order.push(failover.current());
                failover.failed(false, random);
            }
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            orders.push(order);
        }
        orders.sort();
        orders.dedup();
        assert!(orders.len() > 5, "the order hardly changes: {orders:?}");
    }
}
