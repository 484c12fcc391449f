//! Limits that all workers keep together: how fast tasks begin, how many run, and which are unique.
//!
//! A worker asks a [`LimitStore`] before a task may begin. The store's clock decides, so that
//! workers whose clocks differ agree. One conformance suite (`celeriac-testing`) holds every
//! implementation to what is written here.
//!
//! Celery has nothing like it: its rate limits are each worker's own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::broker::Error;

/// How long slots are kept without a sign of life of their holder.
pub const LEASE: Duration = Duration::from_secs(10);
/// How late a request may come to a turn that was reserved for it.
pub const GRACE: Duration = Duration::from_secs(1);
/// Nobody's turn is reserved for later than this: who comes then asks anew.
pub const FARTHEST_TURN: Duration = Duration::from_hours(24);
/// Who waits for a slot looks at least so often.
pub const FARTHEST_LOOK: Duration = Duration::from_mins(5);
/// Who waits for a slot looks for the first time after so long.
pub const FIRST_LOOK: Duration = Duration::from_millis(50);
/// How long a slot counts as held before any was given back.
pub const UNKNOWN_HOLD: Duration = Duration::from_secs(1);

/// Where limits are kept, not yet connected.
#[async_trait]
pub trait LimitStore: Send + Sync + fmt::Debug {
    /// The URL as it may be shown: without its password.
    fn display_url(&self) -> String;

    /// Connects, and proves that the store answers.
    ///
    /// # Errors
    /// See [`Error::retry`] for whether trying again may help.
    async fn connect(&self) -> Result<Box<dyn LimitSession>, Error>;
}

/// A store that several may ask.
pub type SharedLimitStore = Arc<dyn LimitStore>;

/// One connection of one worker.
#[async_trait]
pub trait LimitSession: Send {
    /// Carries orders out one after the other, all or none of them. Answers to each
    /// [`Order::Acquire`], in their order.
    async fn exchange(&mut self, orders: &[Order]) -> Result<Vec<Answer>, Error>;
}

/// What a worker wants of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// May this request begin?
    Acquire(Asked),
    /// Its holder lives: keep its slots for another [`LEASE`], and its claim.
    Renew(Holding),
    /// It is over, after the given time since it was granted.
    Release(Holding, Duration),
}

/// What a request needs to begin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Names this delivery of the request among all workers' requests.
    pub holder: String,
    /// The limits that it is under. It begins when all of them allow it.
    pub permits: Vec<Permit>,
    /// The turn that was reserved for it, by the store's clock: microseconds since 1970.
    pub turn: Option<i64>,
    /// That no other request of the same kind be under way, if it is to be unique.
    pub claim: Option<Claim>,
}

/// One limit, as a request meets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// Names the limit, and the arguments that it counts by.
    pub name: String,
    /// How fast requests may begin.
    pub rate: Option<Rate>,
    /// How many may run at once.
    pub slots: Option<u32>,
}

/// How fast requests may begin: one each interval, and so many at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Between two of them.
    pub interval: Duration,
    /// How many may begin at once, at least one.
    pub burst: u32,
}

/// That a request be the only one of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Names the kind: the task and its arguments.
    pub name: String,
    /// Names the request, whoever has it: its task id.
    pub owner: String,
    /// How long the claim is kept without a sign of life; zero for no longer.
    pub lasts: Duration,
    /// Whether that time counts from the first claim, whatever becomes of the request.
    pub is_window: bool,
}

/// What a request holds that was granted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    /// As it was asked for.
    pub holder: String,
    /// The names of permits with slots.
    pub slots: Vec<String>,
    /// Its claim, if it is unique.
    pub claim: Option<Claim>,
}

/// What a store says to a request that wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may begin now; its slots are leased.
    Granted,
    /// Not before so long. Its claim is kept until then.
    Denied {
        /// How long.
        wait: Duration,
        /// The turn that is reserved for it: to be told when it asks again.
        turn: Option<i64>,
    },
    /// Another request of its kind is under way: the one of this id.
    Duplicate {
        /// The other one's task id.
        of: String,
    },
}

impl Asked {
    /// What it holds when it is granted.
    pub fn holding(&self) -> Holding {
        let with_slots = self.permits.iter().filter(|permit| permit.slots.is_some());
        Holding {
            holder: self.holder.clone(),
            slots: with_slots.map(|permit| permit.name.clone()).collect(),
            claim: self.claim.clone(),
        }
    }
}

impl Holding {
    /// Whether there is nothing that would have to be given back.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.claim.is_none()
    }
}
