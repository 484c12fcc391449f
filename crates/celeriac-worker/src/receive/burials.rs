//! Dead letters that the broker does not keep yet, and the settlements that wait for them.
//!
//! A message is not settled before its letter is safe. The others do not wait for it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use celeriac_core::backoff::Doubling;
use celeriac_core::broker::{DeliveryTag, Error, ErrorKind, Fate, Settlement};
use celeriac_core::dead_letter::DeadLetter;
use tokio::time::Instant;

/// While so many letters wait, no further messages are taken: theirs are not settled.
const MOST_WAITING: usize = 1000;
/// How often a connection may be lost over one letter, as where a server cuts off who sends too
/// much, before it goes without its message's body.
const MOST_LOSSES: u32 = 3;
const BACKOFF: Doubling = Doubling {
    start: Duration::from_secs(1),
    max: Duration::from_mins(1),
};

/// A dead letter, and the message that is not to be settled before it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Burial {
    /// The message.
    pub tag: DeliveryTag,
    /// Its letter.
    pub letter: DeadLetter,
}

struct Waiting {
    burial: Burial,
    /// Whether the broker does not take it with its message's body.
    is_bare: bool,
    losses: u32,
}

#[derive(Default)]
pub(super) struct Burials {
    waiting: VecDeque<Waiting>,
    held: Vec<Settlement>,
    /// How often in a row a letter had to wait.
    failures: u32,
    retry_at: Option<Instant>,
    /// The message over whose letter the connection may be lost.
    suspect: Option<DeliveryTag>,
}

/// What becomes of a letter that the broker did not keep.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// It is tried again later.
    Later,
    /// It is tried without its message's body.
    Bare,
    /// It is never kept.
    Lost(Box<DeadLetter>),
}

impl Burials {
    pub(super) fn extend(&mut self, burials: impl Iterator<Item = Burial>) {
        self.waiting.extend(burials.map(|burial| Waiting {
            burial,
            is_bare: false,
            losses: 0,
        }));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST_WAITING
    }

    /// Has a settlement wait for its letter; gives it back where none waits.
    pub(super) fn hold(&mut self, settlement: Settlement) -> Option<Settlement> {
        if self.waits(settlement.tag) {
            self.held.push(settlement);
            return None;
        }
        Some(settlement)
    }

    fn waits(&self, tag: DeliveryTag) -> bool {
        self.waiting.iter().any(|waiting| waiting.burial.tag == tag)
    }

    /// The settlements that wait no more.
    pub(super) fn take_released(&mut self) -> Vec<Settlement> {
        let (held, released) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|settlement| self.waits(settlement.tag));
        self.held = held;
        released
    }

    /// The letter that is to be kept now.
    pub(super) fn next(&self, now: Instant) -> Option<Cow<'_, DeadLetter>> {
        let first = self.waiting.front()?;
        if self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let letter = &first.burial.letter;
        Some(if first.is_bare {
            Cow::Owned(letter.without_body())
        } else {
            Cow::Borrowed(letter)
        })
    }

    /// When letters are tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| !self.is_empty())
    }

    /// Has the letters tried at once.
    pub(super) fn hurry(&mut self) {
        self.retry_at = None;
    }

    /// The letter is kept.
    pub(super) fn kept(&mut self) {
        self.waiting.pop_front();
        self.failures = 0;
        self.retry_at = None;
    }

    /// The letter is not kept.
    pub(super) fn failed(&mut self, error: &Error, now: Instant) -> Option<Verdict> {
        let mut first = self.waiting.pop_front()?;
        Some(match error.kind {
            ErrorKind::Connection | ErrorKind::Full => {
                self.suspect = (error.kind == ErrorKind::Connection).then_some(first.burial.tag);
                self.retry_at = Some(now + BACKOFF.wait(self.failures));
                self.failures = self.failures.saturating_add(1);
                // The next one may fare better.
                self.waiting.push_back(first);
                Verdict::Later
            }
            ErrorKind::Refused if !first.is_bare => {
                first.is_bare = true;
                self.waiting.push_front(first);
                Verdict::Bare
            }
            _ => Verdict::Lost(Box::new(first.burial.letter)),
        })
    }

    /// The connection is still there.
    pub(super) fn connection_holds(&mut self) {
        self.suspect = None;
    }

    /// The connection is lost.
    pub(super) fn connection_lost(&mut self) {
        let suspect = self.suspect.take();
        let is_suspect = |waiting: &&mut Waiting| Some(waiting.burial.tag) == suspect;
        if let Some(waiting) = self.waiting.iter_mut().find(is_suspect) {
            waiting.losses += 1;
            waiting.is_bare |= waiting.losses >= MOST_LOSSES;
        }
    }

    /// Gives up all letters: their messages are to be given back.
    pub(super) fn give_up(&mut self) -> (Vec<DeadLetter>, Vec<Settlement>) {
        let letters = self.waiting.drain(..).map(|waiting| waiting.burial.letter);
        let released = self.held.drain(..).map(|held| Settlement {
            fate: Fate::Release,
            ..held
        });
        (letters.collect(), released.collect())
    }
}

