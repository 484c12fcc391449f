//! The tasks that a worker runs itself, by name. Celery's counterpart: `celery.app.registry`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use celeriac_core::pool::Job;

use crate::body;
use crate::builtins::OF_OTHERS;
use crate::task::Task;

/// Tasks by name.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<String, Arc<dyn Task>>);

/// Two tasks have one name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are two tasks with the name {name}: give one of them another one")]
pub struct Duplicate {
    /// The name.
    pub name: String,
}

impl Registry {
    /// Adds a task.
    ///
    /// # Errors
    /// When there is one with its name.
    pub fn register(&mut self, task: Arc<dyn Task>) -> Result<(), Duplicate> {
        let name = task.name().to_owned();
        if self.0.contains_key(&name) {
            return Err(Duplicate { name });
        }
        self.0.insert(name, task);
        Ok(())
    }

    /// The task with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Task>> {
        self.0.get(name)
    }

    /// Whether this job is one of its tasks'. One that calls another task, such as `celery.map`, is
    /// only if that is here too.
    pub fn runs(&self, job: &Job) -> bool {
        if !self.0.contains_key(&*job.task) {
            return false;
        }
        !OF_OTHERS.contains(&&*job.task)
            || body::called(&job.body).is_some_and(|name| self.0.contains_key(&name))
    }

    /// All tasks, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Task>)> {
        self.0.iter().map(|(name, task)| (name.as_str(), task))
    }

    /// Whether there is no task.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
