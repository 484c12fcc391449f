//! What celeriac's workers write into a message for each other, in a header of their own.
//!
//! Celery has nothing like it: there a message that comes back says at most that it was delivered
//! before. Its workers hand the header on to the task, and otherwise leave it alone.

use std::borrow::Cow;

use crate::json::{self, Object};
use crate::message::Message;

/// The header's name.
const HEADER: &str = "celeriac";

/// What is known of a message from its earlier deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Marks {
    /// How many processes or workers have died while they ran it.
    pub deaths: u32,
    /// When a worker first met it that does not know its task, in seconds since 1970.
    pub unknown_since: Option<i64>,
    /// Whether monitors and the log were told that it was received.
    pub told: bool,
    /// The turn that a rate limit has reserved for it: microseconds since 1970 by the clock of the
    /// limit's store.
    pub turn: Option<i64>,
    /// When it was put back as a dead letter, in microseconds since 1970: it is another message than
    /// the one that was given up. Only where messages are known by what they hold.
    pub replayed: Option<i64>,
}

impl Marks {
    /// The marks of a message, of whatever protocol.
    pub fn of(message: &Message) -> Self {
        let headers = Object::parse(&message.headers);
        headers.map_or_else(|_| Self::default(), |headers| Self::read(&headers))
    }

    /// Reads the marks of a message from its headers. What is no mark counts as none.
    pub fn read(headers: &Object<'_>) -> Self {
        let Some(Ok(marks)) = headers.get(HEADER).map(Object::parse) else {
            return Self::default();
        };
        let number = |name| marks.get(name).and_then(json::as_i64);
        Self {
            deaths: number("deaths")
                .map_or(0, |deaths| deaths.clamp(0, i64::from(u32::MAX)) as u32),
            unknown_since: number("unknown_since"),
            told: marks.get("told").is_some_and(json::is_truthy),
            turn: number("turn"),
            replayed: number("replayed"),
        }
    }

    /// The same headers with these marks in place of any others.
    pub fn write(self, headers: &str) -> Cow<'_, str> {
        let Ok(mut object) = Object::parse(headers) else {
            return Cow::Borrowed(headers);
        };
        if self == Self::default() {
            if object.get(HEADER).is_none() {
                return Cow::Borrowed(headers);
            }
            object.remove(HEADER);
        } else {
            object.set(HEADER, self.to_json());
        }
        Cow::Owned(object.to_string())
    }

    fn to_json(self) -> String {
        let mut marks = Object::default();
        if self.deaths > 0 {
            marks.set("deaths", self.deaths.to_string());
        }
        if let Some(since) = self.unknown_since {
            marks.set("unknown_since", since.to_string());
        }
        if self.told {
            marks.set("told", "true");
        }
        if let Some(turn) = self.turn {
            marks.set("turn", turn.to_string());
        }
        if let Some(moment) = self.replayed {
            marks.set("replayed", moment.to_string());
        }
        marks.to_string()
    }
}

/// The headers as a task is to see them: without marks.
pub fn unmarked(headers: &str) -> Cow<'_, str> {
    // Hardly any message has marks.
    if headers.contains("\"celeriac\"") {
        Marks::default().write(headers)
    } else {
        Cow::Borrowed(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for marks in [
            Marks::default(),
            Marks {
                deaths: 2,
                unknown_since: Some(1_764_000_000),
                told: true,
                turn: Some(1_764_000_000_123_456),
                replayed: Some(1_764_000_000_123_456),
            },
            Marks {
                told: true,
                ..Marks::default()
            },
        ] {
            let headers = r#"{"task": "t", "id": "1", "x": NaN}"#;
            let written = marks.write(headers);
            assert_eq!(Marks::read(&Object::parse(&written).unwrap()), marks);
            assert_eq!(unmarked(&written), headers);
            let again = marks.write(&written);
            assert_eq!(again, written, "marks stand once");
        }
    }

    #[test]
    fn what_is_no_mark_counts_as_none() {
        for value in ["null", "5", "[]", r#"{"deaths": -3}"#, r#"{"deaths": "x"}"#] {
            let headers = format!(r#"{{"celeriac": {value}}}"#);
            let marks = Marks::read(&Object::parse(&headers).unwrap());
            assert_eq!(marks, Marks::default(), "{value}");
        }
        assert_eq!(Marks::default().write("no JSON"), "no JSON");
    }
}