#[cfg(test)]
mod tests {
    use celeriac_core::dead_letter::{Cause, Content, Remains};
    use jiff::Timestamp;

    use super::*;

    fn burial(tag: u64) -> Burial {
        Burial {
            tag: DeliveryTag(tag),
            letter: DeadLetter {
                id: tag.to_string(),
                queue: "q".to_owned(),
                task: None,
                cause: Cause::Undecodable,
                reason: "no JSON".to_owned(),
                remains: Remains::default(),
                attempts: 0,
                hostname: "w@h".to_owned(),
                died_at: Timestamp::UNIX_EPOCH,
                message: Content::raw(b"long"),
            },
        }
    }

    fn ack(tag: u64) -> Settlement {
        Settlement {
            tag: DeliveryTag(tag),
            fate: Fate::Ack,
        }
    }

    fn burials(tags: &[u64]) -> Burials {
        let mut burials = Burials::default();
        burials.extend(tags.iter().map(|tag| burial(*tag)));
        burials
    }

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "no")
    }

    #[test]
    fn a_settlement_waits_for_its_letter_alone() {
        let mut burials = burials(&[1]);
        assert_eq!(burials.hold(ack(1)), None);
        assert_eq!(burials.hold(ack(2)), Some(ack(2)));
        assert_eq!(burials.take_released(), []);
        burials.kept();
        assert_eq!(burials.take_released(), [ack(1)]);
    }

    #[test]
    fn what_fails_for_a_while_is_tried_again_whole_after_the_others() {
        let mut burials = burials(&[1, 2]);
        let mut now = Instant::now();
        for (failed, wait) in [("1", 1), ("2", 2), ("1", 4)] {
            assert_eq!(burials.next(now).unwrap().id, failed);
            let verdict = burials.failed(&error(ErrorKind::Full), now);
            assert_eq!(verdict, Some(Verdict::Later));
            assert_eq!(burials.next(now), None);
            now += Duration::from_secs(wait);
        }
        assert_eq!(*burials.next(now).unwrap(), burial(2).letter);
        burials.kept();
        assert_eq!(*burials.next(now).unwrap(), burial(1).letter);
    }

    #[test]
    fn what_is_refused_goes_without_its_body_and_is_lost_when_that_is_refused() {
        let mut burials = burials(&[1]);
        let now = Instant::now();
        let refused = error(ErrorKind::Refused);
        assert_eq!(burials.failed(&refused, now), Some(Verdict::Bare));
        assert_eq!(*burials.next(now).unwrap(), burial(1).letter.without_body());
        let lost = Verdict::Lost(Box::new(burial(1).letter));
        assert_eq!(burials.failed(&refused, now), Some(lost));
        assert!(burials.is_empty());
    }

    #[test]
    fn a_letter_that_costs_connections_goes_without_its_body() {
        let mut burials = burials(&[1]);
        let now = Instant::now();
        let lost = error(ErrorKind::Connection);
        for _ in 0..MOST_LOSSES {
            // Where the connection holds it was not the letter.
            burials.failed(&lost, now);
            burials.connection_holds();
            burials.connection_lost();
            burials.failed(&lost, now);
            burials.hurry();
            assert_eq!(*burials.next(now).unwrap(), burial(1).letter);
            burials.connection_lost();
        }
        assert_eq!(*burials.next(now).unwrap(), burial(1).letter.without_body());
    }

    #[test]
    fn what_is_given_up_gives_its_message_back() {
        let mut burials = burials(&[1]);
        burials.hold(ack(1));
        let back = Settlement {
            fate: Fate::Release,
            ..ack(1)
        };
        assert_eq!(burials.give_up(), (vec![burial(1).letter], vec![back]));
    }
}
