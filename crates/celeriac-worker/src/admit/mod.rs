//! Admission: whether a task may run, and when.
//!
//! Celery's counterpart: `celery.worker.strategy.default`, whose name tells little.

pub mod eta;
pub mod rate_limit;

use celeriac_core::clock::Now;
use celeriac_protocol::Head;
use jiff::Timestamp;

use crate::revoked::Revoked;

/// What becomes of a task that is valid and known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may run as soon as its rate limit and the pool allow.
    Run,
    /// It is held until this moment.
    Hold(Timestamp),
    /// It is not to run at all.
    Discard(Discard),
}

/// Why a task is not to run at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
    /// It is to be unique, and another of its kind is under way.
    Duplicate,
}

impl Discard {
    /// The reason that is stored with the result.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Duplicate => "duplicate",
        }
    }
}

/// Decides about a task that was just received, or whose turn to run has come.
pub fn admit(head: &Head, revoked: &Revoked, now: Now) -> Admission {
    // Expired first: the id of an expired task is among the revoked ones when it comes again.
    if head.expires.is_some_and(|expires| now.wall > expires) {
        Admission::Discard(Discard::Expired)
    } else if revoked.contains(&head.id) || revoked.revoking_stamp(head).is_some() {
        Admission::Discard(Discard::Revoked)
    } else {
        match head.eta {
            Some(eta) if eta > now.wall => Admission::Hold(eta),
            _ => Admission::Run,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use celeriac_protocol::json::Object;

    use super::*;

    fn head(members: &str) -> Head {
        let headers = format!(r#"{{"task": "t", "id": "1"{members}}}"#);
        Head::from_headers(&Object::parse(&headers).unwrap())
            .unwrap()
            .unwrap()
    }

    #[test]
    fn the_table() {
        let noon: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let now = Now {
            wall: noon,
            monotonic: Duration::ZERO,
        };
        let none = Revoked::with_celerys_bounds();
        let mut revoked = Revoked::with_celerys_bounds();
        revoked.insert("1", Duration::ZERO);
        let one_pm = "2026-11-22T13:00:00Z".parse().unwrap();
        let expired = Admission::Discard(Discard::Expired);
        let is_revoked = Admission::Discard(Discard::Revoked);
        for (members, set, expected) in [
            ("", &none, Admission::Run),
            (r#", "eta": "2026-11-22T12:00:00""#, &none, Admission::Run),
            (r#", "eta": "2026-11-22T11:00:00""#, &none, Admission::Run),
            (
                r#", "eta": "2026-11-22T13:00:00""#,
                &none,
                Admission::Hold(one_pm),
            ),
            (
                r#", "expires": "2026-11-22T12:00:00""#,
                &none,
                Admission::Run,
            ),
            (r#", "expires": "2026-11-22T11:59:59.9""#, &none, expired),
            (
                r#", "expires": "2026-11-22T11:00:00", "eta": "2026-11-22T13:00:00""#,
                &none,
                expired,
            ),
            ("", &revoked, is_revoked),
            (r#", "eta": "2026-11-22T13:00:00""#, &revoked, is_revoked),
            (r#", "expires": "2026-11-22T11:00:00""#, &revoked, expired),
        ] {
            assert_eq!(admit(&head(members), set, now), expected, "{members}");
        }
    }
}
