//! Where messages go that are sent to an exchange, for brokers that keep no bindings.
//!
//! Celery's counterpart: `kombu.transport.virtual.exchange`.

use std::collections::HashMap;

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::queue::{ExchangeKind, Queue};

/// The bindings that one process has declared.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    exchanges: HashMap<String, Vec<Bound>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Bound {
    kind: ExchangeKind,
    routing_key: String,
    queue: String,
}

impl Bindings {
    /// Takes note of a queue's bindings.
    pub(crate) fn declare(&mut self, queue: &Queue) {
        for binding in queue.all_bindings() {
            let bound = Bound {
                kind: binding.exchange.kind,
                routing_key: binding.routing_key,
                queue: queue.name.clone(),
            };
            let all = self.exchanges.entry(binding.exchange.name).or_default();
            if !all.contains(&bound) {
                all.push(bound);
            }
        }
    }

    /// The queues that a message goes to.
    pub(crate) fn queues<'b>(&'b self, exchange: &str, routing_key: &'b str) -> Vec<&'b str> {
        if exchange.is_empty() {
            return vec![routing_key];
        }
        let bound = self.exchanges.get(exchange).map_or(&[][..], Vec::as_slice);
        let mut queues: Vec<&str> = bound
            .iter()
            .filter(|bound| match bound.kind {
                ExchangeKind::Fanout => true,
                ExchangeKind::Topic => topic_matches(&bound.routing_key, routing_key),
                ExchangeKind::Direct | ExchangeKind::Other(_) => bound.routing_key == routing_key,
            })
            .map(|bound| &*bound.queue)
            .collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }
}

/// That no queue gets a message which is to come somewhere.
pub(crate) fn unroutable(exchange: &str, routing_key: &str) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!(
            "no queue takes a message for exchange {exchange:?} with routing key {routing_key:?}"
        ),
    )
    .with_hint("declare a queue in task_queues that is bound to it")
}

/// Whether a topic pattern matches a routing key, as kombu's regular expression does: `*` stands
/// for one word, `#` for any text.
pub(crate) fn topic_matches(pattern: &str, key: &str) -> bool {
    let (word, rest) = match pattern.split_once('.') {
        Some((word, rest)) => (word, Some(rest)),
        None => (pattern, None),
    };
    let after = |end: usize| match rest {
        None => end == key.len(),
        Some(rest) => key
            .get(end..)
            .and_then(|key| key.strip_prefix('.'))
            .is_some_and(|key| topic_matches(rest, key)),
    };
    match word {
        "#" => key
            .char_indices()
            .map(|(at, _)| at)
            .chain([key.len()])
            .any(after),
        "*" => {
            let end = key.find('.').unwrap_or(key.len());
            end > 0 && after(end)
        }
        word => key.starts_with(word) && after(word.len()),
    }
}

#[cfg(test)]
mod tests {
    use celeriac_core::queue::Exchange;

    use super::*;

    fn queue(name: &str, exchange: &str, kind: ExchangeKind, key: &str) -> Queue {
        Queue {
            exchange: Exchange::new(exchange, kind),
            routing_key: key.to_owned(),
            ..Queue::direct(name)
        }
    }

    #[test]
    fn each_exchange_chooses_in_its_way() {
        let mut bindings = Bindings::default();
        for queue in [
            Queue::direct("a"),
            queue("b", "t", ExchangeKind::Topic, "x.*"),
            queue("c", "t", ExchangeKind::Topic, "x.#"),
            queue("d", "f", ExchangeKind::Fanout, ""),
            queue("e", "f", ExchangeKind::Fanout, "k"),
        ] {
            bindings.declare(&queue);
            bindings.declare(&queue);
        }
        for (exchange, key, queues) in [
            ("", "anything", &["anything"][..]),
            ("a", "a", &["a"]),
            ("a", "b", &[]),
            ("t", "x.y", &["b", "c"]),
            ("t", "x.y.z", &["c"]),
            ("f", "any", &["d", "e"]),
            ("unknown", "a", &[]),
        ] {
            assert_eq!(bindings.queues(exchange, key), queues, "{exchange} {key}");
        }
    }
}
