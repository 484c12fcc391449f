//! The way that a message first came, kept in a header of its own while it takes another.
//!
//! A message that is delayed comes back by way of Celery's exchange for delayed delivery, and with a
//! record of the levels that it has waited in (`x-death`). Neither is the task's concern: it sees
//! the exchange and the key that its client has used, and the headers that it has sent.

use std::borrow::Cow;

use celeriac_protocol::Marks;

use super::table::{self, Unsayable};
use super::wire::connection::Delivery;
use super::wire::octets::Malformed;

/// The header's name.
const HEADER: &str = "celeriac-route";
/// Its members.
const EXCHANGE: &str = "exchange";
const ROUTING_KEY: &str = "routing_key";
const EXPIRATION: &str = "expiration";
const HEADERS: &str = "headers";

/// The header with marks for other workers.
const MARKS: &[u8] = b"celeriac";
/// How often a queue has delivered a message: it counts anew.
const DELIVERY_COUNT: &[u8] = b"x-delivery-count";

/// Whether a header is one that the server adds to on the way, or that would lead the message to
/// other queues besides.
fn is_set_aside(name: &[u8]) -> bool {
    let begins = |prefix: &[u8]| name.starts_with(prefix);
    name == b"CC" || name == b"x-death" || begins(b"x-first-death-") || begins(b"x-last-death-")
}

/// The way that a message first came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route<'h> {
    pub(super) exchange: &'h str,
    pub(super) routing_key: &'h str,
    /// For how long it may wait in a queue, in milliseconds. It does not count on the way, where it
    /// would cut the wait short; the task's own `expires` does.
    pub(super) expiration: Option<&'h str>,
    /// Headers that were set aside, as members of a table.
    headers: &'h [u8],
}

impl<'h> Route<'h> {
    /// Looks for it in the headers, the members of a table. What is no route counts as none.
    pub(super) fn find(headers: &'h [u8]) -> Option<Self> {
        let route = table::find_table(headers, HEADER)?;
        let text = |name| std::str::from_utf8(table::find_text(route, name)?).ok();
        Some(Self {
            exchange: text(EXCHANGE)?,
            routing_key: text(ROUTING_KEY)?,
            expiration: text(EXPIRATION),
            headers: table::find_table(route, HEADERS).unwrap_or_default(),
        })
    }

    /// The headers as they first were, but for marks.
    pub(super) fn headers(&self, came: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut headers = Vec::with_capacity(came.len());
        for member in table::members(came) {
            let member = member?;
            if member.name != HEADER.as_bytes() && !is_set_aside(member.name) {
                headers.extend_from_slice(member.whole);
            }
        }
        headers.extend_from_slice(self.headers);
        Ok(headers)
    }
}

/// The headers for a message that takes another way: those that it came with, with these marks in
/// place of others, and with the way that it first came.
pub(super) fn put(
    came: &[u8],
    delivery: &Delivery,
    expiration: Option<&str>,
    marks: Marks,
) -> Result<Vec<u8>, super::message::NoDetour> {
    let known = Route::find(came);
    let mut headers = Vec::with_capacity(came.len() + 256);
    let mut aside = Vec::new();
    for member in table::members(came) {
        let member = member?;
        if is_set_aside(member.name) {
            aside.extend_from_slice(member.whole);
        } else if ![MARKS, HEADER.as_bytes(), DELIVERY_COUNT].contains(&member.name) {
            headers.extend_from_slice(member.whole);
        }
    }
    let marks: Cow<'_, str> = marks.write("{}");
    let mut written = Vec::new();
    table::put_table(&marks, &mut written)?;
    headers.extend_from_slice(written.get(4..).unwrap_or_default());
    let route = known.unwrap_or(Route {
        exchange: &delivery.exchange,
        routing_key: &delivery.routing_key,
        expiration,
        headers: &aside,
    });
    put_route(&route, &mut headers)?;
    Ok(headers)
}

fn put_route(route: &Route<'_>, to: &mut Vec<u8>) -> Result<(), Unsayable> {
    table::put_members(HEADER, to, |to| {
        table::put_text(EXCHANGE, route.exchange, to)?;
        table::put_text(ROUTING_KEY, route.routing_key, to)?;
        if let Some(expiration) = route.expiration {
            table::put_text(EXPIRATION, expiration, to)?;
        }
        if route.headers.is_empty() {
            return Ok(());
        }
        table::put_members(HEADERS, to, |to| {
            to.extend_from_slice(route.headers);
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Vec<u8> {
        let mut table = Vec::new();
        table::put_table(text, &mut table).unwrap();
        table.split_off(4)
    }

    fn text(members: &[u8]) -> String {
        let mut text = String::new();
        table::write_table(members, &mut text).unwrap();
        text
    }

    fn delivery(exchange: &str, routing_key: &str) -> Delivery {
        Delivery {
            consumer: "c".into(),
            tag: 1,
            redelivered: false,
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            properties: bytes::Bytes::new(),
            body: bytes::Bytes::new(),
        }
    }

    #[test]
    fn a_message_that_took_another_way_looks_as_it_did() {
        let sent = r#"{"task": "t", "CC": ["other"], "x-death": [{"queue": "own"}], "id": "1", "x-delivery-count": 2}"#;
        let marks = Marks {
            deaths: 1,
            ..Marks::default()
        };
        let first = put(&members(sent), &delivery("shop", "k"), Some("5000"), marks).unwrap();
        assert_eq!(
            text(&first),
            r#"{"task": "t", "id": "1", "celeriac": {"deaths": 1}, "celeriac-route": {"exchange": "shop", "routing_key": "k", "expiration": "5000", "headers": {"CC": ["other"], "x-death": [{"queue": "own"}]}}}"#
        );
        // On the way it is recorded; and it may take several.
        let recorded = members(r#"{"x-death": [1], "x-first-death-queue": "celery_delayed_3"}"#);
        let way = delivery("celery_delayed_delivery", "0.1.celeriac.q");
        let came = [&first[..], &recorded[..]].concat();
        let marks = Marks {
            deaths: 2,
            ..Marks::default()
        };
        let second = put(&came, &way, None, marks).unwrap();
        let came = [&second[..], &recorded[..]].concat();
        let route = Route::find(&came).unwrap();
        assert_eq!((route.exchange, route.routing_key), ("shop", "k"));
        assert_eq!(route.expiration, Some("5000"));
        assert_eq!(
            text(&route.headers(&came).unwrap()),
            r#"{"task": "t", "id": "1", "celeriac": {"deaths": 2}, "CC": ["other"], "x-death": [{"queue": "own"}]}"#
        );
    }

    #[test]
    fn what_is_no_route_counts_as_none() {
        for headers in [
            "{}",
            r#"{"celeriac-route": 5}"#,
            r#"{"celeriac-route": {"exchange": 5, "routing_key": "k"}}"#,
            r#"{"celeriac-route": {"exchange": "e"}}"#,
        ] {
            assert_eq!(Route::find(&members(headers)), None, "{headers}");
        }
    }
}
