//! The logical clock that orders events and commands of all nodes.
//!
//! Celery's counterpart: `kombu.clocks.LamportClock`.

/// Counts what happens; moves past every number that it hears of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LamportClock(u64);

impl LamportClock {
    /// The number of the last event.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The number of a new event of this node's own.
    pub fn forward(&mut self) -> u64 {
        self.0 = self.0.saturating_add(1);
        self.0
    }

    /// Moves past a number that another node has told.
    pub fn adjust(&mut self, other: u64) -> u64 {
        self.0 = self.0.max(other).saturating_add(1);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_past_all_that_it_has_heard_of() {
        let mut clock = LamportClock::default();
        assert_eq!(clock.forward(), 1);
        assert_eq!(clock.adjust(10), 11);
        assert_eq!(clock.adjust(3), 12);
        assert_eq!(clock.adjust(u64::MAX), u64::MAX);
        assert_eq!(clock.forward(), u64::MAX, "a hostile number is no crash");
    }
}
