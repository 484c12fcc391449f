//! Commands of remote control, and what is told on the bus.

use celeriac_core::bus::Destination;
use celeriac_protocol::json::Object;
use celeriac_worker::control::mailbox::{Command, Meant};
use celeriac_worker::control::signature;

pub(crate) fn check(body: &[u8]) {
    let Ok(command) = Command::parse(body) else {
        return;
    };
    if let Meant::Unclear(reason) = command.is_for("worker@host") {
        assert!(!reason.is_empty());
    }
    if let (Some(signature), Some(arguments)) =
        (signature::find(&command.method), &command.arguments)
    {
        drop(signature.check(arguments));
    }
    let reply = command.address.reply("worker@host", "null", 7);
    assert_eq!(reply.is_some(), command.address.wants_reply());
    if let Some(reply) = reply {
        assert!(matches!(reply.to, Destination::Reply { .. }));
        assert!(Object::parse(&reply.message.headers).is_ok());
        assert_eq!(&reply.message.body[..], b"{\"worker@host\": null}");
    }
}
