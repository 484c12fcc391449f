//! The worker's hooks as calls into main.

use std::fmt::Write as _;

use celeriac_core::pool::Failure;
use celeriac_pool::python::Main;
use celeriac_pool::python::main::{Call, Rank};
use celeriac_worker::hooks::{Answer, Blueprint, HookCall, Hooks};
use serde_json::Value;

/// Hooks that run in the app's main process.
#[derive(Debug)]
pub(super) struct MainHooks(pub(super) Main);

impl Hooks for MainHooks {
    fn call(&self, call: HookCall) -> Answer {
        let answer = self.0.call(to_call(call));
        Box::pin(async { answer.await.map_err(|error| error.to_string()) })
    }

    fn tell(&self, call: HookCall) {
        self.0.tell(to_call(call));
    }
}

/// The call of `celeriac.host.main` that a hook is.
fn to_call(hook: HookCall) -> Call {
    match hook {
        HookCall::StartSteps(blueprint) => {
            let rank = match blueprint {
                Blueprint::Worker => Rank::WorkerSteps,
                Blueprint::Consumer => Rank::ConsumerSteps,
            };
            Call::new("start_steps")
                .with("blueprint", name(blueprint))
                .ranked(rank)
        }
        HookCall::CloseSteps => Call::new("close_steps"),
        HookCall::EndSteps { terminate } => Call::new("end_steps").with("terminate", terminate),
        HookCall::HeartbeatSent => Call::new("heartbeat_sent"),
        HookCall::WorkerReady => Call::new("worker_ready"),
        HookCall::WorkerShuttingDown { sig, how, exitcode } => Call::new("worker_shutting_down")
            .with("sig", sig)
            .with("how", how)
            .with("exitcode", exitcode),
        HookCall::WorkerShutdown => Call::new("worker_shutdown"),
        HookCall::Terminating => Call::new("terminating").ranked(Rank::Knowledge),
        HookCall::Cry => Call::new("cry"),
        HookCall::SaveState { revoked } => Call::new("save_state").with("revoked", revoked),
        HookCall::OpenV1(message) => Call::new("open_v1").about(&message),
        HookCall::TaskReceived(message) => Call::new("task_received").about(&message),
        HookCall::TaskRejected { message, reason } => Call::new("task_rejected")
            .about(&message)
            .with("reason", reason),
        HookCall::TaskUnknown { message, task, id } => Call::new("task_unknown")
            .about(&message)
            .with("task", task)
            .with("task_id", id),
        HookCall::TaskRevoked {
            message,
            reason,
            terminated,
            signum,
            expired,
        } => Call::new("task_revoked")
            .about(&message)
            .with("reason", reason)
            .with("terminated", terminated)
            .with("signum", signum)
            .with("expired", expired),
        HookCall::ControlCommand {
            method,
            arguments,
            clock,
        } => Call::new("control_command")
            .with("method", method)
            .with("arguments", arguments)
            .with("clock", clock)
            .aside(),
        HookCall::ControlOpen(message) => Call::new("control_open").about(&message),
        HookCall::EncodeReply(reply) => Call::new("control_reply").with("reply", reply),
        HookCall::EncodeEvent(event) => Call::new("encode_event").with("event", event),
        HookCall::MarkRevoked { ids, names } => Call::new("mark_revoked")
            .with("ids", ids)
            .with("names", names)
            .aside(),
        HookCall::AddRevoked { ids, headers } => Call::new("add_revoked")
            .with("ids", ids)
            .with("headers", headers)
            .ranked(Rank::Knowledge),
        HookCall::LoadRevoked => Call::new("revoked_store_load").aside(),
        HookCall::KeepRevoked { ids, headers } => Call::new("revoked_store_add")
            .with("ids", ids)
            .with("headers", headers)
            .aside(),
        HookCall::SelectQueue {
            queue,
            exchange,
            exchange_type,
            routing_key,
            options,
        } => Call::new("select_queue")
            .with("queue", queue)
            .with("exchange", exchange)
            .with("exchange_type", exchange_type)
            .with("routing_key", routing_key)
            .with("options", options)
            .ranked(Rank::Knowledge),
        HookCall::DeselectQueue { queue } => Call::new("deselect_queue")
            .with("queue", queue)
            .ranked(Rank::Knowledge),
        HookCall::CallTask { action } => Call::new("call_task").with("action", action),
        HookCall::SetEventGroups { all } => {
            let groups = if all {
                Value::Null
            } else {
                Value::from(vec!["worker"])
            };
            Call::new("set_event_groups")
                .with("groups", groups)
                .ranked(Rank::Knowledge)
        }
        HookCall::SetPoolSize { limit } => Call::new("set_pool_size")
            .with("limit", limit)
            .ranked(Rank::Knowledge),
        HookCall::SetTaskAttributes { task, attributes } => Call::new("set_task_attributes")
            .with("task", task)
            .with("attributes", attributes)
            .ranked(Rank::Knowledge),
        HookCall::SuccessWasStored(message) => Call::new("success_was_stored").about(&message),
        HookCall::RetryLost { message, reason } => Call::new("retry_lost")
            .about(&message)
            .with("reason", reason),
        HookCall::Lost {
            message,
            reason,
            pid,
            time_start,
            status,
            requeues,
        } => Call::new("lost")
            .about(&message)
            .with("reason", reason)
            .with("pid", pid)
            .with("time_start", time_start)
            .with("status", status)
            .with("requeues", requeues),
        HookCall::TimedOut {
            message,
            limit,
            pid,
            time_start,
        } => Call::new("timed_out")
            .about(&message)
            .with("limit", limit)
            .with("pid", pid)
            .with("time_start", time_start),
        HookCall::Rejected { message, failure } => {
            with_failure(Call::new("rejected").about(&message), &failure)
        }
        HookCall::Raised { message, failure } => {
            with_failure(Call::new("raised").about(&message), &failure)
        }
        HookCall::Cancelled {
            message,
            emit_retry,
        } => Call::new("cancelled")
            .about(&message)
            .with("emit_retry", emit_retry),
        HookCall::Notify {
            message,
            method,
            pid,
            time_start,
            details,
            failure,
        } => {
            let mut call = Call::new("notify")
                .about(&message)
                .with("method", method)
                .with("pid", pid)
                .with("time_start", time_start);
            for (name, value) in details {
                call = call.with(&name, value);
            }
            match failure {
                Some(failure) => with_failure(call, &failure),
                None => call,
            }
        }
    }
}

fn name(blueprint: Blueprint) -> &'static str {
    match blueprint {
        Blueprint::Worker => "worker",
        Blueprint::Consumer => "consumer",
    }
}

fn with_failure(call: Call, failure: &Failure) -> Call {
    let mut pickle = String::with_capacity(2 * failure.pickle.len());
    for byte in &failure.pickle {
        // Writing to a `String` can't fail.
        let _ = write!(pickle, "{byte:02x}");
    }
    call.with("exception", &*failure.exception)
        .with("pickle", Value::from(pickle))
}
