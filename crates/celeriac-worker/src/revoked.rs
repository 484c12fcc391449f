//! What is revoked: ids of tasks, and stamps.
//!
//! Celery's counterparts: `celery.worker.state.revoked`, a `LimitedSet`, and `revoked_stamps`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use celeriac_protocol::Head;
use serde_json::{Map, Value};

use crate::control::python;

/// A set that forgets what is old when it is full.
///
/// Within its bound nothing is forgotten for its age alone, as in Celery: a task with a far ETA
/// stays revoked.
#[derive(Debug)]
pub struct Revoked {
    bound: usize,
    lifetime: Duration,
    added: HashMap<String, Duration>,
    order: VecDeque<(Duration, String)>,
    /// Values by the names of stamped headers; they are never forgotten, as in Celery.
    stamps: Map<String, Value>,
}

/// How many values of a stamped header are kept; those before are forgotten.
const STAMPS: usize = 50_000;

impl Revoked {
    /// At most `bound` ids; when there are more, those older than `lifetime` go, and then the
    /// oldest. `usize::MAX` and `Duration::MAX` are no bounds.
    pub fn new(bound: usize, lifetime: Duration) -> Self {
        Self {
            bound,
            lifetime,
            added: HashMap::new(),
            order: VecDeque::new(),
            stamps: Map::new(),
        }
    }

    /// The bounds that Celery has by default: 50,000 ids, three hours.
    #[cfg(test)]
    pub fn with_celerys_bounds() -> Self {
        Self::new(50_000, Duration::from_hours(3))
    }

    /// Adds an id.
    pub fn insert(&mut self, id: &str, now: Duration) {
        self.added.insert(id.to_owned(), now);
        self.order.push_back((now, id.to_owned()));
        while self.added.len() > self.bound
            || self.order.len() > self.bound.max(1).saturating_mul(2)
        {
            self.forget_oldest();
        }
        if self.added.len() == self.bound {
            while self
                .order
                .front()
                .is_some_and(|(at, _)| now.saturating_sub(*at) > self.lifetime)
            {
                self.forget_oldest();
            }
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((at, id)) = self.order.pop_front() {
            // An id that was added again since stands further back.
            if self.added.get(&id) == Some(&at) {
                self.added.remove(&id);
            }
        }
    }

    /// Adds values of a stamped header.
    pub fn insert_stamps(&mut self, name: &str, stamps: &[Value]) {
        let known = self
            .stamps
            .entry(name)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(known) = known {
            for stamp in stamps {
                if !known.contains(stamp) {
                    known.push(stamp.clone());
                }
            }
            let surplus = known.len().saturating_sub(STAMPS);
            known.drain(..surplus);
        }
    }

    /// All revoked stamps.
    pub fn stamps(&self) -> &Map<String, Value> {
        &self.stamps
    }

    /// The stamp for which a task is revoked, as a log line shows it.
    pub fn revoking_stamp(&self, head: &Head) -> Option<String> {
        if self.stamps.is_empty() || head.stamped_headers.is_none() {
            return None;
        }
        let stamps = Stamps::of(head);
        let (name, stamp) = self
            .stamps
            .iter()
            .find_map(|(name, revoked)| Some((name, stamps.matching(name, revoked).pop()?)))?;
        let (name, stamp) = (python::quoted(name), python::repr(&stamp));
        Some(format!("{{{name}: {stamp}}}"))
    }

    /// Whether an id was added.
    pub fn contains(&self, id: &str) -> bool {
        self.added.contains_key(id)
    }

    /// All ids, the oldest first.
    pub fn ids(&self) -> Vec<String> {
        let is_last = |(at, id): &&(Duration, String)| self.added.get(id) == Some(at);
        self.order
            .iter()
            .filter(is_last)
            .map(|(_, id)| id.clone())
            .collect()
    }
}

/// The stamps of a task: those that its stamped headers name.
#[derive(Debug, Default)]
pub struct Stamps(Map<String, Value>);

impl Stamps {
    /// Those in the head of a message.
    pub fn of(head: &Head) -> Self {
        let parse = |text: &Option<bytestring::ByteString>| {
            text.as_deref()
                .and_then(|text| serde_json::from_str::<Value>(text).ok())
        };
        let names = parse(&head.stamped_headers);
        let Some(Value::Object(stamps)) = parse(&head.stamps) else {
            return Self::default();
        };
        let is_named = |name: &str| {
            let names = names.as_ref().and_then(Value::as_array);
            names.is_some_and(|names| names.iter().any(|named| named == name))
        };
        Self(
            stamps
                .into_iter()
                .filter(|(name, _)| is_named(name))
                .collect(),
        )
    }

