//! What a database says, in the kinds of a result backend.

use celeriac_core::backend::{Error, ErrorKind};
use celeriac_core::broker::{self, ErrorKind as Broker};

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what `map_err` hands over"
)]
/// Sorts an error of a connection, which is told in the words of a broker.
pub(super) fn backend_error(error: broker::Error) -> Error {
    let kind = match error.kind {
        // Locks and disks come free.
        Broker::Connection | Broker::Full => ErrorKind::Connection,
        Broker::Denied | Broker::Configuration => ErrorKind::Configuration,
        _ => ErrorKind::Refused,
    };
    let words = |text: &str| {
        text.replace("broker_url", "result_backend")
            .replace("the broker's database", "the database of results")
            .replace("sqla+", "db+")
    };
    let is_too_long = error.message.contains("(1406)");
    let hint = match error.kind {
        Broker::Denied => Some(
            "the user of result_backend must be able to read and write the tables \
             celery_taskmeta and celery_tasksetmeta, or to create them"
                .to_owned(),
        ),
        Broker::Full => Some("make room on the disk of the database".to_owned()),
        Broker::Refused if is_too_long => Some(
            "a column BLOB holds 64 KiB: ALTER TABLE celery_taskmeta MODIFY result LONGBLOB makes \
             room for longer results"
                .to_owned(),
        ),
        Broker::Connection | Broker::Configuration => error.hint.as_deref().map(words),
        _ => error.hint.clone().filter(|hint| !hint.contains("kombu")),
    };
    Error {
        kind,
        message: words(&error.message),
        hint,
    }
}
