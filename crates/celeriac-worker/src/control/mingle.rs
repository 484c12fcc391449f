//! The greeting at the start: what the other workers know is taken over.
//!
//! Celery's counterpart: `celery.worker.consumer.mingle`.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

use crate::revoked::ids;

/// How long replies are awaited after the greeting, or after the last of them.
const PATIENCE: Duration = Duration::from_secs(1);

/// A greeting whose replies are awaited.
#[derive(Debug)]
pub struct Mingle {
    ticket: String,
    until: Duration,
    /// How many other workers have got it, where the broker can tell.
    reached: Option<usize>,
    replied: HashSet<String>,
    /// How many of those who replied had something to tell.
    synced: usize,
}

/// What another worker knows.
#[derive(Debug, PartialEq)]
pub struct Synced {
    /// Its name.
    pub node: String,
    /// Its logical clock.
    pub clock: Option<u64>,
    /// The revoked ids that it knows, the oldest first.
    pub revoked: Vec<String>,
}

impl Mingle {
    /// A greeting under way.
    pub fn new(ticket: String, now: Duration) -> Self {
        Self {
            ticket,
            until: now + PATIENCE,
            reached: None,
            replied: HashSet::new(),
            synced: 0,
        }
    }

    /// The broker tells how many mailboxes the greeting has reached, this worker's own among them.
    pub fn reached(&mut self, mailboxes: Option<usize>) {
        self.reached = mailboxes.map(|count| count.saturating_sub(1));
    }

    /// A reply came; answers with what its node knows, unless it is not for this greeting, or the
    /// node is `own`.
    pub fn reply(
        &mut self,
        ticket: Option<&Value>,
        body: &Value,
        own: &str,
        now: Duration,
    ) -> Option<Synced> {
        if ticket != Some(&Value::from(self.ticket.as_str())) {
            return None;
        }
        let (node, reply) = body.as_object()?.iter().next()?;
        if node == own || !self.replied.insert(node.clone()) {
            return None;
        }
        self.until = now + PATIENCE;
        if reply.is_null() {
            return None;
        }
        self.synced += 1;
        Some(Synced {
            node: node.clone(),
            clock: reply.get("clock").and_then(Value::as_u64),
            revoked: ids(reply.get("revoked")),
        })
    }

    /// Whether nothing more is to be expected.
    pub fn is_over(&self, now: Duration) -> bool {
        self.until <= now
            || self
                .reached
                .is_some_and(|count| self.replied.len() >= count)
    }

    /// When patience ends.
    pub fn until(&self) -> Duration {
        self.until
    }

    /// How many workers had something to tell.
    pub fn synced(&self) -> usize {
        self.synced
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OWN: &str = "w1@h";

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_is_over_when_all_who_were_reached_have_replied() {
        let mut mingle = Mingle::new("t".to_owned(), at(0));
        mingle.reached(Some(2));
        let ticket = json!("t");
        let own = mingle.reply(Some(&ticket), &json!({OWN: null}), OWN, at(0));
        assert_eq!((own, mingle.is_over(at(0))), (None, false));
        let body = json!({"w2@h": {"clock": 9, "revoked": ["a", "b"]}});
        assert_eq!(
            mingle.reply(Some(&ticket), &body, OWN, at(0)),
            Some(Synced {
                node: "w2@h".to_owned(),
                clock: Some(9),
                revoked: vec!["a".to_owned(), "b".to_owned()],
            })
        );
        assert!(mingle.is_over(at(0)));
        assert_eq!(mingle.synced(), 1);
    }

    #[test]
    fn where_nobody_can_tell_it_waits_for_a_second() {
        let mut mingle = Mingle::new("t".to_owned(), at(0));
        mingle.reached(None);
        assert!(!mingle.is_over(at(0)));
        let body = json!({"w2@h": {"clock": 9}});
        let strange = mingle.reply(Some(&json!("other")), &body, OWN, at(0));
        assert_eq!(strange, None, "the reply is for somebody else");
        assert!(mingle.is_over(at(1)));
    }
}
