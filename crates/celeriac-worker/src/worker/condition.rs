//! What a worker tells those who watch over it.

use super::{Start, Worker};
use crate::receive::consumer::Handle;
use crate::shutdown::Phase;
use crate::vitals::{Connection, Health, Life, Vitals};

impl Worker {
    /// How it is now.
    pub(super) fn health(&self) -> Health {
        let now = self.clock.monotonic();
        // Each lane has to be well.
        let down = self
            .connections
            .iter()
            .filter(|connection| !connection.is_up);
        let connection = match down.map(|connection| connection.since).min() {
            Some(since) => Connection::Down { since },
            None => {
                let owed = self.consumers.iter().filter_map(Handle::owed).max();
                Connection::Up {
                    asked: owed.map(|owed| now.saturating_sub(owed)),
                }
            }
        };
        let vitals = Vitals {
            life: self.life(),
            connection,
            consumer_is_gone: self.consumers.iter().any(Handle::is_gone),
            queues: self.core.queues(),
            pools: self.pools.iter().map(|pool| pool.condition()).collect(),
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
            Start::Waiting { is_heard } => Life::Starting(if !self.is_connected() {
                "it waits for the broker"
            } else if !is_heard {
                "it waits for remote control"
            } else if !self.is_up() {
                "it waits for the first process of its pool"
            } else {
                "it learns what was revoked"
            }),
        }
    }
}
