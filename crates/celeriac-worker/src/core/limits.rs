//! Requests under limits that all workers keep together wait here, and what they hold is given
//! back when they end.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use celeriac_core::clock::Now;
use celeriac_core::limit::{Answer, Asked, Holding};
use celeriac_core::pool::RequestKey;
use celeriac_protocol::Marks;
use jiff::SignedDuration;

use super::{Core, Effect, Free};
use crate::limit::Until;
use crate::request::Stage;

/// Who may ask again so soon waits in memory: some brokers' delay stores count whole seconds.
const SOON: Duration = Duration::from_secs(2);
/// A message with a turn comes from the delay store by so much earlier, to be here in time.
const LEAD: Duration = Duration::from_secs(1);
/// How many wait in memory at most where there is a delay store.
const HELD: usize = 1000;
/// How long requests wait for a store that can't be reached.
const UNREACHABLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Requests under limits, from their first question to their end.
#[derive(Debug, Default)]
pub(super) struct Limited {
    requests: HashMap<RequestKey, Entry>,
    /// Those that wait in memory, by when they ask again.
    held: BTreeSet<(Duration, RequestKey)>,
    /// How many wait for an answer.
    asking: usize,
}

#[derive(Debug)]
struct Entry {
    asked: Asked,
    until: Option<Until>,
    is_bound: bool,
    state: State,
    /// Whether it is to be retried.
    comes_again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asking,
    /// Denied: it asks again then.
    Held(Duration),
    /// Granted, since then.
    Granted(Duration),
}

impl Limited {
    fn set(&mut self, key: RequestKey, state: State) {
        let Some(entry) = self.requests.get_mut(&key) else {
            return;
        };
        let before = std::mem::replace(&mut entry.state, state);
        self.count(key, Some(before), Some(state));
    }

    fn take(&mut self, key: RequestKey) -> Option<Entry> {
        let entry = self.requests.remove(&key)?;
        self.count(key, Some(entry.state), None);
        Some(entry)
    }

    fn count(&mut self, key: RequestKey, before: Option<State>, after: Option<State>) {
        match before {
            Some(State::Asking) => self.asking -= 1,
            Some(State::Held(until)) => drop(self.held.remove(&(until, key))),
            _ => {}
        }
        match after {
            Some(State::Asking) => self.asking += 1,
            Some(State::Held(until)) => drop(self.held.insert((until, key))),
            _ => {}
        }
    }

    /// How many wait for an answer.
    pub(super) fn asking(&self) -> usize {
        self.asking
    }

    /// Whether no more may wait in memory.
    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= HELD
    }

    /// When the next of them asks again.
    pub(super) fn next(&self) -> Option<Duration> {
        self.held.first().map(|(until, _)| *until)
    }

    /// All that have not been granted, in the order of their coming.
    pub(super) fn waiting(&self) -> Vec<RequestKey> {
        let waits = |entry: &Entry| !matches!(entry.state, State::Granted(_));
        let waiting = self.requests.iter().filter(|(_, entry)| waits(entry));
        let mut keys: Vec<RequestKey> = waiting.map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    }
}

