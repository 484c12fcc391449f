//! Commands of the remote control are carried out, or given to main.

use std::borrow::Cow;
use std::collections::HashSet;

use celeriac_core::clock::Now;
use celeriac_core::journal::Level;
use serde_json::{Map, Value, json};

use super::Core;
use super::remote::Awaited;
use crate::control::mailbox::{Address, Command, Meant};
use crate::control::{python, signature};
use crate::hooks::HookCall;

pub(super) const CONTROL: &str = "celery.worker.control";
pub(super) const PIDBOX: &str = "kombu.pidbox";

/// What a command answers.
pub(super) enum Answer {
    /// This, at once.
    Reply(Value),
    /// The exception that it raised, as Python shows it.
    Raised(String),
    /// Whatever main answers.
    Main(HookCall),
    /// These scheduled tasks, and those in the delay store.
    Scheduled(Vec<Value>),
    /// Nothing at all.
    Silence,
}

impl Answer {
    pub(super) fn ok(text: impl Into<String>) -> Self {
        Self::Reply(json!({"ok": text.into()}))
    }

    pub(super) fn error(text: impl Into<String>) -> Self {
        Self::Reply(json!({"error": text.into()}))
    }
}

/// The arguments of a command.
pub(super) struct Arguments(pub(super) Map<String, Value>);

impl Arguments {
    /// An argument that was given and is not null.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(python::is_true)
    }

    /// A text, or what a text would be made of.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| match value {
            Value::String(text) => text.clone(),
            other => python::repr(other),
        })
    }

    /// Texts: one or a list of them, each once (`maybe_list` and `set`).
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        let mut known = HashSet::new();
        let values = match self.get(name) {
            Some(Value::Array(values)) => &values[..],
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        // There may be 50,000 of them: each worker that starts sends all that it knows is revoked.
        values
            .iter()
            .map(|value| match value.as_str() {
                Some(text) => Cow::from(text),
                None => Cow::from(python::repr(value)),
            })
            .filter(|text| known.insert(text.clone()))
            .map(Cow::into_owned)
            .collect()
    }
}

impl Core {
    /// A command came that may be for this worker.
    pub(super) fn command(&mut self, command: Command, now: Now) {
        match command.is_for(&self.options.hostname) {
            Meant::Yes => {}
            Meant::No => return,
            Meant::Unclear(reason) => return self.notice(Level::Error, PIDBOX, &reason),
        }
        let Command {
            method,
            arguments,
            address,
            ..
        } = command;
        let arguments = Arguments(arguments.unwrap_or_default());
        match self.carry_out(&method, arguments, now) {
            Answer::Reply(reply) => self.reply(&address, &reply),
            Answer::Raised(exception) => {
                self.notice(
                    Level::Error,
                    PIDBOX,
                    &format!("pidbox command error: {exception}"),
                );
                self.reply(&address, &json!({"error": exception}));
            }
            Answer::Main(call) => self.ask_main(Awaited::Reply(address), call),
            Answer::Scheduled(held) => self.list_scheduled(address, held),
            Answer::Silence => {}
        }
    }

    pub(super) fn reply(&mut self, address: &Address, reply: &Value) {
        if !address.wants_reply() {
            return;
        }
        let clock = self.remote.clock.forward();
        let reply = address.reply(&self.options.hostname, &reply.to_string(), clock);
        self.remote.outgoing.extend(reply);
    }

    pub(super) fn for_main(&self, method: &str, arguments: Arguments) -> Answer {
        Answer::Main(HookCall::ControlCommand {
            method: method.to_owned(),
            arguments: arguments.0,
            clock: self.remote.clock.value(),
        })
    }

    pub(super) fn carry_out(&mut self, method: &str, arguments: Arguments, now: Now) -> Answer {
        let own =
            signature::find(method).filter(|_| !self.remote.options.overridden.contains(method));
        let Some(signature) = own else {
            if !self.remote.options.commands.contains(method) {
                return Answer::Raised(format!("KeyError({})", python::quoted(method)));
            }
            return self.for_main(method, arguments);
        };
        if let Err(exception) = signature.check(&arguments.0) {
            return Answer::Raised(exception);
        }
        match signature.name {
            "ping" => Answer::ok("pong"),
            "active" => self.active(&arguments),
            "active_queues" => self.active_queues(),
            "clock" => Answer::Reply(json!({"clock": self.remote.clock.value()})),
            "hello" => self.hello(&arguments, now),
            "query_task" => self.query_task(&arguments),
            "registered" => self.registered(arguments),
            "reserved" => self.reserved(),
            "revoked" => Answer::Reply(self.revoked.ids().into()),
            "scheduled" => self.scheduled(),
            "stats" => self.stats(now),
            "add_consumer" => self.add_consumer(arguments),
            "autoscale" => self.set_autoscale(&arguments, now),
            "cancel_consumer" => self.cancel_consumer(&arguments),
            "disable_events" => self.disable_events(),
            "enable_events" => self.enable_events(),
            "election" => self.election(&arguments, now),
            "heartbeat" => self.heartbeat(now),
            "pool_grow" => self.pool_grow(&arguments),
            "pool_shrink" => self.pool_shrink(&arguments),
            "rate_limit" => self.rate_limit(&arguments, now),
            "time_limit" => self.time_limit(&arguments),
            "revoke" => self.revoke(&arguments, now),
            "terminate" => self.terminate(arguments, now),
            "revoke_by_stamped_headers" => self.revoke_by_stamped_headers(&arguments, now),
            "shutdown" => self.remote_shutdown(&arguments, now),
            _ => Answer::Silence,
        }
    }
}
