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

    /// Memory is short: until it is not, nothing is fetched while a task runs (see
    /// [`Core::want`]).
    pub(super) fn pressure(&mut self, shortage: Option<Shortage>) {
        self.shortage = shortage;
        self.tell(&Happening::Pressure { shortage });
    }
}
