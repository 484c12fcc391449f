//! The world: simulated workers, and an agenda of what happens to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use celeriac_core::pool::ExitStatus;
use celeriac_protocol::Message;
use celeriac_protocol::message::DeliveryInfo;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::auditor::{Auditor, Life, Serial};
use crate::chance::Chance;
use crate::plan::{Mutation, Plan, UNKNOWN, tasks};
use crate::process::{Process, ProcessId};
use crate::run::Failure;
use crate::server::{Known, Server, SessionId};

/// For how long after a fault a worker may be silent: it waits for an answer, and then before it
/// connects again.
pub(crate) const DISTURBANCE: Duration = Duration::from_secs(12);
/// How long a worker may take to end.
const ENDS_WITHIN: Duration = Duration::from_mins(2);
/// Steps that a failure shows.
const SHOWN: usize = 400;
/// When the world begins.
const DAWN: &str = "2026-01-01T00:00:00Z";

pub(crate) type Shared = Arc<Mutex<World>>;

/// What happens by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    Publish,
    Start(usize),
    Arrive(SessionId),
    Cut(SessionId),
    MainIsDone(ProcessId, u64),
    MainIsBack(ProcessId),
    Forked(ProcessId, u32),
    Up(ProcessId, u32),
    Reads(ProcessId, u32),
    Finishes(ProcessId, u32, usize, u64),
    Stores(ProcessId, u32, Serial, usize),
    Reports(ProcessId, u32, usize),
    Dies(ProcessId, u32, ExitStatus),
    IsCollected(ProcessId, u32, ExitStatus),
    ZygoteIsBack(ProcessId),
    Resume(ProcessId),
    BrokerIsBack,
    Fault(Fault),
    Calm,
}

/// What breaks again and again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Kill,
    Pause,
    Clock,
    Restart,
    Main,
    Zygote,
    Stop,
    Command,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) chance: Chance,
    pub(crate) auditor: Auditor,
    pub(crate) server: Server,
    pub(crate) processes: BTreeMap<ProcessId, Process>,
    pub(crate) known: BTreeMap<ProcessId, Known>,
    /// Whether nothing breaks any more.
    pub(crate) is_calm: bool,
    /// Whether workers that end stay away.
    pub(crate) is_closing: bool,
    pub(crate) agenda: BTreeMap<(Instant, u64), Event>,
    planned: u64,
    pub(crate) changed: Arc<Notify>,
    pub(crate) began: Instant,
    pub(crate) published: usize,
    pub(crate) next_serial: Serial,
    /// The last message that these workers are for.
    pub(crate) last_serial: Serial,
    pub(crate) next_process: u32,
    pub(crate) trace: Option<Vec<String>>,
}

