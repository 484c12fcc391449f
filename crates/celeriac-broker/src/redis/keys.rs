//! The names of keys, and the order in which queues are asked.
//!
//! Celery's counterparts: `kombu.transport.redis.Channel` (`_q_for_pri`, `keyprefix_queue`) and
//! `kombu.utils.scheduling`.

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::queue::{Binding, ExchangeKind};
use celeriac_protocol::json;

use crate::bindings::topic_matches;
use crate::open::Options;

/// kombu's separator between the parts of a name.
const SEPARATOR: &str = "\u{6}\u{16}";
/// The priorities for which there is a list of its own.
const PRIORITY_STEPS: [u8; 4] = [0, 3, 6, 9];

/// How the keys of one broker are called.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    separator: String,
    /// Lowest first, which is the most urgent.
    pub(super) steps: Vec<u8>,
    pub(super) unacked: String,
    pub(super) unacked_index: String,
    /// The set of celeriac's workers with the moment of their last sign of life.
    pub(super) workers: String,
    /// Since when, and when last, any of them gave one.
    pub(super) pulse: String,
    /// Dead letters by their ids, and their ids by the moment of their death.
    pub(super) dead: String,
    pub(super) dead_index: String,
    /// Before the names of limits and claims, and of the holders of their slots.
    pub(super) limit: String,
    pub(super) slots: String,
    /// Until when each binding table is in use that only expiring queues stand in.
    pub(super) binding_deadlines: String,
}

impl Keys {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let prefix = options
            .text("global_keyprefix")
            .unwrap_or_default()
            .to_owned();
        let named =
            |option, default| format!("{prefix}{}", options.text(option).unwrap_or(default));
        Ok(Self {
            separator: options.text("sep").unwrap_or(SEPARATOR).to_owned(),
            steps: priority_steps(options)?,
            unacked: named("unacked_key", "unacked"),
            unacked_index: named("unacked_index_key", "unacked_index"),
            workers: format!("{prefix}_celeriac.workers"),
            pulse: format!("{prefix}_celeriac.pulse"),
            dead: format!("{prefix}_celeriac.dead"),
            dead_index: format!("{prefix}_celeriac.dead.index"),
            limit: format!("{prefix}_celeriac.limit."),
            slots: format!("{prefix}_celeriac.slots."),
            binding_deadlines: format!("{prefix}_kombu.binding_deadlines"),
            prefix,
        })
    }

    /// The list of a queue for a priority step.
    pub(super) fn list(&self, queue: &str, step: u8) -> String {
        if step == 0 {
            format!("{}{queue}", self.prefix)
        } else {
            format!("{}{queue}{}{step}", self.prefix, self.separator)
        }
    }

    /// All lists of a queue, the most urgent first.
    pub(super) fn lists(&self, queue: &str) -> Vec<String> {
        self.steps
            .iter()
            .map(|step| self.list(queue, *step))
            .collect()
    }

    /// The list of a queue for a message of this priority.
    pub(super) fn list_for_priority(&self, queue: &str, priority: u8) -> String {
        let step = self
            .steps
            .iter()
            .rev()
            .find(|step| **step <= priority)
            .copied();
        self.list(queue, step.unwrap_or(0))
    }

    /// The end of a value in `unacked`, after the envelope: its route back into `queue`.
    ///
    /// kombu writes the route that the publisher used; a restored message then goes to every queue
    /// bound for it. The default exchange leads back to the one queue it was taken from.
    pub(super) fn route_suffix(queue: &str) -> String {
        format!(r#", "", {}]"#, json::quote(queue))
    }

    /// The sets in which bindings of an exchange stand, and the member that stands for one.
    pub(super) fn binding(&self, binding: &Binding, queue: &str) -> BindingKeys {
        let exchange = &binding.exchange;
        let pattern = match exchange.kind {
            ExchangeKind::Topic => topic_pattern(&binding.routing_key),
            _ => String::new(),
        };
        let separator = &self.separator;
        BindingKeys {
            table: self.binding_table(&exchange.name),
            permanent: self.permanent_table(&exchange.name),
            member: format!(
                "{}{separator}{pattern}{separator}{queue}",
                binding.routing_key
            ),
        }
    }

    /// The set that holds the bindings of an exchange.
    pub(super) fn binding_table(&self, exchange: &str) -> String {
        format!("{}_kombu.binding.{exchange}", self.prefix)
    }

    /// The set that holds those of its bindings that never expire.
    pub(super) fn permanent_table(&self, exchange: &str) -> String {
        format!("{}_kombu.binding_permanent.{exchange}", self.prefix)
    }

    /// Revoked tasks that are kept: ids, and JSON arrays of a header and its value. Both are sorted
    /// sets by the time of the revoke, which Python writes (`celeriac.host.revocations`).
    pub(super) fn revoked(&self) -> [String; 2] {
        ["_celeriac.revoked", "_celeriac.revoked.headers"]
            .map(|key| format!("{}{key}", self.prefix))
    }

    /// What stands before the name of every key.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What stands between the parts of a binding.
    pub(super) fn separator(&self) -> &str {
        &self.separator
    }

    /// The queue of a binding whose key matches `routing_key`.
    pub(super) fn bound_queue<'m>(&self, member: &'m str, routing_key: &str) -> Option<&'m str> {
        let mut parts = member.split(self.separator.as_str());
        let (key, pattern, queue) = (parts.next()?, parts.next()?, parts.next()?);
        let matches = if pattern.is_empty() {
            key == routing_key
        } else {
            topic_matches(key, routing_key)
        };
        matches.then_some(queue)
    }
}

