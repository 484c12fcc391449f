//! Main, simulated: it is slow, raises, and dies.

use std::collections::VecDeque;
use std::sync::Arc;

use celeriac_protocol::Message;
use celeriac_worker::hooks::Answer;
use celeriac_worker::{HookCall, Hooks};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::auditor::Serial;
use crate::process::ProcessId;
use crate::world::{Event, Shared, World, locked, serial_of};

/// How often a call is made that main did not survive.
const ATTEMPTS: u8 = 2;

/// What main has to do.
#[derive(Default)]
pub(crate) struct Main {
    queue: VecDeque<Asked>,
    is_busy: bool,
    /// Which main it is, after those that died.
    generation: u64,
    is_dead: bool,
}

struct Asked {
    call: HookCall,
    answer: Option<oneshot::Sender<Result<Value, String>>>,
    attempts: u8,
}

/// The way to main.
pub(crate) struct SimulatedHooks {
    pub(crate) world: Shared,
    pub(crate) process: ProcessId,
}

impl Hooks for SimulatedHooks {
    fn call(&self, call: HookCall) -> Answer {
        let (answer, awaited) = oneshot::channel();
        locked(&self.world).ask_main(self.process, call, Some(answer));
        Box::pin(async move {
            match awaited.await {
                Ok(answer) => answer,
                // The process is no more.
                Err(_) => std::future::pending().await,
            }
        })
    }

    fn tell(&self, call: HookCall) {
        locked(&self.world).ask_main(self.process, call, None);
    }
}

impl World {
    fn ask_main(
        &mut self,
        process: ProcessId,
        call: HookCall,
        answer: Option<oneshot::Sender<Result<Value, String>>>,
    ) {
        let Some(it) = self.living(process) else {
            return;
        };
        it.main.queue.push_back(Asked {
            call,
            answer,
            attempts: 0,
        });
        self.main_goes_on(process);
    }

    fn main_goes_on(&mut self, process: ProcessId) {
        let is_slow = self.chance.happens(self.plan.faults.slow_hook);
        let (least, most) = if is_slow && !self.is_calm {
            (100, 3000)
        } else {
            (0, 2)
        };
        let takes = self.chance.ms(least, most);
        let Some(it) = self.living(process) else {
            return;
        };
        if it.main.is_busy || it.main.is_dead || it.main.queue.is_empty() {
            return;
        }
        it.main.is_busy = true;
        let generation = it.main.generation;
        self.plan_in(takes, Event::MainIsDone(process, generation));
    }

    pub(crate) fn main_is_done(&mut self, process: ProcessId, generation: u64) {
        let Some(it) = self.living(process) else {
            return;
        };
        if it.main.generation != generation {
            return;
        }
        it.main.is_busy = false;
        if let Some(asked) = it.main.queue.pop_front() {
            let fails = !self.is_calm && self.chance.happens(self.plan.faults.hook);
            let answer = if fails {
                if let Some(serial) = serial_in(&asked.call) {
                    self.auditor.hook_failed(serial);
                }
                Err("it raised".to_owned())
            } else {
                Ok(self.carry_out(process, &asked.call))
            };
            self.log(|| format!("{process} main: {:?} -> {answer:?}", Short(&asked.call)));
            if let Some(to) = asked.answer {
                drop(to.send(answer));
            }
        }
        self.main_goes_on(process);
    }

    pub(crate) fn main_dies(&mut self, process: ProcessId) {
        let is_done = self.chance.happens(0.5);
        let Some(it) = self.living(process) else {
            return;
        };
        if it.main.is_dead {
            return;
        }
        it.main.is_dead = true;
        it.main.generation += 1;
        let was_busy = std::mem::replace(&mut it.main.is_busy, false);
        let notify = Arc::clone(&it.main_died);
        let mut told = None;
        if was_busy && let Some(asked) = it.main.queue.front_mut() {
            asked.attempts += 1;
            // It may have done what it was asked without having answered.
            told = is_done.then(|| asked.call.clone());
            if asked.attempts >= ATTEMPTS
                && let Some(asked) = it.main.queue.pop_front()
            {
                if let Some(to) = asked.answer {
                    drop(to.send(Err("the main process is gone".to_owned())));
                }
                if let Some(serial) = serial_in(&asked.call) {
                    self.auditor.hook_failed(serial);
                }
            }
        }
        self.log(|| format!("{process} main dies"));
        if let Some(call) = told {
            self.carry_out(process, &call);
        }
        notify.notify_one();
        let later = self.chance.ms(20, 500);
        self.plan_in(later, Event::MainIsBack(process));
    }

    pub(crate) fn main_is_back(&mut self, process: ProcessId) {
        if let Some(it) = self.living(process) {
            it.main.is_dead = false;
            self.main_goes_on(process);
        }
    }

    /// Does what a hook does in the world.
    fn carry_out(&mut self, process: ProcessId, call: &HookCall) -> Value {
        let latest = self.latest(process);
        match call {
            HookCall::SuccessWasStored(message) => {
                return self.auditor.has_succeeded(serial_of(message)).into();
            }
            HookCall::RetryLost { message, .. } => {
                let serial = serial_of(message);
                self.publish_retry(serial);
                self.auditor.stored(serial, "sent again");
                return true.into();
            }
            HookCall::TaskRevoked {
                message, reason, ..
            } => self.auditor.discarded(serial_of(message), reason, latest),
            HookCall::TaskUnknown { message, .. } => {
                self.auditor.stored(serial_of(message), "unknown");
            }
            HookCall::Lost {
                message,
                requeues: false,
                ..
            } => self.auditor.stored(serial_of(message), "lost"),
            HookCall::TimedOut { message, .. } => {
                self.auditor.stored(serial_of(message), "timed out");
            }
            HookCall::Rejected { message, .. } | HookCall::Raised { message, .. } => {
                self.auditor.stored(serial_of(message), "failed");
            }
            HookCall::Cancelled {
                message,
                emit_retry: true,
            } => self.auditor.stored(serial_of(message), "cancelled"),
            HookCall::KeepRevoked { ids, .. } => self.server.revokes.extend(ids.iter().cloned()),
            _ => {}
        }
        Value::Null
    }
}

/// The message that a hook is about.
fn serial_in(call: &HookCall) -> Option<Serial> {
    message_in(call).map(serial_of)
}

fn message_in(call: &HookCall) -> Option<&Message> {
    match call {
        HookCall::SuccessWasStored(message)
        | HookCall::RetryLost { message, .. }
        | HookCall::TaskRevoked { message, .. }
        | HookCall::TaskUnknown { message, .. }
        | HookCall::Lost { message, .. }
        | HookCall::TimedOut { message, .. }
        | HookCall::Rejected { message, .. }
        | HookCall::Raised { message, .. }
        | HookCall::TaskReceived(message)
        | HookCall::Cancelled { message, .. } => Some(message),
        _ => None,
    }
}

/// A call by its name and its message.
struct Short<'c>(&'c HookCall);

impl std::fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:?}", self.0);
        let name = text.split([' ', '(']).next().unwrap_or_default();
        match serial_in(self.0) {
            Some(serial) => write!(f, "{name} of {serial}"),
            None => f.write_str(name),
        }
    }
}
