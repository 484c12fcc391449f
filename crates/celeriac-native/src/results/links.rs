//! What follows a success: callbacks, and the next of the chain.

use celeriac_protocol::Signature;
use serde_json::{Map, Value, json};

use super::Results;
use crate::call::Call;
use crate::sender::{Apply, Unsent};

impl Results {
    /// Sends what follows a success. Answers with the results of what was sent: more children.
    ///
    /// # Errors
    /// When a call was not sent; some may have been before it.
    pub(crate) async fn follow(&self, call: &Call, result: &Value) -> Result<Vec<Value>, Unsent> {
        let links = &call.links;
        if links.callbacks.is_empty() && links.chain.is_empty() {
            return Ok(Vec::new());
        }
        let mut children = Vec::new();
        let descent = call.descent(self.settings().inherit_parent_priority);
        let with = |chain: Option<&[Signature]>| {
            let mut options = descent.clone();
            if let Some(chain) = chain {
                options.insert("chain".to_owned(), json!(chain));
            }
            Apply {
                args: vec![result.clone()],
                options,
                ..Apply::default()
            }
        };
        // Of several callbacks, groups are sent one by one and the others as one group: that is what
        // `children` shows.
        if let [callback] = links.callbacks.as_slice() {
            children.push(self.sender().apply(callback, with(None)).await?.tuple);
        } else {
            let is_group =
                |callback: &&Signature| callback.subtask_type.as_deref() == Some("group");
            let (groups, others): (Vec<_>, Vec<_>) = links.callbacks.iter().partition(is_group);
            for group in groups {
                children.push(self.sender().apply(group, with(None)).await?.tuple);
            }
            if !others.is_empty() {
                let group = group_of(&others);
                children.push(self.sender().apply(&group, with(None)).await?.tuple);
            }
        }
        if let Some((next, rest)) = links.chain.split_last() {
            children.push(self.sender().apply(next, with(Some(rest))).await?.tuple);
        }
        Ok(children)
    }
}

/// Calls as a group.
pub(super) fn group_of(tasks: &[&Signature]) -> Signature {
    let mut kwargs = Map::new();
    kwargs.insert("tasks".to_owned(), json!(tasks));
    Signature {
        kwargs,
        subtask_type: Some("group".to_owned()),
        ..Signature::new("celery.group")
    }
}