pub(crate) fn locked(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The serial number in the headers of a message.
pub(crate) fn serial_of(message: &Message) -> Serial {
    serial_in_text(&message.headers)
}

pub(crate) fn serial_in_text(text: &str) -> Serial {
    let (_, rest) = text.split_once(r#""serial":"#).unwrap_or_default();
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let number = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    number.parse().expect("every message has a serial number")
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>, traces: bool) -> Self {
        let mut chance = Chance::new(seed);
        let plan = Plan::new(&mut chance, mutation);
        let mut world = Self {
            server: Server::new(&plan),
            plan,
            chance,
            auditor: Auditor::default(),
            processes: BTreeMap::new(),
            known: BTreeMap::new(),
            is_calm: false,
            is_closing: false,
            agenda: BTreeMap::new(),
            planned: 0,
            changed: Arc::new(Notify::new()),
            began: Instant::now(),
            published: 0,
            next_serial: 1,
            last_serial: Serial::MAX,
            next_process: 1,
            trace: traces.then(Vec::new),
        };
        let plan = format!("{:?}", world.plan);
        world.log(|| plan);
        for slot in 0..world.plan.workers {
            let later = world.chance.ms(0, 100);
            world.plan_in(later, Event::Start(slot));
        }
        world.plan_in(Duration::ZERO, Event::Publish);
        world.plan_in(world.plan.chaos, Event::Calm);
        for fault in [
            Fault::Kill,
            Fault::Pause,
            Fault::Clock,
            Fault::Restart,
            Fault::Main,
            Fault::Zygote,
            Fault::Stop,
            Fault::Command,
        ] {
            world.plan_fault(fault);
        }
        world
    }

    pub(crate) fn log(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let at = self.began.elapsed().as_secs_f64();
            trace.push(format!("{at:9.3} {}", text()));
        }
    }

    pub(crate) fn plan_in(&mut self, later: Duration, event: Event) {
        self.planned += 1;
        self.agenda
            .insert((Instant::now() + later, self.planned), event);
        self.changed.notify_one();
    }

    pub(crate) fn traces(&self) -> bool {
        self.trace.is_some()
    }

    pub(crate) fn plan_fault(&mut self, fault: Fault) {
        let faults = &self.plan.faults;
        let mean = match fault {
            Fault::Kill => faults.kill,
            Fault::Pause => faults.pause,
            Fault::Clock => faults.clock,
            Fault::Restart => faults.restart,
            Fault::Main => faults.main,
            Fault::Zygote => faults.zygote,
            Fault::Stop => faults.stop,
            Fault::Command => faults.command_of_operator,
        };
        if let Some(mean) = mean {
            let later = self.chance.ms(0, 2 * mean.as_millis() as usize);
            self.plan_in(later, Event::Fault(fault));
        }
    }

    pub(crate) fn living(&mut self, process: ProcessId) -> Option<&mut Process> {
        self.processes
            .get_mut(&process)
            .filter(|process| process.is_alive)
    }

    pub(crate) fn any_living(&mut self) -> Option<ProcessId> {
        let living: Vec<ProcessId> = self
            .processes
            .iter()
            .filter(|(_, it)| it.is_alive)
            .map(|(process, _)| *process)
            .collect();
        (!living.is_empty()).then(|| self.chance.pick(&living))
    }

    /// What the broker's clock shows, which is right.
    pub(crate) fn present(&self) -> Timestamp {
        let dawn: Timestamp = DAWN.parse().unwrap_or_default();
        dawn + self.began.elapsed()
    }

    /// What the wall clock of a worker shows.
    pub(crate) fn wall(&mut self, process: ProcessId) -> Timestamp {
        let present = self.present();
        let it = self.processes.get_mut(&process).expect("it was started");
        let wall = present + jiff::SignedDuration::from_millis(it.clock_offset);
        it.latest = it.latest.max(wall);
        wall
    }

    /// The latest that it has shown.
    pub(crate) fn latest(&mut self, process: ProcessId) -> Timestamp {
        self.wall(process);
        self.processes[&process].latest
    }

    /// Something keeps a worker from its broker.
    pub(crate) fn disturb(&mut self, process: ProcessId) {
        if let Some(it) = self.processes.get_mut(&process) {
            it.disturbed = Instant::now();
        }
    }

    fn publish(&mut self) {
        let tasks = tasks();
        let at = self.chance.below(tasks.len() + 1);
        let is_known = at < tasks.len();
        let task = if is_known { tasks[at].0 } else { UNKNOWN };
        // Few are of a task that nobody knows.
        let task = if !is_known && self.chance.happens(0.8) {
            "late"
        } else {
            task
        };
        let present = self.present();
        let eta = self.chance.happens(0.25);
        let eta = eta.then(|| present + self.chance.ms(0, 20_000));
        let expires = self.chance.happens(0.15);
        let expires = expires.then(|| present + self.chance.ms(0, 30_000));
        let serial = self.next_serial;
        let mut life = Life::new(format!("id-{serial}"), task);
        life.eta = eta;
        life.expires = expires;
        self.publish_message(life);
        self.published += 1;
        if self.published < self.plan.messages {
            let is_burst = self.is_calm || self.chance.happens(0.5);
            let most = self.plan.chaos.as_millis() as usize * 3 / self.plan.messages;
            let later = self.chance.ms(0, if is_burst { 5 } else { most });
            self.plan_in(later, Event::Publish);
        }
    }

    /// A task is sent again, later.
    pub(crate) fn publish_retry(&mut self, serial: Serial) {
        let later = self.chance.ms(0, 5000);
        let eta = self.present() + later;
        let life = self.auditor.life(serial);
        let mut again = Life::new(life.id.clone(), life.task);
        again.retries = life.retries + 1;
        again.eta = Some(eta);
        again.expires = life.expires;
        self.publish_message(again);
    }

    fn publish_message(&mut self, life: Life) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let headers = json!({
            "id": life.id,
            "task": life.task,
            "retries": life.retries,
            "eta": life.eta.map(|eta| eta.to_string()),
            "expires": life.expires.map(|expires| expires.to_string()),
            "serial": serial,
        });
        let message = Message {
            body: "[[], {}, {}]".into(),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            headers: headers.to_string().into(),
            properties: "{}".into(),
            delivery_info: DeliveryInfo::default(),
        };
        self.log(|| format!("publishes {headers}"));
        self.auditor.published(serial, life);
        self.server.publish(serial, message);
    }

    /// Lets something happen. What starts a worker is answered, and is for the caller to do.
    pub(crate) fn happen(&mut self, event: Event) -> Option<usize> {
        match event {
            Event::Publish => self.publish(),
            Event::Start(slot) => return Some(slot),
            Event::Arrive(session) => {
                self.server
                    .arrive(session, &mut self.auditor, &self.plan, false);
            }
            Event::Cut(session) => self.cut(session, true),
            Event::MainIsDone(process, generation) => self.main_is_done(process, generation),
            Event::MainIsBack(process) => self.main_is_back(process),
            Event::Forked(process, number) => self.child_is_forked(process, number),
            Event::Up(process, number) => self.child_is_up(process, number),
            Event::Reads(process, number) => self.child_reads(process, number),
            Event::Finishes(process, number, run, plan) => {
                self.child_finishes(process, number, run, plan);
            }
            Event::Stores(process, number, serial, run) => {
                let is_there = self
                    .living(process)
                    .is_some_and(|it| it.children.get(&number).is_some_and(|it| it.is_alive));
                if is_there {
                    self.auditor
                        .finishes(serial, run, crate::auditor::Finish::Success);
                }
            }
            Event::Reports(process, number, run) => self.child_reports(process, number, run),
            Event::Dies(process, number, status) => self.child_dies(process, number, status),
            Event::IsCollected(process, number, status) => {
                self.child_is_collected(process, number, status);
            }
            Event::ZygoteIsBack(process) => self.zygote_is_back(process),
            Event::Resume(process) => self.resume(process),
            Event::BrokerIsBack => {
                self.log(|| "the broker is back".to_owned());
                self.server.is_up = true;
                self.disturb_all();
            }
            Event::Fault(fault) => {
                if !self.is_calm {
                    self.break_something(fault);
                    self.plan_fault(fault);
                }
            }
            Event::Calm => {
                self.log(|| "nothing breaks any more".to_owned());
                self.is_calm = true;
            }
        }
        None
    }

    pub(crate) fn check_ends(&mut self) {
        let late = self.processes.iter().find(|(_, it)| {
            it.is_alive
                && it
                    .ends_since
                    .is_some_and(|since| since.elapsed() > ENDS_WITHIN)
        });
        let late = late.map(|(process, _)| *process);
        if self.is_calm
            && let Some(process) = late
        {
            self.auditor
                .accuse(format!("{process} was told to end, and does not"));
        }
    }

    pub(crate) fn failure(&mut self, seed: u64) -> Option<Failure> {
        let violation = self.auditor.violation()?.to_owned();
        let trace = self.trace.take().unwrap_or_default();
        let shown = trace.len().saturating_sub(SHOWN);
        Some(Failure {
            seed,
            violation,
            trace: trace[shown..].to_vec(),
        })
    }
}
