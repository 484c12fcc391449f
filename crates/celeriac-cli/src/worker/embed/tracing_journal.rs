//! A worker's records as events of the crate `tracing`.

use celeriac_core::journal::{Journal, Level, Record};

/// Hands records to the subscriber that the program has.
pub(super) struct TracingJournal;

/// `tracing` wants its level and target at compile time.
macro_rules! event {
    ($level:ident, $record:ident) => {{
        let task = $record.task.as_ref();
        tracing::event!(
            target: "celeriac",
            tracing::Level::$level,
            logger = $record.logger,
            task_id = task.map(|(id, _)| &**id),
            task_name = task.map(|(_, name)| &**name),
            "{}",
            $record.message
        );
    }};
}

impl Journal for TracingJournal {
    fn writes(&self, level: Level) -> bool {
        match level {
            Level::Debug => tracing::enabled!(target: "celeriac", tracing::Level::DEBUG),
            Level::Info => tracing::enabled!(target: "celeriac", tracing::Level::INFO),
            Level::Warning => tracing::enabled!(target: "celeriac", tracing::Level::WARN),
            Level::Error | Level::Critical => {
                tracing::enabled!(target: "celeriac", tracing::Level::ERROR)
            }
        }
    }

    fn write(&self, record: Record) {
        match record.level {
            Level::Debug => event!(DEBUG, record),
            Level::Info => event!(INFO, record),
            Level::Warning => event!(WARN, record),
            Level::Error | Level::Critical => event!(ERROR, record),
        }
    }
}
