//! What breaks by chance, and what an operator does meanwhile.

use celeriac_worker::parts::OperatorSignal;
use celeriac_worker::shutdown::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::process::ProcessId;
use crate::server::SessionId;
use crate::world::{Event, Fault, World};

impl World {
    pub(crate) fn break_something(&mut self, fault: Fault) {
        if let Fault::Restart = fault {
            return self.restart_broker();
        }
        let Some(process) = self.any_living() else {
            return;
        };
        match fault {
            Fault::Kill => self.kill(process),
            Fault::Pause => {
                let takes = if self.chance.happens(0.5) {
                    self.chance.ms(100, 5000)
                } else {
                    self.chance.ms(9000, 25_000)
                };
                if let Some(it) = self.living(process)
                    && !it.is_paused
                {
                    it.is_paused = true;
                    self.log(|| format!("{process} stands still for {takes:?}"));
                    self.plan_in(takes, Event::Resume(process));
                }
            }
            Fault::Clock => {
                let by = self.chance.below(60_000) as i64 - 30_000;
                if let Some(it) = self.living(process) {
                    it.clock_offset = by;
                }
                self.log(|| format!("{process} clock jumps to {by} ms"));
            }
            Fault::Main => self.main_dies(process),
            Fault::Zygote => self.zygote_dies(process),
            Fault::Stop => self.stop(process),
            Fault::Command => self.operate(process),
            Fault::Restart => {}
        }
    }

    fn restart_broker(&mut self) {
        if !std::mem::replace(&mut self.server.is_up, false) {
            return;
        }
        let takes = self.chance.ms(100, 15_000);
        self.log(|| format!("the broker is away for {takes:?}"));
        let sessions: Vec<SessionId> = self.server.connections.keys().copied().collect();
        // It may have forgotten that it had delivered a message.
        let marks = self.chance.happens(0.5);
        for session in sessions {
            self.cut(session, marks);
        }
        self.disturb_all();
        self.plan_in(takes, Event::BrokerIsBack);
    }

    pub(crate) fn disturb_all(&mut self) {
        for it in self.processes.values_mut() {
            it.disturbed = Instant::now();
        }
    }

    pub(crate) fn cut(&mut self, session: SessionId, marks: bool) {
        // What was told over it may have arrived.
        if self.chance.happens(0.5) {
            self.server
                .arrive(session, &mut self.auditor, &self.plan, true);
        }
        let back = self.server.cut(session, marks, &mut self.auditor);
        if !back.is_empty() {
            self.log(|| format!("connection {session} is cut: {back:?} go back"));
        }
        self.server.arrived.notify_waiters();
    }

    fn kill(&mut self, process: ProcessId) {
        self.log(|| format!("{process} is killed"));
        if let Some(it) = self.living(process) {
            it.was_killed = true;
            if let Some(task) = it.task.take() {
                task.abort();
            }
        }
        self.is_gone(process);
    }

    /// A worker's process is no more, and with it its children and its connections.
    pub(crate) fn is_gone(&mut self, process: ProcessId) {
        let Some(it) = self.living(process) else {
            return;
        };
        it.is_alive = false;
        it.main = crate::hooks::Main::default();
        let slot = it.slot;
        for child in std::mem::take(&mut it.children).into_values() {
            if let Some(busy) = child.busy {
                self.auditor.died(busy.serial, busy.run);
            }
        }
        let sessions: Vec<SessionId> = self
            .server
            .connections
            .iter()
            .filter(|(_, connection)| connection.process == process)
            .map(|(session, _)| *session)
            .collect();
        for session in sessions {
            self.cut(session, true);
        }
        if !self.is_closing {
            let later = self.chance.ms(50, 5000);
            self.plan_in(later, Event::Start(slot));
        }
    }

    pub(crate) fn resume(&mut self, process: ProcessId) {
        self.log(|| format!("{process} goes on"));
        if let Some(it) = self.living(process) {
            it.is_paused = false;
            it.disturbed = Instant::now();
            it.resumed.notify_waiters();
            if let Some(waker) = it.waker.take() {
                waker.wake();
            }
        }
    }

    /// The operator ends a worker, in one way or another.
    fn stop(&mut self, process: ProcessId) {
        let signals: &[Signal] = self.chance.pick(&[
            &[Signal::Terminate][..],
            &[Signal::Terminate],
            &[Signal::Quit],
            &[Signal::Quit, Signal::Quit],
            &[Signal::Interrupt, Signal::Interrupt],
        ]);
        for signal in signals {
            self.signal_worker(process, *signal);
        }
    }

    pub(crate) fn signal_worker(&mut self, process: ProcessId, signal: Signal) {
        self.log(|| format!("{process} gets {signal:?}"));
        if let Some(it) = self.living(process) {
            it.ends_since.get_or_insert_with(Instant::now);
            let _ = it.orders.try_send(OperatorSignal::End(signal));
        }
    }

    /// The operator has a command for a worker, or for all.
    fn operate(&mut self, process: ProcessId) {
        let ids = self.auditor.unfinished();
        let (command, arguments) = match self.chance.below(6) {
            0 | 1 if !ids.is_empty() => {
                let id = ids[self.chance.below(ids.len())].clone();
                self.auditor.revoked(id.clone());
                ("revoke", json!({"task_id": id}))
            }
            2 if !ids.is_empty() => {
                let id = ids[self.chance.below(ids.len())].clone();
                self.auditor.revoked(id.clone());
                let signal = self.chance.pick(&["SIGTERM", "SIGKILL"]);
                (
                    "revoke",
                    json!({"task_id": id, "terminate": true, "signal": signal}),
                )
            }
            3 => ("pool_restart", json!({})),
            4 => {
                let rate = self.chance.pick(&["1/s", "10/s", "0"]);
                (
                    "rate_limit",
                    json!({"task_name": "late", "rate_limit": rate}),
                )
            }
            _ if self.plan.autoscale.is_none() => {
                // It leaves no pool without processes.
                let shrinks = self.chance.happens(0.5);
                let it = self.living(process);
                let Some(grown) = it.map(|it| &mut it.grown) else {
                    return;
                };
                let method = if shrinks && *grown > 0 {
                    *grown -= 1;
                    "pool_shrink"
                } else {
                    *grown += 1;
                    "pool_grow"
                };
                (method, json!({"n": 1}))
            }
            _ => ("ping", json!({})),
        };
        self.log(|| format!("{process} is asked to {command} {arguments}"));
        let arguments = arguments.as_object().cloned().unwrap_or_default();
        let all = command == "revoke";
        for (other, it) in &mut self.processes {
            if it.is_alive && (all || *other == process) {
                drop(it.asked.try_send((command.to_owned(), arguments.clone())));
            }
        }
    }
}