impl Core {
    /// Has a request begin as soon as all its limits and the pool allow it.
    pub(super) fn pass_limits(&mut self, key: RequestKey, is_bound: bool, now: Now) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let Some(needs) = self.options.limits.needs(request) else {
            return self.make_ready(key, is_bound, now);
        };
        let (claim, until) = needs.claim.unzip();
        let asked = Asked {
            holder: format!("{}:{}", self.options.limit_holder, key.0),
            permits: needs.permits,
            turn: request.head.marks.turn,
            claim,
        };
        let entry = Entry {
            asked: asked.clone(),
            until,
            is_bound,
            state: State::Asking,
            comes_again: false,
        };
        self.limited.requests.insert(key, entry);
        self.limited.count(key, None, Some(State::Asking));
        self.set_stage(key, Stage::Limited);
        self.effects.push(Effect::Acquire(key, Box::new(asked)));
    }

    /// The store of limits has answered, or can't be reached (`None`). `random` is any number.
    pub fn limits_answered(
        &mut self,
        key: RequestKey,
        answer: Option<Answer>,
        random: u64,
        free: Free<'_>,
        now: Now,
    ) {
        self.read_at = now;
        let Some(entry) = self.limited.requests.get_mut(&key) else {
            // It has ended meanwhile, and given back what it was granted.
            return;
        };
        if entry.state != State::Asking {
            return;
        }
        let is_bound = entry.is_bound;
        match answer {
            Some(Answer::Granted) => {
                self.limited.set(key, State::Granted(now.monotonic));
                self.make_ready(key, is_bound, now);
            }
            Some(Answer::Denied { wait, turn }) => {
                entry.asked.turn = turn;
                self.denied(key, wait, now);
            }
            Some(Answer::Duplicate { of }) => {
                // It has claimed nothing.
                self.limited.take(key);
                self.discard_duplicate(key, &of, now);
            }
            None => {
                let spread = UNREACHABLE.1.saturating_sub(UNREACHABLE.0);
                let part = (random % 1000) as u32;
                self.denied(key, UNREACHABLE.0 + spread * part / 1000, now);
            }
        }
        self.dispatch(free, now);
    }

    /// A request is to ask again after a while.
    fn denied(&mut self, key: RequestKey, wait: Duration, now: Now) {
        let is_soon = wait <= SOON && !self.limited.is_full();
        if is_soon || self.options.store.is_none() {
            return self.limited.set(key, State::Held(now.monotonic + wait));
        }
        let turn = self.limited.take(key).and_then(|entry| entry.asked.turn);
        let lead = if turn.is_some() { LEAD } else { Duration::ZERO };
        let wait = SignedDuration::try_from(wait.saturating_sub(lead)).unwrap_or_default();
        let until = now
            .wall
            .saturating_add(wait)
            .unwrap_or(jiff::Timestamp::MAX);
        let marks = self.requests.get(&key).map(|request| request.head.marks);
        let marks = Marks {
            told: true,
            turn,
            ..marks.unwrap_or_default()
        };
        self.delay(key, Some(until), marks);
    }

    /// Has those ask again whose time has come.
    pub(super) fn ask_again(&mut self, now: Now) {
        while let Some((until, key)) = self.limited.held.first().copied()
            && until <= now.monotonic
        {
            self.limited.set(key, State::Asking);
            if let Some(entry) = self.limited.requests.get(&key) {
                let asked = Box::new(entry.asked.clone());
                self.effects.push(Effect::Acquire(key, asked));
            }
        }
    }

    /// A process runs the request.
    pub(super) fn limited_started(&mut self, key: RequestKey) {
        let Some(entry) = self.limited.requests.get_mut(&key) else {
            return;
        };
        if entry.until == Some(Until::Start)
            && let Some(mut claim) = entry.asked.claim.take()
        {
            claim.lasts = Duration::ZERO;
            let holding = Holding {
                holder: entry.asked.holder.clone(),
                slots: Vec::new(),
                claim: Some(claim),
            };
            let given_back = Effect::GiveBack(key, Box::new(holding), Duration::ZERO);
            self.effects.push(given_back);
        }
    }

    /// The request will come again under the same id: it stays the only one of its kind.
    pub(super) fn limited_retried(&mut self, key: RequestKey) {
        if let Some(entry) = self.limited.requests.get_mut(&key) {
            entry.comes_again = true;
        }
    }

    /// The request is no more here.
    pub(super) fn limited_ended(&mut self, key: RequestKey) {
        let Some(entry) = self.limited.take(key) else {
            return;
        };
        let mut holding = entry.asked.holding();
        let mut held = Duration::ZERO;
        match entry.state {
            State::Granted(since) => held = self.read_at.monotonic.saturating_sub(since),
            State::Held(_) => holding.slots.clear(),
            State::Asking => {}
        }
        if let Some(claim) = &mut holding.claim {
            claim.lasts = match entry.until {
                Some(Until::Done(expires)) if entry.comes_again => expires,
                _ => Duration::ZERO,
            };
        }
        if !holding.is_empty() {
            let given_back = Effect::GiveBack(key, Box::new(holding), held);
            self.effects.push(given_back);
        }
    }
}
