//! From an app's description to the parts of its worker, whoever runs that: the command line, or the
//! program that it is embedded in.

use std::collections::HashSet;
use std::sync::Arc;

use bytestring::ByteString;
use celeriac_config::Description;
use celeriac_config::pools::PoolSpec;
use celeriac_core::broker::Broker;
use celeriac_core::clock::Clock;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::pool::Pool;
use celeriac_worker::core::Options;
use celeriac_worker::hooks::Hooks;
use celeriac_worker::parts::{Lane, OperatorSignal, Parts};
use celeriac_worker::vitals::Probes;
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc};

use super::lanes::{self, LaneOf};
use super::meter;
use super::settings::{self, Environment, limits};
use crate::failure::Failure;

/// What the description, the pools and the environment make of a worker.
pub(super) struct Assembly {
    pub(super) lanes: Vec<LaneOf>,
    brokers: Vec<Arc<dyn Broker>>,
    limited: limits::Limited,
    options: Options,
}

/// What a worker is given by whoever runs it.
pub(super) struct Surroundings {
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) asked: mpsc::Receiver<(String, Map<String, Value>)>,
    pub(super) main_died: Arc<Notify>,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) orders: mpsc::Receiver<OperatorSignal>,
    pub(super) probes: Probes,
    pub(super) console: Box<dyn Fn(&str) + Send>,
}

impl Assembly {
    /// Reads the description. `native` are the tasks in Rust; `shutdown_deadline` are the seconds of
    /// the option of this name.
    ///
    /// # Errors
    /// When a setting can't be used.
    pub(super) fn new(
        description: &Description,
        pools: &[PoolSpec],
        environment: &Environment,
        native: &HashSet<ByteString>,
        shutdown_deadline: Option<f64>,
    ) -> Result<Self, Failure> {
        let lanes = lanes::lanes(pools, description, environment, native)?;
        let brokers = settings::brokers_of(description)?;
        let outlive = brokers
            .iter()
            .all(|broker| broker.capabilities().tags_outlive_connections);
        let delays = description.settings.celeriac_delay_store.unwrap_or(true)
            && brokers.iter().all(|broker| broker.capabilities().delays);
        let limited = limits::limits(description, &brokers)?;
        let options = settings::worker(
            description,
            environment,
            shutdown_deadline,
            outlive,
            delays,
            &limited,
            &lanes,
        )?;
        Ok(Self {
            lanes,
            brokers,
            limited,
            options,
        })
    }

    /// Says what the operator should know about the limits.
    pub(super) fn write_warnings(&mut self, journal: &dyn Journal) {
        for warning in self.limited.warnings.drain(..) {
            journal.write(Record::new(Level::Warning, "celery.worker", warning));
        }
    }

    /// The parts of the worker. `pools` are in the order of the lanes; with `purge` their queues are
    /// emptied first.
    ///
    /// # Errors
    /// When a setting can't be used.
    pub(super) fn parts(
        self,
        description: &Description,
        pools: Vec<Box<dyn Pool>>,
        purge: bool,
        surroundings: Surroundings,
    ) -> Result<Parts, Failure> {
        let consumers = self
            .lanes
            .iter()
            .map(|lane| settings::consumer(description, &self.brokers, lane, purge))
            .collect::<Result<Vec<_>, _>>()?;
        let heartbeat = description.remote.heartbeat;
        Ok(Parts {
            options: self.options,
            lanes: consumers
                .into_iter()
                .zip(pools)
                .map(|(consumer, pool)| Lane { consumer, pool })
                .collect(),
            bus: settings::bus(description, self.brokers),
            limit_store: self.limited.store,
            hooks: surroundings.hooks,
            asked: surroundings.asked,
            main_died: surroundings.main_died,
            journal: surroundings.journal,
            clock: surroundings.clock,
            orders: surroundings.orders,
            probes: surroundings.probes,
            console: surroundings.console,
            revoked: description.revoked.clone(),
            keeps_state: description.worker.statedb.is_some(),
            heartbeat: heartbeat.then(|| settings::heartbeat(description)),
            signals_heartbeat: description.has_receivers("heartbeat_sent"),
            meter: Box::new(meter::Linux),
            has_worker_steps: description.has_worker_steps,
            has_consumer_steps: description.has_consumer_steps,
        })
    }
}
