//! A call of a task whose result has a type.

use std::marker::PhantomData;
use std::time::Duration;

use celeriac_protocol::Signature;
use serde_json::Value;

/// A call of a task that gives a `T`, to be sent with [`crate::App::send`] or combined with others:
/// Celery's signature. Made by `s()` of a task, or by [`Call::named`] for a task that is elsewhere.
#[derive(Debug, Clone)]
pub struct Call<T> {
    signature: Signature,
    result: PhantomData<fn() -> T>,
}

impl<T> Call<T> {
    /// A call by the task's name. `@.add` is the task `add` of whichever app sends it.
    pub fn new(task: impl Into<String>, args: Vec<Value>) -> Self {
        let signature = Signature {
            args,
            ..Signature::new(task)
        };
        Self {
            signature,
            result: PhantomData,
        }
    }

    /// A call of a task that this program does not have, such as one in Python.
    ///
    /// ```
    /// # use celeriac::Call;
    /// let call = Call::<i64>::named("proj.total").arg([1, 2, 3]).kwarg("start", 10);
    /// ```
    pub fn named(task: impl Into<String>) -> Self {
        Self::new(task, Vec::new())
    }

    /// With one more argument.
    ///
    /// # Panics
    /// When the argument can't be JSON, such as a map whose keys are no text.
    #[must_use]
    pub fn arg(mut self, argument: impl serde::Serialize) -> Self {
        self.signature.args.push(crate::private::argument(argument));
        self
    }

    /// With one more argument by name.
    ///
    /// # Panics
    /// When the argument can't be JSON, such as a map whose keys are no text.
    #[must_use]
    pub fn kwarg(mut self, name: impl Into<String>, argument: impl serde::Serialize) -> Self {
        let argument = crate::private::argument(argument);
        self.signature.kwargs.insert(name.into(), argument);
        self
    }

    /// Before whose arguments no results of other tasks are put.
    #[must_use]
    pub fn immutable(mut self) -> Self {
        self.signature.immutable = true;
        self
    }

    /// With an option of Celery's `apply_async` by its name.
    #[must_use]
    pub fn option(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.signature.options.insert(name.into(), value.into());
        self
    }

    /// Sent to this queue.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.option("queue", queue.into())
    }

    /// With a priority from 0 to 9.
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.option("priority", priority)
    }

    /// Not before so much time has passed.
    #[must_use]
    pub fn countdown(self, wait: Duration) -> Self {
        self.option("countdown", wait.as_secs_f64())
    }

    /// Not after so much time has passed.
    #[must_use]
    pub fn expires(self, after: Duration) -> Self {
        self.option("expires", after.as_secs_f64())
    }

    /// Followed by another call, which is given this one's result.
    #[must_use]
    pub fn link(self, callback: impl Into<Signature>) -> Self {
        self.append("link", callback.into())
    }

    /// Followed by another call if this one fails.
    #[must_use]
    pub fn link_error(self, errback: impl Into<Signature>) -> Self {
        self.append("link_error", errback.into())
    }

    fn append(mut self, name: &str, signature: Signature) -> Self {
        let signature = crate::private::argument(signature);
        let links = self
            .signature
            .options
            .entry(name)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(links) = links {
            links.push(signature);
        }
        self
    }

    /// The call as data.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }
}

impl<T> From<Call<T>> for Signature {
    fn from(call: Call<T>) -> Self {
        call.signature
    }
}
