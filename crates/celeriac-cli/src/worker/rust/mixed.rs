//! Hooks of a worker that has tasks in Python and tasks in Rust.

use std::sync::Arc;

use bytestring::ByteString;
use celeriac_native::Registry;
use celeriac_protocol::Message;
use celeriac_protocol::json::{self, Object};
use celeriac_worker::hooks::{Answer, HookCall, Hooks};

use super::hooks::NativeHooks;
use crate::worker::hooks::MainHooks;

/// What is about a task in Rust goes to [`NativeHooks`], all else to main.
pub(in crate::worker) struct MixedHooks {
    pub(in crate::worker) main: MainHooks,
    pub(in crate::worker) native: NativeHooks,
    pub(in crate::worker) registry: Arc<Registry>,
}

impl Hooks for MixedHooks {
    fn call(&self, call: HookCall) -> Answer {
        if self.is_native(&call) {
            self.native.call(call)
        } else {
            self.main.call(call)
        }
    }

    fn tell(&self, call: HookCall) {
        if self.is_native(&call) {
            self.native.tell(call);
        } else {
            self.main.tell(call);
        }
    }
}

impl MixedHooks {
    fn is_native(&self, call: &HookCall) -> bool {
        let task = match call {
            HookCall::SetTaskAttributes { task, .. } => Some(ByteString::from(task.as_str())),
            _ => message_of(call).and_then(task_of),
        };
        task.is_some_and(|task| self.registry.get(&task).is_some())
    }
}

/// The message that a hook is about.
fn message_of(call: &HookCall) -> Option<&Message> {
    match call {
        HookCall::OpenV1(message)
        | HookCall::TaskReceived(message)
        | HookCall::SuccessWasStored(message)
        | HookCall::TaskRejected { message, .. }
        | HookCall::TaskUnknown { message, .. }
        | HookCall::TaskRevoked { message, .. }
        | HookCall::RetryLost { message, .. }
        | HookCall::Lost { message, .. }
        | HookCall::TimedOut { message, .. }
        | HookCall::Rejected { message, .. }
        | HookCall::Raised { message, .. }
        | HookCall::Cancelled { message, .. }
        | HookCall::Notify { message, .. } => Some(message),
        _ => None,
    }
}

/// The task that a message is for; `None` where its headers do not say.
fn task_of(message: &Message) -> Option<ByteString> {
    let headers = Object::parse(&message.headers).ok()?;
    let task = headers.get("task").and_then(json::as_str)?;
    Some(task.into_owned().into())
}
