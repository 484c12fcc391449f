//! How many processes the pool should have.
//!
//! Celery's counterpart: `celery.worker.autoscale.Autoscaler`.

use std::time::Duration;

/// The bounds, and what has happened so far.
#[derive(Debug, Clone, Copy)]
pub struct Autoscale {
    /// Most processes.
    pub max: usize,
    /// Fewest processes.
    pub min: usize,
    /// How long nothing must have happened before the pool shrinks.
    pub keepalive: Duration,
    /// When the pool last grew or a task was last received.
    last_active: Option<Duration>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Start so many.
    Up(usize),
    /// End so many, if they are idle.
    Down(usize),
}

impl Autoscale {
    /// Celery's default keepalive, unless `AUTOSCALE_KEEPALIVE` names another.
    pub const KEEPALIVE: Duration = Duration::from_secs(30);

    /// A pool between the bounds.
    pub fn new(max: usize, min: usize, keepalive: Duration) -> Self {
        Self {
            max,
            min,
            keepalive,
            last_active: None,
        }
    }

    /// Notes that a task was received.
    pub fn received(&mut self, now: Duration) {
        self.last_active = Some(now);
    }

    /// Decides for a pool of `processes`, with `requests` that run or wait for a process.
    pub fn decide(&mut self, requests: usize, processes: usize, now: Duration) -> Option<Scale> {
        let wanted = requests.min(self.max);
        if wanted > processes {
            self.last_active = Some(now);
            return Some(Scale::Up(wanted - processes));
        }
        let needed = requests.max(self.min);
        let is_quiet = self
            .last_active
            .is_some_and(|at| now.saturating_sub(at) > self.keepalive);
        (needed < processes && is_quiet).then(|| Scale::Down(processes - needed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_at_once_and_shrinks_when_it_is_quiet() {
        let at = Duration::from_secs;
        let mut scale = Autoscale::new(8, 2, at(30));
        assert_eq!(scale.decide(0, 2, at(0)), None);
        assert_eq!(scale.decide(5, 2, at(1)), Some(Scale::Up(3)));
        assert_eq!(scale.decide(20, 5, at(2)), Some(Scale::Up(3)));
        assert_eq!(scale.decide(8, 8, at(3)), None);
        assert_eq!(
            scale.decide(3, 8, at(32)),
            None,
            "not quiet for long enough"
        );
        assert_eq!(scale.decide(3, 8, at(33)), Some(Scale::Down(5)));
        scale.received(at(40));
        assert_eq!(scale.decide(0, 8, at(60)), None);
        assert_eq!(scale.decide(0, 8, at(71)), Some(Scale::Down(6)));
    }

    #[test]
    fn a_pool_may_have_none() {
        let mut scale = Autoscale::new(3, 0, Duration::from_secs(30));
        assert_eq!(scale.decide(0, 0, Duration::ZERO), None);
        assert_eq!(scale.decide(1, 0, Duration::ZERO), Some(Scale::Up(1)));
    }
}
