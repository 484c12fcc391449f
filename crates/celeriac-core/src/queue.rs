//! Queues, exchanges and bindings, as an app declares them.
//!
//! Celery's counterpart: `kombu.entity`. The members are those that the Python host describes.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A queue to consume from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The exchange that it is bound to.
    pub exchange: Exchange,
    /// The key of that binding.
    #[serde(default)]
    pub routing_key: String,
    /// Arguments of that binding, such as `x-match` for a headers exchange.
    #[serde(default)]
    pub binding_arguments: Map<String, Value>,
    /// Further bindings (`kombu.Queue(bindings=…)`).
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// Survives a restart of the broker.
    #[serde(default)]
    pub durable: bool,
    /// May be used by one connection only.
    #[serde(default)]
    pub exclusive: bool,
    /// Is deleted with its last consumer.
    #[serde(default)]
    pub auto_delete: bool,
    /// Messages are acknowledged by being delivered.
    #[serde(default)]
    pub no_ack: bool,
    /// Is not to be declared: it exists, or is someone else's to make.
    #[serde(default)]
    pub no_declare: bool,
    /// Arguments for the broker, such as `x-max-priority`.
    #[serde(default)]
    pub arguments: Map<String, Value>,
    /// Arguments for the broker about a consumer, such as `x-priority`.
    #[serde(default)]
    pub consumer_arguments: Map<String, Value>,
    /// Seconds after which an unused queue is deleted.
    #[serde(default)]
    pub expires: Option<f64>,
}

impl Queue {
    /// A durable queue on the direct exchange of its own name, as Celery makes missing queues.
    pub fn direct(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            exchange: Exchange::new(name.clone(), ExchangeKind::Direct),
            routing_key: name.clone(),
            binding_arguments: Map::new(),
            bindings: Vec::new(),
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_ack: false,
            no_declare: false,
            arguments: Map::new(),
            consumer_arguments: Map::new(),
            expires: None,
            name,
        }
    }

    /// All bindings: that of the queue itself, if it has an exchange, and the further ones.
    pub fn all_bindings(&self) -> impl Iterator<Item = Binding> + '_ {
        let own = (!self.exchange.name.is_empty()).then(|| Binding {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            arguments: self.binding_arguments.clone(),
        });
        own.into_iter().chain(self.bindings.iter().cloned())
    }
}

/// An exchange.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Exchange {
    /// Its name, `""` for the default exchange.
    pub name: String,
    /// How it routes.
    #[serde(rename = "type")]
    pub kind: ExchangeKind,
    /// Survives a restart of the broker.
    #[serde(default)]
    pub durable: bool,
    /// Is deleted with its last queue.
    #[serde(default)]
    pub auto_delete: bool,
    /// Is only looked for when it is declared: somebody else makes it.
    #[serde(default)]
    pub passive: bool,
    /// Is not declared at all.
    #[serde(default)]
    pub no_declare: bool,
    /// Arguments for the broker.
    #[serde(default)]
    pub arguments: Map<String, Value>,
}

impl Exchange {
    /// A durable exchange.
    pub fn new(name: impl Into<String>, kind: ExchangeKind) -> Self {
        Self {
            name: name.into(),
            kind,
            durable: true,
            auto_delete: false,
            passive: false,
            no_declare: false,
            arguments: Map::new(),
        }
    }
}

/// How an exchange chooses queues for a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum ExchangeKind {
    /// By the exact routing key.
    Direct,
    /// By a pattern of words.
    Topic,
    /// All of them.
    Fanout,
    /// A type that only the broker knows, such as `headers`.
    Other(String),
}

impl From<String> for ExchangeKind {
    fn from(name: String) -> Self {
        match name.as_str() {
            "direct" => Self::Direct,
            "topic" => Self::Topic,
            "fanout" => Self::Fanout,
            _ => Self::Other(name),
        }
    }
}

impl std::fmt::Display for ExchangeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::Fanout => "fanout",
            Self::Other(name) => name,
        })
    }
}

/// That messages of an exchange with a routing key come to a queue.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Binding {
    /// The exchange, which is declared with the binding.
    pub exchange: Exchange,
    /// The key, or for a topic exchange the pattern.
    #[serde(default)]
    pub routing_key: String,
    /// Arguments for the broker.
    #[serde(default)]
    pub arguments: Map<String, Value>,
}
