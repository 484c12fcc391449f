//! The rest of a chain fails with the call that has failed.

use std::collections::VecDeque;

use celeriac_protocol::Signature;

use super::{Error, Results, State, exception_value};
use crate::call::Call;
use crate::error::Failure;

impl Results {
    /// Each call that would have come fails with what the one before it has failed with, so that
    /// nobody waits for them (`Backend._fail_chain`).
    pub(super) async fn chain_failed(
        &self,
        chain: &[Signature],
        failure: &Failure,
        is_stored: bool,
    ) -> Result<(), Error> {
        let mut done = Ok(());
        let mut elements: VecDeque<Signature> = chain.iter().cloned().collect();
        while let Some(element) = elements.pop_front() {
            let call = Call::of_link(&element);
            let id = &call.request.id;
            let is_part = element.options.contains_key("chord");
            // Its part was told then.
            let had_failed = if is_part && !id.is_empty() {
                match self.meta(id).await {
                    Ok(meta) => {
                        meta.is_some_and(|meta| matches!(&*meta.status, "FAILURE" | "REVOKED"))
                    }
                    // Its part counts once, however often it is told.
                    Err(error) => {
                        done = done.and(Err(error.into()));
                        false
                    }
                }
            } else {
                false
            };
            if is_stored && !id.is_empty() {
                let stored = self.store(&call, State::failed("FAILURE", failure)).await;
                done = done.and(stored.map_err(Error::from));
            }
            if is_part && !had_failed {
                let value = exception_value(&failure.exception);
                // A part that fails may fail a chord whose body is followed by a chain.
                done = done.and(Box::pin(self.part_ended(&call, "FAILURE", value)).await);
            }
            // The result of a chord is that of its body.
            if element.subtask_type.as_deref() == Some("chord")
                && let Some(body) = element.kwargs.get("body")
                && let Ok(body) = serde_json::from_value(body.clone())
            {
                elements.push_back(body);
            }
        }
        done
    }
}
