//! Records written by the app's own logging, in main.

use std::sync::Arc;

use celeriac_core::clock::Clock;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_pool::python::Main;
use celeriac_pool::python::main::Call;
use serde_json::json;

/// A journal for an app that changed logging.
pub(super) struct Forward {
    level: Level,
    clock: Arc<dyn Clock>,
    main: Main,
}

impl Forward {
    pub(super) fn new(level: Level, clock: Arc<dyn Clock>, main: Main) -> Self {
        Self { level, clock, main }
    }
}

impl Journal for Forward {
    fn writes(&self, level: Level) -> bool {
        level >= self.level
    }

    fn write(&self, record: Record) {
        if !self.writes(record.level) {
            return;
        }
        let record = json!({
            "name": record.logger,
            "level": record.level as u32,
            "message": record.message,
            "created": self.clock.now().as_microsecond() as f64 / 1e6,
            "data": record.data,
        });
        self.main
            .tell(Call::new("log").with("records", json!([record])));
    }
}
