//! What is called when a call has failed.

use celeriac_protocol::Signature;
use serde_json::json;

use super::links::group_of;
use super::{Error, Results};
use crate::call::Call;
use crate::sender::Apply;

impl Results {
    /// Sends errbacks with the id of the call that has failed, as Celery does with those of tasks
    /// that it does not know. (Errbacks of Python functions that take more than the id are called
    /// where a Python worker fails a call, in its own process.)
    pub(super) async fn call_errbacks(
        &self,
        call: &Call,
        errbacks: &[Signature],
    ) -> Result<(), Error> {
        if errbacks.is_empty() {
            return Ok(());
        }
        let errbacks: Vec<_> = errbacks.iter().collect();
        let with = Apply {
            args: vec![json!(call.request.id)],
            options: call.descent(false),
            ..Apply::default()
        };
        self.sender().apply(&group_of(&errbacks), with).await?;
        Ok(())
    }
}
