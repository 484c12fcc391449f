//! A task message as a broker delivered it.

use bytes::Bytes;
use bytestring::ByteString;

use crate::json::{self, Object};

/// What a broker delivered, unopened: the body as bytes, headers and properties as JSON text.
///
/// Celery's counterpart is `kombu.message.Message`. Brokers whose headers are no JSON (AMQP's
/// tables) write them as the JSON that kombu's own encoder would have written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The serialized (and perhaps compressed) body.
    pub body: Bytes,
    /// MIME type of the body, such as `application/json`; absent for raw bytes.
    pub content_type: Option<ByteString>,
    /// Character set of the body, such as `utf-8` or `binary`.
    pub content_encoding: Option<ByteString>,
    /// The application headers: JSON text, an object unless the producer was broken.
    pub headers: ByteString,
    /// The message properties (`correlation_id`, `reply_to`, `priority`, …): a JSON object.
    pub properties: ByteString,
    /// How the message came here.
    pub delivery_info: DeliveryInfo,
}

/// The route of a message: what the publisher used and whether it was delivered before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryInfo {
    /// Exchange it was published to, `""` for the default exchange.
    pub exchange: Option<ByteString>,
    /// Routing key it was published with; the queue's name on the default exchange.
    pub routing_key: Option<ByteString>,
    /// The property `priority` as JSON text.
    pub priority: Option<ByteString>,
    /// Whether a broker or a worker delivered it before.
    pub redelivered: bool,
}

impl Message {
    /// The property `name` as JSON text, `None` when absent.
    pub fn property(&self, name: &str) -> Option<ByteString> {
        let properties = Object::parse(&self.properties).ok()?;
        properties.get(name).map(ByteString::from)
    }

    /// The priority as kombu clamps it on virtual transports: 0 to 9, 0 when missing or no number.
    pub fn priority(&self) -> u8 {
        let priority = self
            .delivery_info
            .priority
            .as_deref()
            .and_then(json::as_i64)
            .unwrap_or(0);
        priority.clamp(0, 9) as u8
    }
}
