//! The simulated broker as a worker sees it: commands that take their time and fail.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{
    Broker, Capabilities, Delivery, DeliveryTag, Error, ErrorKind, Maintained, Session, Settlement,
    Want,
};
use celeriac_core::dead_letter::{Bounds, DeadLetter};
use celeriac_core::queue::Queue;
use celeriac_core::revokes::KeptRevokes;
use celeriac_protocol::Message;
use tokio::time::{sleep, timeout};

use crate::plan::{Family, Mutation};
use crate::process::ProcessId;
use crate::run::going_on;
use crate::server::{BEAT, DEAD_AFTER, SessionId};
use crate::world::{Event, Shared, World, locked};

/// How long a command waits for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a waiting worker waits at most.
const POLL: Duration = Duration::from_secs(1);

pub(crate) struct SimulatedBroker {
    pub(crate) world: Shared,
    pub(crate) process: ProcessId,
    pub(crate) family: Family,
}

/// What happens to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The connection is lost before the command had an effect, or after.
    Lost {
        had_effect: bool,
    },
    /// The answer does not come.
    Hangs {
        had_effect: bool,
    },
}

impl fmt::Debug for SimulatedBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimulatedBroker({})", self.process)
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Connection, "the connection is lost")
}

impl World {
    fn has_waiting(&mut self) -> bool {
        let present = self.present();
        self.server.has_waiting(present)
    }

    fn fault(&mut self) -> (Duration, Fault) {
        let faults = self.plan.faults.clone();
        let is_slow = self.chance.happens(faults.slow);
        let takes = if is_slow {
            self.chance.ms(20, 300)
        } else {
            self.chance.ms(0, 2)
        };
        if self.is_calm {
            return (takes, Fault::None);
        }
        let had_effect = self.chance.happens(0.5);
        let fault = if self.chance.happens(faults.command) {
            Fault::Lost { had_effect }
        } else if self.chance.happens(faults.hang) {
            Fault::Hangs { had_effect }
        } else {
            Fault::None
        };
        (takes, fault)
    }
}

#[async_trait]
impl Broker for SimulatedBroker {
    fn display_url(&self) -> String {
        "simulated://".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: false,
            recovers: true,
            tags_outlive_connections: self.family != Family::Amqp,
            delays: true,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        going_on(&self.world, self.process).await;
        let (takes, fault) = locked(&self.world).fault();
        sleep(takes).await;
        going_on(&self.world, self.process).await;
        let mut world = locked(&self.world);
        if !world.server.is_up || fault != Fault::None {
            world.disturb(self.process);
            return Err(Error::new(ErrorKind::Connection, "nobody answers"));
        }
        let session = world.server.connect(self.process);
        world.log(|| format!("{} connects ({session})", self.process));
        Ok(Box::new(SimulatedSession {
            world: self.world.clone(),
            process: self.process,
            session,
        }))
    }
}

struct SimulatedSession {
    world: Shared,
    process: ProcessId,
    session: SessionId,
}

impl SimulatedSession {
    /// Has the broker do something, unless something comes between.
    async fn command<T>(
        &mut self,
        name: &'static str,
        effect: impl FnOnce(&mut World) -> T + Send,
    ) -> Result<T, Error>
    where
        T: Send,
    {
        going_on(&self.world, self.process).await;
        let (takes, fault) = locked(&self.world).fault();
        sleep(takes).await;
        going_on(&self.world, self.process).await;
        {
            let mut world = locked(&self.world);
            if !world.server.connections.contains_key(&self.session) {
                return Err(lost());
            }
            if fault == Fault::None {
                let done = effect(&mut world);
                return Ok(done);
            }
            world.log(|| format!("{} {name}: {fault:?}", self.process));
            world.disturb(self.process);
            let (Fault::Lost { had_effect } | Fault::Hangs { had_effect }) = fault else {
                return Err(lost());
            };
            if had_effect {
                effect(&mut world);
            }
            if matches!(fault, Fault::Lost { .. }) {
                // The broker may notice later than the worker.
                world.cut_soon(self.session);
                return Err(lost());
            }
        }
        sleep(PATIENCE).await;
        let mut world = locked(&self.world);
        world.disturb(self.process);
        world.cut_soon(self.session);
        Err(lost())
    }
}

impl Drop for SimulatedSession {
    fn drop(&mut self) {
        locked(&self.world).cut_soon(self.session);
    }
}

#[async_trait]
impl Session for SimulatedSession {
    async fn declare(&mut self, _: &Queue) -> Result<(), Error> {
        self.command("declare", |_| ()).await
    }

    async fn subscribe(&mut self, _: &Queue) -> Result<(), Error> {
        Ok(())
    }

    async fn cancel(&mut self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        want: Want,
    ) -> Result<Vec<Delivery>, Error> {
        let (process, session) = (self.process, self.session);
        let told = settlements.to_vec();
        let handed = self
            .command("exchange", move |world| {
                world.exchange(process, session, &told, want)
            })
            .await?;
        {
            let mut world = locked(&self.world);
            let known = world.known.entry(process).or_default();
            known.settled(settlements);
            for (tag, _, _) in &handed {
                known.claimed(*tag);
            }
        }
        // The answer reaches a process that was stopped when it goes on.
        going_on(&self.world, self.process).await;
        Ok(handed
            .into_iter()
            .map(|(tag, _, message)| Delivery {
                tag: DeliveryTag(tag),
                queue: "celery".into(),
                message: Ok(message),
            })
            .collect())
    }

