//! What the pool tells of memory: of one task that holds too much, and of too little for all.

use celeriac_core::pool::{RequestKey, Shortage};

use super::Core;
use crate::happening::Happening;

impl Core {
    /// The soft memory limit is being raised in a task.
    pub(super) fn soft_memory_limit(&self, key: RequestKey, resident: u64, limit: u64) {
        if let Some(request) = self.requests.get(&key) {
            self.tell(&Happening::SoftMemoryLimit {
                request,
                resident,
                limit,
            });
        }
    }

    /// Memory is short, as a lane's pool says: until it is not, nothing is fetched while a task runs
    /// (see [`Core::want`]).
    pub(super) fn pressure(&mut self, lane: usize, shortage: Option<Shortage>) {
        let before = self.shortage();
        self.lanes[lane].shortage = shortage;
        let after = self.shortage();
        // Several pools may find the same.
        if before.is_some() != after.is_some() || self.lanes.len() == 1 {
            self.tell(&Happening::Pressure { shortage: after });
        }
    }

    /// Memory that is short.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        self.lanes.iter().find_map(|lane| lane.shortage)
    }
}