/// Where one binding stands.
pub(super) struct BindingKeys {
    pub(super) table: String,
    pub(super) permanent: String,
    pub(super) member: String,
}

/// The option `priority_steps`.
fn priority_steps(options: &Options) -> Result<Vec<u8>, Error> {
    let Some(steps) = options
        .transport
        .get("priority_steps")
        .filter(|steps| !steps.is_null())
    else {
        return Ok(PRIORITY_STEPS.to_vec());
    };
    let numbers: Option<Vec<u8>> = steps.as_array().and_then(|steps| {
        steps
            .iter()
            .map(|step| step.as_u64().and_then(|step| u8::try_from(step).ok()))
            .collect()
    });
    match numbers {
        Some(mut numbers) if numbers.contains(&0) => {
            numbers.sort_unstable();
            Ok(numbers)
        }
        _ => Err(Error::new(
            ErrorKind::Configuration,
            format!(
                "broker_transport_options: priority_steps = {steps} is no list of numbers with 0"
            ),
        )),
    }
}

/// The regular expression that kombu stores for a topic binding.
fn topic_pattern(key: &str) -> String {
    let escape = |word: &str| -> String {
        word.chars()
            .flat_map(|c| {
                let plain = c.is_alphanumeric();
                (!plain)
                    .then_some('\\')
                    .into_iter()
                    .chain(std::iter::once(c))
            })
            .collect()
    };
    let words = key.split('.').map(|word| match word {
        "*" => r"[^\.]+".to_owned(),
        "#" => ".*?".to_owned(),
        word => escape(word),
    });
    format!("^{}$", words.collect::<Vec<_>>().join(r"\."))
}

/// In which order queues are asked: the option `queue_order_strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OrderStrategy {
    /// The queue that gave a message goes to the end.
    RoundRobin,
    /// Always as declared.
    Priority,
    /// Always by name.
    Sorted,
}

