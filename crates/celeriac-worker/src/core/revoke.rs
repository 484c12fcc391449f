//! Tasks are revoked: by id, by stamped header, and with a signal.
//!
//! Celery's counterpart: `revoke` and its relatives in `celery.worker.control`.

use std::collections::HashSet;
use std::sync::Arc;

use celeriac_core::clock::Now;
use celeriac_core::journal::Level;
use celeriac_core::pool::{RequestKey, signal_number};
use serde_json::{Map, Value};

use super::command::{Answer, Arguments, CONTROL};
use super::remote::Awaited;
use super::{Continuation, Core, Effect};
use crate::control::python;
use crate::events::event::TaskEvent;
use crate::hooks::HookCall;
use crate::request::{Request, Terminated};
use crate::revoked::{Stamps, values};

impl Core {
    pub(super) fn terminate(&mut self, mut arguments: Arguments, now: Now) -> Answer {
        arguments.0.insert("terminate".to_owned(), true.into());
        self.revoke(&arguments, now)
    }

    pub(super) fn revoke(&mut self, arguments: &Arguments, now: Now) -> Answer {
        let ids = arguments.texts("task_id");
        for id in &ids {
            self.revoked.insert(id, now.monotonic);
        }
        let wanted: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let mut known: Vec<&Request> = self
            .requests
            .values()
            .filter(|request| wanted.contains(&*request.head.id))
            .collect();
        known.sort_unstable_by_key(|request| request.key);
        let running: HashSet<&str> = known
            .iter()
            .filter(|request| request.stage.is_running())
            .map(|request| &*request.head.id)
            .collect();
        let unstarted: Vec<String> = ids
            .iter()
            .filter(|id| !running.contains(id.as_str()))
            .cloned()
            .collect();
        let names = known
            .iter()
            .filter(|request| !running.contains(&*request.head.id))
            .map(|request| (request.head.id.to_string(), (&*request.head.task).into()))
            .collect();
        let known: Vec<(RequestKey, String)> = known
            .iter()
            .map(|request| (request.key, request.head.id.to_string()))
            .collect();
        let mark = HookCall::MarkRevoked {
            ids: unstarted,
            names,
        };
        let add = HookCall::AddRevoked {
            ids: ids.clone(),
            headers: Map::new(),
        };
        self.await_main(Awaited::Stored, mark);
        self.effects.push(Effect::Tell(add));
        self.keep_revoked(ids.clone(), Map::new());
        if !arguments.is_true("terminate") {
            let text = format!("Tasks flagged as revoked: {}", ids.join(", "));
            self.notice(Level::Info, CONTROL, &text);
            let ids = python::set(ids.iter().map(String::as_str));
            return Answer::ok(format!("tasks {ids} flagged as revoked"));
        }
        let signal = match signal(arguments.get("signal")) {
            Ok(signal) => signal,
            Err(exception) => return Answer::Raised(exception),
        };
        for (key, id) in &known {
            let text = format!("Terminating {id} ({signal})");
            self.notice(Level::Info, CONTROL, &text);
            self.terminate_request(*key, signal, now);
        }
        if known.is_empty() {
            return Answer::ok("terminate: tasks unknown");
        }
        let ids: Vec<String> = known.into_iter().map(|(_, id)| id).collect();
        Answer::ok(format!("terminate: {}", ids.join(", ")))
    }

    /// Ends a request by a signal if it runs. One that has not begun is discarded when its turn
    /// comes.
    pub(super) fn terminate_request(&mut self, key: RequestKey, signal: i32, now: Now) {
        let Some(request) = self.requests.get_mut(&key) else {
            return;
        };
        let lane = request.lane;
        self.effects.push(Effect::Terminate(lane, key, signal));
        if !request.stage.is_running() || request.terminated.is_some() {
            return;
        }
        // Monitors and clients are told at once, as in Celery; its message is settled when the
        // process is gone and this is stored.
        request.terminated = Some(Terminated::default());
        let message = Arc::clone(&request.message);
        let event = TaskEvent::Revoked {
            terminated: true,
            signum: Some(signal),
            expired: false,
        };
        self.task_event(key, &event, now);
        let call = HookCall::TaskRevoked {
            message,
            reason: "terminated",
            terminated: true,
            signum: Some(signal),
            expired: false,
        };
        self.call(call, Continuation::Terminated(key));
    }

