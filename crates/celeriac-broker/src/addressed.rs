//! Messages on their way to an exchange.

use bytestring::ByteString;
use celeriac_protocol::{DeliveryInfo, Message, envelope};

/// The message in kombu's envelope, addressed to an exchange.
pub(crate) fn addressed(message: &Message, exchange: &str, routing_key: &str) -> String {
    let message = Message {
        delivery_info: DeliveryInfo {
            exchange: Some(ByteString::from(exchange)),
            routing_key: Some(ByteString::from(routing_key)),
            ..DeliveryInfo::default()
        },
        ..message.clone()
    };
    envelope::encode(&message, &uuid::Uuid::new_v4().to_string())
}
