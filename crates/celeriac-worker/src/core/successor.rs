//! What the successor of a main that died has to know: it is a copy of the app as it was loaded.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Core, Effect};
use crate::hooks::HookCall;
use crate::shutdown::Phase;

/// What commands have changed in main and nothing else here remembers.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Queues by the order of their last change.
    queues: Vec<ChangedQueue>,
    /// Attributes by the names of tasks.
    attributes: BTreeMap<String, Map<String, Value>>,
}

#[derive(Debug)]
struct ChangedQueue {
    name: String,
    /// What made it known, unless the app did. That never changes: main makes a queue up once, and
    /// knows it from then on.
    selected_by: Option<HookCall>,
    is_consumed: bool,
}

impl Changes {
    /// A queue is consumed because of `call`.
    pub(super) fn queue_selected(&mut self, name: String, call: HookCall) {
        let before = self.take_queue(&name);
        self.queues.push(ChangedQueue {
            name,
            selected_by: before.or(Some(call)),
            is_consumed: true,
        });
    }

    /// A queue is consumed no more.
    pub(super) fn queue_deselected(&mut self, name: &str) {
        let selected_by = self.take_queue(name);
        self.queues.push(ChangedQueue {
            name: name.to_owned(),
            selected_by,
            is_consumed: false,
        });
    }

    fn take_queue(&mut self, name: &str) -> Option<HookCall> {
        let at = self.queues.iter().position(|queue| queue.name == name)?;
        self.queues.remove(at).selected_by
    }

    /// Attributes of a task have been given these values.
    pub(super) fn attributes_set(&mut self, task: &str, attributes: &Map<String, Value>) {
        let known = self.attributes.entry(task.to_owned()).or_default();
        known.extend(attributes.clone());
    }

    fn calls(&self) -> impl Iterator<Item = HookCall> {
        let queues = self.queues.iter().flat_map(|queue| {
            let deselected = (!queue.is_consumed).then(|| HookCall::DeselectQueue {
                queue: queue.name.clone(),
            });
            queue.selected_by.clone().into_iter().chain(deselected)
        });
        let attributes = self.attributes.iter();
        queues.chain(
            attributes.map(|(task, attributes)| HookCall::SetTaskAttributes {
                task: task.clone(),
                attributes: attributes.clone(),
            }),
        )
    }
}

impl Core {
    /// Main has died: its successor is told of all that has changed since the app was loaded.
    ///
    /// What main was asked and has not answered is not repeated here: whoever asks it does that.
    pub fn main_died(&mut self) {
        let told: Vec<_> = self.known_to_main().map(Effect::Tell).collect();
        self.effects.extend(told);
    }

    fn known_to_main(&self) -> impl Iterator<Item = HookCall> {
        let revoked = HookCall::AddRevoked {
            ids: self.revoked.ids(),
            headers: self.revoked.stamps().clone(),
        };
        let events = self.remote.events.as_ref();
        let groups = events.map(|events| HookCall::SetEventGroups {
            all: events.sends_tasks(),
        });
        let size = HookCall::SetPoolSize {
            limit: self.pool_size(),
        };
        let is_cold = self.shutdown.phase() == Phase::Cold;
        [revoked, size]
            .into_iter()
            .chain(groups)
            .chain(self.remote.changes.calls())
            .chain(is_cold.then_some(HookCall::Terminating))
    }
}
