//! How long tasks take: what the pool must know to give a child a next job before it asks.
//!
//! A child that runs tasks shorter than the way to the broker and back would mostly wait for its
//! next one. It is given some ahead, but never one behind a task that may take long: estimates
//! jump up at once and come down slowly.

use std::collections::HashMap;
use std::time::Duration;

use bytestring::ByteString;

/// The share of a new, shorter time in the estimate.
const WEIGHT: f64 = 0.2;

/// Estimated run times by task.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    by_task: HashMap<ByteString, f64>,
    overall: Option<f64>,
}

impl Estimates {
    /// Notes how long a task took.
    pub(super) fn observe(&mut self, task: &ByteString, took: Duration) {
        let seconds = took.as_secs_f64();
        let update = |estimate: f64| {
            if seconds > estimate {
                seconds
            } else {
                estimate + WEIGHT * (seconds - estimate)
            }
        };
        match self.by_task.get_mut(task) {
            Some(estimate) => *estimate = update(*estimate),
            None => drop(self.by_task.insert(task.clone(), seconds)),
        }
        self.overall = Some(self.overall.map_or(seconds, update));
    }

    /// How long a task will take, in seconds; one that never ran may take for ever.
    pub(super) fn task(&self, task: &ByteString) -> f64 {
        self.by_task.get(task).copied().unwrap_or(f64::INFINITY)
    }

    /// How long the next task will take, whichever it is.
    pub(super) fn next(&self) -> f64 {
        self.overall.unwrap_or(f64::INFINITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_jump_up_and_come_down_slowly() {
        let (short, long) = (ByteString::from("short"), ByteString::from("long"));
        let mut estimates = Estimates::default();
        assert!(estimates.task(&short).is_infinite() && estimates.next().is_infinite());
        estimates.observe(&short, Duration::from_millis(1));
        assert!((estimates.task(&short) - 0.001).abs() < 1e-9);
        estimates.observe(&long, Duration::from_secs(1));
        assert!((estimates.task(&short) - 0.001).abs() < 1e-9);
        assert!((estimates.next() - 1.0).abs() < 1e-9);
        estimates.observe(&short, Duration::from_millis(1));
        assert!(estimates.next() > 0.7);
        for _ in 0..60 {
            estimates.observe(&short, Duration::from_millis(1));
        }
        assert!(estimates.next() < 0.002);
    }
}
