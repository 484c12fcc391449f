//! The names of the tables: kombu's, and those of celeriac beside them.

use crate::open::Options;

/// kombu's default `message_tablename`.
const MESSAGE: &str = "kombu_message";

/// The names of the tables, as they are without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tables {
    /// kombu's queues.
    pub(super) queue: String,
    /// kombu's messages.
    pub(super) message: String,
    /// Which worker holds a message that was taken.
    pub(super) lease: String,
    /// The last sign of life of each worker.
    pub(super) worker: String,
    /// When each message of the delay store comes back.
    pub(super) delayed: String,
    /// Dead letters.
    pub(super) dead: String,
    /// The index of the messages that wait, in the order in which they are taken.
    pub(super) waiting: String,
}

impl Tables {
    pub(super) fn new(options: &Options) -> Self {
        let named = |option, default| options.text(option).unwrap_or(default).to_owned();
        let message = named("message_tablename", MESSAGE);
        // Two tables of messages in one database have leases of their own: ids repeat.
        let beside = |name: &str| match message.as_str() {
            MESSAGE => name.to_owned(),
            other => format!("{name}_{other}"),
        };
        Self {
            queue: named("queue_tablename", "kombu_queue"),
            lease: beside("celeriac_lease"),
            worker: beside("celeriac_worker"),
            delayed: beside("celeriac_delayed"),
            dead: beside("celeriac_dead"),
            waiting: beside("celeriac_waiting"),
            message,
        }
    }

    /// The same names, each as `quote` writes an identifier.
    pub(super) fn quoted(&self, quote: impl Fn(&str) -> String) -> Self {
        Self {
            queue: quote(&self.queue),
            message: quote(&self.message),
            lease: quote(&self.lease),
            worker: quote(&self.worker),
            delayed: quote(&self.delayed),
            dead: quote(&self.dead),
            waiting: quote(&self.waiting),
        }
    }
}