    async fn wait(&mut self) -> Result<(), Error> {
        going_on(&self.world, self.process).await;
        let arrived = {
            let world = locked(&self.world);
            if !world.server.connections.contains_key(&self.session) {
                return Err(lost());
            }
            world.server.arrived.clone()
        };
        let notified = arrived.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if locked(&self.world).has_waiting() {
            sleep(Duration::from_millis(1)).await;
        } else {
            drop(timeout(POLL, notified).await);
        }
        going_on(&self.world, self.process).await;
        Ok(())
    }

    async fn maintain(&mut self) -> Result<Maintained, Error> {
        let (process, session) = (self.process, self.session);
        let (lost, restored) = self
            .command("maintain", move |world| world.maintain(process, session))
            .await?;
        let lost = lost.into_iter().map(DeliveryTag).collect();
        let is_leased = locked(&self.world).plan.is_leased();
        Ok(Maintained {
            lost,
            restored,
            next: BEAT,
            leased: is_leased.then_some(DEAD_AFTER),
        })
    }

    async fn purge(&mut self, _: &str) -> Result<u64, Error> {
        Ok(0)
    }

    async fn size(&mut self, _: &str) -> Result<u64, Error> {
        Ok(0)
    }

    async fn publish(&mut self, _: &str, _: &Message) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Refused, "workers do not publish"))
    }

    async fn revokes(&mut self, _: f64) -> Result<KeptRevokes, Error> {
        let ids = self
            .command("revokes", |world| world.server.revokes.clone())
            .await?;
        Ok(KeptRevokes {
            ids,
            headers: Vec::new(),
        })
    }

    async fn bury(&mut self, letter: &DeadLetter, _: Bounds) -> Result<(), Error> {
        let (process, id) = (self.process, letter.id.clone());
        self.command("bury", move |world| {
            world.log(|| format!("{process} buries {id}"));
            world.auditor.buried(&id);
        })
        .await
    }

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        let (process, session) = (self.process, self.session);
        self.command("close", move |world| world.close(process, session))
            .await
    }
}

impl World {
    fn exchange(
        &mut self,
        process: ProcessId,
        session: SessionId,
        told: &[Settlement],
        want: Want,
    ) -> Vec<(u64, u64, Message)> {
        let clocks = (self.wall(process), self.present());
        let delay = self.chance.happens(0.3) && !self.plan.is_leased();
        let handed = self.server.exchange(
            session,
            (told, want),
            clocks,
            &self.plan,
            &mut self.auditor,
            delay,
        );
        if delay && !told.is_empty() {
            let later = Duration::from_millis(40);
            self.plan_in(later, Event::Arrive(session));
        }
        self.log(|| {
            let serials: Vec<_> = handed.iter().map(|(tag, it, _)| (tag, it)).collect();
            format!(
                "{process} exchange ({session}): {told:?} {want:?} delayed {delay} -> {serials:?}"
            )
        });
        handed
    }

    fn maintain(&mut self, process: ProcessId, session: SessionId) -> (Vec<u64>, u64) {
        if !self.plan.is_leased() {
            self.server
                .arrive(session, &mut self.auditor, &self.plan, true);
            return (Vec::new(), 0);
        }
        let known = self.known.entry(process).or_default();
        let (lost, dead) = self
            .server
            .maintain(process, known, &self.plan, &mut self.auditor);
        for (dead, _) in &dead {
            self.log(|| format!("{process} gives back what {dead} had"));
            self.check_death(*dead);
        }
        if !lost.is_empty() {
            self.log(|| format!("{process} has lost {lost:?}"));
        }
        (lost, dead.len() as u64)
    }

    fn close(&mut self, process: ProcessId, session: SessionId) {
        self.log(|| format!("{process} leaves the broker"));
        self.server
            .arrive(session, &mut self.auditor, &self.plan, true);
        if self.plan.is_leased() {
            self.server.leave(process);
        }
        self.server.cut(session, true, &mut self.auditor);
    }

    /// A worker that others take for dead must have been kept from the broker.
    fn check_death(&mut self, process: ProcessId) {
        if self.plan.is_mutated(Mutation::NoSignOfLife) {
            return;
        }
        let now = tokio::time::Instant::now();
        let it = &self.processes[&process];
        let excused = !it.is_alive
            || it.is_paused
            || it.disturbed + crate::world::DISTURBANCE >= now
            || it.started + crate::world::DISTURBANCE >= now;
        if !excused {
            self.auditor
                .accuse(format!("{process} was silent without a reason"));
        }
    }

    /// The broker notices that a connection is gone: at once, or in a while.
    pub(crate) fn cut_soon(&mut self, session: SessionId) {
        if self.server.connections.contains_key(&session) {
            let most = if self.is_calm { 5 } else { 2000 };
            let later = if self.chance.happens(0.7) {
                Duration::ZERO
            } else {
                self.chance.ms(0, most)
            };
            self.plan_in(later, Event::Cut(session));
        }
    }
}