    /// The values of a header that are among those wanted.
    pub fn matching(&self, name: &str, wanted: &Value) -> Vec<Value> {
        let wanted = values(wanted);
        let own = self.0.get(name).map(values).unwrap_or_default();
        own.iter()
            .filter(|stamp| wanted.contains(stamp))
            .cloned()
            .collect()
    }
}

/// The ids in a list of them; what is no text is none.
pub fn ids(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|id| id.as_str().map(str::to_owned))
        .collect()
}

/// A value as a list: itself if it is one (`maybe_list`).
pub fn values(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        Value::Null => &[],
        value => std::slice::from_ref(value),
    }
}

#[cfg(test)]
mod tests {
    use celeriac_protocol::json::Object;
    use serde_json::json;

    use super::*;

    #[test]
    fn stamps_revoke_the_tasks_that_bear_them() {
        let head = |stamps: Value, named: Value| {
            let headers = json!({"task": "t", "id": "1", "stamps": stamps,
                                 "stamped_headers": named});
            Head::from_headers(&Object::parse(&headers.to_string()).unwrap())
                .unwrap()
                .unwrap()
        };
        let mut revoked = Revoked::with_celerys_bounds();
        let one = head(json!({"st": "a"}), json!(["st"]));
        assert_eq!(revoked.revoking_stamp(&one), None);
        revoked.insert_stamps("st", &[json!("a"), json!("b")]);
        for (task, shown) in [
            (one, Some("{'st': 'a'}")),
            (
                head(json!({"st": ["x", "b"]}), json!(["st"])),
                Some("{'st': 'b'}"),
            ),
            (head(json!({"st": "x"}), json!(["st"])), None),
            (head(json!({"st": "a"}), json!([])), None),
            (head(json!({"other": "a"}), json!(["other"])), None),
        ] {
            assert_eq!(revoked.revoking_stamp(&task).as_deref(), shown);
        }
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut revoked = Revoked::new(3, Duration::from_secs(10));
        for (second, id) in [(0, "a"), (1, "b"), (2, "a"), (3, "c"), (4, "d")] {
            revoked.insert(id, Duration::from_secs(second));
        }
        assert!(!revoked.contains("b"), "it was the oldest");
        assert_eq!(revoked.ids(), ["a", "c", "d"]);
    }

    #[test]
    fn age_counts_only_when_it_is_full() {
        let mut revoked = Revoked::new(3, Duration::from_secs(10));
        revoked.insert("old", Duration::ZERO);
        revoked.insert("new", Duration::from_secs(100));
        assert!(revoked.contains("old"));
        revoked.insert("newer", Duration::from_secs(101));
        assert!(!revoked.contains("old"));
    }

    #[test]
    fn without_bounds_all_is_known() {
        let mut revoked = Revoked::new(usize::MAX, Duration::MAX);
        revoked.insert("old", Duration::ZERO);
        revoked.insert("new", Duration::MAX);
        let mut full = Revoked::new(2, Duration::MAX);
        full.insert("old", Duration::ZERO);
        full.insert("new", Duration::MAX);
        assert_eq!(revoked.ids(), ["old", "new"]);
        assert_eq!(full.ids(), ["old", "new"]);
    }
}
