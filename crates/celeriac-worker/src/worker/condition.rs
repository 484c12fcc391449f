//! What a worker tells those who watch over it.

use super::{Start, Worker};
use crate::shutdown::Phase;
use crate::vitals::{Connection, Health, Life, Vitals};

impl Worker {
    /// How it is now.
    pub(super) fn health(&self) -> Health {
        let now = self.clock.monotonic();
        let connection = if self.is_connected {
            let owed = self.consumer.owed();
            Connection::Up {
                asked: owed.map(|owed| now.saturating_sub(owed)),
            }
        } else {
            Connection::Down {
                since: self.connection_since,
            }
        };
        let vitals = Vitals {
            life: self.life(),
            connection,
            consumer_is_gone: self.consumer.is_gone(),
            queues: self.core.queues(),
            pool: self.pool.condition(),
            waits_for_main: self.core.waits_for_main(),
        };
        vitals.health(now)
    }

    fn life(&self) -> Life {
        let running = self.core.running();
        if self.start == Start::Failed {
            return Life::Failed { running };
        }
        if self.core.shutdown().phase() != Phase::Running {
            return Life::Draining { running };
        }
        match self.start {
            Start::Ready | Start::Failed => Life::Working,
            Start::Steps => Life::Starting("the app's consumer steps are starting"),
            Start::Announced => Life::Starting("receivers of worker_ready are called"),
            Start::Waiting {
                is_connected,
                is_heard,
                is_up,
            } => Life::Starting(if !is_connected {
                "it waits for the broker"
            } else if !is_heard {
                "it waits for remote control"
            } else if !is_up && self.pool.size() > 0 {
                "it waits for the first process of its pool"
            } else {
                "it learns what was revoked"
            }),
        }
    }
}
