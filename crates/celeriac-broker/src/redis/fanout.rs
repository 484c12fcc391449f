//! Fanout exchanges: the channels of Redis's publish and subscribe that stand for them.
//!
//! Celery's counterpart: `kombu.transport.redis.Channel._get_publish_topic`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use celeriac_protocol::envelope;
use serde_json::Value;

use crate::open::Options;

/// How the channels of one broker are called.
#[derive(Debug, Clone)]
pub(super) struct Fanout {
    /// What stands before the exchange; with `global_keyprefix`.
    prefix: String,
    /// The same for those who leave `{db}` as it stands: the option `sentinel_fanout_compat`.
    old_prefix: Option<String>,
    /// Whether the routing key is part of the channel's name: the option `fanout_patterns`.
    has_patterns: bool,
}

impl Fanout {
    pub(super) fn new(options: &Options, database: &str, is_watched: bool) -> Self {
        let template = match options.transport.get("fanout_prefix") {
            None | Some(Value::Bool(true)) => "/{db}.",
            Some(Value::String(text)) => text,
            Some(_) => "",
        };
        let global = options.text("global_keyprefix").unwrap_or_default();
        let has_old = is_watched
            && template.contains("{db}")
            && options.transport.get("sentinel_fanout_compat") == Some(&Value::Bool(true));
        Self {
            prefix: format!("{global}{}", template.replace("{db}", database)),
            old_prefix: has_old.then(|| format!("{global}{template}")),
            has_patterns: !matches!(
                options.transport.get("fanout_patterns"),
                Some(Value::Bool(false) | Value::Null)
            ),
        }
    }

    /// The channel for an exchange and a routing key. A `#` in the key makes it a pattern to
    /// subscribe to.
    pub(super) fn channel(&self, exchange: &str, routing_key: &str) -> String {
        self.channel_after(&self.prefix, exchange, routing_key)
    }

    /// All channels to publish on or to subscribe to.
    pub(super) fn channels(&self, exchange: &str, routing_key: &str) -> Vec<String> {
        let prefixes = std::iter::once(&self.prefix).chain(&self.old_prefix);
        prefixes
            .map(|prefix| self.channel_after(prefix, exchange, routing_key))
            .collect()
    }

    fn channel_after(&self, prefix: &str, exchange: &str, routing_key: &str) -> String {
        if self.has_patterns && !routing_key.is_empty() {
            format!("{prefix}{exchange}/{}", routing_key.replace('#', "*"))
        } else {
            format!("{prefix}{exchange}")
        }
    }

    /// What tells messages apart that come over several channels; `None` where there is one.
    pub(super) fn seen(&self) -> Option<Seen> {
        self.old_prefix.as_ref().map(|_| Seen::default())
    }
}

/// The last messages of fanout exchanges.
#[derive(Debug, Default)]
pub(super) struct Seen {
    tags: Mutex<VecDeque<String>>,
}

impl Seen {
    /// As many as kombu keeps.
    const LIMIT: usize = 1000;

    /// Whether a message came before. One without a tag is always new.
    pub(super) fn is_repeated(&self, raw: &[u8]) -> bool {
        let message = envelope::decode(&Bytes::copy_from_slice(raw)).ok();
        let Some(tag) = message.and_then(|message| message.property("delivery_tag")) else {
            return false;
        };
        // Nothing panics while it is held.
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        if tags.iter().any(|known| *known == *tag) {
            return true;
        }
        tags.push_back(tag.to_string());
        if tags.len() > Self::LIMIT {
            tags.pop_front();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn channels_are_kombus() {
        for (options, pidbox, events) in [
            (json!({}), "/9.celery.pidbox", "/9.celeryev/worker.*"),
            (
                json!({"fanout_prefix": true, "fanout_patterns": true}),
                "/9.celery.pidbox",
                "/9.celeryev/worker.*",
            ),
            (
                json!({"fanout_prefix": false}),
                "celery.pidbox",
                "celeryev/worker.*",
            ),
            (
                json!({"fanout_prefix": "x{db}:", "fanout_patterns": false}),
                "x9:celery.pidbox",
                "x9:celeryev",
            ),
            (
                json!({"global_keyprefix": "p:"}),
                "p:/9.celery.pidbox",
                "p:/9.celeryev/worker.*",
            ),
        ] {
            let Value::Object(transport) = options else {
                unreachable!()
            };
            let options = Options {
                transport,
                ..Options::default()
            };
            let fanout = Fanout::new(&options, "9", false);
            assert_eq!(fanout.channel("celery.pidbox", ""), pidbox);
            assert_eq!(fanout.channel("celeryev", "worker.#"), events);
        }
    }

    #[test]
    fn old_sentinel_clients_are_reached_where_they_listen() {
        let Value::Object(transport) = json!({"sentinel_fanout_compat": true}) else {
            unreachable!()
        };
        let options = Options {
            transport,
            ..Options::default()
        };
        let channels =
            |is_watched| Fanout::new(&options, "9", is_watched).channels("celeryev", "worker.#");
        assert_eq!(
            channels(true),
            ["/9.celeryev/worker.*", "/{db}.celeryev/worker.*"]
        );
        assert_eq!(channels(false), ["/9.celeryev/worker.*"]);
        let seen = Fanout::new(&options, "9", true).seen().unwrap();
        let message = |tag| format!(r#"{{"body": "", "properties": {{"delivery_tag": {tag}}}}}"#);
        assert!(!seen.is_repeated(message("\"a\"").as_bytes()));
        assert!(!seen.is_repeated(message("\"b\"").as_bytes()));
        assert!(seen.is_repeated(message("\"a\"").as_bytes()));
        assert!(!seen.is_repeated(b"none"));
        assert!(!seen.is_repeated(b"none"));
    }
}