impl OrderStrategy {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        match options.text("queue_order_strategy") {
            None | Some("round_robin") => Ok(Self::RoundRobin),
            Some("priority") => Ok(Self::Priority),
            Some("sorted") => Ok(Self::Sorted),
            Some(other) => Err(Error::new(
                ErrorKind::Configuration,
                format!("broker_transport_options: queue_order_strategy = {other:?} is unknown"),
            )
            .with_hint("use round_robin, priority or sorted")),
        }
    }

    /// Sorts `queues` for the next question, after `taken` gave messages, in that order.
    pub(super) fn arrange<Q: AsRef<str>>(self, queues: &mut [Q], taken: &[usize]) {
        match self {
            Self::Priority => {}
            Self::Sorted => queues.sort_by(|a, b| a.as_ref().cmp(b.as_ref())),
            Self::RoundRobin => {
                let Some(last) = taken.last() else { return };
                // Turns of equal length: what follows the last one asked comes first.
                queues.rotate_left((last + 1) % queues.len().max(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use celeriac_core::queue::Exchange;

    use super::*;

    fn keys(options: Value) -> Keys {
        let Value::Object(transport) = options else {
            panic!("an object")
        };
        Keys::new(&Options {
            transport,
            ..Options::default()
        })
        .unwrap()
    }

    #[test]
    fn lists_are_kombus() {
        let keys = keys(json!({}));
        assert_eq!(
            keys.lists("q"),
            ["q", "q\u{6}\u{16}3", "q\u{6}\u{16}6", "q\u{6}\u{16}9"]
        );
        let list = |priority| keys.list_for_priority("q", priority);
        assert_eq!(list(0), "q");
        assert_eq!(list(2), "q");
        assert_eq!(list(5), "q\u{6}\u{16}3");
        assert_eq!(list(9), "q\u{6}\u{16}9");
    }

    #[test]
    fn options_change_names() {
        let keys = keys(
            json!({"global_keyprefix": "p:", "sep": ":", "priority_steps": [5, 0],
            "unacked_key": "u"}),
        );
        assert_eq!(keys.lists("q"), ["p:q", "p:q:5"]);
        assert_eq!(keys.unacked, "p:u");
        assert_eq!(keys.unacked_index, "p:unacked_index");
        assert_eq!(keys.workers, "p:_celeriac.workers");
    }

    #[test]
    fn the_route_back_is_json() {
        assert_eq!(Keys::route_suffix("a\"b"), r#", "", "a\"b"]"#);
    }

    #[test]
    fn bindings_are_kombus() {
        let keys = keys(json!({}));
        let binding = |kind, key: &str| {
            let binding = Binding {
                exchange: Exchange::new("x", kind),
                routing_key: key.into(),
                arguments: serde_json::Map::new(),
            };
            keys.binding(&binding, "q")
        };
        let direct = binding(ExchangeKind::Direct, "k");
        assert_eq!(direct.table, "_kombu.binding.x");
        assert_eq!(direct.permanent, "_kombu.binding_permanent.x");
        assert_eq!(direct.member, "k\u{6}\u{16}\u{6}\u{16}q");
        // As kombu.transport.virtual.exchange.TopicExchange.key_to_pattern writes them.
        let topic = binding(ExchangeKind::Topic, "a.*.b-c.#");
        assert_eq!(
            topic.member,
            "a.*.b-c.#\u{6}\u{16}^a\\.[^\\.]+\\.b\\-c\\..*?$\u{6}\u{16}q"
        );
        assert_eq!(keys.bound_queue(&topic.member, "a.x.b-c.d.e"), Some("q"));
        assert_eq!(keys.bound_queue(&topic.member, "a.x.y.b-c.d"), None);
        assert_eq!(keys.bound_queue(&direct.member, "k"), Some("q"));
        assert_eq!(keys.bound_queue(&direct.member, "kk"), None);
    }

    #[test]
    fn topics_match_as_kombus_expressions_do() {
        for (pattern, key, expected) in [
            ("#", "", true),
            ("#", "a.b", true),
            ("*", "a", true),
            ("*", "a.b", false),
            ("*", "", false),
            ("a.#", "a.", true),
            ("a.#", "a.b.c", true),
            ("a.#", "a", false),
            ("#.b", "x.y.b", true),
            ("#.b", "b", false),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a..c", false),
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
        ] {
            assert_eq!(topic_matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn the_queue_that_gave_goes_to_the_end() {
        let mut queues = vec!["a", "b", "c"];
        OrderStrategy::RoundRobin.arrange(&mut queues, &[0]);
        assert_eq!(queues, ["b", "c", "a"]);
        OrderStrategy::RoundRobin.arrange(&mut queues, &[]);
        assert_eq!(queues, ["b", "c", "a"]);
        OrderStrategy::RoundRobin.arrange(&mut queues, &[0, 1]);
        assert_eq!(queues, ["a", "b", "c"]);
        let mut queues = vec!["b", "a"];
        OrderStrategy::Priority.arrange(&mut queues, &[0]);
        assert_eq!(queues, ["b", "a"]);
        OrderStrategy::Sorted.arrange(&mut queues, &[0]);
        assert_eq!(queues, ["a", "b"]);
    }

    #[test]
    fn steps_must_begin_at_zero() {
        let Value::Object(transport) = json!({"priority_steps": [3, 6]}) else {
            unreachable!()
        };
        assert!(
            Keys::new(&Options {
                transport,
                ..Options::default()
            })
            .is_err()
        );
    }
}