    pub(super) fn revoke_by_stamped_headers(&mut self, arguments: &Arguments, now: Now) -> Answer {
        let signal = match signal(arguments.get("signal")) {
            Ok(signal) => signal,
            Err(exception) => return Answer::Raised(exception),
        };
        let headers: Map<String, Value> = match arguments.get("headers") {
            Some(Value::Object(headers)) => headers.clone(),
            Some(Value::Array(pairs)) => {
                let pairs = pairs.iter().filter_map(Value::as_str);
                pairs
                    .filter_map(|pair| {
                        let (name, rest) = pair.split_once('=')?;
                        let value = rest.split('=').next().unwrap_or(rest);
                        Some((name.to_owned(), value.into()))
                    })
                    .collect()
            }
            _ => Map::new(),
        };
        for (name, stamps) in &headers {
            self.revoked.insert_stamps(name, values(stamps));
        }
        let lists: Map<String, Value> = headers
            .iter()
            .map(|(name, stamps)| (name.clone(), values(stamps).to_vec().into()))
            .collect();
        self.keep_revoked(Vec::new(), lists.clone());
        self.effects.push(Effect::Tell(HookCall::AddRevoked {
            ids: Vec::new(),
            headers: lists,
        }));
        let shown = python::repr(&Value::Object(headers.clone()));
        if !arguments.is_true("terminate") {
            return Answer::ok(format!(
                "headers {shown} flagged as revoked, but not terminated"
            ));
        }
        let mut ended: Vec<(String, Vec<Value>)> = Vec::new();
        let mut running: Vec<RequestKey> = self
            .requests
            .values()
            .filter(|request| request.stage.is_running())
            .map(|request| request.key)
            .collect();
        running.sort_unstable();
        for key in running {
            let Some(request) = self.requests.get(&key) else {
                continue;
            };
            let stamps = Stamps::of(&request.head);
            let mut matches = false;
            for (name, wanted) in &headers {
                for stamp in stamps.matching(name, wanted) {
                    matches = true;
                    match ended.iter_mut().find(|(ended, _)| ended == name) {
                        Some((_, values)) if values.contains(&stamp) => {}
                        Some((_, values)) => values.push(stamp),
                        None => ended.push((name.clone(), vec![stamp])),
                    }
                }
            }
            if matches {
                self.terminate_request(key, signal, now);
            }
        }
        if ended.is_empty() {
            return Answer::ok(format!("headers {shown} were not terminated"));
        }
        let ended: Vec<String> = ended
            .iter()
            .map(|(name, values)| {
                let values: Vec<String> = values.iter().map(python::repr).collect();
                format!("{}: {{{}}}", python::quoted(name), values.join(", "))
            })
            .collect();
        Answer::ok(format!(
            "headers defaultdict(<class 'set'>, {{{}}}) revoked",
            ended.join(", ")
        ))
    }

    /// Other nodes know of these revoked ids.
    pub(super) fn merge_revoked(&mut self, ids: &[String], now: Now) {
        for id in ids {
            self.revoked.insert(id, now.monotonic);
        }
    }

    /// Has workers know of it that start later.
    fn keep_revoked(&mut self, ids: Vec<String>, headers: Map<String, Value>) {
        let options = &self.remote.options;
        if options.revoke_store.is_some() && (options.keeps_stamps || headers.is_empty()) {
            let call = HookCall::KeepRevoked { ids, headers };
            self.await_main(Awaited::Stored, call);
        }
    }
}

/// The number of a signal by name or number; `SIGTERM` when none is named.
///
/// The error is the exception that `celery.platforms.signals.signum` would raise.
fn signal(value: Option<&Value>) -> Result<i32, String> {
    let Some(value) = value.filter(|value| python::is_true(value)) else {
        return Ok(signal_number("SIGTERM").unwrap_or_default());
    };
    if let Some(number) = value.as_i64() {
        return i32::try_from(number)
            .ok()
            .filter(|number| (1..=64).contains(number))
            .ok_or_else(|| format!("ValueError('{number} is no signal')"));
    }
    let name = value.as_str().unwrap_or_default();
    let is_upper = name.chars().any(char::is_uppercase);
    if !is_upper || name.chars().any(char::is_lowercase) {
        return Err("TypeError('signal name must be uppercase string.')".to_owned());
    }
    let full = if name.starts_with("SIG") {
        name.to_owned()
    } else {
        format!("SIG{name}")
    };
    signal_number(&full).ok_or_else(|| {
        let text = format!("module 'signal' has no attribute '{full}'");
        format!("AttributeError({})", python::quoted(&text))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn signals_are_named_as_in_celery() {
        for (value, number) in [
            (json!(null), 15),
            (json!(""), 15),
            (json!("KILL"), 9),
            (json!("SIGUSR1"), 10),
            (json!(2), 2),
        ] {
            assert_eq!(signal(Some(&value)), Ok(number), "{value}");
        }
        assert_eq!(signal(None), Ok(15));
        let upper = "TypeError('signal name must be uppercase string.')";
        for (wrong, error) in [
            (json!("kill"), upper),
            (json!("9"), upper),
            (json!([1]), upper),
            (
                json!("SIGX"),
                "AttributeError(\"module 'signal' has no attribute 'SIGX'\")",
            ),
            (json!(99), "ValueError('99 is no signal')"),
        ] {
            assert_eq!(signal(Some(&wrong)), Err(error.to_owned()), "{wrong}");
        }
    }
}
