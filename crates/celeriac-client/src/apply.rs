//! What a call is given beside its signature. Celery's counterpart: the arguments of
//! `Signature.apply_async`.

use serde_json::{Map, Value};

/// What a call is given beside its signature.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Apply {
    /// Arguments that go before the signature's own, unless it is immutable.
    pub args: Vec<Value>,
    /// Arguments that replace the signature's own of the same name, unless it is immutable.
    pub kwargs: Map<String, Value>,
    /// Options by the names of `apply_async`, which replace the signature's own; null is no option.
    pub options: Map<String, Value>,
}

impl Apply {
    /// The call with an argument more.
    #[must_use]
    pub fn arg(mut self, value: impl Into<Value>) -> Self {
        self.args.push(value.into());
        self
    }

    /// The call with an option.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.options.insert(name.to_owned(), value.into());
        self
    }
}
